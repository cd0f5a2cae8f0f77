"""Fused attention kernels for what TensorRT leaves unfused: their code, their references, and how they are compiled.

Nothing here imports ``shallowvit`` or ``shallowvit_bench``. What a kernel computes is a ``Variant``; torch and Triton are
imported when one of the functions is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calling import run_variant
    from .calls import fused_attention, gaussian_attention, landmark_attention, linear_attention
    from .errors import KernelError
    from .records import Variant

_HOMES = {
    "KernelError": "errors",
    "Variant": "records",
    "fused_attention": "calls",
    "gaussian_attention": "calls",
    "landmark_attention": "calls",
    "linear_attention": "calls",
    "run_variant": "calling",
}

__all__ = [
    "KernelError",
    "Variant",
    "fused_attention",
    "gaussian_attention",
    "landmark_attention",
    "linear_attention",
    "run_variant",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
