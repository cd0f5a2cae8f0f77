"""Criteria of the singular values of a block's matrices, and of the norms of those that write to the residual stream.

The singular values come from the eigenvalues of the Gram matrix of the smaller side, in float64, several times faster than a
singular value decomposition. A newcomer's trap: squaring costs half of the digits, so singular values below 1e-8 of the largest
are noise; the criteria here weigh values by their squares, where that doesn't show.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from .records import Estimate
from .weights import chunks_of, dot, map_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .criteria import ScoreConfig
    from .records import BlockWeights

__all__ = ["relative_norm", "spectral_entropy", "stable_rank"]


def stable_rank(matrices: Iterable[torch.Tensor], _config: ScoreConfig) -> Estimate:
    """Mean over the matrices of |W|_F^2 / |W|_2^2 (Rudelson, Vershynin 2007) over the full rank, the smaller side; in 0..1."""
    return _mean(
        [float(energies.sum() / energies.max()) / len(energies) for energies in map(_energies, matrices) if energies.any()]
    )


def spectral_entropy(matrices: Iterable[torch.Tensor], _config: ScoreConfig) -> Estimate:
    """Mean over the matrices of the entropy of s^2 / sum s^2 over the singular values s, over ln of the smaller side; in 0..1.

    The exponential of the entropy is the effective rank of Roy and Vetterli (2007), there with s in place of s^2.
    """
    return _mean([_entropy(energies) / math.log(len(energies)) for energies in map(_energies, matrices) if len(energies) > 1])


def relative_norm(blocks: Sequence[BlockWeights], _config: ScoreConfig) -> list[Estimate]:
    """How much a block can write to the residual stream over all that is written up to and with it: our own design, unproven.

    F_i is the Frobenius norm of the block's matrices with as many outputs as the stream is wide: the attention's projection and
    the last layer of the MLP, and separate query, key and value layers too, which shapes alone don't tell apart. The score is
    F_i over the root of the sum of F_j^2 for j up to i in the same stack, so the first block of a stack has 1 by definition,
    and equal norms fall as 1 / sqrt(i + 1): the score leans to depth order. What the matrices multiply isn't seen, nor is the
    patch embedding, which stands in the stream before the first block.
    """
    norms = map_blocks(_written, blocks)
    sums: dict[str, float] = {}
    found = []
    for block, norm in zip(blocks, norms, strict=True):
        sums[block.stack] = sums.get(block.stack, 0.0) + norm
        found.append(Estimate(math.sqrt(norm / sums[block.stack]) if norm else 0.0))
    return found


def _mean(values: list[float]) -> Estimate:
    return Estimate(math.fsum(values) / len(values) if values else 0.0)


def _energies(matrix: torch.Tensor) -> torch.Tensor:
    """The squared singular values, ascending."""
    wide = matrix.detach().double()
    if wide.shape[0] > wide.shape[1]:
        wide = wide.T
    largest = wide.abs().max() if wide.numel() else wide.new_zeros(())
    if not largest:
        return wide.new_zeros(wide.shape[0])
    wide = wide / largest  # squares of fp32's largest and smallest numbers leave the digits, if not the range, of float64
    return torch.linalg.eigvalsh(wide @ wide.T).clamp_min_(0)


def _entropy(energies: torch.Tensor) -> float:
    total = energies.sum()
    return float(torch.special.entr(energies / total).sum()) if total else 0.0


def _written(block: BlockWeights) -> float:
    """The summed squares of the block's matrices with ``width`` outputs."""
    width = _width(block)
    writers = (matrix.read() for matrix in block.matrices if matrix.shape[0] == width)
    return math.fsum(dot(part, part) for part in (chunk.astype(np.float64) for chunk in chunks_of(writers)))


def _width(block: BlockWeights) -> int:
    """The stream's width: the size that most of the block's matrices have as a side, the smallest of those."""
    sides = Counter(side for matrix in block.matrices for side in set(matrix.shape))
    return min(sides, key=lambda side: (-sides[side], side), default=0)
