import json
import os
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from tiny_bundles import write_bundle

from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.cold_start import ColdStart, _peak_mib, measure_cold_start
from shallowvit_bench.compare import Session, bench
from shallowvit_bench.conditions import read_conditions
from shallowvit_bench.config import BenchConfig
from shallowvit_bench.datasets import open_dataset
from shallowvit_bench.errors import BenchError
from shallowvit_bench.measurement import append_rows, read_rows, row_from_measurement
from shallowvit_bench.plot import draw_latencies
from shallowvit_bench.power.sampling import PowerMeter, PowerSource
from shallowvit_bench.runners import RunnerFacts, RunnerOptions, onnx_runtime, open_onnxruntime
from shallowvit_bench.sides import side_from_bundle
from shallowvit_bench.timing import WarmUp

QUICK = BenchConfig(batches=(2,), max_runs=20, threads=1)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    infos = [read_bundle(write_bundle(folder / name, seed=seed)) for seed, name in enumerate(("ours", "other"))]
    np.savez(folder / "clips.npz", frames=np.zeros((40, 8, 16, 16, 3), np.uint8), labels=np.arange(40))
    data = [open_dataset(str(folder / "clips.npz"), info) for info in infos]
    return bench([side_from_bundle(info, QUICK) for info in infos], QUICK, data)


def test_bench_keeps_every_sample_of_both_sides(measured):
    assert [(m.status, m.runs, len(m.samples_ms)) for m in measured] == [("ok", 20, 20)] * 2
    assert measured[0].min_ms == pytest.approx(min(measured[0].samples_ms), abs=1e-5)


def test_bench_leaves_out_unsupported_percentiles(measured):
    assert measured[0].p50_ms is not None
    assert (measured[0].p90_ms, measured[0].p99_ms) == (None, None)


def test_bench_gives_the_first_side_the_ratio_of_medians(measured):
    ours, other = measured
    assert ours.speedup == pytest.approx(other.p50_ms / ours.p50_ms, rel=1e-4)
    assert ours.speedup_low <= ours.speedup_high
    assert ours.ideal_speedup == 1.0
    assert ours.share_of_ideal == pytest.approx(ours.speedup)
    assert (ours.against, other.speedup) == ("other", None)


def test_bench_measures_accuracy_and_agreement(measured):
    assert (measured[0].data, measured[0].items) == ("clips.npz", 40)
    assert measured[0].metrics["top1"].value == pytest.approx(1 / 40)  # all clips are alike and each has another label
    assert measured[0].agreement in (0.0, 1.0)


def test_bench_measures_memory_and_load_in_a_fresh_process(measured):
    assert measured[0].load_ms > 0
    assert measured[0].first_ms > 0
    assert measured[0].peak_mib is None or measured[0].peak_mib > 10


def test_bench_of_two_providers_tells_no_share_of_the_ideal(bundle):
    side = side_from_bundle(read_bundle(bundle), QUICK)
    ours, _ = bench([side, replace(side, name="elsewhere", provider="elsewhere")], QUICK)
    assert (ours.ideal_speedup, ours.share_of_ideal) == (1.0, None)  # the ratio holds what the provider brings too


def test_bench_makes_a_row_of_a_failed_side_and_measures_the_other(bundle, tmp_path):
    broken = read_bundle(write_bundle(tmp_path / "broken"))
    broken.model_path.write_bytes(b"no graph")
    results = bench([side_from_bundle(info, QUICK) for info in (read_bundle(bundle), broken)], QUICK)
    assert [result.status for result in results] == ["ok", "failed"]
    assert "could not load" in results[1].reason
    assert (results[0].runs, results[0].speedup, results[1].runs) == (20, None, None)


@pytest.mark.parametrize("name", ["max_runs", "max_seconds", "threads", "accuracy_batch"])
def test_bench_config_rejects_zero(name):
    with pytest.raises(BenchError, match=rf"bench: {name} is 0; it must be above 0"):
        BenchConfig(**{name: 0})


def test_append_rows_adds_lines_that_read_rows_returns(measured, tmp_path):
    append_rows(tmp_path / "rows.jsonl", measured)
    append_rows(tmp_path / "rows.jsonl", [replace(measured[0], id="again")])
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["side"] for row in rows] == ["ours", "other", "ours"]
    assert rows[0] == json.loads(json.dumps(row_from_measurement(measured[0])))
    assert "samples_ms" not in row_from_measurement(measured[0], samples=False)


def test_append_rows_says_when_it_cannot_write(measured, tmp_path):
    with pytest.raises(BenchError, match=r"append_rows: could not write"):
        append_rows(tmp_path, measured)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ("{}", "line 1 of .* is no row of shallowvit bench: it lacks batch"),
        ("{\n", "line 1 of .* is not JSON"),
    ],
)
def test_read_rows_names_the_line(tmp_path, text, message):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(BenchError, match=message):
        read_rows(tmp_path / "rows.jsonl")


def test_read_rows_rejects_a_missing_file(tmp_path):
    with pytest.raises(BenchError, match=r"read_rows: no file"):
        read_rows(tmp_path / "gone.jsonl")


def test_draw_latencies_writes_a_png(measured, tmp_path):
    assert draw_latencies(measured, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["plot.png"]


def test_draw_latencies_says_when_it_cannot_write(measured, tmp_path):
    with pytest.raises(BenchError, match=r"draw_latencies: could not write"):
        draw_latencies(measured, tmp_path / "gone" / "plot.png")


def test_measure_cold_start_says_when_the_process_died():
    with pytest.raises(BenchError, match=r"the process that loaded the model died: exit code 7"):
        measure_cold_start(partial(os._exit, 7), np.zeros(1))


def test_measure_cold_start_passes_on_why_loading_failed(tmp_path):
    with pytest.raises(BenchError, match=r"open_onnxruntime: no file"):
        measure_cold_start(partial(open_onnxruntime, tmp_path / "gone.onnx", RunnerOptions()), np.zeros(1))


def test_measure_cold_start_reads_its_answer_among_what_a_runtime_prints():
    noise = "import sys; print('half', end=''); from shallowvit_bench.errors import BenchError; raise BenchError('no')"
    with pytest.raises(BenchError, match=r"^no$"):
        measure_cold_start(partial(exec, noise), np.zeros(1))


def test_measure_cold_start_counts_what_was_measured_before_a_crash_at_the_end():
    crash = "__import__('atexit').register(__import__('os')._exit, 7)"
    opener = partial(eval, f"{crash} and __import__('types').SimpleNamespace(infer=len)")
    assert measure_cold_start(opener, np.zeros(1)).load_ms > 0


def test_peak_mib_reads_the_high_water_mark(tmp_path):
    (tmp_path / "status").write_text("Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t  20480 kB\n")
    assert _peak_mib(tmp_path / "status") == 20
    assert _peak_mib(tmp_path / "gone") is None


def test_read_conditions_prefers_the_boards_name(tmp_path):
    (tmp_path / "proc" / "device-tree").mkdir(parents=True)
    (tmp_path / "proc" / "device-tree" / "model").write_text("NVIDIA Jetson AGX Orin Developer Kit\0")
    (tmp_path / "proc" / "loadavg").write_text("0.52 0.58 0.59 1/257 12345\n")
    conditions = read_conditions(2, tmp_path)
    assert (conditions.device, conditions.load_average) == ("NVIDIA Jetson AGX Orin Developer Kit", 0.52)


def test_read_conditions_falls_back_to_the_cpu_and_guesses_nothing(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC\n")
    conditions = read_conditions(None, tmp_path)
    assert conditions.device == "AMD EPYC"
    assert (conditions.governor, conditions.load_average, conditions.threads) == (None, None, None)


def test_bench_hands_over_a_measurement_when_it_is_timed_and_again_with_its_accuracy(bundle, tmp_path):
    info = read_bundle(bundle)
    np.savez(tmp_path / "clips.npz", frames=np.zeros((4, 8, 16, 16, 3), np.uint8), labels=np.arange(4))
    seen = []
    session = Session("s", record=lambda measured: seen.append((measured.id, bool(measured.metrics), measured.runs)))
    config = replace(QUICK, batches=(1, 2))
    bench([side_from_bundle(info, config)], config, [open_dataset(str(tmp_path / "clips.npz"), info)], session)
    assert seen == [("s-0-0", False, 20), ("s-1-0", False, 20), ("s-0-0", True, 20), ("s-1-0", True, 20)]


def test_bench_takes_up_what_an_earlier_session_left(bundle):
    info = read_bundle(bundle)
    (first,) = bench([side_from_bundle(info, QUICK)], QUICK, session=Session("s"))
    config = replace(QUICK, batches=(2, 1))
    seen = []
    found = bench([side_from_bundle(info, config)], config, session=Session("s", {first.id: first}, seen.append))
    assert [measured.batch for measured in found] == [2, 1]
    assert found[0] is first
    assert seen == [found[1]]


def test_bench_gives_every_side_but_the_second_its_speed_up_over_that_one(tmp_path):
    infos = [read_bundle(write_bundle(tmp_path / name)) for name in ("a", "b", "c")]
    found = bench([side_from_bundle(info, QUICK) for info in infos], QUICK)
    assert [measured.against for measured in found] == ["b", None, "b"]


def test_bench_says_why_energy_was_not_measured(measured):
    assert measured[0].power_source is None
    assert measured[0].power_reason.startswith("energy not measured")


def test_bench_says_that_power_was_switched_off(bundle):
    config = replace(QUICK, power=False)
    (found,) = bench([side_from_bundle(read_bundle(bundle), config)], config)
    assert found.power_reason == "energy not measured: switched off with --no-power"


def test_bench_marks_a_throttled_run_invalid(bundle, monkeypatch):
    watch = "shallowvit_bench.power_watch"
    monkeypatch.setattr(f"{watch}.throttling", lambda trace, windows: (f"too hot, in 1 of {len(windows)} rounds",))
    (found,) = bench([side_from_bundle(read_bundle(bundle), QUICK)], QUICK)
    assert (found.status, found.p50_ms is not None) == ("invalid", True)
    assert found.reason == "throttled while it was timed: too hot, in 1 of 3 rounds"


def test_bench_keeps_what_it_times_when_a_power_sensor_no_longer_starts(bundle, monkeypatch):
    class Broken:
        def start(self):
            raise BenchError("tegrastats printed no line of figures within 3 s")

    source = PowerSource("tegrastats", lambda source: Broken(), 0.1)
    monkeypatch.setattr("shallowvit_bench.power_watch.open_power", lambda **_: PowerMeter(source))
    (found,) = bench([side_from_bundle(read_bundle(bundle), QUICK)], QUICK)
    assert (found.status, found.runs) == ("ok", 20)
    assert found.power_reason == "energy not measured: tegrastats printed no line of figures within 3 s"


def test_bench_gives_no_speed_up_over_a_side_that_was_throttled(tmp_path, monkeypatch):
    said = iter([(), ("too hot, in 1 of 3 rounds",)])
    monkeypatch.setattr("shallowvit_bench.power_watch.throttling", lambda trace, windows: next(said))
    infos = [read_bundle(write_bundle(tmp_path / name)) for name in ("ours", "other")]
    ours, other = bench([side_from_bundle(info, QUICK) for info in infos], QUICK)
    assert (ours.status, other.status, ours.speedup) == ("ok", "invalid", None)
    assert "no speed-up is given: other was throttled while it was timed" in ours.remarks


def test_bench_makes_rows_of_sides_when_the_second_fails_in_its_own_way(tmp_path, monkeypatch):
    monkeypatch.setattr("shallowvit_bench.compare.measure_cold_start", lambda *_: ColdStart(1.0, 1.0, None))
    monkeypatch.setattr("shallowvit_bench.compare.warm_up", lambda run, limits: WarmUp(0, steady=True))

    class Failing:
        device_ms = None

        def __init__(self):
            self.left = 5

        def __call__(self):
            self.left -= 1
            if self.left < 0:
                raise MemoryError("no memory left")

    class Runner:
        facts = RunnerFacts("torch", "torch", "fp32")
        errors = ()

        def bind(self, batch):
            return Failing()

        def infer(self, batch):
            return batch

    infos = [read_bundle(write_bundle(tmp_path / name)) for name in ("ours", "other")]
    ours, other = (side_from_bundle(info, QUICK) for info in infos)
    other = replace(other, opener=lambda: nullcontext(Runner()), failures=(BenchError, MemoryError))
    found = bench([ours, other], QUICK)
    assert [(one.status, one.reason) for one in found] == [("failed", "no memory left")] * 2


def test_bench_tells_the_load_before_its_own(bundle):
    config = replace(QUICK, batches=(1, 2))
    found = bench([side_from_bundle(read_bundle(bundle), config)], config, session=Session(load_average=0.125))
    assert [measured.conditions.load_average for measured in found] == [0.125, 0.125]


def test_bench_makes_a_row_of_a_runtime_that_fails_in_the_midst_of_timed_runs(bundle, monkeypatch):
    states = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    real = onnx_runtime._BoundSession.__call__
    left = [40]  # past the warm-up of the first side

    def fails_late(bound):
        left[0] -= 1
        if left[0] < 0:
            raise states.Fail("the device was lost")
        real(bound)

    monkeypatch.setattr(onnx_runtime._BoundSession, "__call__", fails_late)
    config = replace(QUICK, max_runs=1000)
    seen = []
    (found,) = bench([side_from_bundle(read_bundle(bundle), config)], config, session=Session(record=seen.append))
    assert (found.status, found.reason) == ("failed", "the device was lost")
    assert seen == [found]
