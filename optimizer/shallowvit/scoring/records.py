"""The record that the stage *score* returns. Higher always means keep."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["BlockScore", "BlockScores"]


@dataclass(frozen=True)
class BlockScore:
    """One block's score and how many weights it was computed from (0 for criteria that look at none)."""

    block: int
    path: str
    score: float
    weights: int


@dataclass(frozen=True)
class BlockScores:
    """One score per block of a model, by a criterion; ``weights_sha256`` says of which weights."""

    criterion: str
    needs: str  # nothing, unlabelled or labelled data
    unit: str
    settings: dict[str, int]
    weights_sha256: str
    blocks: tuple[BlockScore, ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def ascending(self) -> tuple[int, ...]:
        """The blocks' numbers, the first to remove first; of equal scores the deeper block goes first."""
        return tuple(row.block for row in sorted(self.blocks, key=lambda row: (row.score, -row.block)))
