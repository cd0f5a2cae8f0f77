"""A small sample of a block's weights and what it tells: stored precision, shape of the distribution, fp16's subnormals.

A newcomer's trap: a file may store fp32 numbers that were rounded to fp16 long ago (the checkpoint behind the published tables
does), so the precision is read off the values' bits, not off the file's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

__all__ = ["Sketch", "sketch"]

_SAMPLED = 1 << 16  # weights a matrix: enough for a kurtosis to 0.02, and a percent of a large matrix
_FP16_LEAST_NORMAL = 2.0**-14


@dataclass(frozen=True)
class Sketch:
    """What a sample of a block's weights says. ``mean_abs_over_rms`` of a Gaussian is 0.798, of a uniform one 0.866."""

    stored: str  # fp32, fp16 or bf16: the narrowest that holds every sampled value
    kurtosis: float  # excess
    mean_abs_over_rms: float
    fp16_subnormals: float  # share of the values that are, 0 where stored isn't fp16


def sketch(matrices: Sequence[torch.Tensor]) -> Sketch:
    """Sample up to 65,536 weights a matrix, evenly spread, and describe them together."""
    parts = []
    for matrix in matrices:
        flat = matrix.detach().reshape(-1)
        stride = max(1, flat.numel() // _SAMPLED) | 1  # odd, so that it doesn't run along one column
        parts.append(flat[::stride].float().numpy())
    values = np.concatenate(parts) if parts else np.zeros(1, np.float32)
    stored = _stored(values)
    wide = values.astype(np.float64)
    power = float((wide * wide).mean())
    # squared twice: numpy raises to other powers one number at a time, 70 times slower
    square_centred = (wide - wide.mean()) ** 2
    variance = float(square_centred.mean())
    tiny = (np.abs(values) < _FP16_LEAST_NORMAL) & (values != 0)
    return Sketch(
        stored=stored,
        kurtosis=float((square_centred**2).mean() / variance**2 - 3) if variance else 0.0,
        mean_abs_over_rms=float(np.abs(wide).mean() / power**0.5) if power else 0.0,
        fp16_subnormals=float(tiny.mean()) if stored == "fp16" else 0.0,
    )


def _stored(values: np.ndarray[Any, np.dtype[np.float32]]) -> str:
    bits = np.bitwise_or.reduce(values.view(np.uint32))
    if not bits & 0xFFFF:
        return "bf16"
    with np.errstate(over="ignore"):
        return "fp16" if np.array_equal(values.astype(np.float16).astype(np.float32), values) else "fp32"
