"""What every chart is made of: axes, ticks, marks, labels that don't cover each other, and the SVG around them.

A newcomer's trap: colours are classes of ``data/report.css``, so that one drawing serves light and dark, and each series also
has a letter, a shape and a dash, so that nothing is told by colour alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "COLOURS",
    "NARROW",
    "WIDE",
    "Axis",
    "Mark",
    "draw_grid",
    "draw_key",
    "draw_label",
    "draw_line",
    "draw_shape",
    "draw_svg",
    "draw_swatch",
    "fitted",
    "log_wanted",
    "place_labels",
]

WIDE, NARROW = 760, 340  # pixels; the CSS shows one of them
COLOURS, _SHAPES = 6, 4
_LOGARITHMIC_FROM = 5  # largest over smallest: a linear axis would press the small ones against its edge
_CHARACTER, _LINE = 6.9, 14  # of a label, in pixels


@dataclass(frozen=True)
class Mark:
    """How a series is told apart: a tag as ``A`` or ``B8``, the place of its colour, the place of its shape and dash."""

    tag: str
    colour: int
    shape: int

    @property
    def stroke(self) -> str:
        """Classes of a line of the series."""
        return f"c{self.colour % COLOURS} d{self.shape % _SHAPES}"

    @property
    def plain_stroke(self) -> str:
        """The class of a line of the series without its dash."""
        return f"c{self.colour % COLOURS}"

    @property
    def fill(self) -> str:
        """Classes of a shape of the series."""
        return f"f{self.colour % COLOURS}"


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels, by their logarithm or not."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value; one beyond an end is put on that end."""
        low, high, at = (math.log10(each) if self.log else each for each in (self.low, self.high, self._inside(value)))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def _inside(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    def ticks(self, most: int) -> list[float]:
        """Round values from end to end, ``most`` at most."""
        if not self.log:
            return _ticks(self.low, self.high, most)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        every = math.ceil(len(powers) / most)
        for factors, chosen in (((1, 2, 5), powers), ((1, 3), powers), ((1,), powers), ((1,), powers[::every])):
            found = [round(factor * 10.0**power, 12) for power in chosen for factor in factors]
            found = [value for value in found if self.low <= value <= self.high]
            if 2 <= len(found) <= most:
                return found
        return _ticks(self.low, self.high, 3)


def log_wanted(values: Sequence[float]) -> bool:
    """Say whether values spread so far that they need a logarithmic axis."""
    return min(values) > 0 and max(values) > _LOGARITHMIC_FROM * min(values)


def fitted(values: Sequence[float], start: float, end: float, *, log: bool = False, margin: float = 0.05) -> Axis:
    """Return an axis that holds all values with a margin at both ends.

    Args:
        values: One or more, above 0 for a logarithmic axis.
        start: The pixel of the low end.
        end: The pixel of the high end.
        log: Whether by logarithm.
        margin: A share of the spread.
    """
    low, high = min(values), max(values)
    if log:
        ratio = (high / low) ** margin if high > low else 1.2
        return Axis(low / ratio, high * ratio, start, end, log=True)
    space = margin * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - space, high + space, start, end)


def _ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def draw_grid(x: Axis, y: Axis, y_text: Callable[[float], str], x_text: Callable[[float], str] | None) -> list[str]:
    """Draw the lines of the values of ``y`` and name the values of both; None: the caller names those of ``x``."""
    parts = [draw_line(x.start, y.start, x.end, y.start)]
    for value in y.ticks(5):
        parts += [draw_line(x.start, y(value), x.end, y(value)), draw_label(x.start - 6, y(value) + 4, y_text(value), "end")]
    if x_text is not None:
        most = max(3, int((x.end - x.start) / 75))
        parts += [draw_label(x(value), y.start + 18, x_text(value)) for value in x.ticks(most)]
    return parts


def draw_line(x1: float, y1: float, x2: float, y2: float, style: str = "axis") -> str:
    """Draw a straight line."""
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def draw_label(x: float, y: float, text: str, anchor: str = "middle", style: str = "") -> str:
    """Write a text at a place."""
    named = f' class="{style}"' if style else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def draw_shape(x: float, y: float, mark: Mark, title: str, size: float = 6) -> str:
    """Draw a series' shape: a disc, a square, a diamond or a triangle; ``title`` is shown under the pointer."""
    inner = f"<title>{escape(title)}</title>"
    kind = mark.shape % _SHAPES
    if kind == 0:
        return f'<circle class="{mark.fill}" cx="{x:.1f}" cy="{y:.1f}" r="{size:g}">{inner}</circle>'
    reach = size * (0.88, 1.25, 1.2)[kind - 1]
    corners = {
        1: ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        2: ((0, -1), (1, 0), (0, 1), (-1, 0)),
        3: ((0, -1), (1, 0.8), (-1, 0.8)),
    }[kind]
    points = " ".join(f"{x + reach * across:.1f},{y + reach * down:.1f}" for across, down in corners)
    return f'<polygon class="{mark.fill}" points="{points}">{inner}</polygon>'


def draw_key(mark: Mark) -> str:
    """Return the small drawing that stands for a series in a legend: its line and its shape."""
    line = draw_line(0, 7, 30, 7, mark.stroke)
    return f'<svg class="key" viewBox="0 0 30 14" aria-hidden="true">{line}{draw_shape(15, 7, mark, mark.tag, 5)}</svg>'


def draw_swatch(style: str) -> str:
    """Return the small drawing that stands for rectangles of these CSS classes in a legend."""
    box = f'<rect class="{style}" x="9" y="1" width="12" height="12"/>'
    return f'<svg class="key" viewBox="0 0 30 14" aria-hidden="true">{box}</svg>'


def place_labels(
    wanted: Sequence[tuple[float, float, str]], left: float, right: float, top: float, bottom: float
) -> list[tuple[float, float, str]]:
    """Return where each label goes beside its point, and its anchor, so that labels cover neither each other nor points.

    Args:
        wanted: Pixels of the point, and the text.
        left: Pixels that no label may cross, as the other three.
        right: See ``left``.
        top: See ``left``.
        bottom: See ``left``.
    """
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y, _ in wanted]
    placed = []
    for x, y, text in wanted:
        width = _CHARACTER * len(text)
        choices = []
        for shift in (0, -15, 15, -30, 30, -45, 45, -60, 60, -75, 75):
            choices += [(x + 11, y + 4 + shift, "start"), (x - 11, y + 4 + shift, "end")]
        boxes = [(_box(*choice, width), choice) for choice in choices]
        inside = [
            (box, choice) for box, choice in boxes if box[0] >= left and box[2] <= right and box[1] >= top and box[3] <= bottom
        ]
        free = [(box, choice) for box, choice in inside if not any(_overlap(box, other) for other in taken)]
        box, choice = (free or inside or boxes)[0]
        taken.append(box)
        placed.append(choice)
    return placed


def _box(x: float, y: float, anchor: str, width: float) -> tuple[float, float, float, float]:
    start = x if anchor == "start" else x - width
    return (start, y - _LINE + 3, start + width, y + 3)


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def draw_svg(parts: Sequence[str], width: float, height: float, label: str) -> str:
    """Return a drawing with the text that stands for it where it can't be seen."""
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
