"""The page as plain records, so that HTML and Markdown say the same: sections make blocks, a renderer writes them.

A newcomer's trap: texts in blocks are never escaped; each renderer does that, and only the renderer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .drawing import NARROW, WIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Block", "Chart", "Code", "Folded", "Heading", "Notice", "Paragraph", "Table", "Tiles", "chart", "table"]

Tone = Literal["plain", "lead", "soft", "warning"]


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 to 3; those of level 2 are listed on top of the page."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A few sentences."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Notice:
    """A box that can't be overlooked: what the reader must know before he believes a figure."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Tiles:
    """The few figures to be seen first, each with what it is."""

    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """Lines of text. ``figures`` are the columns set flush right; ``shares`` draws a bar for each line in Markdown."""

    label: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    figures: frozenset[int]
    shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A drawing in two widths, as text doesn't scale; ``table`` holds the same figures.

    ``caption`` says what is shown, ``reading`` how to read the drawing.
    """

    wide: str
    narrow: str
    caption: str
    reading: str
    legend: tuple[tuple[str, str], ...]
    table: Table


@dataclass(frozen=True)
class Code:
    """Commands."""

    text: str


@dataclass(frozen=True)
class Folded:
    """Blocks that are seen when asked for."""

    summary: str
    blocks: tuple[Block, ...]


Block = Heading | Paragraph | Notice | Tiles | Table | Chart | Code | Folded


def table(
    label: str,
    head: Sequence[str],
    lines: Sequence[Sequence[str]],
    figures: Sequence[int] = (),
    shares: Sequence[float] = (),
) -> Table:
    """Return a table without the columns in which no line says anything.

    Args:
        label: What the table is of, for those who can't see it.
        head: Titles of the columns.
        lines: The cells; a cell can be "".
        figures: Columns of figures.
        shares: 0 to 1 for each line; Markdown shows them as bars.
    """
    used = [column for column, title in enumerate(head) if column == 0 or any(line[column] for line in lines)]
    return Table(
        label,
        tuple(head[column] for column in used),
        tuple(tuple(line[column] for column in used) for line in lines),
        frozenset(place for place, column in enumerate(used) if column in figures),
        tuple(shares),
    )


def chart(draw: Callable[[int], str], caption: str, reading: str, legend: Sequence[tuple[str, str]], figures: Table) -> Chart:
    """Return a chart drawn in both widths.

    Args:
        draw: Returns the SVG of a width in pixels.
        caption: What is shown, and which way is better.
        reading: What shapes and lines mean; left out where there is no drawing.
        legend: Small drawings, each with what it stands for.
        figures: What the chart shows, as a table.
    """
    return Chart(draw(WIDE), draw(NARROW), caption, reading, tuple(legend), figures)
