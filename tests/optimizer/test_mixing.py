import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shallowvit import ScoreConfig, ShallowvitError, score
from shallowvit.scoring import BlockScore, BlockScores, Calibration
from shallowvit.scoring.comparison import average_ranks, compare, parse_criteria, rank_correlation
from shallowvit.scoring.mixing import choose, mixed, parse_mix
from shallowvit.scoring.records import Needs

from .small_models import stacked


def _scores(criterion, values, needs="nothing", warnings=()):
    rows = tuple(BlockScore(i, f"b.{i}", value, 1) for i, value in enumerate(values))
    return BlockScores(criterion, needs, "", {}, "0", rows, warnings)


def test_parse_mix_gives_weights_by_criterion():
    assert parse_mix("entropy=0.3, bypass=.7") == {"entropy": 0.3, "bypass": 0.7}


@pytest.mark.parametrize("text", ["entropy", "entropy=", "entropy=x", "entropy=0", "entropy=-1", "entropy=inf", "", "l1=1,"])
def test_parse_mix_malformed_raises(text):
    with pytest.raises(ShallowvitError, match=r"isn't CRITERION=WEIGHT with a weight above 0; write entropy=0.3,bypass=0.7"):
        parse_mix(text)


@pytest.mark.parametrize("name", ["mix", "auto", "entropie"])
def test_parse_mix_of_no_simple_criterion_raises(name):
    with pytest.raises(ShallowvitError, match=f"can't mix '{name}'; choose from entropy, .*bypass"):
        parse_mix(f"{name}=1")


def test_parse_mix_same_criterion_twice_raises():
    with pytest.raises(ShallowvitError, match="names l1 twice"):
        parse_mix("l1=1,l1=2")


def test_mixed_averages_ranks_not_scores():
    found = mixed([_scores("l1", [1e9, 0, 1]), _scores("depth", [2, 1, 0])], [0.25, 0.75], ScoreConfig("mix"))
    # ranks 1, 0, 0.5 and 1, 0.5, 0
    assert [row.score for row in found.blocks] == pytest.approx([1.0, 0.375, 0.125])
    assert found.criterion == "mix"


def test_mixed_ties_share_their_rank():
    found = mixed([_scores("l1", [5, 5, 1, 9])], [1], ScoreConfig("mix"))
    assert [row.score for row in found.blocks] == pytest.approx([0.5, 0.5, 0, 1])


def test_mixed_needs_what_its_most_demanding_part_needs_and_keeps_warnings():
    parts = [
        _scores("l1", [1, 2], warnings=("small",)),
        _scores("bypass", [1, 2], "labelled"),
        _scores("cka", [1, 2], "unlabelled"),
    ]
    found = mixed(parts, [1, 1, 1], ScoreConfig("mix"))
    assert found.needs == "labelled"
    assert found.warnings == ("l1: small",)


def test_score_mix_of_one_ranks_as_that_one():
    model = stacked(6)
    alone = score(model, ScoreConfig("l1")).ascending
    assert score(model, ScoreConfig("mix", mix="l1=2")).ascending == alone
    assert score(model, ScoreConfig("mix", mix="l1=1,depth=1e-6")).ascending == alone


@pytest.mark.parametrize(
    ("needs", "reconstructs", "expected", "mix"),
    [
        (Needs.NOTHING, False, "depth", ""),
        (Needs.NOTHING, True, "probe-influence", ""),
        (Needs.UNLABELLED, True, "reconstruction", ""),
        (Needs.UNLABELLED, False, "mix", "depth=0.5,block-influence=0.5"),
        (Needs.LABELLED, False, "bypass", ""),
        (Needs.LABELLED, True, "reconstruction", ""),
    ],
)
def test_choose_goes_by_the_data_and_the_checkpoint(needs, reconstructs, expected, mix):
    found = choose(needs, reconstructs=reconstructs, architecture="ViTThing")
    assert (found.criterion, found.mix) == (expected, mix)
    assert found.reason


def test_score_auto_without_data_is_depth_and_says_why():
    found = score(stacked(4), ScoreConfig("auto"))
    assert found.ascending == (3, 2, 1, 0)
    assert found.reason == (
        "auto chose depth: there is no data, and no score of the weights alone foresaw a block's cost better than depth"
    )


def test_score_auto_with_unlabelled_data_mixes_depth_and_block_influence():
    model = stacked(4)
    data = Calibration("own", torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0)))
    found = score(model, ScoreConfig("auto"), data)
    expected = score(model, ScoreConfig("mix", mix="depth=0.5,block-influence=0.5"), data)
    assert found.blocks == expected.blocks
    assert found.needs == "unlabelled"
    assert found.reason.startswith("auto chose depth=0.5,block-influence=0.5: without labels")


@given(st.lists(st.sampled_from([0.0, -1.5, 2.0, 2.0000001, 1e9]), min_size=1, max_size=12))
def test_average_ranks_equals_scipy(values):
    assert list(average_ranks(values)) == list(stats.rankdata(values) - 1)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=12))
def test_rank_correlation_equals_scipy(pairs):
    one, other = zip(*pairs, strict=True)
    if len(set(one)) > 1 and len(set(other)) > 1:
        assert rank_correlation(one, other) == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)


def test_rank_correlation_of_same_opposite_and_constant():
    assert rank_correlation([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 1], [3, 2, 1]) != rank_correlation([1, 1, 1], [3, 2, 1])  # NaN


def test_parse_criteria_puts_the_chosen_first_and_depth_beside():
    assert parse_criteria("l1,std", "entropy") == ("entropy", "depth", "l1", "std")
    assert parse_criteria("entropy", "l1") == ("l1", "depth", "entropy")


def test_parse_criteria_all_leaves_out_the_oracle_and_the_composed():
    found = parse_criteria("all", "mix")
    assert found[:2] == ("mix", "depth")
    assert {"entropy", "bypass", "cka"} <= set(found)
    assert not {"oracle", "auto"} & set(found)


def test_parse_criteria_unknown_raises():
    with pytest.raises(ShallowvitError, match="unknown criterion 'l3'"):
        parse_criteria("l3", "entropy")


def test_compare_leaves_out_what_has_no_data_with_the_reason():
    model = stacked(5)
    found = compare(lambda config: score(model, config), ScoreConfig("l1"), ["l1", "depth", "bypass"], Needs.NOTHING)
    assert [scores.criterion for scores in found.scores] == ["l1", "depth"]
    assert found.skipped == (("bypass", "needs labelled data"),)
    assert found.spearman[0][0] == pytest.approx(1)
    assert found.spearman[0][1] == found.spearman[1][0]


def test_compare_first_criterion_that_fails_raises():
    model = stacked(5)
    with pytest.raises(
        ShallowvitError, match="block-influence runs the model on unlabelled inputs; give some with --calibration"
    ):
        compare(lambda config: score(model, config), ScoreConfig("block-influence"), ["block-influence"], Needs.NOTHING)
