import numpy as np
import pytest
from scipy import signal

from shallowvit_bench.errors import BenchError
from shallowvit_bench.steadiness import drift_of, jitter_ms


def test_jitter_ms_is_the_mean_difference_of_neighbours():
    assert jitter_ms([1.0, 3.0, 2.0]) == 1.5


def test_jitter_ms_is_not_taken_across_rounds():
    assert jitter_ms([1.0, 1.0, 9.0, 9.5], round_runs=(2, 2)) == 0.25


def test_jitter_ms_of_rounds_of_one_run_is_not_measured():
    assert jitter_ms([1.0, 2.0], round_runs=(1, 1)) is None


def test_jitter_ms_depends_on_the_order_of_time():
    samples = np.random.default_rng(0).normal(10, 0.3, size=500)
    assert jitter_ms(samples) > 20 * jitter_ms(np.sort(samples))


def test_jitter_ms_with_rounds_of_other_runs_is_refused():
    with pytest.raises(BenchError, match="rounds have 3 runs, there are 4 samples"):
        jitter_ms([1.0] * 4, round_runs=(1, 2))


@pytest.mark.parametrize(("runs", "likeness"), [(30, 0.0), (30, 0.5), (300, 0.8)])
def test_drift_of_steady_noise_is_rarely_called_drift(runs, likeness):
    called = sum(bool(drift_of(1 + _noise(seed, runs, likeness)).drifted) for seed in range(200))
    assert called <= 8  # 2 are expected at 1 %; 9 or more come by chance once in 2,000


def test_drift_of_bursts_of_other_work_is_rarely_called_drift():
    called = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        samples = 1 + 0.02 * random.normal(size=300)
        for start in random.integers(300, size=5):
            samples[start : start + 15] += 0.3
        called += bool(drift_of(samples).drifted)
    assert called <= 4


def test_drift_of_a_ramp_of_5_percent_in_noise_of_3_is_found():
    found = [drift_of(1 + _noise(seed, 300, 0.0) + np.linspace(0, 0.05, 300)) for seed in range(100)]
    assert sum(bool(drift.drifted) for drift in found) >= 98
    assert np.mean([drift.share for drift in found]) == pytest.approx(0.05 * 2 / 3, abs=0.003)


@pytest.mark.parametrize("at", [100, 150, 200])
def test_drift_of_a_step_is_found(at):
    samples = 1 + _noise(0, 300, 0.5)
    samples[at:] *= 1.12
    drift = drift_of(samples)
    assert (drift.drifted, drift.share) == (True, pytest.approx(0.12, abs=0.02))


def test_drift_of_samples_that_get_faster_is_below_zero():
    drift = drift_of(2 + _noise(0, 300, 0.0) - np.linspace(0, 0.5, 300))
    assert (drift.drifted, drift.share) == (True, pytest.approx(-0.5 * 2 / 3 / (2 - 0.5 / 6), abs=0.01))


def test_drift_of_a_proven_but_tiny_change_is_no_drift():
    drift = drift_of(1 + 1e-5 * _noise(0, 300, 0.0) + np.linspace(0, 0.005, 300))
    assert drift.p_value < 1e-6
    assert not drift.drifted


def test_drift_of_equal_samples_is_none():
    drift = drift_of([2.0] * 100)
    assert (drift.share, drift.drifted, drift.p_value) == (0.0, False, 1.0)


def test_drift_of_few_runs_is_not_measured():
    drift = drift_of([1.0] * 11)
    assert (drift.share, drift.drifted, drift.p_value) == (None, None, None)


def _noise(seed, runs, likeness):
    """3 % of noise in which each run resembles the last."""
    white = np.random.default_rng(seed).normal(size=runs + 200) * np.sqrt(1 - likeness**2)
    return 0.03 * signal.lfilter([1], [1, -likeness], white)[200:]
