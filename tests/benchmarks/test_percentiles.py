import numpy as np
import pytest
from scipy import signal, stats

from shallowvit_bench.percentiles import block_length, interval_tail, latency_from_samples, resample, runs_needed

SHARES = {"p50_ms": 0.5, "p90_ms": 0.9, "p95_ms": 0.95, "p99_ms": 0.99, "p999_ms": 0.999}


@pytest.mark.parametrize(("share", "runs"), [(0.5, 11), (0.9, 64), (0.95, 130), (0.97, 219), (0.99, 662), (0.999, 6636)])
def test_runs_needed_is_mlperfs(share, runs):
    assert runs_needed(share) == runs


@pytest.mark.parametrize(("runs", "given"), [(10, 0), (11, 1), (63, 1), (64, 2), (130, 3), (662, 4), (6635, 4), (6636, 5)])
def test_latency_from_samples_gives_only_supported_percentiles(runs, given):
    latency = latency_from_samples([1.0] * runs)
    supported = list(SHARES)[:given]
    assert [name for name in SHARES if getattr(latency, name) is not None] == supported
    assert list(latency.intervals_ms) == (["mean_ms", *supported] if given else [])


def test_latency_from_samples_drops_no_outlier():
    latency = latency_from_samples([1.0] * 999 + [1001.0])
    assert (latency.runs, latency.min_ms, latency.mean_ms, latency.p50_ms) == (1000, 1.0, 2.0, 1.0)


def test_latency_from_samples_agrees_with_numpy():
    samples = np.random.default_rng(0).gamma(2, size=7000)
    latency = latency_from_samples(list(samples))
    for name, share in SHARES.items():
        assert getattr(latency, name) == pytest.approx(np.percentile(samples, 100 * share))
    assert latency.std_ms == pytest.approx(samples.std(ddof=1))


def test_latency_from_samples_of_one_run_has_no_spread():
    latency = latency_from_samples([3.0])
    assert (latency.runs, latency.mean_ms, latency.std_ms, latency.intervals_ms) == (1, 3.0, None, {})


def test_latency_from_samples_of_the_same_runs_gives_the_same_intervals():
    samples = np.random.default_rng(0).gamma(2, size=300)
    assert latency_from_samples(samples) == latency_from_samples(samples)


def test_intervals_of_equal_runs_have_no_width():
    assert set(latency_from_samples([2.5] * 700).intervals_ms.values()) == {(2.5, 2.5)}


@pytest.mark.parametrize("runs", [30, 64, 300])
def test_intervals_hold_the_true_figure_95_times_in_100(runs):
    truth = {name: stats.gamma(2).ppf(share) for name, share in SHARES.items()} | {"mean_ms": 2.0}
    found = _coverage(lambda random: random.gamma(2, size=runs), truth)
    assert min(found.values()) > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200)  # what chance leaves of 200 repetitions


def test_intervals_hold_the_true_figure_where_each_run_resembles_the_last():
    truth = {"mean_ms": 0.0, "p50_ms": 0.0}
    found = _coverage(lambda random: _dependent(random, 600, 0.8), truth)  # independent draws would hold it 50 times in 100
    assert min(found.values()) > 0.87


def test_intervals_are_no_wider_than_those_of_independent_draws_need():
    samples = np.random.default_rng(3).gamma(2, size=1000)
    theirs = stats.bootstrap((samples,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    low, high = latency_from_samples(samples).intervals_ms["mean_ms"]
    assert high - low == pytest.approx(theirs.high - theirs.low, rel=0.2)
    assert (low + high) / 2 == pytest.approx((theirs.high + theirs.low) / 2, rel=0.02)


def test_block_length_of_dependent_runs_is_near_the_best_in_theory():
    lengths = [block_length(_dependent(np.random.default_rng(seed), 5000, 0.8)) for seed in range(20)]
    best = (6 * 0.8**2 / (1 - 0.8**2) ** 2 * 5000) ** (1 / 3)  # Politis and White for AR(1)
    assert np.mean(lengths) == pytest.approx(best, rel=0.15)


@pytest.mark.parametrize("runs", [2, 3, 4, 11, 1000])
def test_block_length_keeps_within_its_limits(runs):
    ramp = np.arange(float(runs))
    assert 1 <= block_length(ramp) <= max(1, runs / 3 + 1)


def test_block_length_of_independent_runs_is_the_third_root():
    samples = np.random.default_rng(0).gamma(2, size=1000)
    assert block_length(samples) == 10


def test_interval_tail_gives_up_less_of_few_runs():
    many, few = (interval_tail(np.random.default_rng(0).gamma(2, size=runs)) for runs in (20000, 20))
    assert many == pytest.approx(0.025, rel=0.05)
    assert few < 0.01


def test_resample_draws_stretches_of_neighbouring_runs():
    samples = np.repeat(np.arange(100.0), 10)  # neighbours are alike, so whole stretches vary more than single draws
    assert resample(samples, (0.5,)).means.std() > 3 * samples.std() / np.sqrt(len(samples))


def test_resample_counts_first_and_last_runs_as_often_as_others():
    samples = np.zeros(200)
    samples[[0, -1]] = 1.0
    assert resample(samples, (0.5,), draws=4000).means.mean() == pytest.approx(0.01, rel=0.1)


def _coverage(draw, truth, repetitions=200):
    """The share of repetitions in which the interval held the true figure, of each figure that has one."""
    drawn = [latency_from_samples(draw(np.random.default_rng(seed))).intervals_ms for seed in range(repetitions)]
    return {
        name: np.mean([intervals[name][0] <= truth[name] <= intervals[name][1] for intervals in drawn])
        for name in drawn[0]
        if name in truth
    }


def _dependent(random, runs, likeness):
    noise = random.normal(size=runs + 200)
    return signal.lfilter([1], [1, -likeness], noise)[200:]
