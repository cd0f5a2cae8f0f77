"""Criteria made of others: ``mix``, a weighted mean of ranks, and ``auto``, which picks one by what is at hand.

A newcomer's trap: a mix averages *ranks*, not scores, since nats and losses have no common unit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import ShallowvitError
from .comparison import average_ranks
from .criteria import CRITERIA, Needs, Scope, ScoreConfig
from .records import BlockScores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Choice", "choose", "mix", "mixed", "parse_mix"]


def parse_mix(text: str) -> dict[str, float]:
    """Turn ``entropy=0.3,bypass=0.7`` into weights by criterion.

    Raises:
        ShallowvitError: not of that form, an unknown criterion, a mix of mixes, or weights that aren't positive.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not equals or not 0 < weight < float("inf"):
            raise ShallowvitError(
                f"score: --mix {text!r}: {part.strip()!r} isn't CRITERION=WEIGHT with a weight above 0; write "
                "entropy=0.3,bypass=0.7"
            )
        if name not in CRITERIA or CRITERIA[name].scope is Scope.COMPOSED:
            simple = ", ".join(key for key, row in CRITERIA.items() if row.scope is not Scope.COMPOSED)
            raise ShallowvitError(f"score: --mix {text!r}: can't mix {name!r}; choose from {simple}")
        if name in weights:
            raise ShallowvitError(f"score: --mix {text!r} names {name} twice; give each once")
        weights[name] = weight
    return weights


def mix(config: ScoreConfig, score_by: Callable[[ScoreConfig], BlockScores]) -> BlockScores:
    """Score by each part of ``config.mix`` and average their ranks, by weight."""
    weights = parse_mix(config.mix)
    return mixed([score_by(replace(config, criterion=name)) for name in weights], list(weights.values()), config)


def mixed(parts: Sequence[BlockScores], weights: Sequence[float], config: ScoreConfig) -> BlockScores:
    """Average the ranks (0 lowest, 1 highest; ties share theirs) of several scores of the same blocks, by weight."""
    count = len(parts[0].blocks)
    ranks = [average_ranks([row.score for row in part.blocks]) / max(1, count - 1) for part in parts]
    means = np.average(ranks, axis=0, weights=weights)
    rows = tuple(replace(row, score=float(mean), noise=None) for row, mean in zip(parts[0].blocks, means, strict=True))
    order = list(Needs)
    return replace(
        parts[0],
        criterion="mix",
        needs=max((part.needs for part in parts), key=lambda need: order.index(Needs(need))),
        unit=CRITERIA["mix"].unit,
        settings={"mix": config.mix} | {key: value for part in parts for key, value in part.settings.items()},
        blocks=rows,
        warnings=tuple(dict.fromkeys(f"{part.criterion}: {warning}" for part in parts for warning in part.warnings)),
        intervals=(),
    )


class Choice(NamedTuple):
    """What ``auto`` chose: a criterion (with its mix, where it is one), and why."""

    criterion: str
    reason: str
    mix: str = ""


def choose(needs: Needs, *, reconstructs: bool, architecture: str) -> Choice:
    """Pick a criterion by the data at hand and by what the checkpoint is, as docs/entropy.md found them to do.

    Args:
        needs: The most that is at hand: nothing, unlabelled or labelled inputs.
        reconstructs: Whether the model is a masked autoencoder with its decoder.
        architecture: What to call the model.
    """
    if reconstructs and needs is not Needs.NOTHING:
        return Choice(
            "reconstruction",
            f"{architecture} still has its decoder, so the loss it was pretrained with can be measured, without labels",
        )
    if reconstructs:
        return Choice(
            "probe-influence",
            f"there is no data, and for the task {architecture} was pretrained for neither depth nor entropy foresaw a "
            "block's cost",
        )
    if needs is Needs.LABELLED:
        return Choice(
            "bypass", "with labels the loss when a block is skipped can be measured, the nearest to what pruning costs"
        )
    if needs is Needs.UNLABELLED:
        return Choice(
            "mix",
            "without labels how far a block turns its inputs helps most beside depth; alone it foresaw less than depth did",
            "depth=0.5,block-influence=0.5",
        )
    return Choice("depth", "there is no data, and no score of the weights alone foresaw a block's cost better than depth")
