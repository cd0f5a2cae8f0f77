from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shallowvit import PlanConfig, ScoreConfig, ShallowvitError, plan, score
from shallowvit.pruning.planning import count_from_ratio, parse_blocks

from .small_models import loaded, stacked
from .test_blocks import TwoStacks


@pytest.fixture(scope="module")
def model():
    return stacked(10)


@pytest.mark.parametrize(
    ("ratio", "blocks", "removed"),
    [
        (0, 10, 0),
        (0.2, 10, 2),
        (0.25, 10, 2),  # 2.5: a half is rounded down
        (0.3, 10, 3),
        (0.35, 10, 3),  # 3.5
        (0.14, 25, 3),  # 3.5, in floating point 3.5000000000000004
        (0.15, 10, 1),
        (0.26, 10, 3),
        (1 / 3, 10, 3),
        (1 / 3, 12, 4),
        (2 / 3, 12, 8),
        (0.29, 100, 29),  # in floating point 28.999999999999996
        (0.55, 10, 5),
        (0.051, 10, 1),
        (0.94, 10, 9),
        (0.5, 3, 1),
        (0.7, 2, 1),
    ],
)
def test_count_from_ratio_rounds_to_nearest_half_down(ratio, blocks, removed):
    assert count_from_ratio(ratio, blocks) == removed


@given(blocks=st.integers(2, 200), data=st.data())
def test_count_from_ratio_exact_share_removes_that_many(blocks, data):
    number = data.draw(st.integers(1, blocks - 1))
    assert count_from_ratio(number / blocks, blocks) == number


@pytest.mark.parametrize("ratio", [0.01, 0.05])
def test_count_from_ratio_too_small_for_one_raises(ratio):
    with pytest.raises(ShallowvitError, match=r"of 10 blocks removes none; the least that removes one is above 0\.050"):
        count_from_ratio(ratio, 10)


@pytest.mark.parametrize(("ratio", "blocks"), [(0.96, 10), (0.9, 2)])
def test_count_from_ratio_all_blocks_raises(ratio, blocks):
    with pytest.raises(ShallowvitError, match=f"would remove all {blocks} blocks; at least one must stay"):
        count_from_ratio(ratio, blocks)


@pytest.mark.parametrize("ratio", [1, 1.5, -0.1, float("nan")])
def test_plan_config_ratio_out_of_range_raises(ratio):
    with pytest.raises(ShallowvitError, match=r"--prune-ratio .* is out of range.*0 <= ratio < 1"):
        PlanConfig(prune_ratio=ratio)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"prune_ratio": 0.2, "remove": "1"}, "--prune-ratio and --remove"),
        ({"remove": "1", "keep": "2"}, "--remove and --keep"),
        ({"prune_ratio": 0.0, "keep": "2"}, "--prune-ratio and --keep"),
    ],
)
def test_plan_config_two_ways_at_once_raise(settings, named):
    with pytest.raises(ShallowvitError, match=f"{named} exclude each other; give one"):
        PlanConfig(**settings)


@pytest.mark.parametrize(
    ("text", "blocks"),
    [("3,7", [3, 7]), ("7, 3", [3, 7]), ("0-2,8", [0, 1, 2, 8]), ("4-4", [4]), ("1,1,0-2", [0, 1, 2]), ("9", [9])],
)
def test_parse_blocks_lists_and_ranges_are_read(text, blocks):
    assert parse_blocks(text, 10, "--remove") == blocks


def test_parse_blocks_backwards_range_raises_and_turns_it():
    with pytest.raises(ShallowvitError, match="the range 5-2 runs backwards; write 2-5"):
        parse_blocks("1,5-2", 10, "--keep")


@pytest.mark.parametrize("text", ["10", "8-11", "3,99"])
def test_parse_blocks_block_that_does_not_exist_raises(text):
    with pytest.raises(ShallowvitError, match=r"--remove names block \d+, but the model has blocks 0 to 9"):
        parse_blocks(text, 10, "--remove")


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "1-", "1-2-3", "1.5", "1;2", "0x1"])
def test_parse_blocks_garbage_raises_with_the_form(text):
    with pytest.raises(ShallowvitError, match="isn't a list of blocks; write 3,7 or 0-5"):
        parse_blocks(text, 10, "--remove")


def test_plan_ratio_removes_the_lowest_scores(model):
    scores = score(model, ScoreConfig("l1"))
    chosen = plan(model, scores, PlanConfig(prune_ratio=0.2))
    lowest = sorted(scores.blocks, key=lambda row: row.score)[:2]
    assert chosen.removed == tuple(sorted(row.block for row in lowest))
    assert chosen.kept == tuple(index for index in range(10) if index not in chosen.removed)
    assert chosen.scores == scores
    assert "2 of 10" in chosen.reason


def test_plan_remove_and_keep_are_each_others_complement(model):
    removing = plan(model, config=PlanConfig(remove="0,6-9"))
    keeping = plan(model, config=PlanConfig(keep="1-5"))
    assert removing.removed == keeping.removed == (0, 6, 7, 8, 9)
    assert removing.kept == keeping.kept == (1, 2, 3, 4, 5)


def test_plan_nothing_asked_removes_nothing(model):
    chosen = plan(model)
    assert chosen.removed == ()
    assert chosen.parameters_after == chosen.parameters_before == model.parameters


def test_plan_expected_savings_are_those_of_the_blocks(model):
    chosen = plan(model, config=PlanConfig(remove="2,5"))
    assert chosen.parameters_before - chosen.parameters_after == 2 * model.blocks[0].parameters > 0
    assert chosen.flops_before - chosen.flops_after == 2 * model.blocks[0].flops > 0


def test_plan_ratio_without_scores_raises(model):
    with pytest.raises(ShallowvitError, match="--prune-ratio needs scores"):
        plan(model, config=PlanConfig(prune_ratio=0.2))


def test_plan_scores_of_other_weights_raise(model):
    with pytest.raises(ShallowvitError, match=r"the scores were computed on weights .* score it again"):
        plan(model, score(stacked(10, seed=1)), PlanConfig(prune_ratio=0.2))


@pytest.mark.parametrize("config", [PlanConfig(remove="0-9"), PlanConfig(prune_ratio=0.96)])
def test_plan_all_blocks_raises(model, config):
    with pytest.raises(ShallowvitError, match="at least one must stay"):
        plan(model, score(model), config)


def test_plan_all_blocks_of_one_of_two_stacks_raises():

    model = loaded(TwoStacks(), torch.ones(1, 5, 8), ("encoder", "decoder"))
    with pytest.raises(ShallowvitError, match="all 2 blocks of decoder would be removed"):
        plan(model, config=PlanConfig(remove="3,4"))
    assert plan(model, config=PlanConfig(remove="0,4")).removed == (0, 4)


def test_plan_is_a_record_that_can_not_be_changed(model):
    with pytest.raises(AttributeError):
        plan(model).removed = (1,)
    assert replace(plan(model), removed=(1,)).removed == (1,)
