"""Write blocks as Markdown: tables instead of drawings, with bars of text where a table is of bars.

A newcomer's trap: Markdown takes HTML, so names are escaped here too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .blocks import Block, Chart, Code, Heading, Notice, Paragraph, Table, Tiles

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["markdown_from_blocks"]

_SPECIAL = re.compile(r"([\\`*_\[\]|~#])")
_BAR = 20  # characters
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def markdown_from_blocks(blocks: Sequence[Block]) -> str:
    """Return the page as text."""
    return "\n\n".join(text for block in blocks if (text := _block(block))) + "\n"


def _escape(text: str) -> str:
    flat = " ".join(text.split())
    return _SPECIAL.sub(r"\\\1", flat).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_escape(block.text)}"
    if isinstance(block, Paragraph):
        return f"**{_escape(block.text)}**" if block.tone == "warning" else _escape(block.text)
    if isinstance(block, Notice):
        lines = "\n".join(f"> - {_escape(line)}" for line in block.lines)
        return f"> **{_escape(block.title)}**\n>\n{lines}"
    if isinstance(block, Tiles):
        return "\n".join(f"- **{_escape(value)}** {_escape(label)}" for value, label in block.entries)
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Chart):
        return f"{_escape(block.caption)}\n\n{_table(block.table)}"
    if isinstance(block, Code):
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", block.text)), default=0))
        return f"{fence}\n{block.text}\n{fence}"
    inner = "\n\n".join(map(_block, block.blocks))
    return f"**{_escape(block.summary)}**\n\n{inner}"


def _table(block: Table) -> str:
    head = [*map(_escape, block.head)]
    rules = ["--:" if column in block.figures else ":--" for column in range(len(head))]
    lines = [[*map(_escape, line)] for line in block.lines]
    if block.shares:
        head, rules = [*head, ""], [*rules, ":--"]
        lines = [[*line, _bar(share)] for line, share in zip(lines, block.shares, strict=True)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rules, *lines))


def _bar(share: float) -> str:
    eighths = round(max(0.0, min(1.0, share)) * _BAR * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
