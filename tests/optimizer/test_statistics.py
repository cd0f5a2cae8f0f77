import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shallowvit import ScoreConfig
from shallowvit.scoring.spectral import relative_norm, spectral_entropy, stable_rank
from shallowvit.scoring.statistics import kurtosis, l1, l2, mean_abs, std, variance

from .small_models import blocks_of

CONFIG = ScoreConfig()
SPECTRAL = [stable_rank, spectral_entropy]
STATISTICS = [mean_abs, variance, std, l1, l2, kurtosis]
_seeds = st.integers(0, 2**32 - 1)


def _drawn(seed=0, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * 0.02 + 0.001 for shape in shapes or ((30, 40), (50, 20))]


def _joined(matrices):
    return np.concatenate([matrix.numpy().astype(np.float64).ravel() for matrix in matrices])


EXPECTED = {
    mean_abs: lambda w: np.abs(w).mean(),
    variance: lambda w: np.abs(w).var(),
    std: lambda w: np.abs(w).std(),
    l1: lambda w: np.abs(w).sum(),
    l2: lambda w: np.linalg.norm(w),
    kurtosis: lambda w: -scipy.stats.kurtosis(w),
}


@pytest.mark.parametrize("function", STATISTICS)
def test_statistics_equal_numpy_and_scipy(function):
    matrices = _drawn()
    assert function(matrices, CONFIG).score == pytest.approx(EXPECTED[function](_joined(matrices)), rel=1e-12)


@pytest.mark.parametrize("function", STATISTICS)
def test_statistics_of_several_pieces_equal_numpy_and_scipy(function):
    matrices = _drawn(1, (1, 700_000), (1, 3))  # a piece is 524,288 weights
    assert function(matrices, CONFIG).score == pytest.approx(EXPECTED[function](_joined(matrices)), rel=1e-11)


@pytest.mark.parametrize("function", STATISTICS)
@pytest.mark.parametrize("matrices", [[], [torch.zeros(0, 3)], [torch.zeros(1, 1)], [torch.zeros(5, 5)]])
def test_statistics_of_nothing_and_of_zeros_are_zero(function, matrices):
    assert function(matrices, CONFIG).score == 0.0


@pytest.mark.parametrize("value", [0.3, 1e-30, 1e30])
def test_kurtosis_of_equal_weights_is_zero(value):
    assert kurtosis([torch.full((37, 11), value)], CONFIG).score == 0.0


def test_kurtosis_heavier_tails_score_lower():
    heavy = torch.from_numpy(scipy.stats.t(5).rvs((100, 100), random_state=0))
    light = torch.from_numpy(scipy.stats.uniform().rvs((100, 100), random_state=0))
    assert kurtosis([heavy], CONFIG).score < 0 < kurtosis([light], CONFIG).score


def test_l2_of_the_largest_weights_stays_finite():
    assert l2([torch.full((2, 2), 3e38)], CONFIG).score == pytest.approx(2 * float(np.float32(3e38)), rel=1e-12)


@pytest.mark.parametrize("function", [mean_abs, l1])
def test_noise_equals_spread_over_redraws(function):
    found = [function(_drawn(seed, (40, 50)), CONFIG) for seed in range(200)]
    spread = np.std([estimate.score for estimate in found], ddof=1)
    assert np.mean([estimate.noise for estimate in found]) == pytest.approx(spread, rel=0.2)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(4)), seed=_seeds)
@pytest.mark.parametrize("function", [*STATISTICS, *SPECTRAL])
def test_order_of_matrices_changes_no_bit(function, order, seed):
    matrices = _drawn(seed, (3, 4), (5, 6), (7, 2), (4, 4))
    assert function([matrices[place] for place in order], CONFIG) == function(matrices, CONFIG)


@settings(max_examples=20, deadline=None)
@given(seed=_seeds)
@pytest.mark.parametrize("function", [mean_abs, l1, l2, kurtosis, stable_rank])
def test_bf16_storage_scores_as_its_fp32_numbers(function, seed):
    matrices = [matrix.bfloat16() for matrix in _drawn(seed)]
    assert function(matrices, CONFIG) == function([matrix.float() for matrix in matrices], CONFIG)


def _singular_values(matrix):
    return np.linalg.svd(matrix.numpy().astype(np.float64), compute_uv=False)


@pytest.mark.parametrize("shape", [(30, 30), (20, 60), (60, 20)])
def test_stable_rank_equals_singular_value_decomposition(shape):
    matrices = _drawn(2, shape, (10, 10))
    energies = [_singular_values(matrix) ** 2 for matrix in matrices]
    expected = np.mean([energy.sum() / energy.max() / len(energy) for energy in energies])
    assert stable_rank(matrices, CONFIG).score == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shape", [(30, 30), (20, 60), (60, 20)])
def test_spectral_entropy_equals_singular_value_decomposition(shape):
    matrices = _drawn(3, shape, (10, 10))
    energies = [_singular_values(matrix) ** 2 for matrix in matrices]
    expected = np.mean([scipy.stats.entropy(energy) / math.log(len(energy)) for energy in energies])
    assert spectral_entropy(matrices, CONFIG).score == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("function", SPECTRAL)
def test_spectral_criteria_of_an_orthogonal_matrix_are_one(function):
    orthogonal = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).Q
    assert function([orthogonal], CONFIG).score == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("function", "expected"), [(stable_rank, 1 / 8), (spectral_entropy, 0.0)])
def test_spectral_criteria_of_rank_one_are_least(function, expected):
    assert function([torch.ones(8, 12)], CONFIG).score == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("function", SPECTRAL)
@pytest.mark.parametrize("matrices", [[], [torch.zeros(4, 4)], [torch.zeros(0, 4)]])
def test_spectral_criteria_of_nothing_and_of_zeros_are_zero(function, matrices):
    assert function(matrices, CONFIG).score == 0.0


@settings(max_examples=20, deadline=None)
@given(seed=_seeds, power=st.integers(-100, 100))
@pytest.mark.parametrize("function", SPECTRAL)
def test_spectral_criteria_rescaling_changes_nothing(function, seed, power):
    matrices = _drawn(seed, (12, 9))
    scaled = [matrix * 2.0**power for matrix in matrices]
    assert function(scaled, CONFIG).score == pytest.approx(function(matrices, CONFIG).score, rel=1e-9)


def test_relative_norm_is_the_writers_share_of_what_stands_in_the_stream():
    # width 4: fc1 [8, 4] reads, fc2 [4, 8] writes with a norm of scale * sqrt(32)
    blocks = blocks_of(*([torch.full((8, 4), 99.0), torch.full((4, 8), scale)] for scale in (3.0, 4.0, 12.0)))
    found = [estimate.score for estimate in relative_norm(blocks, CONFIG)]
    assert found == pytest.approx([1.0, 4 / 5, 12 / 13])


def test_relative_norm_of_a_block_that_writes_nothing_is_zero():
    blocks = blocks_of(*([torch.ones(8, 4), torch.full((4, 8), scale)] for scale in (0.0, 0.0, 1.0)))
    assert [estimate.score for estimate in relative_norm(blocks, CONFIG)] == [0.0, 0.0, 1.0]
