"""Baselines that look at no weight: a block's place, or chance. Every table of scores has something to be compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .records import Estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .criteria import ScoreConfig
    from .records import BlockWeights

__all__ = ["depth", "random"]


def depth(blocks: Sequence[BlockWeights], _config: ScoreConfig) -> list[Estimate]:
    """Last blocks first: how many blocks stand behind this one."""
    return [Estimate(float(len(blocks) - 1 - block.block)) for block in blocks]


def random(blocks: Sequence[BlockWeights], config: ScoreConfig) -> list[Estimate]:
    """Uniform in 0..1, by the seed and the block's number alone."""
    return [Estimate(float(np.random.default_rng([config.seed, block.block]).random())) for block in blocks]
