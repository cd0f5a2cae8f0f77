"""Choose as many blocks as are asked for from their scores: the lowest, one at a time, as one interval, or with few gaps.

Plain Python over block numbers, stacks and scores; ``planning.plan`` asks and writes the plan. A newcomer's trap: neighbours
are neighbours within a stack. Blocks of two stacks with adjacent numbers form no interval and leave no gap between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ..scoring import BlockScores

__all__ = [
    "Chosen",
    "Demand",
    "Select",
    "blocks_text",
    "check_demand",
    "even_quota",
    "runs_text",
    "select_gaps",
    "select_interval",
    "select_iterative",
    "select_prefix",
]


class Select(StrEnum):
    """How a ranking becomes a choice.

    ``prefix``: the blocks with the lowest scores, as published. ``iterative``: the lowest goes, what is left is scored again,
    until enough are gone. ``interval``: one run of neighbours in a stack. ``gaps``: the least sum of scores that leaves at most
    so many removed runs between kept blocks.
    """

    PREFIX = "prefix"
    ITERATIVE = "iterative"
    INTERVAL = "interval"
    GAPS = "gaps"


@dataclass(frozen=True)
class Demand:
    """What a choice has to meet: how many blocks go, which must stay, and how many go of each stack if that is set."""

    stacks: tuple[str, ...]  # of each block, by its number
    count: int
    protected: frozenset[int] = frozenset()
    quota: Mapping[str, int] | None = None
    groups: tuple[tuple[int, ...], ...] = ()  # where what goes is groups of blocks: the blocks of each, by the group's number

    @property
    def members(self) -> dict[str, tuple[int, ...]]:
        """The blocks of each stack, in their order."""
        return {
            stack: tuple(number for number, own in enumerate(self.stacks) if own == stack)
            for stack in dict.fromkeys(self.stacks)
        }

    @property
    def room(self) -> dict[str, int]:
        """How many blocks of each stack may go: one always stays, and so do the protected ones."""
        return {stack: len(own) - max(1, len(self.protected & set(own))) for stack, own in self.members.items()}

    @property
    def takes(self) -> dict[str, int]:
        """How many blocks of each stack go at most, with the quota."""
        return self.room if self.quota is None else {stack: self.quota.get(stack, 0) for stack in self.members}

    @property
    def what(self) -> str:
        """What the numbers count."""
        return "groups of blocks" if self.groups else "blocks"

    def real(self, numbers: Iterable[int]) -> tuple[int, ...]:
        """The numbers of the blocks, for a sentence."""
        return tuple(sorted(block for n in numbers for block in (self.groups[n] if self.groups else (n,))))


class Chosen(NamedTuple):
    """The blocks that go, ascending; why each of them; and the rule in words."""

    removed: tuple[int, ...]
    why: tuple[str, ...]
    rule: str


def check_demand(demand: Demand, select: Select, max_gaps: int) -> None:
    """Refuse what no choice can meet, before anything is scored.

    Raises:
        ShallowvitError: says which demand is too much, and what may go.
    """
    protected = f" with {blocks_text(demand.real(demand.protected))} protected" if demand.protected else ""
    room = demand.room
    for stack, number in (demand.quota or {}).items():
        if number > room[stack]:
            raise ShallowvitError(
                f"plan: --quota takes {number} of the {len(demand.members[stack])} {demand.what} of {stack}, but only "
                f"{room[stack]} may go{protected}, since at least one must stay; take fewer"
            )
    if demand.count > sum(room.values()):
        raise ShallowvitError(
            f"plan: {demand.count} of {len(demand.stacks)} {demand.what} are to go, but only {sum(room.values())} "
            f"may{protected}, since at least one of each stack must stay; remove or protect fewer"
        )
    if select is Select.INTERVAL:
        for stack, number in (demand.quota or {}).items():
            if number and not _runs(demand, [stack], number):
                raise ShallowvitError(f"plan: no {number} neighbours of {stack} may go{protected}; take or protect fewer")
        if demand.quota is None and demand.count and not _runs(demand, demand.members, demand.count):
            raise ShallowvitError(
                f"plan: no {demand.count} neighbours of one stack may go together{protected}; remove or protect fewer, or give "
                "--quota for one interval a stack"
            )
    if select is Select.GAPS and _least_sum(demand, dict.fromkeys(range(len(demand.stacks)), 0.0), max_gaps) is None:
        raise ShallowvitError(
            f"plan: no choice of {_counted(demand.count, 'block')} leaves at most {_counted(max_gaps, 'gap')}{protected}; "
            "raise --max-gaps, or remove or protect fewer"
        )


def even_quota(demand: Demand) -> dict[str, int]:
    """Share the count out over the stacks at the same ratio, by largest remainder.

    Of equal remainders the longer stack takes first, then the deeper. A stack of which no more may go passes its turn on.
    """
    total, room = len(demand.stacks), demand.room
    lengths = {stack: len(own) for stack, own in demand.members.items()}
    shares = {stack: demand.count * length // total for stack, length in lengths.items()}
    stacks = sorted(reversed(lengths), key=lambda stack: (-(demand.count * lengths[stack] % total), -lengths[stack]))
    while (open_seats := demand.count - sum(shares.values())) > 0:
        takers = [stack for stack in stacks if shares[stack] < room[stack]]
        if not takers:
            break  # check_demand says so
        for stack in takers[:open_seats]:
            shares[stack] += 1
    return shares


def select_prefix(demand: Demand, scores: BlockScores) -> Chosen:
    """Take the lowest scores, of equal ones the deeper block first; passes over blocks that must stay."""
    takes = dict(demand.takes)
    removed: list[int] = []
    spared: list[int] = []
    for number in scores.ascending:
        if len(removed) == demand.count:
            break
        if number in demand.protected:
            continue
        if takes[demand.stacks[number]]:
            takes[demand.stacks[number]] -= 1
            removed.append(number)
        elif demand.quota is None:
            spared.append(number)
    rule = f"remove the {demand.count} of {len(demand.stacks)} {demand.what} with the lowest {scores.criterion} score"
    for number in spared:
        rule += f", except {blocks_text(demand.real([number]))}, the last of {demand.stacks[number]}"
    return _chosen(removed, _ranked(demand, scores), rule)


def select_iterative(demand: Demand, scores: BlockScores, rescore: Callable[[tuple[int, ...]], Mapping[int, float]]) -> Chosen:
    """Take the lowest score, score what is left again, and so on.

    Args:
        demand: What to meet.
        scores: Of the whole model.
        rescore: From the blocks gone so far to the scores of the others, by their numbers in the whole model.
    """
    values: Mapping[int, float] = {row.block: row.score for row in scores.blocks}
    takes = dict(demand.takes)
    order: list[int] = []
    why: dict[int, str] = {}
    while len(order) < demand.count:
        if order:
            values = rescore(tuple(sorted(order)))
        ascending = sorted(values, key=lambda number: (values[number], -number))
        number = next(n for n in ascending if n not in demand.protected and takes[demand.stacks[n]])
        takes[demand.stacks[number]] -= 1
        order.append(number)
        place = _ordinal(ascending.index(number) + 1, "lowest")
        why[number] = (
            f"{_ordinal(len(order))} to go: {scores.criterion} {values[number]:.6g}, {place} of the {len(values)} then left"
        )
    rule = (
        f"remove {demand.count} of {len(demand.stacks)} {demand.what} one at a time, the lowest {scores.criterion} score of "
        f"what is left, in the order {', '.join(_run_text(demand.real([number])) for number in order)}"
    )
    return _chosen(order, why, rule)


def select_interval(demand: Demand, scores: BlockScores) -> Chosen:
    """Take one run of neighbours, or one of each stack in the quota: what costs least together.

    A criterion that judges runs as a whole (``scores.intervals``) is asked; else a run costs the sum of its scores.
    """
    head = f"remove {demand.count} of {len(demand.stacks)} {demand.what} as one interval"
    if demand.quota is None:
        run, rule = _cheapest(demand, scores, demand.members, demand.count)
        return _chosen(run, dict.fromkeys(run, f"within the interval {_run_text(demand.real(run))}"), f"{head}, {rule}")
    gone: list[int] = []
    rules: list[str] = []
    why: dict[int, str] = {}
    for stack, number in demand.takes.items():
        if number:
            run, rule = _cheapest(demand, scores, [stack], number)
            gone += run
            rules.append(rule)
            why |= dict.fromkeys(run, f"within the interval {_run_text(demand.real(run))} of {stack}")
    return _chosen(gone, why, f"{head} a stack: {'; '.join(rules)}")


def select_gaps(demand: Demand, scores: BlockScores, max_gaps: int) -> Chosen:
    """Take the least sum of scores that leaves at most ``max_gaps`` gaps: exact, by dynamic programming.

    A gap is a run of removed blocks with a kept block of the same stack on both sides; runs at a stack's end are none.
    """
    values = {row.block: row.score for row in scores.blocks}
    removed = _least_sum(demand, values, max_gaps)
    assert removed is not None  # check_demand asked
    free = select_prefix(demand, scores).removed
    rule = (
        f"remove the {demand.count} of {len(demand.stacks)} {demand.what} with the least sum of {scores.criterion} scores "
        f"that leaves at most {_counted(max_gaps, 'gap')}: {sum(values[n] for n in removed):.6g}"
    )
    if free != removed:
        rule += f" (the lowest scores, {blocks_text(demand.real(free))}, sum to {sum(values[n] for n in free):.6g})"
    ranked = _ranked(demand, scores)
    return _chosen(removed, {number: f"{ranked[number]}; in the least sum" for number in removed}, rule)


def blocks_text(numbers: Iterable[int]) -> str:
    """Write block numbers for a sentence: ``block 3``, ``blocks 0-2, 7``."""
    numbers = set(numbers)
    return ("blocks " if len(numbers) > 1 else "block ") + runs_text(numbers)


def runs_text(numbers: Iterable[int]) -> str:
    """Write numbers by their runs: ``0-2, 7``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(map(_run_text, runs))


# Of the stack being walked: no block kept so far; the last one kept; some kept, then some removed.
_NONE_KEPT, _KEPT, _REMOVED = 0, 1, 2
_State = tuple[int, int, int]  # removed so far, gaps so far, one of the above
_Best = tuple[float, tuple[int, ...]]  # the sum, and the blocks gone: negated, deepest first, so that ties go to deeper blocks


def _least_sum(demand: Demand, values: Mapping[int, float], max_gaps: int) -> tuple[int, ...] | None:
    """Walk the blocks with the best choice for each state; None if none meets the demand."""
    states: dict[_State, _Best] = {(0, 0, _NONE_KEPT): (0.0, ())}
    quota = 0
    for stack, own in demand.members.items():
        for number in own:
            after: dict[_State, _Best] = {}
            for (gone, gaps, phase), (cost, blocks) in states.items():
                closes = int(phase == _REMOVED)
                if gaps + closes <= max_gaps:
                    _improve(after, (gone, gaps + closes, _KEPT), (cost, blocks))
                if number not in demand.protected and gone < demand.count:
                    state = (gone + 1, gaps, _NONE_KEPT if phase == _NONE_KEPT else _REMOVED)
                    _improve(after, state, (cost + values[number], (-number, *blocks)))
            states = after
        quota += demand.takes[stack]
        ended: dict[_State, _Best] = {}
        for (gone, gaps, phase), best in states.items():
            if phase != _NONE_KEPT and (demand.quota is None or gone == quota):
                _improve(ended, (gone, gaps, _NONE_KEPT), best)
        states = ended
    found = [best for (gone, _, _), best in states.items() if gone == demand.count]
    return tuple(sorted(-number for number in min(found)[1])) if found else None


def _improve(states: dict[_State, _Best], state: _State, best: _Best) -> None:
    if state not in states or best < states[state]:
        states[state] = best


def _runs(demand: Demand, stacks: Iterable[str], length: int) -> list[tuple[int, ...]]:
    """Every run of neighbours of one of the stacks that may go."""
    found = []
    for stack in stacks:
        own = demand.members[stack]
        if length <= demand.room[stack]:
            runs = [own[start : start + length] for start in range(len(own) - length + 1)]
            found += [run for run in runs if demand.protected.isdisjoint(run)]
    return found


def _cheapest(demand: Demand, scores: BlockScores, stacks: Iterable[str], length: int) -> tuple[tuple[int, ...], str]:
    runs = _runs(demand, stacks, length)
    if scores.intervals:
        judged = {(row.first, row.last): row.score for row in scores.intervals}
        missing = next((run for run in runs if (run[0], run[-1]) not in judged), None)
        if missing:
            raise ShallowvitError(
                f"plan: the {scores.criterion} scores judge intervals, but not {_run_text(demand.real(missing))}; score "
                "the model again"
            )
        cost, by = {run: judged[run[0], run[-1]] for run in runs}, f"the least {scores.criterion} score"
    else:
        values = {row.block: row.score for row in scores.blocks}
        cost, by = {run: sum(values[n] for n in run) for run in runs}, f"the least sum of {scores.criterion} scores"
    best, *others = sorted(runs, key=lambda run: (cost[run], -run[0]))
    rule = f"{_run_text(demand.real(best))}, {by} {cost[best]:.6g} of {len(runs)} possible"
    return best, rule + (f" (next {_run_text(demand.real(others[0]))}, {cost[others[0]]:.6g})" if others else "")


def _ranked(demand: Demand, scores: BlockScores) -> dict[int, str]:
    """Each block's score and place in words: among all blocks, or among those of its stack under a quota."""
    values = {row.block: row.score for row in scores.blocks}
    words = {}
    for stack, own in demand.members.items():
        rivals = range(len(demand.stacks)) if demand.quota is None else own
        ascending = [number for number in scores.ascending if number in rivals]
        where = "" if demand.quota is None else f" in {stack}"
        for number in own:
            place = _ordinal(ascending.index(number) + 1, "lowest")
            words[number] = f"{scores.criterion} {values[number]:.6g}, {place} of {len(ascending)}{where}"
    return words


def _chosen(removed: Sequence[int], why: Mapping[int, str], rule: str) -> Chosen:
    ascending = tuple(sorted(removed))
    return Chosen(ascending, tuple(why[number] for number in ascending), rule)


def _run_text(run: Sequence[int]) -> str:
    return f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0])


def _ordinal(place: int, what: str = "") -> str:
    """``1st``, ``2nd``; with a superlative ``lowest``, ``2nd lowest``."""
    if what and place == 1:
        return what
    ending = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending} {what}".rstrip()


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
