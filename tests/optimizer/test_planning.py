import json
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shallowvit import BlockScores, PlanConfig, ScoreConfig, ShallowvitError, plan, prune, score
from shallowvit.pruning.planning import Select, check_plan, choose, count_from_ratio, parse_blocks
from shallowvit.scoring.records import BlockScore, Interval
from shallowvit.scoring.weights import hash_blocks, weights_from_model

from .small_models import bypassed, loaded, stacked
from .test_blocks import TwoStacks


@pytest.fixture(scope="module")
def model():
    return stacked(10)


@pytest.fixture(scope="module")
def two_stacks():
    """Three blocks of width 8, then two of width 64."""
    return loaded(TwoStacks(), torch.ones(1, 5, 8), ("encoder", "decoder"), seed=0)


def _scored(model, values, intervals=()):
    """Scores of this model that a test chose."""
    rows = tuple(BlockScore(b.index, b.path, float(v), 1, b.stack) for b, v in zip(model.blocks, values, strict=True))
    return BlockScores("l1", "nothing", "sum of |w|", {}, model.sha256, rows, intervals=tuple(intervals))


def _change_when_skipped(model):
    """How far the output moves without each block: of what stands in the model now, so it depends on what is left."""
    values = []
    with torch.no_grad():
        whole = model.module(**model.example)
        for block in model.blocks:
            values.append(float((bypassed(model, [block.index])(**model.example) - whole).norm()))
    return _scored(model, values)


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


def test_plan_all_blocks_of_one_of_two_stacks_raises(two_stacks):
    with pytest.raises(ShallowvitError, match="all 2 blocks of decoder would be removed"):
        plan(two_stacks, config=PlanConfig(remove="3,4"))
    assert plan(two_stacks, config=PlanConfig(remove="0,4")).removed == (0, 4)


def test_plan_is_a_record_that_can_not_be_changed(model):
    with pytest.raises(AttributeError):
        plan(model).removed = (1,)
    assert replace(plan(model), removed=(1,)).removed == (1,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prune_ratio": 0.2, "select": "best"}, "unknown --select 'best'; choose from prefix, iterative, interval, gaps"),
        ({"prune_ratio": 0.2, "select": "gaps", "max_gaps": -1}, "--max-gaps -1 is out of range; give 0 or more"),
        ({"prune_ratio": 0.2, "max_gaps": 2}, "--max-gaps is of --select gaps, not of prefix; leave it out or choose gaps"),
        ({"remove": "1", "select": "gaps"}, "--remove names the blocks, so that --select has nothing to choose; leave one out"),
        ({"keep": "1", "quota": "even"}, "--keep names the blocks, so that --quota even has nothing to choose; leave one out"),
        ({"select": "interval"}, "--select needs the number of blocks to remove; give --prune-ratio"),
        ({"quota": "even"}, "--quota even needs the number of blocks to remove; give --prune-ratio"),
        ({"protect": "first"}, "--protect says what stays, but nothing is to go; give --prune-ratio, --remove or --keep"),
        ({"prune_ratio": 0.2, "quota": "encoder=1"}, "--prune-ratio and --quota with counts exclude each other; give one"),
        ({"remove": "1", "quota": "encoder=1"}, "--remove and --quota with counts exclude each other; give one"),
        ({"prune_ratio": 0.2, "protect": "top"}, "--protect 'top' isn't a list of blocks; write 3,7, first, last or 0-5"),
        ({"prune_ratio": 0.2, "protect": "first,3-1"}, "the range 3-1 runs backwards; write 1-3"),
        *(
            ({"quota": quota}, "write even, or PATH=N,PATH=N with each stack once")
            for quota in ("", "a", "a=", "=1", "a=1,a=2")
        ),
        *(
            ({"quota": quota}, "write even, or PATH=N,PATH=N with each stack once")
            for quota in ("a=-1", "a=1.5", "a=1,", "odd")
        ),
    ],
)
def test_plan_config_what_has_no_meaning_raises(settings, message):
    with pytest.raises(ShallowvitError, match=message):
        PlanConfig(**settings)


def test_plan_config_select_may_be_plain_text():
    assert PlanConfig(prune_ratio=0.2, select="gaps") == PlanConfig(prune_ratio=0.2, select=Select.GAPS)


@pytest.mark.parametrize(
    ("settings", "needs"),
    [({"prune_ratio": 0.2}, True), ({"quota": "a=1"}, True), ({"remove": "1"}, False), ({"keep": "1"}, False), ({}, False)],
)
def test_plan_config_needs_scores_where_a_ranking_decides(settings, needs):
    assert PlanConfig(**settings).needs_scores is needs


def test_parse_blocks_words_stand_for_blocks():
    assert parse_blocks("first, 4-5,last", 10, "--protect", {"first": [0, 7], "last": [6, 9]}) == [0, 4, 5, 6, 7, 9]


def test_plan_protected_blocks_stay_and_the_reason_says_so(model):
    chosen = plan(model, _scored(model, range(10)), PlanConfig(prune_ratio=0.3, protect="first,2,8-9"))
    assert chosen.removed == (1, 3, 4)
    assert chosen.reason == (
        "remove the 3 of 10 blocks with the lowest l1 score (prune ratio 0.3); blocks 0, 2, 8-9 protected (first,2,8-9)"
    )


def test_plan_protect_first_and_last_are_of_each_stack(two_stacks):
    scores = _scored(two_stacks, [1, 5, 1, 1, 1])
    assert plan(two_stacks, scores, PlanConfig(prune_ratio=0.2, protect="first,last")).removed == (1,)
    with pytest.raises(ShallowvitError, match="2 of 5 blocks are to go, but only 1 may with blocks 0, 2-4 protected"):
        plan(two_stacks, scores, PlanConfig(prune_ratio=0.4, protect="first,last"))


def test_plan_protect_block_that_does_not_exist_raises(model):
    with pytest.raises(ShallowvitError, match="--protect names block 10, but the model has blocks 0 to 9"):
        plan(model, _scored(model, range(10)), PlanConfig(prune_ratio=0.3, protect="10"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"remove": "1,3-4"}, "--remove takes blocks 3-4, which --protect 3-6 names; change one"),
        ({"keep": "0-5"}, "--keep leaves out block 6, which --protect 3-6 names; change one"),
    ],
)
def test_plan_named_blocks_that_are_protected_raise(model, settings, message):
    with pytest.raises(ShallowvitError, match=message):
        plan(model, config=PlanConfig(protect="3-6", **settings))


def test_plan_says_why_of_each_removed_block(model):
    assert plan(model, config=PlanConfig(remove="2,5")).why == ("named by the user",) * 2
    assert plan(model, config=PlanConfig(keep="0-7")).why == ("not among those the user keeps",) * 2
    chosen = plan(model, _scored(model, [5, 6, 7, 1.5, 8, 9, 0.25, 8, 8, 8]), PlanConfig(prune_ratio=0.2))
    assert chosen.removed == (3, 6)
    assert chosen.why == ("l1 1.5, 2nd lowest of 10", "l1 0.25, lowest of 10")


def test_plan_whole_plan_is_json(model):
    chosen = plan(model, _scored(model, range(10), [Interval(0, 0, 0.5)]), PlanConfig(prune_ratio=0.3, select="gaps"))
    assert json.loads(json.dumps(asdict(chosen)))["why"] == list(chosen.why)


def test_plan_interval_is_judged_by_a_criterion_of_intervals(model):
    intervals = [Interval(first, first + 2, 0.5 + 0.1 * (first != 4)) for first in range(8)]
    scores = _scored(model, [0, 0, 0, *range(7)], intervals)
    chosen = plan(model, scores, PlanConfig(prune_ratio=0.3, select="interval"))
    assert chosen.removed == (4, 5, 6)
    assert chosen.why == ("within the interval 4-6",) * 3
    assert chosen.reason == (
        "remove 3 of 10 blocks as one interval, 4-6, the least l1 score 0.5 of 8 possible (next 7-9, 0.6) (prune ratio 0.3)"
    )


def test_plan_gaps_limit_is_kept(model):
    values = [9, 1, 9, 2, 9, 3, 9, 9, 9, 8]
    chosen = {
        gaps: plan(model, _scored(model, values), PlanConfig(prune_ratio=0.3, select="gaps", max_gaps=gaps)) for gaps in (0, 3)
    }
    assert chosen[3].removed == (1, 3, 5)
    assert chosen[0].removed == (0, 1, 9)  # 9 + 1 + 8: both ends, with nothing kept beyond them


def test_plan_even_quota_takes_the_same_ratio_of_each_stack(two_stacks):
    scores = _scored(two_stacks, [100, 101, 102, 1, 2])
    assert plan(two_stacks, scores, PlanConfig(prune_ratio=0.4)).removed == (0, 3)  # the last block of decoder stays
    chosen = plan(two_stacks, scores, PlanConfig(prune_ratio=0.4, quota="even"))
    assert chosen.removed == (0, 3)
    assert chosen.reason.endswith("(prune ratio 0.4); even quota: 1 of 3 of encoder, 1 of 2 of decoder")
    assert chosen.why == ("l1 100, lowest of 3 in encoder", "l1 1, lowest of 2 in decoder")


def test_plan_quota_counts_need_no_ratio(two_stacks):
    scores = _scored(two_stacks, [9, 8, 7, 1, 2])
    chosen = plan(two_stacks, scores, PlanConfig(quota="encoder=2"))
    assert chosen.removed == (1, 2)
    assert chosen.reason == "remove the 2 of 5 blocks with the lowest l1 score; quota: 2 of 3 of encoder, 0 of 2 of decoder"


def test_plan_quota_of_an_unknown_stack_raises(two_stacks):
    with pytest.raises(
        ShallowvitError, match="--quota names head, which isn't a stack of blocks in use; choose from encoder, dec"
    ):
        plan(two_stacks, _scored(two_stacks, range(5)), PlanConfig(quota="head=1"))


def test_plan_quota_without_scores_raises(two_stacks):
    with pytest.raises(ShallowvitError, match="--quota needs scores to rank the blocks by; score the model first"):
        plan(two_stacks, config=PlanConfig(quota="encoder=1"))


def test_plan_quota_of_nothing_removes_nothing(two_stacks):
    chosen = plan(two_stacks, config=PlanConfig(quota="encoder=0"))
    assert (chosen.removed, chosen.why) == ((), ())
    assert chosen.reason.startswith("remove none of 5 blocks")


@pytest.mark.parametrize("criterion", ["l1", "entropy", "depth"])
def test_plan_iterative_criterion_of_each_blocks_own_weights_equals_prefix(model, criterion):
    config, rescored = ScoreConfig(criterion), []

    def rescore(left):
        rescored.append(len(left.blocks))
        return score(left, config)

    scores = score(model, config)
    chosen = plan(model, scores, PlanConfig(prune_ratio=0.4, select="iterative"), rescore)
    assert chosen.removed == plan(model, scores, PlanConfig(prune_ratio=0.4)).removed
    assert rescored == [9, 8, 7]
    assert chosen.scores == scores


def _greedy(model, number, protected=()):
    """Remove one at a time, each time by how far the output moves: on the whole model, nothing renumbered."""
    gone = []
    with torch.no_grad():
        while len(gone) < number:
            whole = bypassed(model, gone)(**model.example)
            moved = {
                block.index: float((bypassed(model, [*gone, block.index])(**model.example) - whole).norm())
                for block in model.blocks
                if block.index not in gone
            }
            gone.append(min((n for n in moved if n not in protected), key=moved.get))
    return gone


@pytest.mark.parametrize("seed", range(4))
def test_plan_iterative_scores_what_is_left_under_the_whole_models_numbers(seed):
    model = stacked(8, seed=seed)
    config = PlanConfig(prune_ratio=0.5, select="iterative", protect="2")
    chosen = plan(model, _change_when_skipped(model), config, _change_when_skipped)
    order = _greedy(model, 4, (2,))
    assert chosen.removed == tuple(sorted(order))
    assert f"in the order {', '.join(map(str, order))} (prune ratio 0.5); block 2 protected (2)" in chosen.reason
    assert chosen.why[chosen.removed.index(order[2])].startswith("3rd to go: l1 ")


def test_plan_iterative_differs_from_prefix_where_blocks_depend_on_each_other():
    models = [stacked(8, seed=seed) for seed in range(4)]
    scores = [_change_when_skipped(model) for model in models]
    configs = PlanConfig(prune_ratio=0.5), PlanConfig(prune_ratio=0.5, select="iterative")
    prefix, iterative = (
        [plan(model, found, config, _change_when_skipped).removed for model, found in zip(models, scores, strict=True)]
        for config in configs
    )
    assert prefix != iterative


def test_plan_iterative_two_stacks_keep_their_numbers(two_stacks):
    chosen = plan(
        two_stacks,
        _change_when_skipped(two_stacks),
        PlanConfig(quota="encoder=2,decoder=1", select="iterative"),
        _change_when_skipped,
    )
    left = prune(two_stacks, chosen).model
    for new, old in enumerate(chosen.kept):
        assert torch.equal(left.block(new).fc1.weight, two_stacks.block(old).fc1.weight)
    assert [len(left.module.encoder), len(left.module.decoder)] == [1, 1]


def test_plan_iterative_leaves_the_model_as_it_was(model):
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    plan(model, _change_when_skipped(model), PlanConfig(prune_ratio=0.3, select="iterative"), _change_when_skipped)
    assert len(model.module.blocks) == 10
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())


def test_plan_iterative_without_rescore_raises(model):
    with pytest.raises(ShallowvitError, match=r"give plan the model, and rescore, such as lambda left: score\(left, config\)"):
        plan(model, _scored(model, range(10)), PlanConfig(prune_ratio=0.3, select="iterative"))


def test_plan_iterative_rescore_of_the_whole_model_raises(model):
    with pytest.raises(ShallowvitError, match=r"the scores were computed on weights .* score it again"):
        config = PlanConfig(prune_ratio=0.3, select="iterative")
        plan(model, _scored(model, range(10)), config, lambda _left: _scored(model, range(10)))


def test_plan_iterative_rescore_by_another_criterion_raises(model):
    with pytest.raises(ShallowvitError, match="what is left was scored by depth, the whole model by l1; rescore by that"):
        config = PlanConfig(prune_ratio=0.3, select="iterative")
        plan(model, _scored(model, range(10)), config, lambda left: score(left, ScoreConfig("depth")))


def _from_checkpoint(model, values):
    """As scores read from a file: no hash of the whole model, other paths, the hash of the blocks' matrices."""
    scores = _scored(model, values)
    rows = tuple(replace(row, path=f"model.{row.path}") for row in scores.blocks)
    return replace(scores, weights_sha256=None, blocks=rows, blocks_sha256=hash_blocks(weights_from_model(model)))


def test_plan_scores_of_a_checkpoint_are_known_by_their_blocks(model):
    assert plan(model, _from_checkpoint(model, range(10)), PlanConfig(prune_ratio=0.2)).removed == (0, 1)


def test_plan_scores_of_another_checkpoint_raise(model):
    with pytest.raises(
        ShallowvitError, match=r"computed on blocks with weights \w{12}, the model's have \w{12}; score it again"
    ):
        plan(model, _from_checkpoint(stacked(10, seed=1), range(10)), PlanConfig(prune_ratio=0.2))


def test_plan_scores_without_any_hash_raise(model):
    scores = replace(_from_checkpoint(model, range(10)), blocks_sha256="")
    with pytest.raises(ShallowvitError, match="computed on blocks with weights unknown, the model's have"):
        plan(model, scores, PlanConfig(prune_ratio=0.2))


@pytest.mark.parametrize("whole", [True, False])
def test_plan_scores_of_fewer_blocks_raise(model, whole):
    scores = _scored(model, range(10)) if whole else _from_checkpoint(model, range(10))
    scores = replace(scores, blocks=scores.blocks[:7])
    with pytest.raises(
        ShallowvitError, match="the scores are of 7 blocks, the model has 10; score it again with the same --blocks"
    ):
        plan(model, scores, PlanConfig(prune_ratio=0.2))


def test_plan_scores_of_other_blocks_of_the_model_raise():
    encoder, decoder = (loaded(TwoStacks(), torch.ones(1, 5, 8), blocks, seed=0) for blocks in (["encoder"], ["decoder"]))
    scores = replace(_scored(decoder, [1, 2]), weights_sha256=encoder.sha256)
    scores = replace(scores, blocks=(*scores.blocks, BlockScore(2, "decoder.2", 3.0, 1, "decoder")))
    with pytest.raises(
        ShallowvitError, match=r"have decoder\.0 as block 0, the model encoder\.0; score it again with the same"
    ):
        plan(encoder, scores, PlanConfig(prune_ratio=0.4))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_plan_score_without_a_place_raises(model, value):
    with pytest.raises(
        ShallowvitError, match=rf"block 4 has the l1 score {value}, which has no place in a ranking; use another"
    ):
        plan(model, _scored(model, [0, 1, 2, 3, value, 5, 6, 7, 8, 9]), PlanConfig(prune_ratio=0.2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prune_ratio": 0.9, "protect": "0-3"}, "9 of 10 blocks are to go, but only 6 may"),
        ({"remove": "0-9"}, "at least one must stay"),
        ({"remove": "12"}, "--remove names block 12"),
        ({"quota": "head=1"}, "--quota names head"),
    ],
)
def test_check_plan_needs_no_scores_to_refuse(model, settings, message):
    with pytest.raises(ShallowvitError, match=message):
        check_plan(model, PlanConfig(**settings))


@pytest.mark.parametrize("settings", [{"prune_ratio": 0.3, "select": "interval"}, {"quota": "blocks=2"}, {"keep": "3"}, {}])
def test_check_plan_what_can_be_met_passes(model, settings):
    assert check_plan(model, PlanConfig(**settings)) is None


@pytest.mark.parametrize("select", ["prefix", "interval", "gaps"])
def test_choose_without_the_model_is_what_plan_removes(two_stacks, select):
    scores, config = _scored(two_stacks, [5, 3, 2, 4, 1]), PlanConfig(prune_ratio=0.4, select=select)
    planned, chosen = plan(two_stacks, scores, config), choose(scores, config)
    assert (chosen.removed, chosen.why, chosen.rule) == (planned.removed, planned.why, planned.reason)


def test_choose_nothing_asked_removes_nothing(model):
    assert choose(_scored(model, range(10)), PlanConfig()).removed == ()


@pytest.mark.parametrize("settings", [{"remove": "1"}, {"keep": "1"}])
def test_choose_named_blocks_raise(model, settings):
    with pytest.raises(
        ShallowvitError, match="--remove and --keep name blocks of a model, scores choose; give --prune-ratio or"
    ):
        choose(_scored(model, range(10)), PlanConfig(**settings))


def test_choose_iterative_raises(model):
    with pytest.raises(ShallowvitError, match="--select iterative scores a model again and again; give plan the model"):
        choose(_scored(model, range(10)), PlanConfig(prune_ratio=0.3, select="iterative"))
