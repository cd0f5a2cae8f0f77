import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shallowvit import PlanConfig, ScoreConfig, ShallowvitError, plan, score
from shallowvit.scoring import CRITERIA, BlockScore, BlockScores, score_checkpoint

from .small_models import Block, Stacked, loaded, stacked


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(4)), criterion=st.sampled_from(["entropy", "l1"]))
def test_score_reordered_blocks_scores_move_along(order, criterion):
    model = stacked(4)
    moved = loaded(Stacked(nn.ModuleList([model.module.blocks[index] for index in order])))
    before = [row.score for row in score(model, ScoreConfig(criterion)).blocks]
    after = [row.score for row in score(moved, ScoreConfig(criterion)).blocks]
    assert after == [before[index] for index in order]


def _with_weights(*kinds):
    """A model with one block a kind: ``flat`` weights take few values, ``rich`` ones many."""
    model = Stacked(nn.ModuleList(Block(64) for _ in kinds), 64)
    with torch.no_grad():
        for block, kind in zip(model.blocks, kinds, strict=True):
            for part in (block.fc1, block.fc2):
                part.weight.copy_(torch.randn(part.weight.shape, generator=torch.Generator().manual_seed(1)))
                if kind == "flat":
                    part.weight.copy_(part.weight.sign())
    return loaded(model, torch.zeros(1, 2, 64))


@pytest.mark.parametrize("mantissa_bits", [7, 23])
def test_score_entropy_block_with_few_values_goes_first(mantissa_bits):
    scores = score(_with_weights("rich", "flat", "rich"), ScoreConfig("entropy", mantissa_bits))
    assert scores.blocks[1].score == pytest.approx(math.log(2), abs=1e-3)
    assert scores.ascending == (1, 2, 0)  # the two rich blocks are equal: the deeper goes first


def test_ascending_ties_deeper_goes_first():
    rows = tuple(BlockScore(index, f"b.{index}", value, 1) for index, value in enumerate([1.0, 0.5, 1.0, 0.5, 2.0]))
    assert BlockScores("l1", "nothing", "", {}, "0", rows).ascending == (3, 1, 2, 0, 4)


def test_score_counts_rank_2_weights_only():
    rows = score(stacked(3)).blocks
    assert [row.weights for row in rows] == [8 * 16 * 2] * 3
    assert [row.path for row in rows] == ["blocks.0", "blocks.1", "blocks.2"]


def test_score_entropy_biases_and_norms_do_not_count():
    model = stacked(3)
    before = score(model).blocks
    with torch.no_grad():
        for block in model.module.blocks:
            block.norm.weight.fill_(5)
            block.fc1.bias.fill_(5)
    assert score(model).blocks == before


def test_score_l1_is_the_sum_of_absolute_weights():
    model = stacked(3)
    block = model.module.blocks[1]
    expected = sum(abs(value) for part in (block.fc1, block.fc2) for value in part.weight.flatten().tolist())
    assert score(model, ScoreConfig("l1")).blocks[1].score == pytest.approx(expected, rel=1e-12)


def test_score_depth_last_block_goes_first():
    scores = score(stacked(4), ScoreConfig("depth"))
    assert [row.score for row in scores.blocks] == [3, 2, 1, 0]
    assert scores.ascending == (3, 2, 1, 0)


def test_score_random_depends_on_the_seed_alone():
    drawn = [[row.score for row in score(stacked(6, seed), ScoreConfig("random", seed=7)).blocks] for seed in (0, 1)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 6
    assert all(0 <= value < 1 for value in drawn[0])
    assert drawn[0] != [row.score for row in score(stacked(6), ScoreConfig("random", seed=8)).blocks]


@pytest.mark.parametrize("criterion", [name for name, row in CRITERIA.items() if row.needs == "nothing" and name != "mix"])
def test_score_second_run_is_equal(criterion):
    assert score(stacked(4), ScoreConfig(criterion)) == score(stacked(4), ScoreConfig(criterion))


@pytest.mark.parametrize("criterion", [name for name, row in CRITERIA.items() if row.needs != "nothing"])
def test_score_without_the_data_it_needs_raises(criterion):
    with pytest.raises(
        ShallowvitError, match=rf"{criterion} runs the model on (un)?labelled inputs; give some with --calibration"
    ):
        score(stacked(4), ScoreConfig(criterion))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_name_a_function_that_is_there(criterion):
    module, _, name = CRITERIA[criterion].function.partition(":")
    assert getattr(importlib.import_module(f"shallowvit.scoring.{module}"), name).__doc__


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_read_settings_that_exist(criterion):
    assert set(CRITERIA[criterion].settings) <= set(ScoreConfig.__dataclass_fields__)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bins": 1}, "--bins 1 is too few; give at least 2"),
        ({"bin_range": "all"}, "unknown --bin-range 'all'; choose from own, common"),
        ({"metric": "top5"}, "unknown --metric 'top5'; choose from loss, accuracy"),
        ({"samples": 0}, "--samples 0: give at least 1"),
        ({"finetune_items": 0}, "--finetune-items 0: give at least 1"),
    ],
)
def test_score_config_bad_settings_raise(settings, message):
    with pytest.raises(ShallowvitError, match=message):
        ScoreConfig(**settings)


def test_score_checkpoint_criterion_that_runs_the_model_raises(video_folder):
    with pytest.raises(ShallowvitError, match=r"bypass runs the model, but .* holds weights alone; say what they belong to"):
        score_checkpoint(video_folder, ScoreConfig("bypass"))


def test_score_checkpoint_made_of_others_equals_the_loaded_models(video_folder, video_model):
    for config in (ScoreConfig("mix", mix="entropy=1,l1=2"), ScoreConfig("auto")):
        ours, theirs = score_checkpoint(video_folder, config), score(video_model, config)
        assert [row.score for row in ours.blocks] == [row.score for row in theirs.blocks]


def test_plan_takes_scores_of_the_checkpoint_and_refuses_those_without_a_fingerprint(video_folder, video_model):
    config = PlanConfig(prune_ratio=0.5)
    expected = plan(video_model, score(video_model), config).removed
    assert plan(video_model, score_checkpoint(video_folder), config).removed == expected
    with pytest.raises(ShallowvitError, match="the scores were computed on blocks with weights unknown"):
        plan(video_model, score_checkpoint(video_folder, fingerprint=False), config)


def test_score_says_which_weights_and_settings_it_used():
    model = stacked(3)
    scores = score(model, ScoreConfig("entropy", 5, seed=3))
    assert scores.weights_sha256 == model.sha256
    assert scores.settings == {"mantissa_bits": 5}
    assert score(model, ScoreConfig("depth")).settings == {}


def test_score_exact_entropy_of_small_blocks_warns_of_saturation():
    (warning,) = score(stacked(3), ScoreConfig("entropy", 23)).warnings
    assert "entropy with 23 mantissa bits is saturated" in warning
    found = score(_with_weights("rich", "flat"), ScoreConfig("entropy", 23)).warnings
    assert any("the smallest block has 16,384" in warning for warning in found)
    assert not any("saturated" in warning for warning in found)


def test_score_unknown_criterion_raises_with_choices():
    with pytest.raises(ShallowvitError, match="unknown criterion 'entropie'; choose from entropy, interval-entropy, "):
        ScoreConfig("entropie")


@pytest.mark.parametrize("bits", [0, 24, -1])
def test_score_mantissa_bits_out_of_range_raises(bits):
    with pytest.raises(ShallowvitError, match=f"--mantissa-bits {bits} is out of range; fp32 has 1 to 23"):
        ScoreConfig(mantissa_bits=bits)


def test_score_block_without_rank_2_weights_raises_and_names_it():
    blocks = nn.ModuleList(nn.Sequential(nn.Conv1d(5, 5, 1), nn.ReLU()) for _ in range(3))
    model = loaded(Stacked(blocks))
    with pytest.raises(ShallowvitError, match=r"blocks\.0 has no rank-2 weights for entropy; use --criterion depth"):
        score(model)
    assert score(model, ScoreConfig("depth")).ascending == (2, 1, 0)
