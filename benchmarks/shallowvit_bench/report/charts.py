"""The charts of measurements: accuracy against a cost, distributions, latency in the order of time, batch sweeps."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..figures import text_from_ms
from .drawing import (
    Axis,
    Mark,
    draw_grid,
    draw_label,
    draw_line,
    draw_shape,
    draw_svg,
    fitted,
    log_wanted,
    place_labels,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Point", "Series", "Sweep", "draw_distributions", "draw_over_time", "draw_sweep", "draw_tradeoff", "front_of"]

_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 50, 16, 16, 44, 300
_STEPS = 240  # of a distribution's line
_BUCKETS = 150  # of a series in the order of time
_PANEL = 74
_FEW, _NARROW_LABELS = 4, 500  # series whose labels hold their figures, in a drawing wider than this
_EDGE = 0.005  # the share of the slowest runs that may lie beyond the edge


@dataclass(frozen=True)
class Point:
    """Accuracy at a cost. ``group`` names those that compete with each other: the same device."""

    mark: Mark
    title: str
    group: str
    cost: float
    cost_ends: tuple[float, float] | None
    value: float
    ends: tuple[float, float] | None


@dataclass(frozen=True)
class Series:
    """Raw latencies in the order of time."""

    mark: Mark
    title: str
    samples_ms: Sequence[float]


@dataclass(frozen=True)
class Sweep:
    """A figure over batch sizes: (batch, value), ascending."""

    mark: Mark
    title: str
    values: tuple[tuple[int, float], ...]


def front_of(points: Sequence[Point]) -> list[Point]:
    """Return the points of one group that no other beats in cost and accuracy at once, from cheap to dear."""

    def beaten(point: Point) -> bool:
        return any(
            other.cost <= point.cost and other.value >= point.value and (other.cost < point.cost or other.value > point.value)
            for other in points
        )

    return sorted((point for point in points if not beaten(point)), key=lambda point: (point.cost, point.value))


def draw_tradeoff(
    points: Sequence[Point], cost: str, cost_text: Callable[[float], str], label: str, width: int, *, share: bool = True
) -> str:
    """Draw accuracy over a cost with intervals, and each group's Pareto front; what is beaten is drawn pale.

    Args:
        points: One or more.
        cost: What the cost is.
        cost_text: Writes a cost with its unit.
        label: Stands for the drawing where it can't be seen.
        width: In pixels.
        share: Whether accuracy is written in per cent.
    """
    costs = [each for point in points for each in (point.cost, *(point.cost_ends or ()))]
    values = [value for point in points for value in (point.value, *(point.ends or ()))]
    x_ends = (_LEFT, width - _RIGHT)
    if log_wanted(costs):
        x = fitted(costs, *x_ends, log=True, margin=0.12)
    else:
        x = Axis(min(0.0, 1.15 * min(costs)), max(1.15 * max(costs), 0.0) or 1.0, *x_ends)
    margin = max(0.02, 0.15 * (max(values) - min(values)))
    y = Axis(max(0.0, min(values) - margin), min(1.0, max(values) + margin), _HEIGHT - _BOTTOM, _TOP)
    tick = (".0%" if y.high - y.low > 0.05 else ".1%") if share else ".2f"
    parts = draw_grid(x, y, lambda value: format(value, tick), cost_text)
    fronts = [front_of([point for point in points if point.group == group]) for group in {p.group: 0 for p in points}]
    parts += [_front_line(front, x, y) for front in fronts]
    best = {id(point) for front in fronts for point in front}
    whole = len(points) <= _FEW and width > _NARROW_LABELS
    texts = [
        f"{point.mark.tag} {format(point.value, '.1%' if share else '.3f')} at {cost_text(point.cost)}"
        if whole
        else point.mark.tag
        for point in points
    ]
    wanted = [(x(point.cost), y(point.value), text) for point, text in zip(points, texts, strict=True)]
    placed = place_labels(wanted, _LEFT, width, 0, _HEIGHT - _BOTTOM)
    for point, text, (label_x, label_y, anchor) in zip(points, texts, placed, strict=True):
        pale = "" if id(point) in best else ' class="pale"'
        inner = _cross(point, x, y) + draw_shape(x(point.cost), y(point.value), point.mark, point.title)
        parts.append(f"<g{pale}>{inner}{draw_label(label_x, label_y, text, anchor, 'value')}</g>")
    parts.append(draw_label((x.start + x.end) / 2, _HEIGHT - 6, cost))
    return draw_svg(parts, width, _HEIGHT, label)


def _cross(point: Point, x: Axis, y: Axis) -> str:
    """The intervals of a point."""
    at, up, style = x(point.cost), y(point.value), point.mark.plain_stroke
    upright = draw_line(at, y(point.ends[0]), at, y(point.ends[1]), style) if point.ends else ""
    return upright + (draw_line(x(point.cost_ends[0]), up, x(point.cost_ends[1]), up, style) if point.cost_ends else "")


def _front_line(front: Sequence[Point], x: Axis, y: Axis) -> str:
    """A staircase: what the best is for at most this cost."""
    steps = [f"M{x(front[0].cost):.1f},{y(front[0].value):.1f}"]
    steps += [f"H{x(point.cost):.1f}V{y(point.value):.1f}" for point in front[1:]]
    return f'<path class="front" d="{"".join(steps)}H{x.end:.1f}"/>'


def draw_distributions(series: Sequence[Series], width: int) -> str:
    """Draw the share of runs at or below each latency, medians marked; the slowest 0.5 % run off the right edge."""
    ordered = [sorted(each.samples_ms) for each in series]
    fastest = min(samples[0] for samples in ordered)
    slowest = max(samples[int((1 - _EDGE) * (len(samples) - 1))] for samples in ordered)
    x = fitted([fastest, slowest], _LEFT, width - _RIGHT, log=log_wanted([fastest, slowest]), margin=0.04)
    y = Axis(0, 1.04, _HEIGHT - _BOTTOM, _TOP)
    parts = draw_grid(x, y, "{:.0%}".format, text_from_ms)
    medians = [statistics.median(samples) for samples in ordered]
    few = len(series) <= _FEW
    wanted = [
        (x(median), y(0.5), f"{each.mark.tag} {text_from_ms(median)}" if few else each.mark.tag)
        for each, median in zip(series, medians, strict=True)
    ]
    placed = place_labels(wanted, _LEFT, width, 0, _HEIGHT - _BOTTOM)
    for each, samples in zip(series, ordered, strict=True):
        steps = min(len(samples), _STEPS)
        points = [(samples[round(step / steps * (len(samples) - 1))], step / steps) for step in range(steps + 1)]
        path = " ".join(f"{x(value):.1f},{y(share):.1f}" for value, share in points if value <= x.high)
        parts.append(f'<polyline class="{each.mark.stroke}" points="{path}"/>')
    for each, median, (at, up, text), (label_x, label_y, anchor) in zip(series, medians, wanted, placed, strict=True):
        parts.append(draw_shape(at, up, each.mark, f"{each.title}: median {text_from_ms(median)}", 5))
        parts.append(draw_label(label_x, label_y, text, anchor, "value"))
    parts.append(draw_label((x.start + x.end) / 2, _HEIGHT - 6, "latency of a batch"))
    label = "share of runs at or below each latency; medians " + _listed(series, map(text_from_ms, medians))
    return draw_svg(parts, width, _HEIGHT, label)


def draw_over_time(series: Sequence[Series], width: int) -> str:
    """Draw each series in a strip of its own: every run's latency against the series' median, first run left."""
    parts = []
    for place, each in enumerate(series):
        median = statistics.median(each.samples_ms)
        ordered = sorted(each.samples_ms)
        ends = [ordered[0], ordered[int((1 - _EDGE) * (len(ordered) - 1))], 0.97 * median, 1.03 * median]
        top = place * _PANEL + 24
        y = fitted(ends, top + _PANEL - 34, top, margin=0.02)
        x = Axis(0, max(1, len(each.samples_ms) - 1), _LEFT, width - _RIGHT)
        parts.append(draw_line(x.start, y(median), x.end, y(median)))
        parts.append(draw_label(_LEFT - 6, y(median) + 4, "0%", "end"))
        highest = f"{y.high / median - 1:+.0%}"
        parts.append(draw_label(_LEFT - 6, top + 4, highest, "end"))
        parts.append(draw_label(0, top - 8, _shortened(f"{each.title}, {len(ordered):,} runs", width), "start", "value"))
        parts += _bucket_lines(each, x, y)
    return draw_svg(parts, width, len(series) * _PANEL + 8, "latency of every run against its median, in the order of time")


def _bucket_lines(series: Series, x: Axis, y: Axis) -> list[str]:
    """The span from fastest to slowest of each bucket of runs, and the line of the buckets' medians."""
    samples = series.samples_ms
    size = math.ceil(len(samples) / _BUCKETS)
    spans, medians = [], []
    for start in range(0, len(samples), size):
        bucket = samples[start : start + size]
        at = x(start + (len(bucket) - 1) / 2)
        spans.append(f"M{at:.1f},{y(min(bucket)):.1f}V{y(max(bucket)) - 0.5:.1f}")
        medians.append(f"{at:.1f},{y(statistics.median(bucket)):.1f}")
    return [
        f'<path class="{series.mark.plain_stroke} span" d="{"".join(spans)}"/>',
        f'<polyline class="{series.mark.plain_stroke} thin" points="{" ".join(medians)}"/>',
    ]


def draw_sweep(sweeps: Sequence[Sweep], value_text: Callable[[float], str], what: str, width: int) -> str:
    """Draw a figure over the batch size, one line per configuration; each step right doubles the batch."""
    batches = sorted({batch for sweep in sweeps for batch, _ in sweep.values})
    values = [value for sweep in sweeps for _, value in sweep.values]
    logarithmic = log_wanted(values)
    x = fitted(batches, _LEFT, width - _RIGHT - 14, log=True, margin=0.06)
    y_ends = (_HEIGHT - _BOTTOM, _TOP)
    y = fitted(values, *y_ends, log=True) if logarithmic else Axis(0, 1.1 * max(values), *y_ends)
    parts = draw_grid(x, y, value_text, None)
    parts += [draw_label(x(batch), y.start + 18, str(batch)) for batch in batches]
    parts.append(draw_label((x.start + x.end) / 2, _HEIGHT - 6, "batch size"))
    ends = [(x(sweep.values[-1][0]), y(sweep.values[-1][1]), sweep.mark.tag) for sweep in sweeps]
    placed = place_labels(ends, _LEFT, width, 0, _HEIGHT - _BOTTOM)
    for sweep, (label_x, label_y, anchor) in zip(sweeps, placed, strict=True):
        path = " ".join(f"{x(batch):.1f},{y(value):.1f}" for batch, value in sweep.values)
        parts.append(f'<polyline class="{sweep.mark.stroke}" points="{path}"/>')
        title = partial("{}, batch {}: {}".format, sweep.title)
        parts += [
            draw_shape(x(batch), y(value), sweep.mark, title(batch, value_text(value)), 4.5) for batch, value in sweep.values
        ]
        parts.append(draw_label(label_x, label_y, sweep.mark.tag, anchor, "value"))
    return draw_svg(parts, width, _HEIGHT, f"{what} over the batch size")


def _listed(series: Sequence[Series], texts: object) -> str:
    return "; ".join(f"{each.mark.tag} {text}" for each, text in zip(series, texts, strict=True))  # type: ignore[call-overload]


def _shortened(text: str, pixels: float) -> str:
    most = int(pixels / 6.6)
    return text if len(text) <= most else text[: most - 1] + "…"
