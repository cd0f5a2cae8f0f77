"""Choose among groups of blocks that go together (windows and shifted windows) as if each were one block.

A newcomer's trap: with groups a ratio is rounded in groups, not in blocks: half of 6 blocks in 3 pairs is one pair, since a
half is rounded down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from .selection import Chosen, Demand, blocks_text, runs_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ..scoring import BlockScores

    Rescore = Callable[[tuple[int, ...]], Mapping[int, float]]

__all__ = ["Groups"]


@dataclass(frozen=True)
class Groups:
    """What is chosen from: each block's stack, and the blocks that go together; the others are groups of one."""

    stacks: tuple[str, ...]
    pairs: tuple[tuple[int, ...], ...] = ()

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """The blocks of each group, in the order of the groups' first blocks."""
        paired = {number for pair in self.pairs for number in pair}
        single = [(number,) for number in range(len(self.stacks)) if number not in paired]
        return tuple(sorted([*(tuple(sorted(pair)) for pair in self.pairs), *single]))

    def demand(self, count: int, protected: frozenset[int], quota: Mapping[str, int] | None) -> Demand:
        """Return what a choice of ``count`` groups has to meet; ``protected`` and ``quota`` are of blocks.

        Raises:
            ShallowvitError: a quota that is less than half a group.
        """
        if not self.pairs:
            return Demand(self.stacks, count, protected, quota)
        members = self.members
        stacks = tuple(self.stacks[group[0]] for group in members)
        kept = frozenset(number for number, group in enumerate(members) if protected & set(group))
        if quota is None:
            return Demand(stacks, count, kept, groups=members)
        shares = {stack: self._share(stack, number) for stack, number in quota.items()}
        return Demand(stacks, sum(shares.values()), kept, shares, members)

    def _share(self, stack: str, number: int) -> int:
        """A number of a stack's blocks in groups: the nearest, a half rounded down."""
        own = [group for group in self.members if self.stacks[group[0]] == stack]
        blocks = sum(map(len, own))
        share = math.ceil(round(number * len(own) / blocks, 9) - 0.5)
        if number and not share:
            raise ShallowvitError(
                f"plan: --quota takes {number} of the {blocks} blocks of {stack}, which go in {len(own)} groups "
                f"({_listed(own)}), so that none goes; take more, or let them go singly with --split-pairs"
            )
        return share

    def scores(self, scores: BlockScores) -> BlockScores:
        """Return one score a group: the sum of its blocks' scores; runs of blocks that are runs of groups stay."""
        if not self.pairs:
            return scores
        rows = {row.block: row for row in scores.blocks}
        members = self.members
        first = {group[0]: number for number, group in enumerate(members)}
        last = {group[-1]: number for number, group in enumerate(members)}
        summed = tuple(
            replace(
                rows[group[0]],
                block=number,
                score=math.fsum(rows[block].score for block in group),
                weights=sum(rows[block].weights for block in group),
                noise=None,
            )
            for number, group in enumerate(members)
        )
        runs = tuple(
            run._replace(first=first[run.first], last=last[run.last])
            for run in scores.intervals
            if run.first in first and run.last in last
        )
        return replace(scores, blocks=summed, intervals=runs)

    def rescore(self, rescore: Rescore) -> Rescore:
        """Return what scores the groups that are left, from what scores the blocks that are left."""
        if not self.pairs:
            return rescore
        members = self.members

        def summed(gone: tuple[int, ...]) -> dict[int, float]:
            values = rescore(tuple(sorted(block for number in gone for block in members[number])))
            return {
                number: math.fsum(values[block] for block in group)
                for number, group in enumerate(members)
                if number not in gone
            }

        return summed

    def expand(self, chosen: Chosen) -> Chosen:
        """Turn a choice of groups into one of blocks."""
        if not self.pairs:
            return chosen
        members, why = self.members, {}
        for number, reason in zip(chosen.removed, chosen.why, strict=True):
            for block in members[number]:
                others = [one for one in members[number] if one != block]
                why[block] = f"{reason} (together with {blocks_text(others)})" if others else reason
        removed = tuple(sorted(why))
        rule = f"{chosen.rule}; blocks that go together: {_listed(self.pairs)}"
        return Chosen(removed, tuple(why[block] for block in removed), rule)


def _listed(groups: Iterable[Sequence[int]]) -> str:
    return " and ".join(runs_text(group) for group in groups)
