"""``shallowvit report``: bundles and benchmark rows into one self-contained HTML page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shallowvit_bench.report import check_report_paths, write_report

from .options import Json, Quiet

__all__ = ["report"]


def report(
    sources: Annotated[
        list[Path], typer.Argument(help="Bundle folders and files of rows; BUNDLE.bench.jsonl is found by itself.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    force: Annotated[bool, typer.Option("--force", help="Replace the page if it exists.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page: what was removed and why, parity, accuracy against latency, conditions, how to reproduce."""
    check_report_paths(sources, out, force)
    write_report(sources, out, force)
    if as_json:
        typer.echo(json.dumps({"out": str(out), "sources": [str(source) for source in sources]}))
    else:
        typer.echo(f"wrote {out}")
