"""What a careful expert would say about a ranking before it is used: one sentence a doubt, each with its figure.

A newcomer's trap: these are doubts about the *ranking*; what a plan removes has its own (block 0, stacks of several widths).
"""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from .comparison import rank_correlation
from .criteria import CRITERIA, EXACT_MANTISSA_BITS, Scope
from .position import depth

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .criteria import ScoreConfig
    from .records import BlockScore, BlockWeights
    from .sketch import Sketch

__all__ = ["caveats"]

# The first three from simulated blocks (benchmarks/estimators.py), the others from the published statistics
_SATURATED = 0.99  # of ln N
_ENOUGH_FOR_EXACT = 2_000_000  # weights a block
_CLEAR = 10  # times the sampling deviation that the range between blocks should be
_LIKE_DEPTH = 0.9
_NEAR_START = 0.80  # mean |w| / rms; a Gaussian has 0.798, a trained block less
_STORED_BITS = {"bf16": 7, "fp16": 10, "fp32": EXACT_MANTISSA_BITS}
_SUBNORMAL = 0.001  # share of the weights
_ON_GRID = ("entropy", "efficiency", "mutual-information")


def caveats(
    config: ScoreConfig,
    blocks: Sequence[BlockWeights],
    rows: Sequence[BlockScore],
    sketches: Sequence[Sketch] = (),
    pretraining: str | None = None,
) -> tuple[str, ...]:
    """Return the warnings for these scores, most important first.

    Args:
        config: What was asked for.
        blocks: What was scored.
        rows: Their scores.
        sketches: Of the blocks' weights, where they were read.
        pretraining: ``masked``, ``other`` or None (not known).
    """
    found = []
    if config.criterion in _ON_GRID:
        found += [_saturation(config, rows), _storage(config, sketches), _subnormals(sketches)]
    found.append(_noise(config, rows))
    if CRITERIA[config.criterion].scope is not Scope.MODEL and config.criterion not in ("depth", "random"):
        found += [_initialisation(sketches), _not_masked(config, pretraining)]
    found += [_widths(config, blocks), _depth(config, blocks, rows)]
    return tuple(sentence for sentence in found if sentence)


def _saturation(config: ScoreConfig, rows: Sequence[BlockScore]) -> str | None:
    """Exact counts of nearly unique values are ln N and noise."""
    if config.criterion == "mutual-information":
        return None
    tops = {"entropy": 0.0, "efficiency": 1.0}
    shares = [row.score / (tops[config.criterion] or math.log(row.weights)) for row in rows if row.weights > 1]
    if shares and min(shares) > _SATURATED:
        return (
            f"entropy with {config.mantissa_bits} mantissa bits is saturated (at least {min(shares):.2%} of ln N in every "
            "block), "
            "so its order is mostly counting noise; use --mantissa-bits 7"
        )
    fewest = min((row.weights for row in rows), default=0)
    if config.mantissa_bits == EXACT_MANTISSA_BITS and fewest < _ENOUGH_FOR_EXACT:
        return (
            f"exact entropy needs about {_ENOUGH_FOR_EXACT // 1_000_000} million weights a block to rise above its counting "
            "noise, "
            f"the smallest block has {fewest:,}; use --mantissa-bits 7"
        )
    return None


def _storage(config: ScoreConfig, sketches: Sequence[Sketch]) -> str | None:
    """Values rounded before they were stored are another estimator, and not comparable between blocks that differ in it."""
    kinds = sorted({sketch.stored for sketch in sketches})
    if not any(_STORED_BITS[kind] < config.mantissa_bits for kind in kinds):
        return None
    if len(kinds) > 1:
        counts = ", ".join(f"{kind} in {sum(s.stored == kind for s in sketches)}" for kind in kinds)
        return (
            f"the blocks' weights hold values of different precision ({counts} blocks), which exact counts can't compare; "
            f"use --mantissa-bits 7"
        )
    bits = _STORED_BITS[kinds[0]]
    return (
        f"the weights hold {kinds[0]} values ({bits} mantissa bits), so {config.mantissa_bits} bits count another grid than "
        "on an fp32 "
        "checkpoint, and the ranking may differ from it; --mantissa-bits 7 gives the same for both"
    )


def _subnormals(sketches: Sequence[Sketch]) -> str | None:
    worst = max((sketch.fp16_subnormals for sketch in sketches), default=0.0)
    if worst < _SUBNORMAL:
        return None
    return (
        f"up to {worst:.1%} of a block's weights are fp16 subnormals (below 6.1e-5), whose grid is coarser, so blocks with "
        "small "
        "weights score lower than in fp32; score the fp32 checkpoint if there is one"
    )


def _noise(config: ScoreConfig, rows: Sequence[BlockScore]) -> str | None:
    deviations = [row.noise for row in rows if row.noise is not None]
    if len(deviations) < len(rows) or len(rows) < 2 or not any(deviations):
        return None
    spread = max(row.score for row in rows) - min(row.score for row in rows)
    times = spread / median(deviations) if median(deviations) else math.inf
    if times >= _CLEAR:
        return None
    needs = CRITERIA[config.criterion].scope is Scope.MODEL
    advice = (
        "raise --samples"
        if needs
        else "the blocks are too small or too alike to rank by it; look at the other criteria with --compare"
    )
    return f"the scores span only {times:.1f} times their own sampling deviation (10 would be clear): {advice}"


def _initialisation(sketches: Sequence[Sketch]) -> str | None:
    near = [sketch for sketch in sketches if sketch.mean_abs_over_rms > _NEAR_START and sketch.kurtosis < 0]
    if 2 * len(near) <= len(sketches) or not sketches:
        return None
    worst = median(sketch.mean_abs_over_rms for sketch in near)
    return (
        f"the weights of {len(near)} of {len(sketches)} blocks look like their initialisation (mean |w| / rms {worst:.3f}, "
        "above "
        f"{_NEAR_START}, and no heavy tails), so a score of the weights ranks chance; train longer or use a criterion that "
        "runs the model"
    )


def _not_masked(config: ScoreConfig, pretraining: str | None) -> str | None:
    if config.criterion not in (*_ON_GRID, "interval-entropy", "value-entropy") or pretraining != "other":
        return None
    return (
        "the model doesn't come from masked pretraining, for which the criterion was published; on supervised models it can "
        "rank "
        "block 0 low: check with --criterion bypass or block-influence on a few inputs"
    )


def _widths(config: ScoreConfig, blocks: Sequence[BlockWeights]) -> str | None:
    if config.criterion in ("depth", "random"):
        return None
    sizes = {block.stack: block.numel for block in blocks}
    if len(set(sizes.values())) < 2:
        return None
    widths = ", ".join(f"{stack} {numel:,}" for stack, numel in sizes.items())
    return (
        f"scores of stacks of different width aren't comparable (weights a block: {widths}); choose within each with --quota "
        f"even"
    )


def _depth(config: ScoreConfig, blocks: Sequence[BlockWeights], rows: Sequence[BlockScore]) -> str | None:
    if config.criterion in ("depth", "random") or len(rows) < 4:
        return None
    places = [found.score for found in depth(blocks, config)]
    correlation = rank_correlation([row.score for row in rows], places)
    if math.isnan(correlation) or correlation < _LIKE_DEPTH:
        return None
    return (
        f"the ranking mostly repeats depth (Spearman {correlation:+.2f} with removing the last blocks), so it adds little "
        f"over --criterion depth"
    )
