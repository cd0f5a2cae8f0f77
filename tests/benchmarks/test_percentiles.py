import numpy as np
import pytest

from shallowvit_bench.percentiles import latency_from_samples, runs_needed


@pytest.mark.parametrize(("share", "runs"), [(0.5, 11), (0.9, 64), (0.95, 130), (0.97, 219), (0.99, 662), (0.999, 6636)])
def test_runs_needed_is_mlperfs(share, runs):
    assert runs_needed(share) == runs


@pytest.mark.parametrize(
    ("runs", "given"), [(10, ()), (11, ("p50_ms",)), (64, ("p50_ms", "p90_ms")), (662, ("p50_ms", "p90_ms", "p99_ms"))]
)
def test_latency_from_samples_gives_only_supported_percentiles(runs, given):
    latency = latency_from_samples([1.0] * runs)
    assert tuple(name for name in ("p50_ms", "p90_ms", "p99_ms") if getattr(latency, name) is not None) == given


def test_latency_from_samples_drops_no_outlier():
    latency = latency_from_samples([1.0] * 999 + [1001.0])
    assert (latency.runs, latency.min_ms, latency.mean_ms, latency.p50_ms) == (1000, 1.0, 2.0, 1.0)


def test_latency_from_samples_agrees_with_numpy():
    samples = np.random.default_rng(0).gamma(2, size=1000)
    assert latency_from_samples(list(samples)).p99_ms == pytest.approx(np.percentile(samples, 99))
