"""The space: shallower models by ranking, choice, depth and tokens, each once, and how one is made from the whole.

A newcomer's trap: two rankings often name the same blocks; such candidates are one, under the name of the first.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from ..pruning import PlanConfig, PrunedModel, plan, prune
from ..scoring import Calibration, ScoreConfig, read_scores, score, write_scores

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..models import LoadedModel
    from ..pruning import PruningPlan
    from ..scoring import BlockScores
    from .config import TuneConfig

__all__ = ["Candidate", "Space", "read_space", "shallow"]


@dataclass(frozen=True)
class Candidate:
    """A shallower model before its recovery; ``size`` is its FLOPs an item."""

    criterion: str
    select: str
    depth: int
    keep_tokens: float
    removed: tuple[int, ...]
    size: int = field(compare=False)
    parameters: int = field(compare=False)
    plan: PruningPlan = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        """Such as ``d9-entropy``, ``d9-entropy-gaps``, ``d9-entropy-t0.7``."""
        if not self.removed and self.keep_tokens == 1:
            return "whole"
        select = "" if self.select == "prefix" else f"-{self.select}"
        tokens = "" if self.keep_tokens == 1 else f"-t{self.keep_tokens:g}"
        return f"d{self.depth}-{self.criterion}{select}{tokens}"


@dataclass(frozen=True)
class Space:
    """All candidates, each once, by (criterion, select, depth, tokens); several such keys may lead to one candidate."""

    by_choice: dict[tuple[str, str, int, float], Candidate]
    skipped: tuple[str, ...]

    @property
    def distinct(self) -> tuple[Candidate, ...]:
        """The different ones, the deepest first."""
        return tuple(sorted(dict.fromkeys(self.by_choice.values()), key=lambda one: (-one.size, one.name)))


def read_space(model: LoadedModel, config: TuneConfig, folder: Path, data: Calibration | None) -> Space:
    """Score the model by every criterion, or read what an earlier run scored, and plan every candidate.

    Raises:
        ShallowvitError: a depth that the model hasn't, or a criterion that it can't be scored by.
    """
    whole = len(model.blocks)
    depths = sorted(set(config.depths)) or list(range(1, whole + 1))
    if depths[-1] > whole:
        raise ShallowvitError(f"tune: --depths {depths[-1]}, but {model.origin.spec} has {whole} blocks; give 1 to {whole}")
    found: dict[tuple[str, str, int, float], Candidate] = {}
    first: dict[tuple[tuple[int, ...], float], Candidate] = {}
    skipped: dict[str, None] = {}
    tokens = {share: _share_of_flops(model, share) for share in config.keep_tokens}
    for criterion in config.criteria:
        scores = _scores(model, criterion, config, folder, data)
        for select in config.selects:
            for depth in depths:
                try:
                    chosen = plan(model, scores, PlanConfig(prune_ratio=1 - depth / whole, select=select))
                except ShallowvitError as err:  # of a stack too much would go, or pairs don't come out even
                    skipped[f"depth {depth} by {criterion}: {err}"] = None
                    continue
                for keep, share in tokens.items():
                    if keep < 1 and len(chosen.standing) < 2:  # behind the only block there is none to see fewer
                        continue
                    size = round(chosen.flops_after * share)
                    one = Candidate(criterion, select, depth, keep, chosen.removed, size, chosen.parameters_after, chosen)
                    found[criterion, select, depth, keep] = first.setdefault((chosen.removed, keep), one)
    if not found:
        raise ShallowvitError(f"tune: no candidate can be made: {next(iter(skipped))}")
    return Space(found, tuple(skipped))


def shallow(model: LoadedModel, candidate: Candidate | None, removed: Sequence[int], keep_tokens: float) -> PrunedModel:
    """Return a copy of the model without the blocks; what ``keep_tokens`` takes comes after the repair (``fewer_tokens``)."""
    if candidate is not None:
        chosen = candidate.plan
    else:
        named = PlanConfig(remove=",".join(map(str, removed)) or None, split_pairs=True)
        chosen = plan(model, None, named)
    if not chosen.removed:  # prune gives the model itself, which others still need
        return PrunedModel(replace(model, module=copy.deepcopy(model.module)), chosen)
    return prune(model, chosen)


def _scores(model: LoadedModel, criterion: str, config: TuneConfig, folder: Path, data: Calibration | None) -> BlockScores:
    path = folder / f"{criterion}.json"
    if path.is_file():
        scores = read_scores(path)
        if scores.weights_sha256 == model.sha256:
            return scores
    scores = score(model, ScoreConfig(criterion, samples=config.samples, seed=config.seed), data)
    folder.mkdir(parents=True, exist_ok=True)
    write_scores(scores, path)
    return scores


def fewer_tokens(pruned: PrunedModel, keep_tokens: float) -> PrunedModel:
    """Return a model that keeps this share of its tokens behind the first third of its blocks; the same where all are kept.

    Raises:
        ShallowvitError: the model's tokens can't be dropped.
    """
    if keep_tokens == 1:
        return pruned
    from ..tokens import TokenConfig, reduce_tokens

    standing = pruned.plan.standing
    block = standing[max(0, len(standing) // 3 - 1)]
    return reduce_tokens(pruned, TokenConfig(f"{block}:{keep_tokens:g}"))


def _share_of_flops(model: LoadedModel, keep_tokens: float) -> float:
    """What is left of the whole model's FLOPs with so many tokens."""
    if keep_tokens == 1:
        return 1.0
    return fewer_tokens(shallow(model, None, (), 1.0), keep_tokens).model.flops / model.flops
