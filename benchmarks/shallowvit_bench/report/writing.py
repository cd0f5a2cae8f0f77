"""Read bundles, rows and profiles from their files, and write the page into one; what was asked for is checked first."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..bundles import read_bundle
from ..errors import BenchError
from ..measurement import read_rows
from .page import html_from_results, markdown_from_results
from .profiles import is_profile, read_profile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["FORMATS", "check_report_paths", "format_of", "write_report"]

FORMATS: dict[str, Callable[..., str]] = {"html": html_from_results, "markdown": markdown_from_results}
_SUFFIXES = {".md": "markdown", ".markdown": "markdown", ".html": "html", ".htm": "html", "": "html"}


def format_of(out: Path, form: str | None = None) -> str:
    """Return the format of a page: what was asked for, else that of the name's ending, HTML where it has none.

    Raises:
        BenchError: there is no such format, or the ending is of another.
    """
    if form is not None and form not in FORMATS:
        raise BenchError(f"report: no format {form!r}; choose from {', '.join(FORMATS)}")
    if form is None and out.suffix.lower() not in _SUFFIXES:
        raise BenchError(f"report: {out.name} is the name of no page; end it in .html or .md, or say its --format")
    return form or _SUFFIXES[out.suffix.lower()]


def write_report(sources: Sequence[Path], out: Path, force: bool = False, form: str | None = None) -> None:
    """Write the page ``out``; it appears under that name only when whole.

    Args:
        sources: Bundle folders, files of rows, and per-layer profiles of trtexec; ``BUNDLE.bench.jsonl`` and
            ``BUNDLE.profile.json`` beside a bundle are found by themselves.
        out: The page to write.
        force: Replace ``out`` if it is a file.
        form: A key of ``FORMATS``; None: by the name of ``out``.

    Raises:
        BenchError: a source can't be read, or ``out`` exists or can't be written.
    """
    check_report_paths(sources, out, force)
    make = FORMATS[format_of(out, form)]
    given = [path for path in sources if not path.is_dir()]
    folders = [path for path in sources if path.is_dir()]
    bundles = [read_bundle(path) for path in folders]
    listed = {path.resolve() for path in given}
    beside = [
        path.resolve().with_name(path.resolve().name + suffix)
        for path in folders
        for suffix in (".bench.jsonl", ".profile.json")
    ]
    given += [path for path in beside if path.is_file() and path not in listed]
    profiles = [read_profile(path, bundles) for path in given if is_profile(path)]
    rows = [row for path in given if not is_profile(path) for row in read_rows(path)]
    page = make(bundles, rows, profiles)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out)
    except OSError as err:
        raise BenchError(f"report: could not write {out} ({err.strerror}); choose another --out") from err
    finally:
        partial.unlink(missing_ok=True)


def check_report_paths(sources: Sequence[Path], out: Path, force: bool) -> None:
    """Check that every source exists and ``out`` may be written, before anything is read.

    Raises:
        BenchError: says which and what to do.
    """
    for path in sources:
        if not path.exists():
            raise BenchError(
                f"report: no bundle or file of rows at {path}; write one with shallowvit export or shallowvit bench"
            )
    if out.is_dir():
        raise BenchError(f"report: {out} is a folder; give the page's file name with --out")
    if out.exists() and not force:
        raise BenchError(f"report: {out} exists; choose another --out or replace it with --force")
    if not out.parent.is_dir():
        raise BenchError(f"report: no folder {out.parent} to write {out.name} into; create it first")
