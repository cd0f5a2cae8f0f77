import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shallowvit import ScoreConfig
from shallowvit.scoring.entropy import efficiency, interval_entropy, mutual_information, value_entropy, weight_entropy

from .small_models import blocks_of

_seeds = st.integers(0, 2**32 - 1)
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


def _entropy(matrices, mantissa_bits):
    return weight_entropy(matrices, ScoreConfig(mantissa_bits=mantissa_bits)).score


@pytest.mark.parametrize("case", CASES)
def test_weight_entropy_exact_equals_released_implementation(case):
    weights = _weights(case)
    assert _entropy([weights], 23) == pytest.approx(_counted(weights.ravel().numpy()), abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_weight_entropy_7_bits_equals_torch_bfloat16(case):
    weights = _weights(case)
    assert _entropy([weights], 7) == pytest.approx(_counted(weights.bfloat16().float().ravel().numpy()), abs=1e-9)


@pytest.mark.parametrize("mantissa_bits", [1, 4, 7, 8, 10, 16, 22])
@pytest.mark.parametrize("case", ["random", "tied", "denormal", "signed zeros", "one value"])
def test_weight_entropy_reduced_mantissa_equals_slow_rounding(case, mantissa_bits):
    weights = _weights(case)
    expected = _counted(_rounded_slowly(weights.numpy(), mantissa_bits))
    assert _entropy([weights], mantissa_bits) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("mantissa_bits", [7, 23])
def test_weight_entropy_one_value_is_plain_zero(mantissa_bits):
    found = _entropy([torch.ones(3, 3)], mantissa_bits)
    assert found == 0.0
    assert math.copysign(1, found) == 1


@pytest.mark.parametrize("mantissa_bits", [7, 23])
def test_weight_entropy_several_matrices_are_counted_together(mantissa_bits):
    one, other = _weights("random"), _weights("tied")
    together = torch.cat([one, other], dim=1)
    assert _entropy([one, other], mantissa_bits) == pytest.approx(_entropy([together], mantissa_bits), abs=1e-12)


@pytest.mark.parametrize("mantissa_bits", [7, 23])
def test_weight_entropy_uniform_counts_give_ln_n(mantissa_bits):
    assert _entropy([2.0 ** torch.arange(16.0).reshape(4, 4)], mantissa_bits) == pytest.approx(math.log(16), abs=1e-12)


def test_weight_entropy_transposed_weights_score_the_same():
    weights = _weights("random").reshape(50, 100)
    assert _entropy([weights.T], 7) == _entropy([weights], 7)


@settings(max_examples=25, deadline=None)
@given(seed=_seeds, power=st.integers(-20, 20), mantissa_bits=st.integers(1, 23))
def test_weight_entropy_power_of_two_rescaling_changes_nothing(seed, power, mantissa_bits):
    weights = torch.randn(20, 30, generator=torch.Generator().manual_seed(seed))
    assert _entropy([weights * 2.0**power], mantissa_bits) == pytest.approx(_entropy([weights], mantissa_bits), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=_seeds)
def test_weight_entropy_bf16_storage_gives_same_7_bit_score(seed):
    weights = torch.randn(40, 30, generator=torch.Generator().manual_seed(seed)) * 0.02
    assert _entropy([weights.bfloat16()], 7) == _entropy([weights], 7)


@settings(max_examples=25, deadline=None)
@given(seed=_seeds, mantissa_bits=st.integers(1, 23))
def test_weight_entropy_is_between_zero_and_ln_n(seed, mantissa_bits):
    weights = torch.randn(10, 10, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    assert 0 <= _entropy([weights], mantissa_bits) <= math.log(100) + 1e-12


@pytest.mark.parametrize("mantissa_bits", [7, 23])
@pytest.mark.parametrize("function", [weight_entropy, value_entropy, efficiency])
@pytest.mark.parametrize("matrices", [[], [torch.zeros(0, 4)], [torch.tensor([[0.3]])], [torch.tensor([[0.0]])]])
def test_entropies_of_no_or_one_weight_are_zero(function, matrices, mantissa_bits):
    assert function(matrices, ScoreConfig(mantissa_bits=mantissa_bits)).score == 0.0


def test_weight_entropy_long_runs_across_pieces_are_counted_whole():
    # pieces of 524,288 sorted weights: a run that ends in another piece, one that fills several, and single ones behind
    weights = torch.cat([torch.full((300_000,), 1.0), torch.full((1_500_000,), 2.0), 3 + torch.arange(1000.0)])
    assert _entropy([weights.reshape(1, -1)], 23) == pytest.approx(_counted(weights.numpy()), abs=1e-9)


def test_weight_entropy_several_pieces_of_random_weights_equal_released_implementation():
    weights = torch.randn(1, 1_300_000, generator=torch.Generator().manual_seed(0)) * 0.02
    assert _entropy([weights], 23) == pytest.approx(_counted(weights.ravel().numpy()), abs=1e-9)


@pytest.mark.parametrize("mantissa_bits", [5, 7])
def test_weight_entropy_noise_equals_spread_over_redraws(mantissa_bits):
    generator = torch.Generator().manual_seed(0)
    found = [
        weight_entropy([torch.randn(200, 250, generator=generator)], ScoreConfig(mantissa_bits=mantissa_bits))
        for _ in range(60)
    ]
    spread = np.std([estimate.score for estimate in found], ddof=1)
    assert np.mean([estimate.noise for estimate in found]) == pytest.approx(spread, rel=0.3)


def test_weight_entropy_noise_of_equal_counts_is_zero():
    assert weight_entropy([2.0 ** torch.arange(16.0).reshape(4, 4)], ScoreConfig()).noise == 0


def test_efficiency_of_distinct_weights_is_one():
    found = efficiency([torch.arange(1.0, 1001).reshape(10, 100)], ScoreConfig(mantissa_bits=23))
    assert found.score == pytest.approx(1, abs=1e-12)


def test_efficiency_is_entropy_over_ln_n():
    weights = _weights("tied")
    expected = _counted(weights.ravel().numpy()) / math.log(weights.numel())
    assert efficiency([weights], ScoreConfig(mantissa_bits=23)).score == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_value_entropy_equals_scipy(case):
    weights = _weights(case)
    expected = scipy.stats.entropy(np.abs(weights.ravel().numpy().astype(np.float64)))
    assert value_entropy([weights], ScoreConfig()).score == pytest.approx(expected, abs=1e-9)


def test_value_entropy_zeros_add_nothing():
    assert value_entropy([torch.tensor([[0.0, -0.0, 1.0, -1.0]])], ScoreConfig()).score == pytest.approx(math.log(2), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=_seeds, factor=st.floats(1e-6, 1e6))
def test_value_entropy_rescaling_changes_nothing(seed, factor):
    weights = torch.randn(20, 30, generator=torch.Generator().manual_seed(seed)).double()
    weights = torch.stack([weights, weights * factor]).float()
    plain, scaled = (value_entropy([part], ScoreConfig()).score for part in weights)
    assert scaled == pytest.approx(plain, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(5)), seed=_seeds)
@pytest.mark.parametrize("function", [weight_entropy, value_entropy, efficiency])
def test_entropies_order_of_matrices_changes_no_bit(function, order, seed):
    generator = torch.Generator().manual_seed(seed)
    matrices = [torch.randn(7, 5 + place, generator=generator) for place in range(5)]
    assert function([matrices[place] for place in order], ScoreConfig()) == function(matrices, ScoreConfig())


def _histogram_entropy(values, bins, limits):
    counts, _ = np.histogram(np.asarray(values, dtype=np.float64), bins, [float(limit) for limit in limits])
    return scipy.stats.entropy(counts)


def _two_blocks():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(40, 50, generator=generator), torch.randn(40, 50, generator=generator) * 3 + 1]


@pytest.mark.parametrize("bins", [2, 17, 256])
def test_interval_entropy_own_range_equals_numpy_histogram(bins):
    weights = _two_blocks()
    found = interval_entropy(blocks_of(*weights), ScoreConfig("interval-entropy", bins=bins, bin_range="own"))
    expected = [_histogram_entropy(part, bins, (part.min(), part.max())) for part in weights]
    assert [estimate.score for estimate in found] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bins", [2, 17, 256])
def test_interval_entropy_common_range_equals_numpy_histogram(bins):
    weights = _two_blocks()
    limits = (min(part.min() for part in weights), max(part.max() for part in weights))
    found = interval_entropy(blocks_of(*weights), ScoreConfig("interval-entropy", bins=bins, bin_range="common"))
    expected = [_histogram_entropy(part, bins, limits) for part in weights]
    assert [estimate.score for estimate in found] == pytest.approx(expected, abs=1e-12)


def test_interval_entropy_inner_edge_belongs_to_the_upper_interval_and_the_end_to_the_last():
    # four intervals from -1 to 1 hold 1, 1, 1 and 2 weights
    blocks = blocks_of(torch.tensor([[-1.0, -0.5, 0.0, 0.5, 1.0]]))
    (found,) = interval_entropy(blocks, ScoreConfig("interval-entropy", bins=4, bin_range="own"))
    assert found.score == pytest.approx(scipy.stats.entropy([1, 1, 1, 2]), abs=1e-12)


@pytest.mark.parametrize("bin_range", ["own", "common"])
def test_interval_entropy_of_equal_weights_is_zero(bin_range):
    (found,) = interval_entropy(blocks_of(torch.full((3, 3), 0.5)), ScoreConfig("interval-entropy", bin_range=bin_range))
    assert found.score == 0.0


@settings(max_examples=25, deadline=None)
@given(seed=_seeds, power=st.integers(-20, 20))
def test_interval_entropy_power_of_two_rescaling_changes_nothing(seed, power):
    weights = torch.randn(20, 30, generator=torch.Generator().manual_seed(seed))
    config = ScoreConfig("interval-entropy", bin_range="own")
    plain, scaled = interval_entropy(blocks_of(weights, weights * 2.0**power), config)
    assert scaled.score == pytest.approx(plain.score, abs=1e-12)


@pytest.mark.parametrize("mantissa_bits", [3, 7, 23])
def test_mutual_information_equals_pandas_counts_of_the_union(mantissa_bits):
    weights = [(part * 50).round() / 64 for part in (*_two_blocks(), torch.randn(40, 50))]
    rounded = [np.array(_rounded_slowly(part.numpy(), mantissa_bits)) for part in weights]
    own = [_counted(part) for part in rounded]
    expected = [
        -np.mean([own[i] + own[j] - _counted(np.concatenate([rounded[i], rounded[j]])) for j in range(3) if j != i])
        for i in range(3)
    ]
    found = mutual_information(blocks_of(*weights), ScoreConfig("mutual-information", mantissa_bits=mantissa_bits))
    assert [estimate.score for estimate in found] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("mantissa_bits", [7, 23])
def test_mutual_information_of_disjoint_blocks_is_minus_ln_2_less_their_entropies(mantissa_bits):
    # two blocks of 16 values each with no value in common: H_ij = ln 32
    low, high = (2.0 ** torch.arange(start, start + 16.0).reshape(4, 4) for start in (0, 16))
    found = mutual_information(blocks_of(low, high), ScoreConfig("mutual-information", mantissa_bits=mantissa_bits))
    assert [estimate.score for estimate in found] == pytest.approx([-math.log(16 * 16 / 32)] * 2, abs=1e-12)


def test_mutual_information_of_one_block_is_zero():
    assert mutual_information(blocks_of(torch.randn(4, 4)), ScoreConfig("mutual-information"))[0].score == 0.0


def test_weight_entropy_of_a_gaussian_at_7_bits_is_as_predicted_whatever_its_width():
    # H = h(w) - E ln(spacing of the grid at w), averaged over widths within an octave: 7.253
    draws = torch.randn(1, 500_000, generator=torch.Generator().manual_seed(0))
    found = [_entropy([draws * 2.0 ** (power / 8)], 7) for power in range(8)]
    assert np.mean(found) == pytest.approx(7.253, abs=0.005)


def test_interval_entropy_ranks_a_peaked_block_low_where_weight_entropy_ranks_it_high():
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(300, 300, generator=generator)
    peaked = torch.from_numpy(scipy.stats.t(3).rvs((300, 300), random_state=0)).float()
    blocks = blocks_of(gaussian, peaked)
    low, high = (estimate.score for estimate in interval_entropy(blocks, ScoreConfig("interval-entropy", bin_range="own")))
    assert low > high
    assert _entropy([gaussian], 7) < _entropy([peaked], 7)
