import json

import pytest
import typer
from tiny_bundles import write_bundle
from typer.testing import CliRunner

from shallowvit.cli.bench import bench
from shallowvit.cli.report import report
from shallowvit_bench.errors import BenchError

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


def test_bench_rejects_rows_in_a_missing_folder(bundle, tmp_path):
    with pytest.raises(BenchError, match=r"no folder .*gone for --rows"):
        run(bench, bundle, "--rows", tmp_path / "gone" / "rows.jsonl")


def test_bench_finds_missing_data_first(bundle):
    with pytest.raises(BenchError, match=r"no data at nowhere"):
        run(bench, bundle, "--data", "nowhere")


def test_report_writes_the_page(bundle, tmp_path):
    result = run(report, bundle, "-o", tmp_path / "page.html")
    assert (result.exit_code, result.stdout) == (0, f"wrote {tmp_path / 'page.html'}\n")
    assert (tmp_path / "page.html").is_file()


def test_report_json_is_one_object(bundle, tmp_path):
    result = run(report, bundle, "-o", tmp_path / "page.html", "--json")
    assert json.loads(result.stdout) == {"out": str(tmp_path / "page.html"), "sources": [str(bundle)]}
