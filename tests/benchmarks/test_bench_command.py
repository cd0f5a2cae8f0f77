import json

import pytest
import typer
from tiny_bundles import write_bundle
from typer.testing import CliRunner

from shallowvit.cli.bench import bench
from shallowvit.cli.report import report
from shallowvit_bench.errors import BenchError
from shallowvit_bench.measurement import read_rows

QUICK = ["--max-runs", "12", "--threads", "1"]


def run(function, *arguments):
    app = typer.Typer()
    app.command()(function)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_bench_prints_one_json_object_and_writes_beside_the_bundle(bundle, tmp_path):
    other = write_bundle(tmp_path / "other", seed=1)
    result = run(bench, bundle, "--against", other, "--json", *QUICK)
    answer = json.loads(result.stdout)
    assert (result.exit_code, [row["side"] for row in answer["measurements"]]) == (0, ["tiny", "other"])
    assert sorted(path.name for path in bundle.iterdir()) == ["manifest.json", "model.onnx"]
    assert len((tmp_path / "tiny.bench.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "tiny.bench.png").stat().st_size > 0


def test_bench_prints_a_table(bundle):
    result = run(bench, bundle, *QUICK)
    assert "latency p50" in result.stdout
    assert "needs 662 runs" in result.stdout


def test_bench_quiet_prints_the_table_alone(bundle):
    result = run(bench, bundle, "--quiet", *QUICK)
    assert "latency p50" in result.stdout
    assert result.stderr == ""


def test_bench_exits_with_1_when_a_side_failed(bundle, tmp_path):
    other = write_bundle(tmp_path / "encoder", seed=1, preprocessing=None)
    graph = json.loads((other / "manifest.json").read_text())
    graph["graph"]["input"]["shape"] = [1, 2, 3, 4]
    (other / "manifest.json").write_text(json.dumps(graph))
    result = run(bench, bundle, "--against", other, "--json", *QUICK)
    answer = json.loads(result.stdout)
    assert (result.exit_code, [row["status"] for row in answer["measurements"]]) == (1, ["ok", "failed"])


@pytest.mark.parametrize("option", ["--rows", "--plot"])
def test_bench_never_writes_into_the_bundle(bundle, option):
    with pytest.raises(BenchError, match=rf"{option} .* is inside the bundle"):
        run(bench, bundle, option, bundle / "x")


@pytest.mark.parametrize("option", ["--rows", "--plot"])
def test_bench_finds_what_it_cannot_write_before_it_measures(bundle, tmp_path, option):
    (tmp_path / "folder").mkdir()
    with pytest.raises(BenchError, match=rf"{option} .*folder can't be written; choose a file elsewhere"):
        run(bench, bundle, option, tmp_path / "folder")
    assert not (tmp_path / "tiny.bench.jsonl").exists()


def test_bench_rejects_rows_in_a_missing_folder(bundle, tmp_path):
    with pytest.raises(BenchError, match=r"no folder .*gone for --rows"):
        run(bench, bundle, "--rows", tmp_path / "gone" / "rows.jsonl")


def test_bench_finds_missing_data_first(bundle):
    with pytest.raises(BenchError, match=r"no data at nowhere"):
        run(bench, bundle, "--data", "nowhere")


def test_bench_sweeps_batches_in_one_call(bundle, tmp_path):
    result = run(bench, bundle, "--batch", "1,4", "--against", "provider:cpu", *QUICK)
    assert [row["batch"] for row in read_rows(tmp_path / "tiny.bench.jsonl")] == [1, 1, 4, 4]
    assert "tiny (cpu), cpu" in result.stdout
    assert "items/s" in result.stdout


def test_bench_rejects_a_batch_that_is_no_number(bundle):
    with pytest.raises(BenchError, match=r"--batch '1,x' isn't a number"):
        run(bench, bundle, "--batch", "1,x")


@pytest.mark.parametrize(("gate", "code"), [("p50_ms > 100000", 0), ("p50_ms > 0", 1), ("p99_ms > 100000", 1)])
def test_bench_exits_with_1_when_a_gate_fails(bundle, gate, code):
    result = run(bench, bundle, "--fail-if", gate, "--json", *QUICK)
    (verdict,) = json.loads(result.stdout)["verdicts"]
    assert (result.exit_code, verdict["failed"]) == (code, bool(code))


def test_bench_marks_which_gates_failed(bundle):
    result = run(bench, bundle, "--fail-if", "p50_ms > 0", "--fail-if", "p50_ms > 100000", *QUICK)
    lines = result.stdout.splitlines()[-2:]
    assert [line.partition(": p50_ms is ")[0] for line in lines] == ["failed: tiny, cpu, batch 1", "passed: tiny, cpu, batch 1"]


def test_bench_reads_gates_before_it_measures(bundle, tmp_path):
    with pytest.raises(BenchError, match=r"did you mean p99_ms"):
        run(bench, bundle, "--fail-if", "p9_ms > 1")
    assert not (tmp_path / "tiny.bench.jsonl").exists()


def test_bench_holds_a_run_against_a_baseline(bundle, tmp_path):
    run(bench, bundle, "--rows", tmp_path / "before.jsonl", *QUICK)
    lines = [json.loads(line) for line in (tmp_path / "before.jsonl").read_text().splitlines()]
    for row in lines:
        row["samples_ms"] = [sample / 1000 for sample in row["samples_ms"]]
    (tmp_path / "faster.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    result = run(bench, bundle, "--baseline", tmp_path / "faster.jsonl", "--max-regression", "5%", *QUICK)
    assert result.exit_code == 1
    assert "more than the 5 % allowed" in " ".join(result.stdout.split())


def test_bench_lock_clocks_tells_and_measures_nothing(bundle, tmp_path):
    result = run(bench, bundle, "--lock-clocks")
    assert (result.exit_code, result.stdout.startswith("now: ")) == (0, True)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_bench_refuses_torch_on_a_device(bundle):
    with pytest.raises(BenchError, match=r"--against torch .* leave them out beside --device"):
        run(bench, bundle, "--device", "me@nowhere", "--against", "torch")


def test_bench_says_loudly_that_energy_was_not_measured(bundle):
    assert "energy not measured" in run(bench, bundle, *QUICK).stdout


def test_report_writes_the_page(bundle, tmp_path):
    result = run(report, bundle, "-o", tmp_path / "page.html")
    assert (result.exit_code, result.stdout) == (0, f"wrote {tmp_path / 'page.html'}\n")
    assert (tmp_path / "page.html").is_file()


def test_report_json_is_one_object(bundle, tmp_path):
    result = run(report, bundle, "-o", tmp_path / "page.html", "--json")
    assert json.loads(result.stdout) == {"out": str(tmp_path / "page.html"), "sources": [str(bundle)], "format": "html"}


def test_bench_scenario_has_a_row_of_its_own(bundle, tmp_path):
    pytest.importorskip("mlperf_loadgen", reason="LoadGen isn't installed")
    result = run(bench, bundle, "--scenario", "SingleStream", "--scenario-seconds", 0.2, *QUICK)
    rows = read_rows(tmp_path / "tiny.bench.jsonl")
    assert [(row["scenario"], row["p50_ms"] is not None) for row in rows] == [(None, True), ("SingleStream", False)]
    assert rows[1]["scenario_results"]["metric"] == "90th percentile latency"
    assert "LoadGen SingleStream of tiny, batch 1: 90th percentile latency" in result.stdout


def test_bench_refuses_a_scenario_before_it_measures(bundle, tmp_path):
    with pytest.raises(BenchError, match=r"choose one of SingleStream, MultiStream, Offline"):
        run(bench, bundle, "--scenario", "Server", *QUICK)
    assert not (tmp_path / "tiny.bench.jsonl").exists()


@pytest.mark.parametrize("options", [["--wait"], ["--max-regression", "9%"], ["--max-accuracy-drop", "2%"]])
def test_bench_refuses_options_that_would_be_ignored(bundle, options):
    with pytest.raises(BenchError, match=r"leave (it|them) out"):
        run(bench, bundle, *options, *QUICK)
