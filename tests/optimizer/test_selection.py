import itertools
import re
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shallowvit import BlockScores, ShallowvitError
from shallowvit.pruning.selection import (
    Demand,
    Select,
    blocks_text,
    check_demand,
    even_quota,
    runs_text,
    select_gaps,
    select_interval,
    select_iterative,
    select_prefix,
)
from shallowvit.scoring.records import BlockScore, Interval


def _scores(values, intervals=()):
    rows = tuple(BlockScore(number, f"blocks.{number}", float(value), 1) for number, value in enumerate(values))
    return BlockScores("l1", "nothing", "sum of |w|", {}, "0" * 64, rows, intervals=tuple(intervals))


def _one_stack(count, of, **settings):
    return Demand(("blocks",) * of, count, **settings)


def _choices(demand):
    """Every set of blocks that meets the demand, by trying all of them."""
    numbers = [number for number in range(len(demand.stacks)) if number not in demand.protected]
    for removed in itertools.combinations(numbers, demand.count):
        by_stack = {stack: [n for n in removed if demand.stacks[n] == stack] for stack in demand.stacks}
        if any(len(gone) == demand.stacks.count(stack) for stack, gone in by_stack.items()):
            continue
        if demand.quota is None or all(len(gone) == demand.quota.get(stack, 0) for stack, gone in by_stack.items()):
            yield removed


def _picture(demand, removed, stack):
    """A stack as text: K for kept, R for removed."""
    return "".join("R" if number in removed else "K" for number, own in enumerate(demand.stacks) if own == stack)


def _gaps(demand, removed):
    return sum(len(re.findall("R+", _picture(demand, removed, stack).strip("R"))) for stack in set(demand.stacks))


def _best(choices, values):
    """The least sum, of equal sums the choice with the deepest blocks."""
    return min(choices, key=lambda removed: (sum(values[n] for n in removed), sorted(-n for n in removed)), default=None)


@st.composite
def _cases(draw, quota=False):
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3).filter(lambda found: sum(found) <= 9))
    stacks = tuple(f"stage{index}" for index, length in enumerate(lengths) for _ in range(length))
    protected = draw(st.frozensets(st.integers(0, len(stacks) - 1), max_size=3))
    shares = None
    if quota:
        shares = {f"stage{index}": draw(st.integers(0, length - 1)) for index, length in enumerate(lengths)}
        count = sum(shares.values())
        assume(count)
    else:
        count = draw(st.integers(1, len(stacks)))
    values = draw(st.lists(st.integers(-9, 9), min_size=len(stacks), max_size=len(stacks)))
    return Demand(stacks, count, protected, shares), values


_ANY_CASE = st.one_of(_cases(), _cases(quota=True))


def _is_refused(demand, select, max_gaps=1):
    try:
        check_demand(demand, select, max_gaps)
    except ShallowvitError:
        return True
    return False


@given(case=_ANY_CASE)
def test_select_prefix_is_the_least_sum_of_all_choices(case):
    demand, values = case
    expected = _best(_choices(demand), values)
    assert _is_refused(demand, Select.PREFIX) == (expected is None)
    if expected is not None:
        chosen = select_prefix(demand, _scores(values)).removed
        assert sum(values[n] for n in chosen) == sum(values[n] for n in expected)
        assert chosen in set(_choices(demand))


@given(case=_ANY_CASE, max_gaps=st.integers(0, 3))
def test_select_gaps_is_the_least_sum_of_all_choices_with_so_few_gaps(case, max_gaps):
    demand, values = case
    expected = _best((removed for removed in _choices(demand) if _gaps(demand, removed) <= max_gaps), values)
    assert _is_refused(demand, Select.GAPS, max_gaps) == (expected is None)
    if expected is not None:
        assert select_gaps(demand, _scores(values), max_gaps).removed == expected


@given(case=_cases())
def test_select_interval_is_the_least_sum_of_all_runs_in_one_stack(case):
    demand, values = case
    runs = [
        removed
        for removed in _choices(demand)
        if any(re.fullmatch(f"K*R{{{demand.count}}}K*", _picture(demand, removed, stack)) for stack in demand.stacks)
    ]
    expected = _best(runs, values)
    assert _is_refused(demand, Select.INTERVAL) == (expected is None)
    if expected is not None:
        assert select_interval(demand, _scores(values)).removed == expected


@given(case=_cases(quota=True))
def test_select_interval_with_quota_is_one_least_run_a_stack(case):
    demand, values = case
    runs = [
        removed
        for removed in _choices(demand)
        if all(re.fullmatch("K*R*K*", _picture(demand, removed, stack)) for stack in demand.stacks)
    ]
    assert _is_refused(demand, Select.INTERVAL) == (not runs)
    if runs:
        chosen = select_interval(demand, _scores(values)).removed
        assert chosen in runs
        assert sum(values[n] for n in chosen) == min(sum(values[n] for n in run) for run in runs)


@given(case=_ANY_CASE, shift=st.integers(-20, 20), scale=st.integers(1, 5), select=st.sampled_from(list(Select)))
def test_select_any_shifted_and_scaled_scores_choose_the_same(case, shift, scale, select):
    demand, values = case
    assume(not _is_refused(demand, select))
    moved = [scale * value + shift for value in values]
    assert _choose(select, demand, values).removed == _choose(select, demand, moved).removed


def _choose(select, demand, values):
    scores = _scores(values)
    if select is Select.ITERATIVE:
        return select_iterative(demand, scores, lambda gone: {n: values[n] for n in range(len(values)) if n not in gone})
    if select is Select.GAPS:
        return select_gaps(demand, scores, 1)
    return (select_prefix if select is Select.PREFIX else select_interval)(demand, scores)


@given(case=_ANY_CASE)
def test_select_iterative_scores_that_never_change_equal_prefix(case):
    demand, values = case
    assume(not _is_refused(demand, Select.PREFIX))
    assert _choose(Select.ITERATIVE, demand, values).removed == _choose(Select.PREFIX, demand, values).removed


def test_select_iterative_of_two_that_do_the_same_only_one_goes():
    asked = []

    def rescore(gone):
        asked.append(gone)
        return {number: value for number, value in enumerate([5, 9, 4, 3]) if number not in gone}

    chosen = select_iterative(_one_stack(2, 4), _scores([5, 1, 2, 3]), rescore)
    assert chosen.removed == (1, 3)
    assert asked == [(1,)]
    assert chosen.why == ("1st to go: l1 1, lowest of the 4 then left", "2nd to go: l1 3, lowest of the 3 then left")
    assert chosen.rule == "remove 2 of 4 blocks one at a time, the lowest l1 score of what is left, in the order 1, 3"


def test_select_iterative_protected_and_quota_are_passed_over():
    demand = Demand(("a",) * 3 + ("b",) * 3, 2, frozenset({0}), {"a": 1, "b": 1})
    chosen = _choose(Select.ITERATIVE, demand, [1, 2, 3, 6, 5, 4])
    assert chosen.removed == (1, 5)
    assert chosen.why == ("1st to go: l1 2, 2nd lowest of the 6 then left", "2nd to go: l1 4, 3rd lowest of the 5 then left")


def test_select_prefix_equal_scores_deeper_block_goes_first():
    assert select_prefix(_one_stack(2, 5), _scores([1, 1, 1, 1, 1])).removed == (3, 4)


def test_select_prefix_says_each_blocks_score_and_place():
    chosen = select_prefix(_one_stack(2, 4, protected=frozenset({1})), _scores([2.5, 1.25, 7, 3]))
    assert chosen.removed == (0, 3)
    assert chosen.why == ("l1 2.5, 2nd lowest of 4", "l1 3, 3rd lowest of 4")
    assert chosen.rule == "remove the 2 of 4 blocks with the lowest l1 score"


def test_select_prefix_places_are_written_as_ordinals():
    why = select_prefix(_one_stack(23, 24), _scores(range(24))).why
    endings = [text.split(", ")[1].split(" ")[0] for text in why]
    assert [endings[place - 1] for place in (2, 3, 4, 11, 12, 13, 21, 22, 23)] == [
        "2nd",
        "3rd",
        "4th",
        "11th",
        "12th",
        "13th",
        "21st",
        "22nd",
        "23rd",
    ]


def test_select_prefix_under_a_quota_places_are_of_the_stack():
    demand = Demand(("a",) * 3 + ("b",) * 2, 2, quota={"a": 1, "b": 1})
    chosen = select_prefix(demand, _scores([1, 2, 3, 40, 50]))
    assert chosen.why == ("l1 1, lowest of 3 in a", "l1 40, lowest of 2 in b")


def test_select_prefix_last_block_of_a_stack_stays_and_is_named():
    chosen = select_prefix(Demand(("a", "a", "b", "b"), 2), _scores([8, 9, 2, 1]))
    assert chosen.removed == (0, 3)
    assert chosen.rule.endswith("with the lowest l1 score, except block 2, the last of b")
    assert chosen.why == ("l1 8, 3rd lowest of 4", "l1 1, lowest of 4")  # without a quota all blocks compete


def test_select_interval_criterion_that_judges_runs_is_asked():
    intervals = [Interval(0, 1, 0.5), Interval(1, 2, 0.12), Interval(2, 3, 0.13), Interval(0, 0, 0.0)]
    chosen = select_interval(_one_stack(2, 4), _scores([0, 9, 9, 1], intervals))
    assert chosen.removed == (1, 2)
    assert chosen.rule == "remove 2 of 4 blocks as one interval, 1-2, the least l1 score 0.12 of 3 possible (next 2-3, 0.13)"
    assert chosen.why == ("within the interval 1-2",) * 2


def test_select_interval_without_such_a_criterion_sums_and_says_so():
    chosen = select_interval(_one_stack(2, 4), _scores([5, 1, 2, 9]))
    assert chosen.rule == "remove 2 of 4 blocks as one interval, 1-2, the least sum of l1 scores 3 of 3 possible (next 0-1, 6)"


def test_select_interval_one_possible_run_has_no_next():
    chosen = select_interval(_one_stack(2, 4, protected=frozenset({0, 1})), _scores([1, 1, 1, 1]))
    assert chosen.rule.endswith("2-3, the least sum of l1 scores 2 of 1 possible")


def test_select_interval_quota_names_a_run_a_stack():
    demand = Demand(("a",) * 3 + ("b",) * 3 + ("c",), 3, quota={"a": 1, "b": 2})
    chosen = select_interval(demand, _scores([5, 1, 2, 3, 4, 9, 0]))
    assert chosen.removed == (1, 3, 4)
    assert chosen.why == ("within the interval 1 of a", "within the interval 3-4 of b", "within the interval 3-4 of b")
    assert "as one interval a stack: 1, the least sum of l1 scores 1 of 3 possible (next 2, 2); 3-4, the least" in chosen.rule


def test_select_interval_run_that_was_not_judged_raises():
    with pytest.raises(ShallowvitError, match="the l1 scores judge intervals, but not 1-2; score the model again"):
        select_interval(_one_stack(2, 3), _scores([1, 2, 3], [Interval(0, 1, 0.5)]))


def test_select_gaps_says_what_the_limit_costs():
    chosen = select_gaps(_one_stack(2, 6), _scores([9, 1, 9, 1, 4, 9]), 1)
    assert chosen.removed == (3, 4)  # 1 and 3 alone would leave two gaps
    assert chosen.rule == (
        "remove the 2 of 6 blocks with the least sum of l1 scores that leaves at most 1 gap: 5 "
        "(the lowest scores, blocks 1, 3, sum to 2)"
    )
    assert chosen.why == ("l1 1, lowest of 6; in the least sum", "l1 4, 3rd lowest of 6; in the least sum")


def test_select_gaps_runs_at_a_stacks_ends_are_none():
    demand = Demand(("a",) * 4 + ("b",) * 4, 4)
    assert select_gaps(demand, _scores([1, 9, 9, 1, 1, 9, 9, 1]), 0).removed == (0, 3, 4, 7)


def test_select_gaps_limit_that_binds_nothing_is_prefix_and_says_no_more():
    chosen = select_gaps(_one_stack(2, 6), _scores([9, 1, 9, 1, 4, 9]), 2)
    assert chosen.removed == (1, 3)
    assert chosen.rule.endswith("at most 2 gaps: 2")


@pytest.mark.parametrize(
    ("lengths", "count", "shares"),
    [
        ((12, 4), 4, (3, 1)),
        ((2, 2, 6, 2), 6, (1, 1, 3, 1)),
        ((2, 2, 6, 2), 3, (0, 0, 2, 1)),  # remainders are all a half: the longest takes one, then the deepest
        ((12, 8), 6, (4, 2)),  # 3.6 and 2.4
        ((1, 1, 6), 4, (0, 0, 4)),  # stacks of one block pass their turn on
    ],
)
def test_even_quota_known_shares(lengths, count, shares):
    stacks = tuple(f"s{index}" for index, length in enumerate(lengths) for _ in range(length))
    assert tuple(even_quota(Demand(stacks, count)).values()) == shares


@given(lengths=st.lists(st.integers(4, 12), min_size=1, max_size=4), data=st.data())
def test_even_quota_is_within_one_of_the_exact_share_and_sums_up(lengths, data):
    count = data.draw(st.integers(0, sum(lengths) // 2))
    stacks = tuple(f"s{index}" for index, length in enumerate(lengths) for _ in range(length))
    shares = even_quota(Demand(stacks, count))
    assert sum(shares.values()) == count
    for index, length in enumerate(lengths):
        assert abs(shares[f"s{index}"] - Fraction(count * length, sum(lengths))) < 1


@pytest.mark.parametrize(
    ("demand", "select", "message"),
    [
        (
            _one_stack(4, 5, protected=frozenset({0, 4})),
            Select.PREFIX,
            r"4 of 5 blocks are to go, but only 3 may with blocks 0, 4 ",
        ),
        (
            Demand(("a", "a", "b"), 2),
            Select.PREFIX,
            r"2 of 3 blocks are to go, but only 1 may, since at least one of each stack",
        ),
        (
            Demand(("a", "a", "b"), 2, quota={"a": 2}),
            Select.PREFIX,
            r"--quota takes 2 of the 2 blocks of a, but only 1 may go, s",
        ),
        (
            Demand(("a",) * 4, 3, frozenset({1, 2}), {"a": 3}),
            Select.GAPS,
            r"--quota takes 3 of the 4 blocks of a, but only 2 may go with blocks 1-2 protected, .*; take fewer",
        ),
        (
            _one_stack(4, 6, protected=frozenset({2})),
            Select.INTERVAL,
            r"no 4 neighbours of one stack may go together with block 2 p",
        ),
        (
            Demand(("a", "a", "b", "b"), 2),
            Select.INTERVAL,
            r"no 2 neighbours of one stack may go together; .* or give --quota for",
        ),
        (
            Demand(("a",) * 5, 2, frozenset({1, 3}), {"a": 2}),
            Select.INTERVAL,
            r"no 2 neighbours of a may go with blocks 1, 3 protected; take or protect fewer",
        ),
        (
            _one_stack(1, 4, protected=frozenset({0, 3})),
            Select.GAPS,
            r"no choice of 1 block leaves at most 0 gaps with blocks 0, 3 protected; raise --max-gaps, or remove",
        ),
    ],
)
def test_check_demand_what_no_choice_meets_raises(demand, select, message):
    with pytest.raises(ShallowvitError, match=message):
        check_demand(demand, select, 0)


@pytest.mark.parametrize(
    ("numbers", "text"), [([3], "block 3"), ([2, 0, 1], "blocks 0-2"), ([7, 0, 1], "blocks 0-1, 7"), ([4, 2], "blocks 2, 4")]
)
def test_blocks_text_runs_are_joined(numbers, text):
    assert blocks_text(numbers) == text


@pytest.mark.parametrize(("blocks", "text"), [((), ""), ((3,), "3"), ((11, 9, 10, 2), "2, 9-11"), ((0, 1), "0-1")])
def test_runs_text_joins_neighbours(blocks, text):
    assert runs_text(blocks) == text
