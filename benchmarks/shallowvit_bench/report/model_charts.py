"""The charts of a model: its blocks, with what became of their attention in each engine, and bars of anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .drawing import Axis, draw_label, draw_line, draw_svg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Bar", "EngineStrip", "draw_bars", "draw_blocks"]

_LEFT, _RIGHT, _TOP, _BARS = 8, 8, 16, 190
_STRIP = 40
_BAR = 40


@dataclass(frozen=True)
class EngineStrip:
    """Of an engine: how many attentions of each block are one kernel, and how many there are, by the block's number."""

    label: str
    fused: Mapping[int, tuple[int, int]]


@dataclass(frozen=True)
class Bar:
    """A bar with its name above it; ``style`` are CSS classes."""

    label: str
    value: float
    text: str
    style: str = "f0"


def draw_blocks(
    blocks: int, removed: Sequence[int], scores: Sequence[Mapping[str, Any]], engines: Sequence[EngineStrip], width: int
) -> str:
    """Draw one bar per block, the removed ones hollow, and below them a strip per engine: attention fused or not.

    Args:
        blocks: Of the unpruned model.
        removed: Their numbers.
        scores: ``block``, ``path`` and ``score`` of each; none: the blocks were not scored.
        engines: Of the bundle.
        width: In pixels.
    """
    x = Axis(-0.5, blocks - 0.5, _LEFT, width - _RIGHT)
    step = (x.end - x.start) / blocks
    bottom = _TOP + (_BARS if scores else 0)
    parts = _score_bars(scores, removed, x, step) if scores else []
    every = math.ceil(26 / step)
    parts += [draw_label(x(block), bottom + 16, str(block)) for block in range(0, blocks, every)]
    below = bottom + 22
    for place, engine in enumerate(engines):
        parts += _strip(engine, set(removed), x, step, below + place * _STRIP)
    gone = f"; removed are {', '.join(map(str, removed))}" if removed else ""
    label = f"{'score of each of' if scores else ''} {blocks} blocks{gone}".strip()
    return draw_svg(parts, width, below + len(engines) * _STRIP + 4, label)


def _score_bars(scores: Sequence[Mapping[str, Any]], removed: Sequence[int], x: Axis, step: float) -> list[str]:
    values = [block["score"] for block in scores]
    spread = max(values) - min(values) or abs(values[0]) or 1.0
    # bars start below the lowest score, not at 0: scores differ by little and only their order counts
    y = Axis(min(values) - 0.35 * spread, max(values) + 0.1 * spread, _TOP + _BARS, _TOP)
    digits = max(0, 2 - math.floor(math.log10(spread)))
    parts = [draw_line(x.start, y.start, x.end, y.start)]
    for block in scores:
        gone = block["block"] in removed
        top, text = y(block["score"]), f"{block['score']:.{digits}f}"
        title = f"block {block['block']} {block['path']}: {text}, {'removed' if gone else 'kept'}"
        parts.append(_rectangle(x(block["block"]), top, 0.66 * step, y.start - top, "gone" if gone else "kept", title))
        if step > 7 * len(text):
            parts.append(draw_label(x(block["block"]), top - 5, text, "middle", "value"))
    return parts


def _strip(engine: EngineStrip, removed: set[int], x: Axis, step: float, top: float) -> list[str]:
    """A cell per block: full with a tick where every attention is one kernel, hollow with a cross where one isn't."""
    parts = [draw_label(x.start, top + 14, engine.label, "start")]
    for block, (fused, total) in sorted(engine.fused.items()):
        whole = fused == total
        title = f"block {block}: attention {'fused' if whole else f'fused in {fused} of {total}'}"
        parts.append(_rectangle(x(block), top + 19, 0.66 * step, 16, "fused" if whole else "unfused", title))
        if step > 16:
            parts.append(draw_label(x(block), top + 31, "✓" if whole else "✗", "middle", "on" if whole else "value"))
    parts += [draw_line(x(block) - 4, top + 27, x(block) + 4, top + 27) for block in sorted(removed - set(engine.fused))]
    return parts


def _rectangle(middle: float, top: float, width: float, height: float, style: str, title: str) -> str:
    from html import escape

    return (
        f'<rect class="{style}" x="{middle - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}">'
        f"<title>{escape(title)}</title></rect>"
    )


def draw_bars(bars: Sequence[Bar], what: str, width: int) -> str:
    """Draw lying bars from 0, each below its name and with its figure; a value below 0 has a bar of no length."""
    most = max(max(bar.value for bar in bars), 0.0) or 1.0
    x = Axis(0, most, _LEFT, width - _RIGHT)
    parts = []
    for place, bar in enumerate(bars):
        top = place * _BAR
        figure = draw_label(x.end, top + 14, bar.text, "end", "value")
        room = int((width - _LEFT - _RIGHT) / 7.3) - len(bar.text) - 1
        name = bar.label if len(bar.label) <= room else bar.label[: room - 1] + "…"
        parts += [draw_label(x.start, top + 14, name, "start"), figure]
        parts.append(
            _rectangle(
                (x.start + x(bar.value)) / 2, top + 19, x(bar.value) - x.start, 13, bar.style, f"{bar.label}: {bar.text}"
            )
        )
    return draw_svg(parts, width, len(bars) * _BAR, what + ": " + "; ".join(f"{bar.label} {bar.text}" for bar in bars[:8]))
