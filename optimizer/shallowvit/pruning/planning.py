"""Decide which blocks go: a ratio of a ranking, or the blocks a user names. Nothing is removed here.

A newcomer's trap: a ratio is of blocks to *remove*, rounded to the nearest whole number of blocks, a half rounded down (so that
no more is removed than was asked for).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from ..models import LoadedModel
    from ..scoring import BlockScores

__all__ = ["PlanConfig", "PruningPlan", "count_from_ratio", "parse_blocks", "plan"]


@dataclass(frozen=True)
class PlanConfig:
    """Which blocks to remove: exactly one of the three, or none to remove nothing.

    Args:
        prune_ratio: Share of the blocks to remove, 0 <= ratio < 1, lowest scores first.
        remove: The blocks to remove, such as ``3,7`` or ``8-11``.
        keep: The blocks to keep; all others go.
    """

    prune_ratio: float | None = None
    remove: str | None = None
    keep: str | None = None

    def __post_init__(self) -> None:
        given = [f"--{name.replace('_', '-')}" for name in ("prune_ratio", "remove", "keep") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ShallowvitError(f"plan: {' and '.join(given)} exclude each other; give one")
        if self.prune_ratio is not None and not 0 <= self.prune_ratio < 1:
            raise ShallowvitError(
                f"plan: --prune-ratio {self.prune_ratio} is out of range; it is the share of blocks to remove, 0 <= ratio < 1"
            )

    @property
    def needs_scores(self) -> bool:
        """Whether a ranking decides."""
        return self.prune_ratio is not None


@dataclass(frozen=True)
class PruningPlan:
    """Which blocks go and which stay, why, and what that is expected to save."""

    removed: tuple[int, ...]
    kept: tuple[int, ...]
    paths: tuple[str, ...]  # one per block of the unpruned model
    reason: str
    weights_sha256: str
    parameters_before: int
    parameters_after: int
    flops_before: int
    flops_after: int
    scores: BlockScores | None = None  # what the blocks were ranked by


def plan(model: LoadedModel, scores: BlockScores | None = None, config: PlanConfig | None = None) -> PruningPlan:
    """Choose the blocks to remove.

    Args:
        model: The unpruned model.
        scores: Needed for ``prune_ratio``; must come from this model.
        config: See ``PlanConfig``; removes nothing by default.

    Raises:
        ShallowvitError: no block of a stack would stay, a block doesn't exist, or the scores are of other weights.
    """
    config = config or PlanConfig()
    if scores is not None and scores.weights_sha256 != model.sha256:
        raise ShallowvitError(
            f"plan: the scores were computed on weights {scores.weights_sha256[:12]}, the model has {model.sha256[:12]}; "
            "score it again"
        )
    count = len(model.blocks)
    if config.prune_ratio is not None:
        number = count_from_ratio(config.prune_ratio, count)
        if number and scores is None:
            raise ShallowvitError("plan: --prune-ratio needs scores to rank the blocks by; score the model first")
        removed = sorted(scores.ascending[:number]) if scores is not None else []
        by = f" with the lowest {scores.criterion} score" if scores is not None and number else ""
        reason = f"remove the {number} of {count} blocks{by} (prune ratio {config.prune_ratio:g})"
    elif config.remove is not None:
        removed = parse_blocks(config.remove, count, "--remove")
        reason = f"remove {config.remove}, named by the user"
    elif config.keep is not None:
        removed = sorted(set(range(count)) - set(parse_blocks(config.keep, count, "--keep")))
        reason = f"keep {config.keep}, named by the user"
    else:
        removed, reason = [], "every block stays"
    _check_stacks_stay(model, removed)
    gone = [block for block in model.blocks if block.index in removed]
    return PruningPlan(
        removed=tuple(removed),
        kept=tuple(index for index in range(count) if index not in removed),
        paths=tuple(block.path for block in model.blocks),
        reason=reason,
        weights_sha256=model.sha256,
        parameters_before=model.parameters,
        parameters_after=model.parameters - sum(block.parameters for block in gone),
        flops_before=model.flops,
        flops_after=model.flops - sum(block.flops for block in gone),
        scores=scores,
    )


def count_from_ratio(prune_ratio: float, blocks: int) -> int:
    """Return how many of ``blocks`` a ratio removes: the nearest whole number, a half rounded down.

    Raises:
        ShallowvitError: a ratio above 0 that would remove none, or a ratio that would remove all.
    """
    exact = round(prune_ratio * blocks, 9)  # 0.14 * 25 is 3.5000000000000004
    number = math.ceil(exact - 0.5)
    if prune_ratio > 0 and number == 0:
        raise ShallowvitError(
            f"plan: --prune-ratio {prune_ratio:g} of {blocks} blocks removes none; the least that removes one is above "
            f"{0.5 / blocks:.3f}"
        )
    if number >= blocks:
        raise ShallowvitError(f"plan: --prune-ratio {prune_ratio:g} would remove all {blocks} blocks; at least one must stay")
    return number


def parse_blocks(text: str, count: int, option: str) -> list[int]:
    """Turn ``3,7`` or ``0-5,8`` into sorted block numbers below ``count``.

    Raises:
        ShallowvitError: the text isn't such a list, or names a block that doesn't exist.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ShallowvitError(f"plan: {option} {text!r} isn't a list of blocks; write 3,7 or 0-5")
        low, high = int(first), int(last) if dash else int(first)
        if low > high:
            raise ShallowvitError(f"plan: {option} {text!r}: the range {part.strip()} runs backwards; write {high}-{low}")
        if high >= count:
            raise ShallowvitError(f"plan: {option} names block {high}, but the model has blocks 0 to {count - 1}")
        chosen.update(range(low, high + 1))
    return sorted(chosen)


def _check_stacks_stay(model: LoadedModel, removed: list[int]) -> None:
    for stack in dict.fromkeys(block.stack for block in model.blocks):
        own = [block.index for block in model.blocks if block.stack == stack]
        if set(own) <= set(removed):
            raise ShallowvitError(f"plan: all {len(own)} blocks of {stack} would be removed; at least one must stay")
