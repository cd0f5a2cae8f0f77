import json
import re
from html.parser import HTMLParser

import pytest
from made_up_rows import (
    ORIN,
    SERVER,
    made_up_conditions,
    made_up_energy,
    made_up_row,
    made_up_sweep,
    rows_of,
    write_profile,
)
from tiny_bundles import write_bundle

from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.compare import bench
from shallowvit_bench.config import BenchConfig
from shallowvit_bench.errors import BenchError
from shallowvit_bench.figures import FIGURES, busy_text, text_from_ms
from shallowvit_bench.measurement import Metric, append_rows, row_from_measurement
from shallowvit_bench.report import format_of, html_from_results, markdown_from_results, write_report
from shallowvit_bench.sides import side_from_bundle

QUICK = BenchConfig(max_runs=12, threads=1, provider="cpu", power=False)
ENGINE = {
    "path": "engines/rtx/model.engine",
    "report": "engines/rtx/fusion.json",
    "flavour": "rtx",
    "version": "1.7.1",
    "target": None,
    "fusion_source": "builder log",
    "attention_fused": 1,
    "attention_expected": 2,
    "attentions": [
        {"path": "layer.0", "block": 0, "fused": True, "kernel": "_gemm_mha_v2_0xab", "reason": None, "dtype": "fp16"},
        {"path": "layer.2", "block": 2, "fused": False, "kernel": None, "reason": "has a mask", "dtype": "fp16"},
    ],
}


class Page(HTMLParser):
    """Collects the page's text and checks that tags close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.links = [], "", []

    def handle_starttag(self, tag, attrs):
        self.links += [
            value for name, value in attrs if name in ("href", "src") and not (value or "").startswith(("data:", "#"))
        ]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in ("path", "line", "circle", "polyline", "rect")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(html):
    page = Page()
    page.feed(html)
    assert page.open == []
    return page


def read_page(path):
    return parsed(path.read_text())


@pytest.fixture(scope="module")
def measured_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    infos = [read_bundle(write_bundle(folder / name, seed=seed)) for seed, name in enumerate(("tiny", "other"))]
    append_rows(folder / "tiny.bench.jsonl", bench([side_from_bundle(info, QUICK) for info in infos], QUICK))
    return folder / "tiny"


def page_of(tmp_path, *measurements, bundles=()):
    return parsed(html_from_results(bundles, rows_of(measurements, tmp_path / "rows.jsonl"))).text


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
    write_report([measured_bundle.with_name("tiny.bench.jsonl")], tmp_path / "report.html")
    assert "Conditions and versions" in read_page(tmp_path / "report.html").text


def test_write_report_takes_a_bundle_without_rows_or_scores(tmp_path):
    write_report([write_bundle(tmp_path / "plain", scores=None)], tmp_path / "report.html")
    text = read_page(tmp_path / "report.html").text
    assert "Not measured yet" in text
    assert "The blocks were not scored." in text


def test_write_report_shows_the_newest_row_of_a_side(tmp_path):
    rows = tmp_path / "rows.jsonl"
    append_rows(rows, [made_up_row("half", ms=5.0), made_up_row("full", sha="bb" * 32), made_up_row("half", ms=7.0)])
    write_report([rows], tmp_path / "report.html")
    text = read_page(tmp_path / "report.html").text
    assert "1 older row of the same sides is not shown" in text
    assert "A: half: 5" not in text


@pytest.mark.parametrize("name", ["<b>&x", "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'])
def test_write_report_escapes_names(tmp_path, name):
    folder = write_bundle(tmp_path / "x", labels=None, name=name)
    rows = tmp_path / "rows.jsonl"
    append_rows(rows, [made_up_row(name, sha=read_bundle(folder).model_sha256, provider=name)])
    write_report([folder, rows], tmp_path / "report.html")
    assert read_page(tmp_path / "report.html").text.count(name) > 5
    assert name not in (tmp_path / "report.html").read_text()


def test_write_report_shows_why_a_side_failed(bundle, tmp_path):
    info = read_bundle(bundle)
    (bundle / "model.onnx").write_bytes(b"no graph")
    append_rows(tmp_path / "rows.jsonl", bench([side_from_bundle(info, BenchConfig(threads=1))], BenchConfig(max_runs=1)))
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


@pytest.mark.parametrize(
    ("out", "form", "expected"),
    [("a.html", None, "html"), ("a.MD", None, "markdown"), ("a", None, "html"), ("a.md", "html", "html")],
)
def test_format_of_goes_by_the_name_unless_told(tmp_path, out, form, expected):
    assert format_of(tmp_path / out, form) == expected


def test_format_of_rejects_an_unknown_format(tmp_path):
    with pytest.raises(BenchError, match="no format 'pdf'; choose from html, markdown"):
        format_of(tmp_path / "a.pdf", "pdf")


def test_format_of_rejects_the_name_of_another_format(tmp_path):
    with pytest.raises(BenchError, match=r"a\.pdf is the name of no page; end it in \.html or \.md"):
        format_of(tmp_path / "a.pdf")


def test_finding_tells_speed_accuracy_and_energy_against_the_other_side(bundle, tmp_path):
    info = read_bundle(bundle)
    compared = {"against": "full", "speedup": 2.0, "speedup_low": 1.9, "speedup_high": 2.1}
    ours = made_up_row("half", sha=info.model_sha256, top1=0.8, p50_ms=5.0, **compared, **made_up_energy(20.0))
    full = made_up_row("full", sha="bb" * 32, top1=0.9, ms=17.0, **made_up_energy(41.0))
    text = page_of(tmp_path, ours, full, bundles=[info])
    assert "tiny is the model without 2 of its 4 blocks, which saves 50% of the FLOPs." in text
    assert (
        f"On {ORIN} it is 2.00x as fast as full (1.90 to 2.10 over rounds): 5 ms for a batch of 1 instead of 10 ms; an item "
        "takes 20 mJ above idle instead of 41 mJ."
    ) in text
    assert (
        "top-1 on demo is 80.0% (78.3% to 81.7%); that of full is 90.0% (88.3% to 91.7%), and the intervals lie apart." in text
    )


def test_finding_tells_each_device_apart(bundle, tmp_path):
    info = read_bundle(bundle)
    places = ((ORIN, 5.0), (SERVER, 0.5))
    slow, quick = (made_up_row("half", sha=info.model_sha256, device=device, p50_ms=ms) for device, ms in places)
    text = page_of(tmp_path, slow, quick, bundles=[info])
    assert f"On {ORIN} it takes 5 ms for a batch of 1; its energy was not measured." in text
    assert f"On {SERVER} it takes 0.5 ms for a batch of 1; its energy was not measured." in text


def test_finding_compares_with_the_side_of_the_same_run(bundle, tmp_path):
    info = read_bundle(bundle)
    ours = made_up_row("half", id="run1-b1-0", sha=info.model_sha256, against="full", top1=0.8)
    wrong = made_up_row("full", id="run2-b1-1", sha="bb" * 32, computed_in="bf16", top1=0.6)
    right = made_up_row("full", id="run1-b1-1", sha="bb" * 32, top1=0.9)
    assert "that of full is 90.0%" in page_of(tmp_path, ours, wrong, right, bundles=[info])


def test_finding_says_when_accuracy_intervals_overlap(bundle, tmp_path):
    info = read_bundle(bundle)
    ours = made_up_row("half", sha=info.model_sha256, top1=0.8, against="full")
    text = page_of(tmp_path, ours, made_up_row("full", sha="bb" * 32, top1=0.81), bundles=[info])
    assert "and the intervals overlap." in text


def test_finding_takes_nothing_from_an_invalid_row(bundle, tmp_path):
    info = read_bundle(bundle)
    text = page_of(tmp_path, made_up_row("half", sha=info.model_sha256, status="invalid", reason="too hot"), bundles=[info])
    assert "No valid measurement of it is on this page." in text
    assert "invalid: too hot" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"power_reason": "energy not measured: no sensor"}, "energy not measured: no sensor"),
        ({}, "energy was not measured"),
        ({"runs": 100, "p99_ms": None}, "no p99, since it needs 662 runs and there were 100"),
        ({"drift": 0.12, "drifted": True}, "got 12% slower"),
        ({"warm_up_steady": False}, "had not become steady"),
        ({"metrics": {}}, "accuracy was not measured"),
        ({"throttled": ("heat slowed it down",)}, "heat slowed it down"),
        ({"unreadable": 7}, "7 items of demo could not be read"),
        ({"overhead": 0.03}, "the harness's own time is 3.0% of the median"),
        ({"speedup": 4.0, "speedup_low": 1.4, "speedup_high": 3.8}, "lies outside of its own spread"),
        ({"speedup": 1.1, "speedup_low": 0.9, "speedup_high": 1.3}, "isn't beyond noise"),
        (
            {"speedup": 9.0, "speedup_low": 8.0, "speedup_high": 9.5, "ideal_speedup": 2.0, "against": "torch"},
            "torch ran in another runtime or precision",
        ),
        ({"remarks": ("ran partly on the CPU",)}, "ran partly on the CPU"),
        ({"conditions": made_up_conditions(ORIN, load_average=5.0)}, "busy before the start (load 5 on 6 cores)"),
        ({"conditions": made_up_conditions(ORIN, clocks_locked=False)}, "clocks were not locked"),
    ],
)
def test_caveats_say_what_is_not_known(tmp_path, changes, said):
    notice = (
        page_of(tmp_path, made_up_row("half", **changes)).split("Before you believe a figure")[1].split("What it brought")[0]
    )
    assert said in notice


def test_caveats_are_absent_when_nothing_speaks_against_the_figures(tmp_path):
    text = page_of(tmp_path, made_up_row("half", **made_up_energy(3.0)))
    assert "Before you believe" not in text
    assert "Nothing is known that speaks against these figures." in text


def test_page_marks_fused_attention_and_the_reason_where_it_is_not(tmp_path):
    info = read_bundle(write_bundle(tmp_path / "tiny", engines=[ENGINE]))
    text = parsed(html_from_results([info], [])).text
    assert "attention is fused in 1 of 2, as the builder log says. Not fused: has a mask (1)." in text
    assert "fused: _gemm_mha_v2_0xab (fp16)" in text
    assert "tiny: attention is fused in only 1 of 2 places of engines/rtx/model.engine" in text


def test_page_says_loudly_that_energy_was_not_measured_and_why(tmp_path):
    text = page_of(tmp_path, made_up_row("half", power_reason="energy not measured: no sensor here"))
    assert "Energy was not measured" in text
    assert "A: no sensor here" in text


def test_page_shows_energy_clocks_and_throttling(tmp_path):
    text = page_of(tmp_path, made_up_row("half", **made_up_energy(36.7), throttled=("heat slowed it down",)))
    for said in ("tegrastats VDD_IN", "4.90 W", "11.20 W", "36.7 mJ", "62 °C", "gpu 1,020 MHz", "heat slowed it down"):
        assert said in text


def test_page_draws_another_metric_where_there_is_no_top1(tmp_path):
    found = {"map": Metric(0.81, 0.79, 0.83)}
    row = made_up_row("half", metrics=found, data="market1501:data")
    assert "Accuracy (mAP on market1501:data) over median latency of a batch" in page_of(tmp_path, row)


def test_page_draws_a_figure_that_is_no_share_without_per_cent(tmp_path):
    text = page_of(tmp_path, made_up_row("half", metrics={"auc": Metric(0.913, 0.9, 0.926)}))
    assert "A 0.913 at " in text


def test_page_keeps_a_row_without_raw_latencies_in_accuracy_charts(tmp_path):
    text = page_of(tmp_path, made_up_row("half", samples_ms=()))
    assert "Accuracy (top-1 on demo) over median latency" in text
    assert "Latency in the order of time" not in text


def test_page_names_each_device_and_its_front(tmp_path):
    text = page_of(tmp_path, *made_up_sweep())
    assert ORIN in text
    assert SERVER in text
    assert "Pareto front of each device" in text


def test_page_shows_scenarios_and_provider_trials(tmp_path):
    text = page_of(tmp_path, *made_up_sweep())
    assert "SingleStream of half" in text
    assert "90th percentile latency: 11.5 ms. LoadGen calls the run not valid: min duration not met." in text
    assert "figures mean ms" in text
    assert "J (half): the scenario SingleStream is no valid MLPerf run" in text
    assert "2.8 times as slow" in text


def test_page_shows_trials_of_several_batches_once(tmp_path):
    trials = ({"provider": "cpu", "median_ms": 8.7, "remarks": ()},)
    rows = [made_up_row("half", batch=batch, provider_trials=trials) for batch in (1, 4)]
    text = page_of(tmp_path, *rows)
    assert text.count("median ms") == 1
    assert "A1, A4: half" in text
    assert "[]" not in text


def test_page_asks_no_energy_of_a_failed_side(tmp_path):
    failed = made_up_row("broken", status="failed", reason="no runtime", samples_ms=(), top1=None, sha="cc" * 32)
    assert "Energy was not measured" not in page_of(tmp_path, made_up_row("half", **made_up_energy(3.0)), failed)


def test_page_keeps_an_invalid_side_out_of_the_charts(tmp_path):
    hot = made_up_row("hot", status="invalid", reason="too hot", sha="cc" * 32)
    html = html_from_results([], rows_of([made_up_row("half"), hot], tmp_path / "rows.jsonl"))
    assert "A: half" in html
    assert not re.search(r"<title>B: hot", html)
    assert "invalid: too hot" in parsed(html).text


def test_page_reads_rows_of_the_first_schema(tmp_path):
    row = row_from_measurement(made_up_row("old", backend="onnxruntime"))
    for name in ("schema", "provider", "metrics", "computed_in"):
        del row[name]
    row |= {"top1": 0.7, "top1_low": 0.68, "top1_high": 0.72}
    (tmp_path / "old.jsonl").write_text(json.dumps(row) + "\n")
    write_report([tmp_path / "old.jsonl"], tmp_path / "r.html")
    assert "70.0% (68.0% to 72.0%)" in read_page(tmp_path / "r.html").text


def test_write_report_finds_the_profile_beside_a_bundle_and_marks_attention(bundle, tmp_path):
    write_profile(tmp_path / "tiny.profile.json")
    write_report([bundle], tmp_path / "r.html")
    text = read_page(tmp_path / "r.html").text
    assert "20 layers take 21.000 ms together, 9% of it in attention (mean of 100 runs)" in text
    assert "attention: _gemm_mha_v2_myl0_7: 1.900 ms, 9%" in text


def test_write_report_escapes_names_of_layers(tmp_path):
    times = {"name": "<script>x", "timeMs": 1.0, "averageMs": 1.0, "medianMs": 1.0, "percentage": 100.0}
    (tmp_path / "p.json").write_text(json.dumps([{"count": 1}, times]))
    write_report([tmp_path / "p.json"], tmp_path / "r.html")
    assert "<script>" not in (tmp_path / "r.html").read_text()


def test_write_report_rejects_a_profile_that_is_none(tmp_path):
    (tmp_path / "p.json").write_text('[{"name": "a"}]')
    with pytest.raises(BenchError, match=r"p.json is no profile of trtexec: KeyError\('count'\).*--exportProfile=p.json"):
        write_report([tmp_path / "p.json"], tmp_path / "r.html")


def test_markdown_holds_the_same_figures_and_no_html(tmp_path):
    text = markdown_from_results([], rows_of(made_up_sweep(), tmp_path / "rows.jsonl"))
    assert "> **Before you believe a figure**" in text
    assert "<svg" not in text
    widths = {
        len(table.split("\n")[0].split(" | ")) == len(line.split(" | "))
        for table in text.split("\n\n")
        if table[0] == "|"
        for line in table.split("\n")
    }
    assert widths == {True}


def test_markdown_escapes_names(tmp_path):
    text = markdown_from_results([], rows_of([made_up_row("<script>a|b*c`d\n# e")], tmp_path / "rows.jsonl"))
    assert "<script>" not in text
    assert r"&lt;script&gt;a\|b\*c\`d \# e" in text


def test_figures_say_nothing_for_a_row_without_measurements(bundle):
    info = read_bundle(bundle)
    info.model_path.write_bytes(b"no graph")
    (measurement,) = bench([side_from_bundle(info, BenchConfig(threads=1))], BenchConfig(max_runs=1))
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
