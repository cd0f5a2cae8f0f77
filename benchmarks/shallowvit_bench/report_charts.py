"""Draw the report's charts as inline SVG: block scores, accuracy against latency, latency distributions.

Colours are classes of ``data/report.css``, so one drawing serves light and dark; nothing is told by colour alone.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from .figures import metric_of, text_from_ms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["draw_accuracy", "draw_distributions", "draw_scores", "series_colour"]

_WIDTH, _HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 18, 40
_SERIES = 4
_LOGARITHMIC_FROM = 5  # slowest over fastest


@dataclass(frozen=True)
class _Axis:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def series_colour(index: int) -> str:
    """Return the colour of the row ``index``, the same in every chart."""
    return f"var(--s{index % _SERIES})"


def draw_scores(blocks: Sequence[Mapping[str, Any]], removed: Sequence[int]) -> str:
    """Draw one bar per block, the removed ones hollow and crossed out in the label."""
    values = [block["score"] for block in blocks]
    spread = max(values) - min(values) or abs(values[0]) or 1.0
    # bars start below the lowest score, not at 0: scores differ by little and only their order counts
    floor = min(values) - 0.35 * spread
    x, y = _x_axis(-0.5, len(blocks) - 0.5), _y_axis(floor, max(values) + 0.1 * spread)
    width = 0.66 * (x(1) - x(0))
    digits = max(0, 2 - math.floor(math.log10(spread)))
    parts = [_line(x.start, y.start, x.end, y.start)]
    every = math.ceil(len(blocks) / 16)
    for place, block in enumerate(blocks):
        gone = block["block"] in removed
        top = y(block["score"])
        style = 'fill="none" stroke="var(--gone)" stroke-width="2" stroke-dasharray="4 3"' if gone else 'fill="var(--keep)"'
        title = f"block {block['block']} {block['path']}: {block['score']:.{digits}f}, {'removed' if gone else 'kept'}"
        parts.append(
            f'<rect x="{x(place) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" height="{y.start - top:.1f}" {style}>'
            f"<title>{escape(title)}</title></rect>"
        )
        if place % every == 0:
            parts.append(_text(x(place), y.start + 16, str(block["block"])))
        if len(blocks) <= 16:
            parts.append(_text(x(place), top - 5, f"{block['score']:.{digits}f}", "value small"))
    parts.append(_text((x.start + x.end) / 2, _HEIGHT - 6, "block"))
    return _svg(parts, "score of each block; removed blocks are hollow")


def draw_accuracy(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw top-1 with its interval over the median latency, one point per row."""
    latencies = [statistics.median(row["samples_ms"]) for row in rows]
    x = _x_axis(0, 1.15 * max(latencies))
    found = [metric_of(row, "top1") or {} for row in rows]
    low, high = min(top1["low"] for top1 in found), max(top1["high"] for top1 in found)
    margin = max(0.02, 0.15 * (high - low))
    y = _y_axis(max(0.0, low - margin), min(1.0, high + margin))
    parts = _grid(x, y, "{:g} ms", "{:.0%}")
    for index, (top1, latency) in enumerate(zip(found, latencies, strict=True)):
        colour, at = series_colour(index), x(latency)
        ends = f"{y(top1['low']):.1f}V{y(top1['high']):.1f}"
        parts.append(f'<path d="M{at:.1f} {ends}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{at:.1f}" cy="{y(top1["value"]):.1f}" r="6" fill="{colour}"/>')
        anchor, shift = ("end", -11) if latency > 0.6 * x.high else ("start", 11)
        parts.append(
            _text(at + shift, y(top1["value"]) + 4, f"{top1['value']:.1%} at {text_from_ms(latency)}", "value", anchor)
        )
    return _svg(parts, "top-1 accuracy over median latency")


def draw_distributions(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw the share of runs at or below each latency, medians marked; the slowest 0.5 % run off the right edge."""
    ordered = [sorted(row["samples_ms"]) for row in rows]
    fastest = min(samples[0] for samples in ordered)
    slowest = max(samples[int(0.995 * (len(samples) - 1))] for samples in ordered)
    # a linear axis would press the fast side against its edge
    scale = math.log10 if slowest > _LOGARITHMIC_FROM * fastest else float
    low, high = scale(fastest), scale(slowest)
    margin = 0.04 * (high - low) or 0.1
    x, y = _x_axis(low - margin, high + margin), _y_axis(0, 1.04)
    ticks = _log_ticks(fastest, slowest) if scale is math.log10 else _ticks(x.low, x.high, 6)
    parts = _grid(x, y, "", "{:.0%}")
    parts += [_text(x(scale(value)), y.start + 18, f"{value:g} ms") for value in ticks]
    for index, samples in enumerate(ordered):
        colour = series_colour(index)
        steps = min(len(samples), 240)
        points = [(scale(samples[round(step / steps * (len(samples) - 1))]), step / steps) for step in range(steps + 1)]
        path = " ".join(f"{x(value):.1f},{y(share):.1f}" for value, share in points if value <= x.high)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        median = statistics.median(samples)
        at = x(scale(median))
        parts.append(f'<circle cx="{at:.1f}" cy="{y(0.5):.1f}" r="5" fill="{colour}"/>')
        anchor, shift = ("end", -9) if at > 0.75 * _WIDTH else ("start", 9)
        # one line further down per side, so that close medians can both be read
        parts.append(_text(at + shift, y(0.5) + 17 * (index + 1), text_from_ms(median), "value", anchor, colour))
    return _svg(parts, "share of runs at or below each latency")


def _x_axis(low: float, high: float) -> _Axis:
    return _Axis(low, high, _LEFT, _WIDTH - _RIGHT)


def _y_axis(low: float, high: float) -> _Axis:
    return _Axis(low, high, _HEIGHT - _BOTTOM, _TOP)


def _grid(x: _Axis, y: _Axis, x_form: str, y_form: str) -> list[str]:
    parts = [_line(x.start, y.start, x.end, y.start)]
    for value in _ticks(y.low, y.high, 5):
        parts += [_line(x.start, y(value), x.end, y(value)), _text(x.start - 6, y(value) + 4, y_form.format(value), "", "end")]
    if x_form:
        parts += [_text(x(value), y.start + 18, x_form.format(value)) for value in _ticks(x.low, x.high, 6)]
    return parts


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round values from low to high, ``most`` at most."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between low and high; powers alone where that is many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    return [value for power in powers for factor in factors if low <= (value := round(factor * 10.0**power, 12)) <= high]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="axis" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "middle", colour: str = "") -> str:
    fill = f' style="fill:{colour}"' if colour else ""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{fill}>{escape(text)}</text>'


def _svg(parts: list[str], label: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
