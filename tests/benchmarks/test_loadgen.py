import importlib.util
import json
import sys
import time

import pytest

from shallowvit_bench.errors import BenchError
from shallowvit_bench.loadgen import read_detail_log, run_scenario

needs_loadgen = pytest.mark.skipif(importlib.util.find_spec("mlperf_loadgen") is None, reason="MLPerf LoadGen isn't installed")


class Sleeper:
    """A bound batch of a known time; what is tested is LoadGen's part."""

    device_ms = None

    def __init__(self, seconds=0.0004):
        self.seconds, self.runs = seconds, 0

    def __call__(self):
        self.runs += 1
        time.sleep(self.seconds)


class Broken(Sleeper):
    """Fails amid a test."""

    def __call__(self):
        super().__call__()
        if self.runs == 30:
            raise BenchError("the device was lost")


@needs_loadgen
def test_run_scenario_single_stream_gives_the_estimate_of_p90():
    run = Sleeper()
    result = run_scenario(run, 1, "SingleStream", 0.3)
    assert (result.valid, result.reasons, result.unit, result.metric) == (True, (), "ms", "90th percentile latency")
    assert result.value >= result.figures["p90_ms"] >= result.figures["min_ms"] >= 0.4
    assert result.figures["query_count"] == run.runs - 5  # five to estimate
    assert result.version


@needs_loadgen
def test_run_scenario_shortened_says_that_it_is_no_submission():
    result = run_scenario(Sleeper(), 1, "SingleStream", 0.2)
    assert result.shortened
    assert result.remarks == ("not a submission: it ran for 0.2 s at least, MLPerf asks for 600",)


@needs_loadgen
def test_run_scenario_multi_stream_splits_queries_into_batches():
    run = Sleeper(0.0001)
    result = run_scenario(run, 3, "MultiStream", 0.1)
    assert run.runs - 5 == 3 * result.figures["query_count"]
    assert result.figures["min_ms"] >= 0.3  # of a whole query
    assert "split into batches of 3, the last of which is computed whole" in result.remarks[1]


@needs_loadgen
def test_run_scenario_multi_stream_of_a_fitting_batch_has_no_remark_on_it():
    assert len(run_scenario(Sleeper(0.0001), 4, "MultiStream", 0.1).remarks) == 1


@needs_loadgen
def test_run_scenario_offline_counts_samples_not_runs():
    run = Sleeper()
    result = run_scenario(run, 16, "Offline", 0.2)
    assert result.unit == "samples/s"
    assert 0 < result.value <= 16 / run.seconds
    assert result.value == pytest.approx(16 * (run.runs - 5) / (result.figures["max_ms"] / 1e3), rel=0.05)


@needs_loadgen
def test_run_scenario_of_too_few_queries_is_invalid_with_the_reason():
    result = run_scenario(Sleeper(0.02), 1, "SingleStream", 0.1)
    assert (result.valid, result.value) == (False, None)
    assert any("Need to process at least 64 queries" in reason for reason in result.reasons)
    assert "there were fewer queries than asked for" in result.reasons


@needs_loadgen
@pytest.mark.parametrize(("scenario", "batch"), [("SingleStream", 1), ("MultiStream", 8), ("Offline", 8)])
def test_run_scenario_of_a_run_that_fails_raises_its_error(scenario, batch):
    run = Broken()
    with pytest.raises(BenchError, match="the device was lost"):
        run_scenario(run, batch, scenario, 0.2)
    assert run.runs == 30  # LoadGen comes to its end without further runs


@needs_loadgen
def test_run_scenario_keeps_the_log_where_told(tmp_path):
    run_scenario(Sleeper(), 1, "SingleStream", 0.1, log_folder=tmp_path / "logs")
    assert ("effective_scenario", "SingleStream") in read_detail_log(tmp_path / "logs" / "mlperf_log_detail.txt")


def test_run_scenario_without_loadgen_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(BenchError, match=r"not installed here\. Run: pip install 'shallowvit\[mlperf\]'"):
        run_scenario(Sleeper(), 1, "SingleStream", 1.0)


def test_run_scenario_of_an_unknown_scenario_lists_them():
    with pytest.raises(BenchError, match="no scenario 'Server'; choose one of SingleStream, MultiStream, Offline"):
        run_scenario(Sleeper(), 1, "Server", 1.0)


def test_run_scenario_single_stream_of_a_batch_is_refused():
    with pytest.raises(BenchError, match="the batch is 4; measure it with --batch 1"):
        run_scenario(Sleeper(), 4, "SingleStream", 1.0)


def test_run_scenario_of_no_time_is_refused():
    with pytest.raises(BenchError, match="a run of 0 s measures nothing"):
        run_scenario(Sleeper(), 1, "SingleStream", 0.0)


def test_read_detail_log_passes_over_lines_that_are_cut_off(tmp_path):
    entry = json.dumps({"key": "result_validity", "value": "VALID"})
    (tmp_path / "log.txt").write_text(f'hello\n:::MLLOG {entry}\n:::MLLOG [1]\n:::MLLOG {{"key": "res')
    assert read_detail_log(tmp_path / "log.txt") == [("result_validity", "VALID")]


def test_read_detail_log_of_no_file_is_refused(tmp_path):
    with pytest.raises(BenchError, match="loadgen: no log at"):
        read_detail_log(tmp_path / "log.txt")
