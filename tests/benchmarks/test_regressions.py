import json
import re
from dataclasses import asdict

import numpy as np
import pytest
from scipy import signal

from shallowvit_bench.errors import BenchError
from shallowvit_bench.regressions import Verdict, compare_with_baseline

CONDITIONS = {
    "time_utc": "2026-11-25",
    "device": "board X",
    "threads": 2,
    "cores": 2,
    "load_average": 0.0,
    "command": "a",
    "packages": {"numpy": "2.0"},
    "power_mode": "MAXN",
}


def test_compare_with_baseline_of_the_same_speed_keeps():
    (found,) = compare_with_baseline([_row(10, 1)], [_row(10, 2)], 0.05)
    assert (found.verdict, found.failed) == (Verdict.KEPT, False)
    assert found.low < 0 < found.high


def test_compare_with_baseline_of_a_clear_regression_fails_with_its_interval():
    (found,) = compare_with_baseline([_row(10.9, 1)], [_row(10, 2)], 0.05)
    assert (found.verdict, found.failed) == (Verdict.REGRESSED, True)
    assert found.change == pytest.approx(0.09, abs=0.01)
    assert f"p50_ms is {100 * found.change:.1f} % worse ({100 * found.low:.1f} to" in found.sentence
    assert "more than the 5 % allowed" in found.sentence


def test_compare_with_baseline_within_noise_says_how_many_runs_settle_it():
    (found,) = compare_with_baseline([_row(10.55, 1, runs=40)], [_row(10, 2)], 0.05)
    assert (found.verdict, found.failed) == (Verdict.NOISE, False)
    assert "but within noise; about " in found.sentence
    assert found.sentence.endswith("runs a side would settle it (there were 40)")


@pytest.mark.parametrize(("times", "verdict"), [(0.5, Verdict.NOISE), (2.0, Verdict.REGRESSED)])
def test_compare_with_baseline_of_as_many_runs_as_it_asked_for_settles_it(times, verdict):
    ours, theirs = _row(10.57, 2, runs=100), _row(10, 2, runs=100)
    (found,) = compare_with_baseline([ours], [theirs], 0.05)
    asked = int(re.search(r"about ([\d,]+) runs", found.sentence)[1].replace(",", ""))
    longer = [row | {"samples_ms": _more_of(row["samples_ms"], int(times * asked))} for row in (ours, theirs)]
    assert compare_with_baseline(longer[:1], longer[1:], 0.05)[0].verdict is verdict


@pytest.mark.parametrize(("true_change", "fewest", "most"), [(1.0, 0, 0), (1.05, 0, 5), (1.10, 58, 60)])
def test_compare_with_baseline_takes_noise_for_a_regression_rarely(true_change, fewest, most):
    pairs = [(_dependent_row(10 * true_change, seed), _dependent_row(10, seed + 1000)) for seed in range(60)]
    failed = sum(compare_with_baseline([ours], [theirs], 0.05)[0].failed for ours, theirs in pairs)
    assert fewest <= failed <= most


def test_compare_with_baseline_of_something_faster_is_no_regression():
    (found,) = compare_with_baseline([_row(9, 1)], [_row(10, 2)], 0.0)
    assert found.verdict is Verdict.KEPT
    assert "10.0 % better" in found.sentence or "% better" in found.sentence


def test_compare_with_baseline_counts_the_spread_between_its_measurements():
    baseline = [_row(10 * factor, seed) for seed, factor in enumerate((1, 1.04, 0.96, 1.05))]
    (found,) = compare_with_baseline([_row(10.9, 9)], baseline, 0.05)
    assert found.verdict is Verdict.NOISE
    assert "only more of them would settle it" in found.sentence


def test_compare_with_baseline_of_agreeing_measurements_is_not_wider():
    baseline = [_row(10, seed) for seed in range(4)]
    (found,) = compare_with_baseline([_row(10.9, 9)], baseline, 0.05)
    assert (found.verdict, found.warnings) == (Verdict.REGRESSED, ())


def test_compare_with_baseline_of_one_measurement_says_what_the_interval_lacks():
    (found,) = compare_with_baseline([_row(10.9, 1)], [_row(10, 2)], 0.05)
    assert any("the baseline is one measurement" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("changes", "differs"), [({"batch": 4}, "batch 1 (here 4)"), ({"provider": "cuda"}, "provider cpu (here cuda)")]
)
def test_compare_with_baseline_without_such_a_row_fails_and_names_the_nearest(changes, differs):
    (found,) = compare_with_baseline([_row(10, 1, **changes)], [_row(10, 2, batch=9, provider="x"), _row(10, 2)], 0.05)
    assert (found.verdict, found.failed, found.change) == (Verdict.UNKNOWN, True, None)
    assert f"the baseline has no such row: the nearest has {differs};" in found.sentence


def test_compare_with_baseline_of_another_device_is_not_compared():
    other = _row(10, 2, conditions=CONDITIONS | {"device": "board Y"})
    (found,) = compare_with_baseline([_row(10, 1)], [other], 0.05)
    assert "device board Y (here board X)" in found.sentence


def test_compare_with_baseline_that_was_throttled_says_to_measure_it_again():
    (found,) = compare_with_baseline([_row(10, 1)], [_row(10, 2, status="invalid", reason="too hot")], 0.05)
    assert found.failed
    assert "the baseline's run is invalid, too hot; measure the baseline again" in found.sentence


def test_compare_with_baseline_of_a_failed_run_fails():
    (found,) = compare_with_baseline([_row(10, 1, status="failed", reason="no memory")], [_row(10, 2)], 0.05)
    assert (found.failed, found.sentence) == (True, "the run is failed, no memory")


def test_compare_with_baseline_lists_conditions_that_differ():
    other = _row(10, 2, conditions=CONDITIONS | {"power_mode": "15W", "packages": {"numpy": "1.26"}, "command": "b"})
    (found,) = compare_with_baseline([_row(10, 1)], [other], 0.05)
    assert found.warnings == ("numpy is 2.0, the baseline's 1.26", "power_mode is MAXN, the baseline's 15W")


def test_compare_with_baseline_warns_of_drift_and_of_a_busy_machine():
    ours = _row(10, 1, drifted=True, drift=0.12, conditions=CONDITIONS | {"load_average": 3.0})
    (found,) = compare_with_baseline([ours], [_row(10, 2)], 0.05)
    assert found.warnings[0] == "this run changed its speed by +12% while it was measured"
    assert found.warnings[1].startswith("this run was busy before the start")


def test_compare_with_baseline_of_an_unsupported_percentile_fails_with_the_runs_needed():
    (found,) = compare_with_baseline([_row(10, 1)], [_row(10, 2)], 0.05, figure="p99_ms")
    assert found.failed
    assert "p99_ms is unknown here: it needs 662 runs, there were 300" in found.sentence


def test_compare_with_baseline_without_raw_samples_fails():
    (found,) = compare_with_baseline([_row(10, 1)], [_row(10, 2) | {"samples_ms": ()}], 0.05)
    assert (found.failed, found.sentence) == (True, "p50_ms is unknown in the baseline: the row holds no raw samples")


def test_compare_with_baseline_of_another_figure_uses_it():
    slow_tail = np.where(np.arange(300) % 5 == 0, 2.0, 1.0)
    ours = _row(10, 1) | {"samples_ms": tuple(10 * slow_tail)}
    medians, tails = (compare_with_baseline([ours], [_row(10, 2)], 0.05, figure=figure)[0] for figure in ("p50_ms", "p90_ms"))
    assert (medians.failed, tails.failed) == (False, True)


def test_compare_with_baseline_of_a_figure_without_interval_is_refused():
    with pytest.raises(BenchError, match="no interval for 'min_ms'; choose one of p50_ms, mean_ms"):
        compare_with_baseline([_row(10, 1)], [_row(10, 2)], 0.05, figure="min_ms")


@pytest.mark.parametrize(("rows", "baseline", "where"), [([], [{}], "to compare"), ([{}], [], "in the baseline")])
def test_compare_with_baseline_without_rows_is_refused(rows, baseline, where):
    with pytest.raises(BenchError, match=f"no rows {where}"):
        compare_with_baseline(rows, baseline, 0.05)


@pytest.mark.parametrize(
    ("now", "verdict"),
    [((0.785, 0.77, 0.80), Verdict.KEPT), ((0.77, 0.755, 0.785), Verdict.NOISE), ((0.70, 0.685, 0.715), Verdict.REGRESSED)],
)
def test_compare_with_baseline_judges_accuracy_by_its_intervals(now, verdict):
    ours, theirs = (_row(10, seed) | _accuracy(*ends) for seed, ends in ((1, now), (2, (0.785, 0.77, 0.80))))
    _, found = compare_with_baseline([ours], [theirs], 0.05)
    assert (found.figure, found.verdict) == ("top1", verdict)


def test_compare_with_baseline_gives_newcombes_interval_of_the_difference():
    # Newcombe 1998, method 10, 56/70 against 48/80: 0.0524 to 0.3339
    ours, theirs = _row(10, 1) | _accuracy(0.6, 0.4905, 0.7000), _row(10, 2) | _accuracy(0.8, 0.6920, 0.8769)
    _, found = compare_with_baseline([ours], [theirs], 0.05)
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=2e-3), pytest.approx(0.3339, abs=2e-3))


def test_compare_with_baseline_fails_where_accuracy_is_no_longer_measured():
    _, found = compare_with_baseline([_row(10, 1)], [_row(10, 2) | _accuracy(0.8, 0.7, 0.9)], 0.05)
    assert found.failed
    assert found.sentence == "top1 was not measured here, the baseline's is on demo; measure with the same --data"


def test_compare_with_baseline_takes_the_accuracy_of_the_last_row_that_has_one():
    ours = _row(10, 1) | _accuracy(0.5, 0.48, 0.52)
    found = compare_with_baseline([ours], [_row(10, 2) | _accuracy(0.8, 0.78, 0.82), _row(10, 3)], 0.05)
    assert [(one.figure, one.verdict) for one in found[1:]] == [("top1", Verdict.REGRESSED)]


def test_compare_with_baseline_of_accuracy_on_other_data_fails():
    ours = _row(10, 1) | _accuracy(0.8, 0.7, 0.9) | {"data": "other"}
    _, found = compare_with_baseline([ours], [_row(10, 2) | _accuracy(0.8, 0.7, 0.9)], 0.05)
    assert "top1 is on other here, the baseline's is on demo" in found.sentence


@pytest.mark.parametrize(
    ("energy", "failed", "text"), [(52, False, "within the 5 % allowed"), (55, True, "no interval is known")]
)
def test_compare_with_baseline_judges_energy(energy, failed, text):
    _, found = compare_with_baseline([_row(10, 1, energy_item_mj=energy)], [_row(10, 2, energy_item_mj=50)], 0.05)
    assert found.failed is failed
    assert text in found.sentence


def test_compare_with_baseline_fails_where_energy_is_no_longer_measured():
    ours = _row(10, 1, energy_item_mj=None, power_reason="no sensor")
    _, found = compare_with_baseline([ours], [_row(10, 2, energy_item_mj=50)], 0.05)
    assert (found.failed, found.sentence.endswith("no sensor")) == (True, True)


def test_compare_with_baseline_passes_over_rows_of_loadgen():
    loadgen = _row(10, 1, scenario="SingleStream", samples_ms=())
    (found,) = compare_with_baseline([_row(10, 1), loadgen], [_row(10, 2), loadgen], 0.05)
    assert found.verdict is Verdict.KEPT


def test_compare_with_baseline_gives_records_that_become_json():
    (found,) = compare_with_baseline([_row(10.9, 1)], [_row(10, 2)], 0.05)
    record = json.loads(json.dumps(asdict(found)))
    assert (record["verdict"], record["failed"]) == ("regressed", True)


def test_compare_with_baseline_says_what_a_better_figure_cannot_rule_out():
    baseline = [_row(10, 1), _row(30, 2), _row(11, 3)]
    (found,) = compare_with_baseline([_row(12, 4)], baseline, 0.05)
    assert found.change < 0 < 0.05 < found.high
    assert "no regression, but up to" in found.sentence
    assert "can't be ruled out" in found.sentence


def _row(median_ms, seed, runs=300, **changes):
    """A row with 3 % of noise."""
    samples = median_ms * np.exp(0.03 * np.random.default_rng(seed).normal(size=runs))
    return {
        "side": "half",
        "status": "ok",
        "reason": None,
        "backend": "onnxruntime",
        "provider": "cpu",
        "precision": "fp32",
        "batch": 1,
        "runs": runs,
        "samples_ms": tuple(samples),
        "metrics": {},
        "conditions": CONDITIONS,
    } | changes


def _more_of(samples, runs):
    """More runs of the same distribution."""
    ranks = (np.arange(runs) + 0.5) / runs
    return tuple(np.random.default_rng(5).permutation(np.quantile(samples, ranks)))


def _dependent_row(median_ms, seed):
    """A row in which each run resembles the last."""
    noise = signal.lfilter([1], [1, -0.6], np.random.default_rng(seed).normal(size=500))[200:]
    return _row(median_ms, seed) | {"samples_ms": tuple(median_ms * np.exp(0.03 * noise))}


def _accuracy(value, low, high):
    return {"metrics": {"top1": {"value": value, "low": low, "high": high}}, "data": "demo", "items": 2600}
