"""``shallowvit verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, Quiet

__all__ = ["verify"]


def verify(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that shallowvit export wrote.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Recheck a bundle: every file's size and hash, nothing missing or extra, a graph that passes the onnx checker.

    Exits with 1 and names the first thing wrong.
    """
    from ..bundle import verify as verify_bundle
    from . import printing

    with printing.progress(f"checking {path}", quiet):
        bundle = verify_bundle(path)
    if json:
        printing.print_json({"bundle": str(path), "ok": True, "files": len(bundle.manifest.files) + 1})
    else:
        printing.print_bundle(bundle)
        printing.print_line(f"  all {len(bundle.manifest.files) + 1} files are whole")
