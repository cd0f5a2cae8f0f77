"""Attention as nodes of our own: which attentions of a graph they can stand for, and what an engine needs to run them."""
