"""Write blocks as one HTML page that loads nothing: CSS and drawings are inline, and there is no script.

A newcomer's trap: every chart is there twice, for wide and narrow screens, and the CSS shows one; text in a drawing would
shrink with it otherwise.
"""

from __future__ import annotations

import re
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from .blocks import Block, Chart, Code, Heading, Notice, Paragraph, Table, Tiles

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["html_from_blocks"]

_LONG, _LONG_FIGURE = 26, 14  # characters


def html_from_blocks(blocks: Sequence[Block], title: str) -> str:
    """Return the page as text."""
    css = (files("shallowvit_bench") / "data" / "report.css").read_text(encoding="utf-8")
    anchors: dict[str, str] = {}
    for block in blocks:
        if isinstance(block, Heading) and block.level == 2:
            anchors[_anchor(block.text)] = block.text
    listed = "".join(f'<li><a href="#{anchor}">{escape(text)}</a></li>' for anchor, text in anchors.items())
    body = [_block(block) for block in blocks]
    nav = f'<nav aria-label="sections"><ul>{listed}</ul></nav>'
    first = next((place for place, block in enumerate(blocks) if isinstance(block, Heading) and block.level == 2), len(blocks))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}: shallowvit report</title>\n<style>\n{css}</style></head>\n"
        f"<body><main>\n{''.join(body[:first])}{nav}{''.join(body[first:])}</main></body></html>\n"
    )


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _block(block: Block) -> str:
    if isinstance(block, Heading):
        anchor = f' id="{_anchor(block.text)}"' if block.level == 2 else ""
        return f"<h{block.level}{anchor}>{escape(block.text)}</h{block.level}>\n"
    if isinstance(block, Paragraph):
        style = "" if block.tone == "plain" else f' class="{block.tone}"'
        return f"<p{style}>{escape(block.text)}</p>\n"
    if isinstance(block, Notice):
        lines = "".join(f"<li>{escape(line)}</li>" for line in block.lines)
        return f'<section class="notice"><strong>{escape(block.title)}</strong><ul>{lines}</ul></section>\n'
    if isinstance(block, Tiles):
        tiles = "".join(f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for value, label in block.entries)
        return f'<div class="tiles">{tiles}</div>\n'
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Chart):
        return _chart(block)
    if isinstance(block, Code):
        return f'<pre tabindex="0">{escape(block.text)}</pre>\n'
    return _folded(block.summary, "".join(map(_block, block.blocks)))


def _folded(summary: str, inner: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>\n"


def _chart(block: Chart) -> str:
    items = "".join(f"<li>{key}<span>{escape(text)}</span></li>" for key, text in block.legend)
    legend = f'<ul class="legend">{items}</ul>' if items else ""
    caption = escape(f"{block.caption} {block.reading}".strip())
    drawn = f'<div class="wide">{block.wide}</div><div class="narrow">{block.narrow}</div>'
    folded = _folded("As a table", _table(block.table))
    return f"<figure>{legend}{drawn}<figcaption>{caption}</figcaption></figure>\n{folded}"


def _table(block: Table) -> str:
    """A table in a frame that scrolls by itself, by keyboard too."""
    styles = [_column_style(block, column) for column in range(len(block.head))]
    head = "".join(f'<th scope="col"{style}>{escape(text)}</th>' for style, text in zip(styles, block.head, strict=True))
    lines = "".join(
        f'<tr><th scope="row">{escape(line[0])}</th>'
        + "".join(f"<td{style}>{escape(text)}</td>" for style, text in zip(styles[1:], line[1:], strict=True))
        + "</tr>"
        for line in block.lines
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(block.label)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>\n"
    )


def _column_style(block: Table, column: int) -> str:
    """Figures stand flush right; a column of sentences gets the room to be read on a phone."""
    is_figure = column in block.figures
    names = ["figure"] if is_figure else []
    longest = max((len(line[column]) for line in block.lines), default=0)
    names += ["long"] if longest > (_LONG_FIGURE if is_figure else _LONG) else []
    return f' class="{" ".join(names)}"' if names else ""
