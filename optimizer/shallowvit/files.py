"""Write so that nothing half-written ever stands under its final name: write beside, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ShallowvitError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MARKERS", "check_out", "folder_when_whole", "hash_file"]

MARKERS = ("manifest.json", "shallowvit.json")  # a folder with one of these, with our fields, was written by this project


def check_out(out: Path, force: bool, stage: str) -> None:
    """Refuse an output folder that exists, unless ``force`` and it is empty or one of ours.

    Raises:
        ShallowvitError: says which and what to do.
    """
    if not out.parent.is_dir():
        raise ShallowvitError(f"{stage}: no folder {out.parent} to write {out.name} into; create it first")
    if not os.path.lexists(out):
        return
    if not force:
        raise ShallowvitError(f"{stage}: {out} exists; choose another --out or replace it whole with --force")
    if not _is_ours(out):
        raise ShallowvitError(
            f"{stage}: {out} exists and wasn't written by shallowvit, so --force leaves it; choose another --out"
        )


def _is_ours(out: Path) -> bool:
    if out.is_symlink() or not out.is_dir():
        return False
    return not any(out.iterdir()) or any(_has_our_fields(out / name) for name in MARKERS)


def _has_our_fields(marker: Path) -> bool:
    """Other programs write a manifest.json too; only ours has a schema version, a source and a plan."""
    try:
        content = json.loads(marker.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"schema_version", "source", "plan"} <= set(content)


@contextmanager
def folder_when_whole(out: Path, stage: str, force: bool = False) -> Iterator[Path]:
    """Yield a folder beside ``out`` that takes its name when the block ends well, and is removed when it doesn't.

    Raises:
        ShallowvitError: ``out`` exists (see ``check_out``) or the disk is full.
    """
    out = out.absolute()
    check_out(out, force, stage)
    beside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        beside.mkdir()
        yield beside
        for file in sorted(beside.rglob("*")):
            _fsync(file)
        _fsync(beside)
        _take_place(beside, out, stage, force)
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(out.parent).free
            raise ShallowvitError(
                f"{stage}: no space left for {out} ({free / 1e6:.0f} MB free there); nothing was written. Free some or choose "
                "another --out"
            ) from err
        if err.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise ShallowvitError(f"{stage}: may not write {out} ({err.strerror}); choose another --out") from err
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _take_place(beside: Path, out: Path, stage: str, force: bool) -> None:
    check_out(out, force, stage)  # it may have appeared meanwhile
    old = out.with_name(f".{out.name}.{os.getpid()}.replaced")
    replaces = out.exists()
    if replaces:
        out.rename(old)
    try:
        beside.rename(out)
    except BaseException:  # Ctrl-C between the two renames too
        if replaces:
            old.rename(out)
        raise
    _fsync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
