import re
from importlib.resources import files

import pytest
from made_up_rows import made_up_row, made_up_sides, made_up_sweep, rows_of

from shallowvit_bench.measurement import row_from_measurement
from shallowvit_bench.report.charts import (
    Point,
    Series,
    Sweep,
    draw_distributions,
    draw_over_time,
    draw_sweep,
    draw_tradeoff,
    front_of,
)
from shallowvit_bench.report.drawing import Mark, fitted, log_wanted, place_labels
from shallowvit_bench.report.entries import entries_from_rows, newest
from shallowvit_bench.report.model_charts import Bar, EngineStrip, draw_bars, draw_blocks

MARK = Mark("A", 0, 0)


def point(cost, value, *, tag="A", group="board", ends=None):
    return Point(Mark(tag, 0, 0), f"{tag} at {cost}", group, cost, None, value, ends)


def scores_of(*values):
    return [{"block": place, "path": f"layer.{place}", "score": value} for place, value in enumerate(values)]


def test_front_of_leaves_out_what_another_beats_in_both():
    points = [point(1, 0.7, tag="A"), point(2, 0.9, tag="B"), point(3, 0.8, tag="C"), point(2, 0.6, tag="D")]
    assert [each.mark.tag for each in front_of(points)] == ["A", "B"]


def test_front_of_keeps_equals():
    assert len(front_of([point(1, 0.7), point(1, 0.7)])) == 2


def test_front_of_drops_what_is_as_good_but_dearer():
    assert [each.cost for each in front_of([point(1, 0.7), point(2, 0.7)])] == [1]


def test_draw_tradeoff_draws_one_front_a_group_and_pales_the_beaten():
    points = [point(1, 0.7), point(2, 0.6), point(9, 0.5, group="other")]
    drawn = draw_tradeoff(points, "latency", "{:g} ms".format, "label", 760)
    assert drawn.count('class="front"') == 2
    assert drawn.count('class="pale"') == 1


def test_draw_tradeoff_takes_perfect_scores():
    drawn = draw_tradeoff([point(1.0, 1.0, ends=(1.0, 1.0))], "cost", "{:g} ms".format, "label", 760)
    assert "A 100.0% at 1 ms" in drawn
    assert "nan" not in drawn


@pytest.mark.parametrize("cost", [0.0, -3.0])
def test_draw_tradeoff_takes_a_cost_of_nothing_or_less(cost):
    assert "nan" not in draw_tradeoff([point(cost, 0.5), point(2.0, 0.6)], "cost", "{:g} mJ".format, "label", 340)


@pytest.mark.parametrize("samples", [[[1.0, 1.0]], [[1.0, 2.0], [300.0, 900.0]], [[0.001]]])
def test_draw_distributions_takes_any_spread(samples):
    drawn = draw_distributions([Series(MARK, "side", part) for part in samples], 340)
    assert drawn.count("<polyline") == len(samples)
    assert "nan" not in drawn


@pytest.mark.parametrize("samples", [[1.0], [2.0] * 3, [1.0, 500.0] * 700])
def test_draw_over_time_takes_any_number_of_runs(samples):
    drawn = draw_over_time([Series(MARK, "side", samples)], 760)
    assert drawn.count("<polyline") == 1
    assert "nan" not in drawn
    assert len(drawn) < 20_000


def test_draw_over_time_rises_where_the_latency_does():
    drawn = draw_over_time([Series(MARK, "side", [10 + place / 100 for place in range(300)])], 760)
    heights = [float(pair.split(",")[1]) for pair in re.search(r'points="([^"]*)"', drawn)[1].split()]
    assert heights == sorted(heights, reverse=True)


def test_draw_sweep_draws_a_shape_for_each_batch():
    drawn = draw_sweep([Sweep(MARK, "side", ((1, 100.0), (8, 300.0)))], "{:g}/s".format, "throughput", 340)
    assert drawn.count("<circle") == 2
    assert "side, batch 8: 300/s" in drawn


def test_draw_blocks_marks_removed_blocks():
    drawn = draw_blocks(3, [1], scores_of(0.0, 1.0, 2.0), [], 760)
    assert drawn.count('<rect class="kept"') == 2
    assert drawn.count('<rect class="gone"') == 1
    assert "layer.1: 1.00, removed" in drawn


@pytest.mark.parametrize("scores", [[5.0, 5.0], [0.0, 0.0], [-3.0], [1e-9, 2e-9], [1e6, 2e6]])
def test_draw_blocks_takes_any_spread(scores):
    drawn = draw_blocks(len(scores), [], scores_of(*scores), [], 760)
    assert "nan" not in drawn
    assert drawn.count("<rect") == len(scores)


def test_draw_blocks_marks_a_block_of_which_only_some_attention_is_fused():
    drawn = draw_blocks(2, [], [], [EngineStrip("engine", {0: (2, 2), 1: (1, 2)})], 760)
    assert drawn.count('<rect class="fused"') == 1
    assert drawn.count('<rect class="unfused"') == 1
    assert "block 1: attention fused in 1 of 2" in drawn


def test_draw_bars_shortens_a_name_but_tells_it_whole_under_the_pointer():
    name = "a" * 300
    drawn = draw_bars([Bar(name, 1.0, "1 ms"), Bar("b", -1.0, "-1 ms")], "time", 340)
    assert f"<title>{name}: 1 ms</title>" in drawn
    assert re.search(r">a{10,50}…</text>", drawn)
    assert 'width="0.0"' in drawn


@pytest.mark.parametrize("texts", [["A"] * 8, ["A 98.6% at 1.23 ms"] * 4])
def test_place_labels_keeps_labels_of_one_point_apart(texts):
    placed = place_labels([(300.0, 150.0, text) for text in texts], 0, 760, 0, 300)
    assert len(set(placed)) == len(texts)


@pytest.mark.parametrize(("low", "high", "log"), [(0.001, 0.0011, True), (1, 1e6, True), (3.0, 3.0, True), (7.0, 7.0, False)])
def test_axis_has_two_to_six_ticks_within_its_ends(low, high, log):
    axis = fitted([low, high], 0, 100, log=log)
    ticks = axis.ticks(6)
    assert 2 <= len(ticks) <= 7
    assert all(axis.low <= tick <= axis.high for tick in ticks)


@pytest.mark.parametrize(("values", "wanted"), [([1, 4], False), ([1, 6], True), ([0, 6], False), ([-1, 6], False)])
def test_log_wanted_from_five_times_and_above_zero(values, wanted):
    assert log_wanted(values) == wanted


def test_entries_share_a_letter_over_batches_and_count_them(tmp_path):
    entries = entries_from_rows(rows_of([made_up_row("a", batch=8), made_up_row("b"), made_up_row("a")], tmp_path / "r"))
    assert [entry.tag for entry in entries] == ["A8", "B", "A1"]
    assert entries[0].mark.colour == entries[2].mark.colour


def test_entries_name_only_what_differs(tmp_path):
    rows = [made_up_row("a"), made_up_row("a", provider="openvino-bf16", computed_in="bf16")]
    assert [entry.name for entry in entries_from_rows(rows_of(rows, tmp_path / "r"))] == [
        "a, tensorrt fp16",
        "a, openvino-bf16",
    ]


def test_entries_of_many_sides_are_told_apart(tmp_path):
    entries = entries_from_rows(rows_of(made_up_sides(24), tmp_path / "r"))
    assert len({(entry.mark.colour % 6, entry.mark.shape % 4) for entry in entries}) == 24


def test_newest_without_accuracy_gets_that_of_the_same_graph_and_says_so():
    first, last, other = (
        row_from_measurement(made_up_row("half", top1=0.8)),
        row_from_measurement(made_up_row("half", ms=9.0, top1=None)),
        row_from_measurement(made_up_row("half", top1=None, sha="cd" * 32)),
    )
    half, changed = newest([first, last, other])
    assert half["samples_ms"] == last["samples_ms"]
    assert half["metrics"] == first["metrics"]
    assert half["remarks"] == [f"its accuracy was measured in an earlier run, {first['conditions']['time_utc']}"]
    assert not changed["metrics"]
    (again,) = newest([first, last, last])
    assert again["remarks"] == half["remarks"]


def test_newest_keeps_devices_and_power_modes_apart(tmp_path):
    rows = rows_of(made_up_sweep(), tmp_path / "r")
    assert len(newest(rows + rows)) == len(rows)
    slow = [row | {"conditions": row["conditions"] | {"power_mode": "15W"}} for row in rows]
    assert len(newest(rows + slow)) == 2 * len(rows)


def test_entries_keep_two_devices_of_a_kind_apart(tmp_path):
    rows = newest(rows_of([made_up_row("a", machine="left"), made_up_row("a", machine="right")], tmp_path / "r"))
    assert [entry.where.rpartition(" ")[2] for entry in entries_from_rows(rows)] == ["(left)", "(right)"]


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_from_their_ground(scheme):
    css = (files("shallowvit_bench") / "data" / "report.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[0 if scheme == "light" else 1]
    colour = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", block))
    texts = [("ink", "page"), ("ink", "card"), ("soft", "page"), ("soft", "card"), ("warn", "page"), ("warn", "warn-page")]
    assert [pair for pair in [*texts, ("link", "page")] if contrast(colour[pair[0]], colour[pair[1]]) < 4.5] == []
    drawn = ["keep", "gone", "fused", *(f"c{place}" for place in range(6))]
    assert [name for name in drawn if contrast(colour[name], colour["page"]) < 3] == []
