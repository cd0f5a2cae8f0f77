"""The records of the stage *score*: what a criterion sees of a block, what it answers, and the scores of a model.

Higher always means keep. A newcomer's trap: ``weights_sha256`` is of the whole model and absent when the scores were read
straight from a checkpoint, without building the model; ``blocks_sha256`` is of the scored blocks' matrices and always there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

__all__ = ["BlockScore", "BlockScores", "BlockWeights", "Calibration", "Estimate", "Interval", "Matrix", "Needs"]


class Needs(StrEnum):
    """What a criterion needs beside the weights."""

    NOTHING = "nothing"
    UNLABELLED = "unlabelled"
    LABELLED = "labelled"


class Estimate(NamedTuple):
    """A score and the standard deviation of its sampling noise, where the criterion has one (None: not known)."""

    score: float
    noise: float | None = None


@dataclass(frozen=True)
class Matrix:
    """One weight matrix of a block, read when asked for: rank 2, in the dtype it is stored in, on the CPU."""

    name: str  # within the block
    shape: tuple[int, int]
    read: Callable[[], torch.Tensor] = field(repr=False, compare=False)

    @property
    def numel(self) -> int:
        """The number of weights."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class BlockWeights:
    """One block as its matrices: query, key, value, projection and the layers of the MLP; no biases, norms or tables."""

    block: int  # over all chosen stacks
    stack: str
    path: str
    matrices: tuple[Matrix, ...]

    @property
    def numel(self) -> int:
        """The number of weights in all matrices."""
        return sum(matrix.numel for matrix in self.matrices)


@dataclass(frozen=True)
class Calibration:
    """Inputs that a criterion runs the model on: float32 [N, ...] as the model takes them, with int64 labels [N] or None."""

    name: str
    inputs: torch.Tensor = field(repr=False)
    labels: torch.Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class BlockScore:
    """One block's score and how many weights it was computed from (0 for criteria that look at none).

    ``noise`` is the standard deviation of the score's sampling noise, None where the criterion knows none.
    """

    block: int
    path: str
    score: float
    weights: int
    stack: str = ""
    noise: float | None = None


class Interval(NamedTuple):
    """What removing the blocks ``first`` to ``last`` of a stack together costs, by a criterion that judges runs as a whole."""

    first: int
    last: int
    score: float


@dataclass(frozen=True)
class BlockScores:
    """One score per block of a model, by a criterion; the hashes say of which weights."""

    criterion: str
    needs: str
    unit: str
    settings: dict[str, Any]
    weights_sha256: str | None
    blocks: tuple[BlockScore, ...]
    warnings: tuple[str, ...] = ()
    blocks_sha256: str = ""
    intervals: tuple[Interval, ...] = ()
    reason: str = ""  # of auto: why this criterion

    @property
    def ascending(self) -> tuple[int, ...]:
        """The blocks' numbers, the first to remove first; of equal scores the deeper block goes first."""
        return tuple(row.block for row in sorted(self.blocks, key=lambda row: (row.score, -row.block)))
