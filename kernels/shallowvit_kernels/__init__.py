"""Fused attention kernels for what TensorRT leaves unfused: their code, their references, and how they are compiled.

Nothing here imports ``shallowvit`` or ``shallowvit_bench``. What a kernel computes is a ``Variant``.
"""
