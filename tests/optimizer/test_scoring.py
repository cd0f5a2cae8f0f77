import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shallowvit import ScoreConfig, ShallowvitError, score
from shallowvit.scoring import CRITERIA, BlockScore, BlockScores
from shallowvit.scoring.entropy import weight_entropy

from .small_models import Block, Stacked, loaded, stacked

RNG = np.random.default_rng(0)


def _weights(name):
    normal = torch.from_numpy(RNG.standard_normal(5000).astype(np.float32)) * 0.02
    return {
        "random": normal,
        "tied": (normal * 300).round() / 300,
        "denormal": torch.from_numpy(RNG.integers(-4000, 4000, 5000).astype(np.float32)) * np.float32(1e-45),
        "signed zeros": torch.tensor([0.0, -0.0, 0.0, 1.0, -1.0]),
        "fp16-valued": normal.half().float(),
        "bf16-valued": normal.bfloat16().float(),
        "one value": torch.full((100,), 0.3),
        "one weight": torch.tensor([0.3]),
        "largest": torch.tensor([3.4028235e38, -3.4028235e38, 1.0, 2.0]),
    }[name].reshape(1, -1)


CASES = [
    "random",
    "tied",
    "denormal",
    "signed zeros",
    "fp16-valued",
    "bf16-valued",
    "one value",
    "one weight",
    "largest",
]


def _counted(values):
    """The released implementation: pandas value counts of float64, scipy's entropy in nats."""
    return float(scipy.stats.entropy(pd.Series(np.asarray(values, dtype=np.float64)).value_counts().to_numpy()))


def _rounded_slowly(values, mantissa_bits):
    """Round to nearest, ties to even, value by value in float64 (where each step is exact)."""
    out = []
    for value in np.asarray(values, dtype=np.float64).ravel():
        # fp32 spaces its values 2**-149 apart below the smallest normal number
        exponent = max(math.frexp(value)[1] - 1, -126) if value else -126
        unit = math.ldexp(1.0, exponent - mantissa_bits)
        out.append(round(value / unit) * unit)
    return out


@pytest.mark.parametrize("case", CASES)
def test_weight_entropy_exact_equals_released_implementation(case):
    weights = _weights(case)
    assert weight_entropy([weights], 23) == pytest.approx(_counted(weights.ravel().numpy()), abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_weight_entropy_7_bits_equals_torch_bfloat16(case):
    weights = _weights(case)
    assert weight_entropy([weights], 7) == pytest.approx(_counted(weights.bfloat16().float().ravel().numpy()), abs=1e-9)


@pytest.mark.parametrize("mantissa_bits", [1, 4, 7, 8, 10, 16, 22])
@pytest.mark.parametrize("case", ["random", "tied", "denormal", "signed zeros", "one value"])
def test_weight_entropy_reduced_mantissa_equals_slow_rounding(case, mantissa_bits):
    weights = _weights(case)
    expected = _counted(_rounded_slowly(weights.numpy(), mantissa_bits))
    assert weight_entropy([weights], mantissa_bits) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("mantissa_bits", [7, 23])
def test_weight_entropy_one_value_is_plain_zero(mantissa_bits):
    found = weight_entropy([torch.ones(3, 3)], mantissa_bits)
    assert found == 0.0
    assert math.copysign(1, found) == 1


@pytest.mark.parametrize("mantissa_bits", [7, 23])
def test_weight_entropy_several_matrices_are_counted_together(mantissa_bits):
    one, other = _weights("random"), _weights("tied")
    together = torch.cat([one, other], dim=1)
    assert weight_entropy([one, other], mantissa_bits) == pytest.approx(weight_entropy([together], mantissa_bits), abs=1e-12)


@pytest.mark.parametrize("mantissa_bits", [7, 23])
def test_weight_entropy_uniform_counts_give_ln_n(mantissa_bits):
    assert weight_entropy([2.0 ** torch.arange(16.0).reshape(4, 4)], mantissa_bits) == pytest.approx(math.log(16), abs=1e-12)


def test_weight_entropy_transposed_weights_score_the_same():
    weights = _weights("random").reshape(50, 100)
    assert weight_entropy([weights.T], 7) == weight_entropy([weights], 7)


_seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=25, deadline=None)
@given(seed=_seeds, power=st.integers(-20, 20), mantissa_bits=st.integers(1, 23))
def test_weight_entropy_power_of_two_rescaling_changes_nothing(seed, power, mantissa_bits):
    weights = torch.randn(20, 30, generator=torch.Generator().manual_seed(seed))
    assert weight_entropy([weights * 2.0**power], mantissa_bits) == pytest.approx(
        weight_entropy([weights], mantissa_bits), abs=1e-12
    )


@settings(max_examples=25, deadline=None)
@given(seed=_seeds)
def test_weight_entropy_bf16_storage_gives_same_7_bit_score(seed):
    weights = torch.randn(40, 30, generator=torch.Generator().manual_seed(seed)) * 0.02
    assert weight_entropy([weights.bfloat16()], 7) == weight_entropy([weights], 7)


@settings(max_examples=25, deadline=None)
@given(seed=_seeds, mantissa_bits=st.integers(1, 23))
def test_weight_entropy_is_between_zero_and_ln_n(seed, mantissa_bits):
    weights = torch.randn(10, 10, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    assert 0 <= weight_entropy([weights], mantissa_bits) <= math.log(100) + 1e-12


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


@pytest.mark.parametrize("criterion", CRITERIA)
def test_score_second_run_is_equal(criterion):
    assert score(stacked(4), ScoreConfig(criterion)) == score(stacked(4), ScoreConfig(criterion))


def test_score_says_which_weights_and_settings_it_used():
    model = stacked(3)
    scores = score(model, ScoreConfig("entropy", 5, seed=3))
    assert scores.weights_sha256 == model.sha256
    assert scores.settings == {"mantissa_bits": 5}
    assert score(model, ScoreConfig("depth")).settings == {}


def test_score_exact_entropy_of_small_blocks_warns_of_saturation():
    (warning,) = score(stacked(3), ScoreConfig("entropy", 23)).warnings
    assert "entropy with 23 mantissa bits is saturated" in warning
    assert score(_with_weights("rich", "flat"), ScoreConfig("entropy", 23)).warnings == ()


def test_score_unknown_criterion_raises_with_choices():
    with pytest.raises(ShallowvitError, match="unknown criterion 'entropie'; choose from entropy, l1, depth, random"):
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
