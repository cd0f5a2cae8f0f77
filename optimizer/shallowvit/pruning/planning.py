"""Decide which blocks go: a ratio of a ranking, or the blocks a user names, and say why. Nothing is removed here.

A newcomer's trap: a ratio is of blocks to *remove*, rounded to the nearest whole number of blocks, a half rounded down (so that
no more is removed than was asked for).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from ..scoring.criteria import check_granularity
from .groups import Groups
from .selection import (
    Chosen,
    Demand,
    Select,
    blocks_text,
    check_demand,
    even_quota,
    select_gaps,
    select_interval,
    select_iterative,
    select_prefix,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..models import Block, LoadedModel
    from ..models.halves import Half
    from ..scoring import BlockScores

__all__ = [
    "PlanConfig",
    "PruningPlan",
    "Select",
    "check_plan",
    "choose",
    "count_from_ratio",
    "parse_blocks",
    "plan",
    "removal_warnings",
]

_EVEN = "even"
_UNITS = {"block": "whole blocks", "attention": "the blocks' attention", "mlp": "the blocks' MLPs"}


@dataclass(frozen=True)
class PlanConfig:
    """Which blocks to remove: one of the first three or a quota of counts, or none to remove nothing.

    Args:
        prune_ratio: Share of the blocks to remove, 0 <= ratio < 1; ``select`` says which.
        remove: The blocks to remove, such as ``3,7`` or ``8-11``.
        keep: The blocks to keep; all others go.
        select: How the scores become a choice: ``prefix`` (the lowest, as published), ``iterative``, ``interval``, ``gaps``.
        protect: Blocks that must stay, such as ``first,last,3`` or ``0-2``; first and last are of each stack.
        quota: ``even`` removes the same ratio of each stack; ``PATH=N,PATH=N`` that many of each, in place of a ratio.
        max_gaps: Of ``gaps``: how many removed runs may have a kept block of their stack on both sides.
        granularity: ``attention`` or ``mlp`` removes that half of each chosen block and leaves the block in its place.
        split_pairs: Let blocks that belong together (windows and shifted windows) go singly.
    """

    prune_ratio: float | None = None
    remove: str | None = None
    keep: str | None = None
    select: str = Select.PREFIX
    protect: str | None = None
    quota: str | None = None
    max_gaps: int = 1
    granularity: str = "block"
    split_pairs: bool = False

    def __post_init__(self) -> None:
        given = [f"--{name.replace('_', '-')}" for name in ("prune_ratio", "remove", "keep") if getattr(self, name) is not None]
        given += ["--quota with counts"] if self.quota_counts is not None else []
        if len(given) > 1:
            raise ShallowvitError(f"plan: {' and '.join(given)} exclude each other; give one")
        if self.prune_ratio is not None and not 0 <= self.prune_ratio < 1:
            raise ShallowvitError(
                f"plan: --prune-ratio {self.prune_ratio} is out of range; it is the share of blocks to remove, 0 <= ratio < 1"
            )
        if self.select not in list(Select):
            raise ShallowvitError(f"plan: unknown --select {str(self.select)!r}; choose from {', '.join(Select)}")
        object.__setattr__(self, "select", Select(self.select))  # the plain text "gaps" is as good
        if self.max_gaps < 0:
            raise ShallowvitError(f"plan: --max-gaps {self.max_gaps} is out of range; give 0 or more")
        check_granularity(self.granularity, "plan")
        if self.granularity != "block" and self.select is Select.ITERATIVE:
            raise ShallowvitError(
                f"plan: --select iterative scores whole blocks again and again; --granularity {self.granularity} takes prefix, "
                "interval or gaps"
            )
        if self.max_gaps != 1 and self.select is not Select.GAPS:
            raise ShallowvitError(f"plan: --max-gaps is of --select gaps, not of {self.select}; leave it out or choose gaps")
        if not self.needs_scores:
            self._check_unranked(given)
        if self.protect is not None:
            _ranges(self.protect, "--protect", ("first", "last"))

    def _check_unranked(self, given: Sequence[str]) -> None:
        """Refuse what only says how to choose, where nothing is chosen by scores."""
        for option, wanted in (("--select", self.select is not Select.PREFIX), ("--quota even", self.quota is not None)):
            if wanted and given:
                raise ShallowvitError(
                    f"plan: {given[0]} names the blocks, so that {option} has nothing to choose; leave one out"
                )
            if wanted:
                raise ShallowvitError(f"plan: {option} needs the number of blocks to remove; give --prune-ratio")
        if self.protect is not None and not given:
            raise ShallowvitError(
                "plan: --protect says what stays, but nothing is to go; give --prune-ratio, --remove or --keep"
            )

    @property
    def needs_scores(self) -> bool:
        """Whether a ranking decides."""
        return self.prune_ratio is not None or self.quota_counts is not None

    @property
    def quota_counts(self) -> dict[str, int] | None:
        """The counts of ``PATH=N,PATH=N``; None without a quota or for ``even``."""
        if self.quota is None or self.quota == _EVEN:
            return None
        counts: dict[str, int] = {}
        for part in self.quota.split(","):
            stack, _, number = part.strip().partition("=")
            if not stack or not number.isdecimal() or stack in counts:
                raise ShallowvitError(f"plan: --quota {self.quota!r}: write even, or PATH=N,PATH=N with each stack once")
            counts[stack] = int(number)
        return counts


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
    why: tuple[str, ...] = ()  # of each removed block, in the order of ``removed``
    granularity: str = "block"  # of each removed block only the attention or the MLP goes, unless this is block
    pairs: tuple[tuple[int, ...], ...] = ()  # blocks that belong together

    @property
    def gone(self) -> tuple[int, ...]:
        """The blocks that go whole."""
        return self.removed if self.granularity == "block" else ()

    @property
    def standing(self) -> tuple[int, ...]:
        """The blocks that stand in the pruned model, whole or not."""
        return self.kept if self.granularity == "block" else tuple(range(len(self.paths)))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a careful expert would say about the ranking and about what goes."""
        doubts = removal_warnings(self.removed, self.granularity, self.pairs)
        return (*(self.scores.warnings if self.scores else ()), *doubts)


def removal_warnings(
    removed: Sequence[int], granularity: str = "block", pairs: Sequence[Sequence[int]] = ()
) -> tuple[str, ...]:
    """What a careful expert would say about removing these blocks, or that half of them."""
    found = []
    if 0 in removed and granularity == "block":
        found.append(
            "block 0 goes, the costliest to lose in most models (45 points of accuracy in the paper, 52 on the demo model): "
            "measure it, or keep it with --protect first"
        )
    for pair in pairs if granularity != "mlp" else ():
        gone, left = [n for n in pair if n in removed], [n for n in pair if n not in removed]
        if gone and left:
            found.append(
                f"{blocks_text(gone)} is half of a pair of windows and shifted windows, of which {blocks_text(left)} stays, so "
                "that windows no longer take turns there: remove both, or measure it"
            )
    return tuple(found)


def plan(
    model: LoadedModel,
    scores: BlockScores | None = None,
    config: PlanConfig | None = None,
    rescore: Callable[[LoadedModel], BlockScores] | None = None,
) -> PruningPlan:
    """Choose the blocks to remove.

    Args:
        model: The unpruned model.
        scores: Needed where a ranking decides (``config.needs_scores``); must come from this model.
        config: See ``PlanConfig``; removes nothing by default.
        rescore: Needed for ``select="iterative"``: scores a shallower copy of the model, by the same criterion.

    Raises:
        ShallowvitError: no block of a stack would stay, a block doesn't exist, no choice meets what is asked for, or the scores
            are of other weights.
    """
    config = config or PlanConfig()
    if scores is not None:
        _check_scores(model, scores)
        _check_granularity(scores, config)
    count = len(model.blocks)
    if config.needs_scores:
        groups = _groups(model, config)
        if scores is None and _demand(groups, config).count:
            option = "--prune-ratio" if config.prune_ratio is not None else "--quota"
            raise ShallowvitError(f"plan: {option} needs scores to rank the blocks by; score the model first")
        chosen = _choose(groups, scores, config, _rescore_without(model, scores, rescore) if scores and rescore else None)
    elif config.remove is not None:
        removed = tuple(parse_blocks(config.remove, count, "--remove"))
        chosen = Chosen(removed, ("named by the user",) * len(removed), f"remove {config.remove}, named by the user")
    elif config.keep is not None:
        kept = parse_blocks(config.keep, count, "--keep")
        removed = tuple(sorted(set(range(count)) - set(kept)))
        chosen = Chosen(removed, ("not among those the user keeps",) * len(removed), f"keep {config.keep}, named by the user")
    else:
        chosen = Chosen((), (), "every block stays")
    _check_named(model, config, chosen.removed)
    return replace(_plan_of(model, chosen, config.granularity), scores=scores)


def check_plan(model: LoadedModel, config: PlanConfig) -> None:
    """Refuse what no scores could meet, before the model is scored.

    Raises:
        ShallowvitError: says what is asked for, and what may go.
    """
    if config.needs_scores:
        _demand(_groups(model, config), config)
        if config.granularity != "block":
            from ..models.halves import find_halves  # loads torch

            find_halves(model, config.granularity)
    else:
        plan(model, None, config)


def choose(scores: BlockScores, config: PlanConfig, pairs: Sequence[tuple[int, ...]] = ()) -> Chosen:
    """Choose by scores alone, as ``plan`` would for the model they are of; where that isn't loaded, as with a checkpoint.

    Args:
        scores: Of blocks or of halves; ``config`` has to ask for the same.
        config: See ``PlanConfig``.
        pairs: The model's blocks that belong together, where they are known.

    Raises:
        ShallowvitError: no choice meets what is asked for, or it takes a model (``iterative``, ``remove``, ``keep``).
    """
    if config.remove is not None or config.keep is not None:
        raise ShallowvitError("plan: --remove and --keep name blocks of a model, scores choose; give --prune-ratio or --quota")
    if not config.needs_scores:
        return Chosen((), (), "every block stays")
    _check_finite(scores)
    _check_granularity(scores, config)
    return _choose(Groups(tuple(row.stack for row in scores.blocks), _paired(pairs, config)), scores, config, None)


def count_from_ratio(prune_ratio: float, blocks: int, what: str = "blocks") -> int:
    """Return how many of ``blocks`` a ratio removes: the nearest whole number, a half rounded down.

    Raises:
        ShallowvitError: a ratio above 0 that would remove none, or a ratio that would remove all.
    """
    exact = round(prune_ratio * blocks, 9)  # 0.14 * 25 is 3.5000000000000004
    number = math.ceil(exact - 0.5)
    if prune_ratio > 0 and number == 0:
        raise ShallowvitError(
            f"plan: --prune-ratio {prune_ratio:g} of {blocks} {what} removes none; the least that removes one is above "
            f"{0.5 / blocks:.3f}"
        )
    if number >= blocks:
        raise ShallowvitError(f"plan: --prune-ratio {prune_ratio:g} would remove all {blocks} {what}; at least one must stay")
    return number


def parse_blocks(text: str, count: int, option: str, words: Mapping[str, Sequence[int]] | None = None) -> list[int]:
    """Turn ``3,7`` or ``0-5,8`` into sorted block numbers below ``count``; ``words`` may stand for blocks too.

    Raises:
        ShallowvitError: the text isn't such a list, or names a block that doesn't exist.
    """
    words = words or {}
    chosen: set[int] = set()
    for part in _ranges(text, option, tuple(words)):
        if isinstance(part, str):
            chosen.update(words[part])
            continue
        low, high = part
        if high >= count:
            raise ShallowvitError(f"plan: {option} names block {high}, but the model has blocks 0 to {count - 1}")
        chosen.update(range(low, high + 1))
    return sorted(chosen)


def _ranges(text: str, option: str, words: tuple[str, ...]) -> list[str | tuple[int, int]]:
    parts: list[str | tuple[int, int]] = []
    for part in map(str.strip, text.split(",")):
        if part in words:
            parts.append(part)
            continue
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            forms = ", ".join(["3,7", *words])
            raise ShallowvitError(f"plan: {option} {text!r} isn't a list of blocks; write {forms} or 0-5")
        low, high = int(first), int(last) if dash else int(first)
        if low > high:
            raise ShallowvitError(f"plan: {option} {text!r}: the range {part} runs backwards; write {high}-{low}")
        parts.append((low, high))
    return parts


def _protected(stacks: tuple[str, ...], config: PlanConfig) -> frozenset[int]:
    if config.protect is None:
        return frozenset()
    members = Demand(stacks, 0).members.values()
    words = {"first": [own[0] for own in members], "last": [own[-1] for own in members]}
    return frozenset(parse_blocks(config.protect, len(stacks), "--protect", words))


def _groups(model: LoadedModel, config: PlanConfig) -> Groups:
    return Groups(tuple(block.stack for block in model.blocks), _paired(model.pairs, config))


def _paired(pairs: Sequence[tuple[int, ...]], config: PlanConfig) -> tuple[tuple[int, ...], ...]:
    """Blocks that have to go together: an MLP knows no windows."""
    return () if config.split_pairs or config.granularity == "mlp" else tuple(pairs)


def _demand(groups: Groups, config: PlanConfig) -> Demand:
    """What the choice has to meet, by each block's stack; refuses what can't be met."""
    stacks = groups.stacks
    quota = config.quota_counts
    unknown = next((stack for stack in quota or {} if stack not in stacks), None)
    if unknown is not None:
        known = ", ".join(dict.fromkeys(stacks))
        raise ShallowvitError(f"plan: --quota names {unknown}, which isn't a stack of blocks in use; choose from {known}")
    count = sum((quota or {}).values())
    if config.prune_ratio is not None:
        count = count_from_ratio(config.prune_ratio, len(groups.members), "groups of blocks" if groups.pairs else "blocks")
    demand = groups.demand(count, _protected(stacks, config), quota)
    if config.quota == _EVEN:
        demand = replace(demand, quota=even_quota(demand))
    check_demand(demand, Select(config.select), config.max_gaps)
    return demand


def _choose(
    groups: Groups,
    scores: BlockScores | None,
    config: PlanConfig,
    rescore: Callable[[tuple[int, ...]], Mapping[int, float]] | None,
) -> Chosen:
    demand = _demand(groups, config)
    scores = groups.scores(scores) if scores is not None else None
    if scores is None or demand.count == 0:
        chosen = Chosen((), (), f"remove none of {len(groups.stacks)} blocks")
    elif config.select is Select.INTERVAL:
        chosen = select_interval(demand, scores)
    elif config.select is Select.GAPS:
        chosen = select_gaps(demand, scores, config.max_gaps)
    elif config.select is Select.PREFIX:
        chosen = select_prefix(demand, scores)
    elif rescore is None:
        raise ShallowvitError(
            "plan: --select iterative scores a model again and again; give plan the model, and rescore, such as lambda left: "
            "score(left, config)"
        )
    else:
        chosen = select_iterative(demand, scores, groups.rescore(rescore))
    return groups.expand(chosen._replace(rule=chosen.rule + _circumstances(config, demand)))


def _rescore_without(
    model: LoadedModel, scores: BlockScores, rescore: Callable[[LoadedModel], BlockScores]
) -> Callable[[tuple[int, ...]], dict[int, float]]:
    """From the blocks gone to the scores of the others, by their numbers in the unpruned model.

    Each time all that are gone are taken from the unpruned model, so that one copy lives at a time.
    """
    from .surgery import prune  # loads torch

    members = Demand(tuple(block.stack for block in model.blocks), 0).members.values()

    def scores_without(gone: tuple[int, ...]) -> dict[int, float]:
        left = prune(model, _plan_of(model, Chosen(gone, (), "so far"), "block")).model
        # surgery numbers what is left through, stack after stack
        kept = [number for own in members for number in own if number not in gone]
        again = rescore(left)
        if again.criterion != scores.criterion:
            raise ShallowvitError(
                f"plan: what is left was scored by {again.criterion}, the whole model by {scores.criterion}; rescore by that"
            )
        _check_scores(left, again)
        return {kept[row.block]: row.score for row in again.blocks}

    return scores_without


def _circumstances(config: PlanConfig, demand: Demand) -> str:
    """What the rule had to respect, in words."""
    text = "" if config.prune_ratio is None else f" (prune ratio {config.prune_ratio:g})"
    if demand.quota is not None:
        shares = ", ".join(f"{demand.takes[stack]} of {len(own)} of {stack}" for stack, own in demand.members.items())
        text += f"; {'even quota' if config.quota == _EVEN else 'quota'}: {shares}"
    if demand.protected:
        text += f"; {blocks_text(demand.real(demand.protected))} protected ({config.protect})"
    if config.granularity != "block":
        text += f"; of each the {config.granularity} alone"
    return text


def _check_scores(model: LoadedModel, scores: BlockScores) -> None:
    """Refuse scores of other weights or other blocks, and scores that no order exists of."""
    if scores.weights_sha256 is not None and scores.weights_sha256 != model.sha256:
        raise ShallowvitError(
            f"plan: the scores were computed on weights {scores.weights_sha256[:12]}, the model has {model.sha256[:12]}; "
            "score it again"
        )
    if sorted(row.block for row in scores.blocks) != list(range(len(model.blocks))):
        raise ShallowvitError(
            f"plan: the scores are of {len(scores.blocks)} blocks, the model has {len(model.blocks)}; score it again with the "
            "same --blocks"
        )
    if scores.weights_sha256 is None:
        _check_block_weights(model, scores)
    else:
        for row in scores.blocks:
            if row.path != model.blocks[row.block].path:
                raise ShallowvitError(
                    f"plan: the scores have {row.path} as block {row.block}, the model {model.blocks[row.block].path}; score "
                    "it again with the same --blocks"
                )
    _check_finite(scores)


def _check_granularity(scores: BlockScores, config: PlanConfig) -> None:
    found = scores.settings.get("granularity", "block")
    if found != config.granularity:
        raise ShallowvitError(
            f"plan: the scores are of {_UNITS[found]}, and --granularity {config.granularity} removes "
            f"{_UNITS[config.granularity]}; score the model again with the same --granularity"
        )


def _check_finite(scores: BlockScores) -> None:
    for row in scores.blocks:
        if not math.isfinite(row.score):
            raise ShallowvitError(
                f"plan: block {row.block} has the {scores.criterion} score {row.score}, which has no place in a ranking; use "
                "another criterion"
            )


def _check_block_weights(model: LoadedModel, scores: BlockScores) -> None:
    """Scores read straight from a checkpoint know the blocks' matrices, not the whole model."""
    from ..scoring.weights import hash_blocks, weights_from_model  # loads torch

    found = hash_blocks(weights_from_model(model))  # a checkpoint is scored by whole blocks
    if scores.blocks_sha256 != found:
        raise ShallowvitError(
            f"plan: the scores were computed on blocks with weights {scores.blocks_sha256[:12] or 'unknown'}, the model's have "
            f"{found[:12]}; score it again"
        )


def _check_named(model: LoadedModel, config: PlanConfig, removed: Sequence[int]) -> None:
    """Every stack keeps a block, and what the user named to go is nothing he protects."""
    members = Counter(block.stack for block in model.blocks)
    for stack, gone in Counter(model.blocks[number].stack for number in removed).items():
        if gone == members[stack]:
            raise ShallowvitError(f"plan: all {gone} blocks of {stack} would be removed; at least one must stay")
    clash = _protected(tuple(block.stack for block in model.blocks), config) & set(removed)
    if clash:
        option = "--remove takes" if config.remove is not None else "--keep leaves out"
        raise ShallowvitError(f"plan: {option} {blocks_text(clash)}, which --protect {config.protect} names; change one")


def _plan_of(model: LoadedModel, chosen: Chosen, granularity: str) -> PruningPlan:
    gone: Sequence[Block | Half] = [block for block in model.blocks if block.index in chosen.removed]
    if granularity != "block" and gone:
        from ..models.halves import find_halves  # loads torch

        gone = list(find_halves(model, granularity, chosen.removed).values())
    return PruningPlan(
        removed=chosen.removed,
        kept=tuple(block.index for block in model.blocks if block.index not in chosen.removed),
        paths=tuple(block.path for block in model.blocks),
        reason=chosen.rule,
        weights_sha256=model.sha256,
        parameters_before=model.parameters,
        parameters_after=model.parameters - sum(block.parameters for block in gone),
        flops_before=model.flops,
        flops_after=model.flops - sum(block.flops for block in gone),
        why=chosen.why,
        granularity=granularity,
        pairs=model.pairs,
    )
