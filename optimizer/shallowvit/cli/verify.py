"""``shallowvit verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .engine_options import Python
from .options import Json, Quiet

if TYPE_CHECKING:
    from ..bundle import Manifest

__all__ = ["verify"]


def verify(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that shallowvit export wrote.")],
    here: Annotated[
        bool,
        typer.Option("--here", help="Check also that one of its engines can be loaded by this machine's TensorRT and GPU."),
    ] = False,
    python: Python = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Recheck a bundle: every file's size and hash, nothing missing or extra, a graph that passes the onnx checker, engines
    that hold the attention kernels the manifest names.

    Exits with 1 and names the first thing wrong.
    """
    from ..adaptive import is_adaptive
    from ..bundle import verify as verify_bundle
    from . import printing

    if is_adaptive(path):
        _verify_adaptive(path, here=here, python=python, json=json, quiet=quiet)
        return
    with printing.progress(f"checking {path}", quiet):
        bundle = verify_bundle(path)
        if here:
            _check_here(bundle.path, bundle.manifest, python)
    if json:
        printing.print_json({"bundle": str(path), "ok": True, "files": len(bundle.manifest.files) + 1})
    else:
        printing.print_bundle(bundle)
        printing.print_line(f"  all {len(bundle.manifest.files) + 1} files are whole")


def _verify_adaptive(path: Path, *, here: bool, python: str | None, json: bool, quiet: bool) -> None:
    from ..adaptive import verify_adaptive
    from ..bundle import verify as verify_bundle
    from . import printing

    with printing.progress(f"checking {path}", quiet):
        whole = verify_adaptive(path)
        parts = [verify_bundle(part) for part in whole.parts]
        for part in parts if here else ():
            _check_here(part.path, part.manifest, python)
    count = 2 + sum(len(part.manifest.files) + 1 for part in parts)
    if json:
        printing.print_json({"bundle": str(path), "ok": True, "files": count, "parts": [str(part.path) for part in parts]})
    else:
        printing.print_line(f"{path}: an adaptive bundle of {', '.join(part.path.name for part in parts)}")
        printing.print_line(f"  all {count} files are whole")


def _check_here(path: Path, manifest: Manifest, python: str | None) -> None:
    """Refuse a bundle without engines, or one with an engine that can't be loaded on this machine."""
    from ..engines.loading import check_engines_here
    from ..errors import ShallowvitError

    if not manifest.engines:
        raise ShallowvitError(f"verify: {path} has no engine to load here; build one with: shallowvit build {path}")
    check_engines_here(path, [engine.model_dump() for engine in manifest.engines], python)
