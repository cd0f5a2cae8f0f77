"""Measure on other devices over SSH. This side stays at home: it needs the extra ``remote`` and Python 3.11.

    probe -> send what isn't there -> start -> follow -> bring the rows home

A newcomer's trap: a step may be done twice, because the connection may drop at any moment; each one is written so that doing it
again costs a look.
"""
