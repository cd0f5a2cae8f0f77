import re
from html.parser import HTMLParser

import pytest
from tiny_bundles import write_bundle

from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.compare import bench, side_from_bundle
from shallowvit_bench.config import BenchConfig
from shallowvit_bench.errors import BenchError
from shallowvit_bench.figures import FIGURES, busy_text, text_from_ms
from shallowvit_bench.measurement import append_rows, row_from_measurement
from shallowvit_bench.report import write_report
from shallowvit_bench.report_charts import draw_accuracy, draw_distributions, draw_scores


class Page(HTMLParser):
    """Collects the page's text and checks that tags close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.links = [], "", []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("href", "src") and not (value or "").startswith("data:")]
        if tag not in ("meta", "link", "path", "line", "circle", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("path", "line", "circle", "polyline"):
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read_page(path):
    page = Page()
    page.feed(path.read_text())
    assert page.open == []
    return page


@pytest.fixture
def measured_bundle(bundle, tmp_path):
    other = read_bundle(write_bundle(tmp_path / "other", seed=1))
    sides = [side_from_bundle(read_bundle(bundle), 1), side_from_bundle(other, 1)]
    append_rows(tmp_path / "tiny.bench.jsonl", bench(sides, BenchConfig(max_runs=12, threads=1)))
    return bundle


def test_write_report_tells_what_was_removed_and_measured(measured_bundle, tmp_path):
    write_report([measured_bundle], tmp_path / "report.html")
    page = read_page(tmp_path / "report.html")
    assert "2 of 4" in page.text
    assert "Removed: blocks 1, 3. Lowest entropy." in page.text
    assert "shallowvit export demo --remove 1,3 --precision fp32 --opset 18 -o tiny" in page.text
    assert "needs 662 runs" in page.text
    assert "Not measured yet" not in page.text


def test_write_report_loads_nothing(measured_bundle, tmp_path):
    write_report([measured_bundle], tmp_path / "report.html")
    assert read_page(tmp_path / "report.html").links == []
    assert not re.search(r"https?://|<script|@import|url\(", (tmp_path / "report.html").read_text())


def test_write_report_takes_rows_alone(measured_bundle, tmp_path):
    write_report([tmp_path / "tiny.bench.jsonl"], tmp_path / "report.html")
    assert "Conditions and versions" in read_page(tmp_path / "report.html").text


def test_write_report_takes_a_bundle_without_rows_or_scores(tmp_path):
    write_report([write_bundle(tmp_path / "plain", scores=None)], tmp_path / "report.html")
    text = read_page(tmp_path / "report.html").text
    assert "Not measured yet" in text
    assert "The blocks were not scored." in text


def test_write_report_shows_the_newest_row_of_a_side(measured_bundle, tmp_path):
    rows = tmp_path / "tiny.bench.jsonl"
    rows.write_text(rows.read_text() * 2)
    write_report([measured_bundle], tmp_path / "report.html")
    assert "2 older rows of the same sides are not shown" in read_page(tmp_path / "report.html").text


def test_write_report_escapes_names(tmp_path):
    write_report([write_bundle(tmp_path / "x", labels=None, name="<b>&x")], tmp_path / "report.html")
    assert "<b>&x" in read_page(tmp_path / "report.html").text


def test_write_report_shows_why_a_side_failed(bundle, tmp_path):
    info = read_bundle(bundle)
    (bundle / "model.onnx").write_bytes(b"no graph")
    append_rows(tmp_path / "rows.jsonl", bench([side_from_bundle(info, 1)], BenchConfig(max_runs=1)))
    write_report([tmp_path / "rows.jsonl"], tmp_path / "report.html")
    assert "tiny failed: open_onnxruntime: onnxruntime" in read_page(tmp_path / "report.html").text


def test_write_report_refuses_an_existing_page_without_force(bundle, tmp_path):
    out = tmp_path / "report.html"
    out.write_text("mine")
    with pytest.raises(BenchError, match=r"report.html exists; choose another --out or replace it with --force"):
        write_report([bundle], out)
    assert out.read_text() == "mine"
    write_report([bundle], out, force=True)
    assert out.read_text().startswith("<!doctype html>")
    assert not list(tmp_path.glob(".*partial"))


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("gone", "r.html", "no bundle or file of rows at .*gone"),
        (".", ".", "is a folder"),
        (".", "gone/r.html", "no folder .*gone"),
    ],
)
def test_write_report_rejects_bad_paths(tmp_path, source, out, message):
    with pytest.raises(BenchError, match=message):
        write_report([tmp_path / source], tmp_path / out)


def test_draw_scores_marks_removed_blocks():
    blocks = [{"block": i, "path": f"layer.{i}", "score": float(i)} for i in range(3)]
    drawn = draw_scores(blocks, removed=[1])
    assert drawn.count("<rect") == 3
    assert drawn.count('fill="none"') == 1
    assert "layer.1: 1.00, removed" in drawn


@pytest.mark.parametrize("scores", [[5.0, 5.0], [0.0, 0.0], [-3.0], [1e-9, 2e-9], [1e6, 2e6]])
def test_draw_scores_takes_any_spread(scores):
    drawn = draw_scores([{"block": i, "path": "p", "score": score} for i, score in enumerate(scores)], [])
    assert "nan" not in drawn
    assert drawn.count("<rect") == len(scores)


@pytest.mark.parametrize("samples", [[[1.0, 1.0]], [[1.0, 2.0], [300.0, 900.0]], [[0.001]]])
def test_draw_distributions_takes_any_spread(samples):
    drawn = draw_distributions([{"samples_ms": part} for part in samples])
    assert drawn.count("<polyline") == len(samples)
    assert "nan" not in drawn


def test_draw_accuracy_takes_perfect_scores():
    row = {"samples_ms": [1.0], "metrics": {"top1": {"value": 1.0, "low": 1.0, "high": 1.0}}}
    assert "100.0% at 1 ms" in draw_accuracy([row])


def test_figures_say_nothing_for_a_row_without_measurements(bundle):
    info = read_bundle(bundle)
    info.model_path.write_bytes(b"no graph")
    (measurement,) = bench([side_from_bundle(info, 1)], BenchConfig(max_runs=1))
    texts = {figure.title: figure.text(row_from_measurement(measurement)) for figure in FIGURES}
    assert texts.pop("status") == "failed"
    assert set(texts.values()) == {""}


@pytest.mark.parametrize(("load", "said"), [(None, False), (0.9, False), (1.0, True), (7.5, True)])
def test_busy_text_warns_from_half_a_load_per_core(load, said):
    text = busy_text({"load_average": load, "cores": 2})
    assert bool(text) == said
    assert not said or f"load {load:g} on 2 cores" in text


@pytest.mark.parametrize(("latency_ms", "text"), [(0.84512, "0.845 ms"), (18.2, "18.2 ms"), (1060.4, "1,060 ms")])
def test_text_from_ms_keeps_three_figures(latency_ms, text):
    assert text_from_ms(latency_ms) == text
