"""The table of criteria and ``score``, which applies one to a loaded model.

A criterion sees one block at a time as its rank-2 weights (query, key, value, projection, both layers of the MLP: no biases, no
norms) and gives one number, where higher means keep. A criterion that needs no weights is here too, so that every table of
scores has something to be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ShallowvitError
from .entropy import EXACT_MANTISSA_BITS, weight_entropy
from .records import BlockScore, BlockScores

if TYPE_CHECKING:
    import torch

    from ..models import LoadedModel

__all__ = ["CRITERIA", "Criterion", "ScoreConfig", "score"]


@dataclass(frozen=True)
class ScoreConfig:
    """How to score.

    Args:
        criterion: A key of ``CRITERIA``.
        mantissa_bits: Of ``entropy``: 23 counts exact fp32 values, as the released implementation does. The default of 7 is the
            bf16 grid, which ranks the same for a checkpoint stored in fp32 or bf16 and stays clear of its own sampling noise
            from about 50,000 weights a block on, where the exact count is noise up to several millions.
        seed: Of ``random``.
    """

    criterion: str = "entropy"
    mantissa_bits: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise ShallowvitError(f"score: unknown criterion {self.criterion!r}; choose from {', '.join(CRITERIA)}")
        if not 1 <= self.mantissa_bits <= EXACT_MANTISSA_BITS:
            raise ShallowvitError(
                f"score: --mantissa-bits {self.mantissa_bits} is out of range; fp32 has 1 to {EXACT_MANTISSA_BITS}"
            )


@dataclass(frozen=True)
class Criterion:
    """A row of the table: what it computes, what data it needs, its unit, the settings it reads."""

    function: Callable[[Sequence[torch.Tensor], int, int, ScoreConfig], float]
    needs: str
    unit: str
    settings: tuple[str, ...] = ()
    weighs: bool = True


def _entropy(matrices: Sequence[torch.Tensor], _block: int, _blocks: int, config: ScoreConfig) -> float:
    return weight_entropy(matrices, config.mantissa_bits)


def _l1(matrices: Sequence[torch.Tensor], _block: int, _blocks: int, _config: ScoreConfig) -> float:
    """Sum of absolute weights, in float64 (the L1 baseline of the paper's Table 3)."""
    return float(sum(matrix.abs().double().sum().item() for matrix in matrices))


def _depth(_matrices: Sequence[torch.Tensor], block: int, blocks: int, _config: ScoreConfig) -> float:
    """Last blocks first: how many blocks stand behind this one."""
    return float(blocks - 1 - block)


def _random(_matrices: Sequence[torch.Tensor], block: int, _blocks: int, config: ScoreConfig) -> float:
    return float(np.random.default_rng([config.seed, block]).random())


CRITERIA = {
    "entropy": Criterion(_entropy, "nothing", "nats", ("mantissa_bits",)),
    "l1": Criterion(_l1, "nothing", "sum of |w|"),
    "depth": Criterion(_depth, "nothing", "blocks behind", weighs=False),
    "random": Criterion(_random, "nothing", "uniform in 0..1", ("seed",), weighs=False),
}


def score(model: LoadedModel, config: ScoreConfig | None = None) -> BlockScores:
    """Score every block of the model's chosen stacks; higher means keep.

    Raises:
        ShallowvitError: a block has no rank-2 weights and the criterion needs them.
    """
    config = config or ScoreConfig()
    criterion = CRITERIA[config.criterion]
    rows = []
    for block in model.blocks:
        matrices = [p for p in model.module.get_submodule(block.path).parameters() if p.ndim == 2] if criterion.weighs else []
        if criterion.weighs and not matrices:
            raise ShallowvitError(f"score: {block.path} has no rank-2 weights for {config.criterion}; use --criterion depth")
        value = criterion.function(matrices, block.index, len(model.blocks), config)
        rows.append(BlockScore(block.index, block.path, value, sum(matrix.numel() for matrix in matrices)))
    settings = {name: getattr(config, name) for name in criterion.settings}
    scores = tuple(rows)
    return BlockScores(
        config.criterion, criterion.needs, criterion.unit, settings, model.sha256, scores, _warnings(config, scores)
    )


def _warnings(config: ScoreConfig, rows: tuple[BlockScore, ...]) -> tuple[str, ...]:
    """Say when exact entropy is only counting noise: nearly every value unique."""
    if config.criterion != "entropy":
        return ()
    shares = [row.score / math.log(row.weights) for row in rows if row.weights > 1]
    if not shares or min(shares) <= 0.99:
        return ()
    return (
        f"entropy with {config.mantissa_bits} mantissa bits is saturated (at least {min(shares):.2%} of ln N in every block), "
        "so its order is mostly counting noise; use --mantissa-bits 7",
    )
