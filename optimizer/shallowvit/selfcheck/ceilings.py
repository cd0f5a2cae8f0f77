"""Measure what a device can do at best: how fast it copies memory and how fast it multiplies matrices.

A newcomer's trap: these are what PyTorch reaches here and now, at the clocks of this moment, and not the figures of a data
sheet; a kernel may be a little faster.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

__all__ = ["Ceiling", "measure_ceilings"]

_REPEATS = 20
_WARM_UP = 3


@dataclass(frozen=True)
class Ceiling:
    """The median and best of ``repeats`` of one operation; ``unit`` is GB/s (bytes read and written) or TFLOPS."""

    name: str
    unit: str
    median: float
    best: float
    repeats: int


def measure_ceilings(device: str) -> tuple[Ceiling, ...]:
    """Measure copy bandwidth and matrix rates on ``cuda`` or ``cpu``."""
    import torch

    on_gpu = device == "cuda"
    found = [_copy(device, (1 << 30) if on_gpu else (1 << 28))]
    side = 8192 if on_gpu else 1024
    for dtype in (torch.float32, torch.float16, torch.bfloat16) if on_gpu else (torch.float32, torch.bfloat16):
        found.append(_product(device, side, dtype))
    return tuple(found)


def _copy(device: str, size: int) -> Ceiling:
    import torch

    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source), device)
    return _ceiling("memory copy", "GB/s", 2 * size / 1e9, seconds)


def _product(device: str, side: int, dtype: torch.dtype) -> Ceiling:
    import torch

    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    seconds = _seconds(lambda: torch.mm(left, right, out=out), device)
    name = f"matrix product {str(dtype).removeprefix('torch.')}, {side} x {side}"
    return _ceiling(name, "TFLOPS", 2 * side**3 / 1e12, seconds)


def _seconds(work: Callable[[], object], device: str) -> list[float]:
    """Seconds of each repeat, complete."""
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(_WARM_UP):
        work()
    taken = []
    for _ in range(_REPEATS):
        wait()
        start = perf_counter()
        work()
        wait()
        taken.append(perf_counter() - start)
    return taken


def _ceiling(name: str, unit: str, amount: float, seconds: list[float]) -> Ceiling:
    return Ceiling(name, unit, amount / statistics.median(seconds), amount / min(seconds), len(seconds))
