"""Weight-number entropy: the Gardener criterion (Xiang, Wu, Bai, arXiv 2602.03918) on the floating-point grid.

H = -sum_v p(v) ln p(v) over the distinct values v of a block's rank-2 weights; a high H means keep. The trap: the paper's text
defines p over equal intervals, but the released code, which made its tables, counts exact float values, a grid that is finer
near zero, and the two can rank blocks in opposite order. This is the latter. Exact values (23 mantissa bits) saturate: on
small blocks nearly every value is unique, so the score is ln N plus counting noise. Rounding to fewer mantissa bits first
keeps the published order and makes the score the same whether the checkpoint is stored in fp32 or bf16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

__all__ = ["EXACT_MANTISSA_BITS", "weight_entropy"]

EXACT_MANTISSA_BITS = 23
_COUNTED_BITS = 7  # sign, exponent and 7 mantissa bits are the upper 16 bits: 65,536 counters instead of a sort


def weight_entropy(matrices: Iterable[torch.Tensor], mantissa_bits: int) -> float:
    """Return the entropy in nats of the values in the matrices together, rounded to ``mantissa_bits`` (1 to 23; 23: exact).

    The values are taken as fp32; rounding is to nearest, ties to even; -0.0 counts as 0.0, as the released code counts it.
    """
    arrays = [np.ascontiguousarray(matrix.detach().float().numpy()).ravel().view(np.uint32) for matrix in matrices]
    if mantissa_bits <= _COUNTED_BITS:
        counts = np.zeros(1 << 16, dtype=np.int64)
        for bits in arrays:
            counts += np.bincount(_rounded(bits, mantissa_bits) >> 16, minlength=1 << 16)
        counts = _zeros_merged(counts)
    else:
        values = np.concatenate([_rounded(bits, mantissa_bits) for bits in arrays])
        values[values == 1 << 31] = 0
        values.sort()
        edges = np.flatnonzero(values[1:] != values[:-1])
        counts = np.diff(edges, prepend=-1, append=len(values) - 1)
    shares = counts[counts > 0] / counts.sum()
    # + 0.0: one value alone gives -0.0
    return float(-(shares * np.log(shares)).sum()) + 0.0


def _rounded(bits: np.ndarray[Any, np.dtype[np.uint32]], mantissa_bits: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Round fp32 bit patterns to ``mantissa_bits``; a carry runs into the exponent, as it should."""
    dropped = EXACT_MANTISSA_BITS - mantissa_bits
    if dropped == 0:
        return bits.copy()
    half_less_one = np.uint32((1 << (dropped - 1)) - 1)
    last_kept = (bits >> np.uint32(dropped)) & np.uint32(1)
    rounded = bits + half_less_one + last_kept
    rounded &= np.uint32((0xFFFFFFFF << dropped) & 0xFFFFFFFF)
    return rounded


def _zeros_merged(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    counts[0] += counts[1 << 15]
    counts[1 << 15] = 0
    return counts
