"""The sections about measurements: the sides, accuracy against latency and energy, latencies, batch sweeps, energy and heat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..figures import FIGURES, metric_of, text_from_ms
from .blocks import Block, Chart, Heading, Notice, Paragraph, chart, table
from .charts import (
    Point,
    Series,
    Sweep,
    draw_distributions,
    draw_over_time,
    draw_sweep,
    draw_tradeoff,
    front_of,
)
from .drawing import COLOURS, Mark, draw_key
from .entries import Entry, Row, in_parts, shared_text, tags_of
from .finding import main_metric, metric_title, text_of_metric
from .model_charts import Bar, draw_bars

__all__ = ["energy_blocks", "figures_blocks", "latency_blocks", "sides_blocks", "tradeoff_blocks"]

_MOST_SERIES = 12  # that a chart of lines can show and still be read


def sides_blocks(entries: Sequence[Entry], older: int) -> list[Block]:
    """Return the table of all that was measured, which names the letters that the charts use."""
    if not entries:
        return [
            Heading("What it brought"),
            Paragraph("Not measured yet. Run: shallowvit bench BUNDLE --data DATA", "warning"),
        ]
    rows = [entry.row for entry in entries]
    same = shared_text(rows)
    metrics = list(dict.fromkeys(name for row in rows for name in row.get("metrics") or ()))
    head = ["", "side", "on", "status", "p50", "p99", "items/s", "energy an item", "speed-up", *map(metric_title, metrics)]
    several = len({entry.device for entry in entries}) > 1
    lines = [_side_line(entry, metrics, several) for entry in entries]
    parts: list[Block] = [
        Heading("What it brought"),
        Paragraph(
            "Each letter stands for the same side in all charts; a number behind it is the batch size."
            + (f" The same for all: {same}." if same else "")
        ),
        table("what was measured", head, lines, range(4, len(head))),
    ]
    if older:
        parts.append(
            Paragraph(
                f"{older} older row{'s' if older > 1 else ''} of the same sides {'are' if older > 1 else 'is'} not shown.",
                "soft",
            )
        )
    return parts


def _side_line(entry: Entry, metrics: Sequence[str], several: bool) -> list[str]:
    row = entry.row
    texts = {figure.title: figure.text(row) for figure in FIGURES}
    p50, p99, items = row.get("p50_ms"), row.get("p99_ms"), row.get("items_per_s")
    return [
        entry.tag,
        entry.short,
        entry.device if several else "",
        row["status"],
        "" if p50 is None else text_from_ms(p50),
        "" if p99 is None else text_from_ms(p99),
        "" if items is None else f"{items:,.1f}",
        _energy_text(row),
        texts["speed-up"],
        *(text_of_metric(row, name) for name in metrics),
    ]


def _energy_text(row: Row) -> str:
    if row.get("energy_item_mj") is not None:
        return f"{row['energy_item_mj']:.3g} mJ"
    return "" if row["status"] == "failed" else "not measured"


def tradeoff_blocks(entries: Sequence[Entry]) -> list[Block]:
    """Return accuracy against latency, and against energy where it was measured, for each data set."""
    scored: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if entry.valid and (metric := main_metric(entry.row)):
            scored.setdefault((metric, str(entry.row.get("data"))), []).append(entry)
    if not scored:
        return []
    parts: list[Block] = [Heading("Accuracy against latency and energy")]
    for (metric, data), part in scored.items():
        parts.append(_tradeoff_chart(part, metric, data, "median latency of a batch", "p50_ms", text_from_ms))
        with_energy = [entry for entry in part if entry.row.get("energy_item_mj") is not None]
        if with_energy:
            parts.append(_tradeoff_chart(with_energy, metric, data, "energy an item", "energy_item_mj", "{:.3g} mJ".format))
        missing = [entry for entry in part if entry not in with_energy]
        if missing:
            parts.append(Paragraph(f"Accuracy against energy: not measured for {tags_of(missing)}.", "warning"))
    left = [entry for entry in entries if entry.valid and main_metric(entry.row) is None]
    if left:
        parts.append(Paragraph(f"Not in these charts, as their accuracy was not measured: {tags_of(left)}.", "soft"))
    return parts


def _cost_of(row: Row, key: str) -> float:
    """The cost on the axis; a median without enough runs to be reported still has its place."""
    import statistics

    return float(row[key]) if row.get(key) is not None else statistics.median(row["samples_ms"])


def _tradeoff_chart(
    entries: Sequence[Entry], metric: str, data: str, cost: str, key: str, cost_text: Callable[[float], str]
) -> Chart:
    points = [_point(entry, metric, key, cost_text) for entry in entries]
    devices = list(dict.fromkeys(point.group for point in points))
    fronts = [front_of([point for point in points if point.group == device]) for device in devices]
    best = {point.mark.tag for front in fronts for point in front}
    title = metric_title(metric)
    share = "%" in text_of_metric(entries[0].row, metric)
    label = f"{title} over {cost}: " + "; ".join(point.title for point in points)
    caption = f"Accuracy ({title} on {data}) over {cost}, with 95 % intervals where known; up and left is better."
    reading = (
        f"The staircase is the Pareto front{' of each device' if len(devices) > 1 else ''}: no other side is better in both. "
        "What is beaten is pale."
    )
    lines = [
        [
            entry.tag,
            entry.short,
            entry.device,
            cost_text(_cost_of(entry.row, key)),
            text_of_metric(entry.row, metric),
            "on the front" if entry.tag in best else "beaten",
        ]
        for entry in entries
    ]
    figures = table(f"{title} and {cost}", ["", "side", "device", cost, f"{title} on {data}", "Pareto"], lines, [3, 4])
    return chart(
        lambda width: draw_tradeoff(points, cost, cost_text, label, width, share=share),
        caption,
        reading,
        _legend(entries),
        figures,
    )


def _point(entry: Entry, metric: str, key: str, cost_text: Callable[[float], str]) -> Point:
    found: Mapping[str, Any] = metric_of(entry.row, metric) or {}
    low, high = found.get("low"), found.get("high")
    cost = _cost_of(entry.row, key)
    return Point(
        mark=entry.mark,
        title=f"{entry.title}: {text_of_metric(entry.row, metric)} at {cost_text(cost)}",
        group=entry.device,
        cost=cost,
        cost_ends=(entry.row.get("intervals_ms") or {}).get(key),
        value=float(found["value"]),
        ends=None if low is None or high is None else (low, high),
    )


def latency_blocks(entries: Sequence[Entry]) -> list[Block]:
    """Return distributions, latency in the order of time, and batch sweeps."""
    timed = [entry for entry in entries if entry.timed]
    swept = _sweep_blocks([entry for entry in entries if entry.valid])
    if not timed:
        return [Heading("Latency"), *swept] if swept else []
    shown = _few(timed)
    rest = "" if len(shown) == len(timed) else f" Only {tags_of(shown)} are drawn; the table of all sides has the others."
    series = [Series(entry.mark, entry.title, entry.row["samples_ms"]) for entry in shown]
    parts: list[Block] = [
        Heading("Latency"),
        chart(
            partial(draw_distributions, series),
            f"Every run counts; none was dropped from the figures.{rest}",
            "The lines are the share of runs at or below each latency, the shapes are medians. The slowest 0.5 % may lie "
            "beyond the right edge.",
            _legend(shown),
            table("latency", ["", "side", *_LATENCY_TITLES], [_latency_line(entry) for entry in shown], range(2, 12)),
        ),
        Heading("Latency in the order of time", 3),
        chart(
            partial(draw_over_time, series),
            "A side that gets slower from its first run to its last was measured on a machine that heated up or was shared.",
            "Every run against the median of its side, the first run left: the line is the median of neighbouring runs, the "
            "bars go from the fastest to the slowest of them; the slowest 0.5 % are cut off.",
            (),
            table("steadiness", ["", "side", "drift", "jitter", "warm-up"], [_drift_line(entry) for entry in shown], [3, 4]),
        ),
    ]
    return [*parts, *swept]


_LATENCY_TITLES = [figure.title for figure in FIGURES if figure.title.startswith("latency") or figure.title == "timed runs"]


def _few(timed: Sequence[Entry]) -> list[Entry]:
    """As many as a chart can show: one batch of each configuration before others."""
    if len(timed) <= _MOST_SERIES:
        return list(timed)
    first: dict[str, Entry] = {}
    for entry in timed:
        if entry.letter not in first or entry.row["batch"] < first[entry.letter].row["batch"]:
            first[entry.letter] = entry
    return list(first.values())[:_MOST_SERIES]


def _latency_line(entry: Entry) -> list[str]:
    texts = {figure.title: figure.text(entry.row) for figure in FIGURES}
    return [entry.tag, entry.name, *(texts[title] for title in _LATENCY_TITLES)]


def _drift_line(entry: Entry) -> list[str]:
    row = entry.row
    drift = "not checked"
    if row.get("drifted") is not None:
        drift = f"{row['drift']:+.1%} from the first third to the last" + ("" if row["drifted"] else ", within noise")
    jitter = "" if row.get("jitter_ms") is None else f"{row['jitter_ms']:.3f} ms"
    warm = (
        ""
        if row.get("warm_up_runs") is None
        else f"{row['warm_up_runs']} runs" + ("" if row["warm_up_steady"] else ", not steady")
    )
    return [entry.tag, entry.name, drift, jitter, warm]


def _sweep_blocks(entries: Sequence[Entry]) -> list[Block]:
    by_letter: dict[str, list[Entry]] = {}
    for entry in entries:
        by_letter.setdefault(entry.letter, []).append(entry)
    swept = [sorted(part, key=lambda entry: entry.row["batch"]) for part in by_letter.values() if len(part) > 1]
    if not swept:
        return []
    parts: list[Block] = [Heading("Batch size", 3)]
    for what, key, text, better in (
        ("throughput", "items_per_s", _rate_text, "Items a second over the batch size; up is better."),
        ("median latency", "p50_ms", text_from_ms, "Median latency of a whole batch over its size; down is better."),
    ):
        sweeps = [_sweep(part, key) for part in swept if all(entry.row.get(key) is not None for entry in part)]
        if not sweeps:
            continue
        lines = [
            [entry.tag, entry.name, str(entry.row["batch"]), text(entry.row[key])]
            for part in swept
            for entry in part
            if entry.row.get(key) is not None
        ]
        figures = table(f"{what} over the batch size", ["", "side", "batch", what], lines, [2, 3])
        draw = partial(draw_sweep, sweeps, text, what)
        parts.append(chart(draw, better, "", _legend([entry for part in swept for entry in part]), figures))
    return parts


def _rate_text(items_per_s: float) -> str:
    return f"{items_per_s:,.0f}/s" if items_per_s >= 100 else f"{items_per_s:.3g}/s"


def _letter_mark(entry: Entry) -> Mark:
    """That of the whole configuration."""
    return Mark(entry.letter, entry.mark.colour, entry.mark.colour // COLOURS)


def _sweep(part: Sequence[Entry], key: str) -> Sweep:
    first = part[0]
    values = tuple((entry.row["batch"], float(entry.row[key])) for entry in part)
    return Sweep(_letter_mark(first), f"{first.letter}: {first.family}", values)


def energy_blocks(entries: Sequence[Entry]) -> list[Block]:
    """Return power, energy, temperatures, clocks and throttling; or, loudly, why they were not measured."""
    if not entries:
        return []
    parts: list[Block] = [Heading("Energy, heat and clocks")]
    reasons: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.row.get("energy_item_mj") is None and entry.row["status"] != "failed":
            reason = entry.row.get("power_reason") or "the rows give no reason"
            reasons.setdefault(reason.removeprefix("energy not measured: "), []).append(entry)
    if reasons:
        why = tuple(f"{tags_of(about)}: {reason}" for reason, about in reasons.items())
        parts.append(Notice("Energy was not measured", why))
    measured = [entry for entry in entries if entry.row.get("energy_item_mj") is not None]
    lines = [_energy_line(entry) for entry in entries if _has_power(entry.row)]
    figures = table("energy and heat", ["", "side", *_ENERGY_HEAD], lines, [3, 4, 5, 6, 7, 8])
    if measured:
        bars = [
            Bar(entry.title, entry.row["energy_item_mj"], f"{entry.row['energy_item_mj']:.3g} mJ", entry.mark.fill)
            for entry in measured[:_MOST_SERIES]
        ]
        caption = (
            "Energy an item above idle: the power during the timed runs minus the idle power, times the time. Down is better."
        )
        parts.append(chart(partial(draw_bars, bars, "energy an item"), caption, "", (), figures))
    elif lines:
        parts.append(figures)
    return parts


_ENERGY_HEAD = ["source", "idle", "mean", "peak", "a batch", "an item", "hottest", "clocks", "slowed down by"]


def _has_power(row: Row) -> bool:
    names = ("energy_item_mj", "mean_w", "max_temperature_c", "clocks_mhz", "throttled")
    return any(row.get(name) not in (None, {}, [], ()) for name in names)


def _energy_line(entry: Entry) -> list[str]:
    row = entry.row

    def text(key: str, form: str) -> str:
        return "" if row.get(key) is None else form.format(row[key])

    return [
        entry.tag,
        entry.name,
        row.get("power_source") or "not measured",
        text("idle_w", "{:.2f} W"),
        text("mean_w", "{:.2f} W"),
        text("peak_w", "{:.2f} W"),
        text("energy_mj", "{:.3g} mJ"),
        text("energy_item_mj", "{:.3g} mJ"),
        text("max_temperature_c", "{:.0f} °C"),
        ", ".join(f"{name} {clock:,.0f} MHz" for name, clock in (row.get("clocks_mhz") or {}).items()),
        "; ".join(row.get("throttled") or ()),
    ]


def figures_blocks(entries: Sequence[Entry]) -> list[Block]:
    """Return every figure of every row, as the terminal prints them."""
    if not entries:
        return []
    parts: list[Block] = [Heading("Every figure")]
    for part in in_parts(entries):
        lines = [[figure.title, *(figure.text(entry.row) for entry in part)] for figure in FIGURES]
        head = ["", *(entry.title for entry in part)]
        parts.append(
            table(f"every figure of {tags_of(part)}", head, [line for line in lines if any(line[1:])], range(1, len(head)))
        )
    return parts


def _legend(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """A line for each configuration, with the batches that are shown of it."""
    by_letter: dict[str, list[Entry]] = {}
    for entry in entries:
        by_letter.setdefault(entry.letter, []).append(entry)
    legend = []
    for part in by_letter.values():
        first = part[0]
        if len(part) == 1:
            legend.append((draw_key(first.mark), first.title))
            continue
        batches = ", ".join(str(entry.row["batch"]) for entry in part)
        where = f", {first.where}" if first.where else ""
        legend.append((draw_key(_letter_mark(first)), f"{first.letter}: {first.family}{where}, batches {batches}"))
    return legend
