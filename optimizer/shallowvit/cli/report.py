"""``shallowvit report``: bundles, benchmark rows and per-layer profiles into one self-contained page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shallowvit_bench.report import FORMATS, check_report_paths, format_of, write_report

from .options import Json, Quiet

__all__ = ["report"]


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Bundle folders, files of rows, and profiles of trtexec --exportProfile; BUNDLE.bench.jsonl and "
            "BUNDLE.profile.json are found by themselves."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page to write.  [default: report.html or report.md]")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="|".join(FORMATS), help="Of the page.  [default: by the name of --out]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the page if it exists.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write one page: what was removed and why, accuracy against latency and energy, fused attention, conditions."""
    page = out if out is not None else Path("report.md" if form == "markdown" else "report.html")
    chosen = format_of(page, form)
    check_report_paths(sources, page, force)
    write_report(sources, page, force, chosen)
    if as_json:
        typer.echo(json.dumps({"out": str(page), "format": chosen, "sources": [str(source) for source in sources]}))
    else:
        typer.echo(f"wrote {page}")
