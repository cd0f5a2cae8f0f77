"""What ``shallowvit bench`` prints: progress on stderr, the table, and what must not be overlooked below it."""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from shallowvit_bench.figures import CAVEATS, FIGURES, SWEEP, busy_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from rich.console import Console

__all__ = ["print_measurements", "progress_lines"]

_SHOWN_EVERY_S = 0.2
_ACROSS = 3  # sides that stand side by side in 80 columns


@contextmanager
def progress_lines(silent: bool) -> Iterator[Callable[[str], None]]:
    """Show what is going on, on stderr, when a person is watching.

    Nothing moves by itself: a thread that draws takes Python's lock within timed runs, which raised a p99 by a fifth.
    """
    if silent or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    shown_at, shown = 0.0, ""
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:

        def show(text: str) -> None:
            nonlocal shown_at, shown
            kind = re.sub(r"\d", "", text)
            if kind != shown or monotonic() - shown_at >= _SHOWN_EVERY_S:
                shown_at, shown = monotonic(), kind
                live.update(Text(text, overflow="ellipsis", no_wrap=True), refresh=True)

        yield show


def print_measurements(rows: Sequence[Mapping[str, Any]], written: Sequence[object]) -> None:
    """Print few measurements with their figures down, many with a line each; then every caveat, and what was written."""
    from rich.console import Console

    console = Console()
    timed = [row for row in rows if not row.get("scenario")]
    if len(timed) <= _ACROSS:
        _print_figures(console, timed)
    else:
        _print_lines(console, timed)
    for row in rows:
        if row.get("scenario_results"):
            console.print(_scenario(row), markup=False, soft_wrap=True)
    for text in caveats(rows):
        console.print(text, markup=False, soft_wrap=True)
    if written:
        console.print("wrote " + " and ".join(map(str, written)), markup=False, soft_wrap=True)


def caveats(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a reader of the figures must know, each once, with the measurements it is about."""
    found: dict[str, list[str]] = {}
    for row in rows:
        texts = [text for caveat in CAVEATS if (text := caveat(row))]
        for text in [*texts, busy_text(row["conditions"])]:
            if text:
                found.setdefault(text, []).append(_title(row))
    everyone = len({_title(row) for row in rows})
    return [
        text if len(set(titles)) == everyone else f"{', '.join(dict.fromkeys(titles))}: {text}"
        for text, titles in found.items()
    ]


def _title(row: Mapping[str, Any]) -> str:
    machine = f" on {row['machine']}" if row.get("machine") else ""
    return f"{row['side']}{machine}"


def _scenario(row: Mapping[str, Any]) -> str:
    """What MLPerf LoadGen found, in a line."""
    result = row["scenario_results"]
    value = "no figure" if result["value"] is None else f"{result['value']:,.4g} {result['unit']}"
    verdict = "valid by LoadGen's rules" if result["valid"] else f"not valid: {'; '.join(result['reasons'])}"
    return f"LoadGen {row['scenario']} of {_title(row)}, batch {row['batch']}: {result['metric']} {value}, {verdict}"


def _print_figures(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Figures down and sides across."""
    from rich.table import Table
    from rich.text import Text

    shared = rows[0]["conditions"]
    table = Table(title=f"{shared['threads']} threads, {shared['device']}")
    table.add_column("")
    for row in rows:
        table.add_column(Text(f"{_title(row)}\n{row['provider']} {row['precision']}, batch {row['batch']}"), justify="right")
    for figure in FIGURES:
        cells = [figure.text(row) for row in rows]
        if any(cells):
            table.add_row(figure.title, *cells)
    console.print(table)


def _print_lines(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line a measurement."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    figures = [figure for figure in SWEEP if any(figure.text(row) for row in rows)]
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)  # 80 columns hold it, frames don't
    table.add_column("", overflow="fold", min_width=8)
    table.add_column("batch", justify="right")
    for figure in figures:
        table.add_column(figure.title, justify="right")
    for row in rows:
        name = Text(f"{_title(row)}, {row['provider']}")
        table.add_row(name, str(row["batch"]), *(figure.text(row) for figure in figures))
    console.print(table)
