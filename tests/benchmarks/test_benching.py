"""The command and the function behind it, with real SSH servers on loopback as devices."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from shallowvit.benching import _brought_home, bench_there
from shallowvit.cli.bench import bench as bench_command
from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.compare import bench
from shallowvit_bench.conditions import own_command
from shallowvit_bench.config import BenchConfig
from shallowvit_bench.measurement import read_rows, row_from_measurement
from shallowvit_bench.remote.registry import write_devices
from shallowvit_bench.sides import side_from_bundle

QUICK = BenchConfig(max_runs=4, threads=1, provider="cpu", power=False)


@pytest.fixture
def names(server, tmp_path, monkeypatch):
    """A file of devices with two names for the server, each with a cache of its own."""
    file = tmp_path / "devices.toml"
    devices = {name: server.device(name, cache=str(tmp_path / name)) for name in ("orin", "nano")}
    write_devices(file, devices)
    monkeypatch.setenv("SHALLOWVIT_DEVICES", str(file))
    return list(devices)


def run(*arguments):
    app = typer.Typer()
    app.command()(bench_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_bench_command_measures_on_a_named_device(bundle, names, tmp_path):
    result = run(bundle, "--device", "orin", "--provider", "cpu", "--max-runs", 4, "--no-power", "--data", "demo", "--json")
    assert result.exit_code == 0, result.output
    (row,) = read_rows(tmp_path / "tiny.bench.jsonl")
    assert (row["machine"], row["status"], row["items"]) == ("orin", "ok", 2000)
    assert json.loads(result.stdout)["measurements"][0]["metrics"]["top1"] == row["metrics"]["top1"]
    assert (tmp_path / "tiny.bench.outputs" / "orin" / "tiny-cpu.jsonl").is_file()


def test_bench_there_brings_home_what_one_device_measured_when_another_fails(bundle, names, tmp_path):
    (tmp_path / "nano").write_text("a file where the cache would be")
    taken, failures = bench_there(names, [bundle], QUICK, tmp_path / "rows.jsonl")
    assert [(one.machine, one.status) for one in taken] == [("orin", "ok")]
    assert len(failures) == 1
    assert failures[0].startswith("nano: ")
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert (row["machine"], row["conditions"]["command"]) == ("orin", own_command())


def test_bench_there_sends_arrays_and_measures_accuracy_on_them(bundle, names, tmp_path):
    np.savez(tmp_path / "clips.npz", frames=np.zeros((4, 8, 16, 16, 3), np.uint8), labels=np.arange(4))
    (one,), failures = bench_there(["orin"], [bundle], QUICK, tmp_path / "rows.jsonl", str(tmp_path / "clips.npz"))
    assert (failures, one.items) == ((), 4)
    assert set(one.metrics) >= {"top1", "top5"}


def _row_with_outputs(bundle, folder, **header):
    """A row as a device gives it and its file of outputs: two items, a score each."""
    (measured,) = bench([side_from_bundle(read_bundle(bundle), QUICK)], QUICK)
    names = {"names": ["a", "b"], "labels": [1, 0], "cameras": None, "queries": None}
    about = {"format": 1, "kind": "binary", **names, **header}
    packed = base64.b64encode(np.array([[2.0], [1.0]], "<f4").tobytes()).decode()
    lines = [about, {"items": [0, 1], "stamps": [0, 0], "width": 1, "outputs": packed}]
    (folder / "tiny.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    remark = "auc and average_precision need scikit-learn, which is not installed here: pip install it"
    return row_from_measurement(replace(measured, predictions="/there/tiny.jsonl", remarks=(remark, "other")))


def test_brought_home_drops_the_remark_on_what_is_computed_here(bundle, tmp_path):
    found = _brought_home(_row_with_outputs(bundle, tmp_path), "orin", tmp_path)
    assert (found.metrics["auc"].value, found.remarks) == (1.0, ("other",))


@pytest.mark.parametrize(
    ("header", "message"), [({"labels": [1, 1]}, "needs readable items of both classes"), ({"labels": 3}, "is damaged")]
)
def test_brought_home_keeps_a_row_whose_outputs_give_no_metric(bundle, tmp_path, header, message):
    found = _brought_home(_row_with_outputs(bundle, tmp_path, **header), "orin", tmp_path)
    assert (found.status, found.machine, found.metrics) == ("ok", "orin", {})
    assert message in found.remarks[-1]


def test_bench_command_lock_clocks_asks_the_device_and_measures_nothing(bundle, names, tmp_path):
    result = run(bundle, "--device", "orin", "--device", "nano", "--lock-clocks")
    assert result.exit_code == 0, result.output
    assert [line for line in result.stdout.splitlines() if line in ("orin:", "nano:")] == ["orin:", "nano:"]
    assert result.stdout.count("now: ") >= 2
    assert not (tmp_path / "tiny.bench.jsonl").exists()
