"""Fused attention kernels for what TensorRT leaves unfused.

Empty in this version: the package exists so that its name, its place and its one-way imports are settled. Nothing here is
used by ``shallowvit`` yet.
"""
