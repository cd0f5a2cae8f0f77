"""Write so that nothing half-written ever stands under its final name: write beside, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ShallowvitError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

__all__ = ["check_out", "disk_sentences", "folder_when_whole", "fsync_tree", "hash_file", "only_one"]


def check_out(out: Path, force: bool, stage: str, source: str = "") -> None:
    """Refuse an output folder that exists, unless ``force``, which never takes the source, a working tree or a home.

    Raises:
        ShallowvitError: says which and what to do.
    """
    if not out.parent.is_dir():
        raise ShallowvitError(f"{stage}: no folder {out.parent} to write {out.name} into; create it first")
    if not os.path.lexists(out):
        return
    if not force:
        raise ShallowvitError(f"{stage}: {out} exists; choose another --out or replace it whole with --force")
    why = _why_kept(out, source)
    if why:
        raise ShallowvitError(f"{stage}: {out} {why}, so --force leaves it; choose another --out")


def _why_kept(out: Path, source: str) -> str | None:
    """Why a path mustn't be replaced whole, or None when it may."""
    if out.is_symlink() or not out.is_dir():
        return "is not a folder"
    whole = out.resolve()
    if source and whole == Path(source.removeprefix("hf:").removeprefix("timm:")).resolve():
        return "is the source itself"
    for place, what in ((Path.cwd(), "the working folder"), (Path.home(), "your home")):
        if whole == place.resolve() or whole in place.resolve().parents:
            return f"is or holds {what}"
    return "is a git working tree" if (out / ".git").exists() else None


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
        with disk_sentences(stage, out):
            beside.mkdir()
            yield beside
            fsync_tree(beside)
            _take_place(beside, out, stage, force)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def disk_sentences(stage: str, out: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission while writing ``out`` into one sentence.

    Raises:
        ShallowvitError: says which, and how much is free.
    """
    try:
        yield
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(out.resolve().parent).free
            raise ShallowvitError(
                f"{stage}: no space left for {out} ({free / 1e6:.0f} MB free there); nothing was changed. Free some or choose "
                "another place"
            ) from err
        if err.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise ShallowvitError(f"{stage}: may not write {out} ({err.strerror}); choose another place") from err
        raise


@contextmanager
def only_one(folder: Path, stage: str) -> Iterator[None]:
    """Make the folder, and have no other process work in it within the block; a kill lets go of it, too.

    What a killed process had half written beside a file in it is removed.

    Raises:
        ShallowvitError: another process does, or the folder can't be made.
    """
    path = folder / ".lock"
    with disk_sentences(stage, folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        if not _locked(file, path):
            raise ShallowvitError(f"{stage}: another command works in {folder}; wait until it ends or choose another --out")
        for half in folder.rglob(".*.partial"):
            if half.is_file() and half.suffixes[-2:-1] and half.suffixes[-2][1:].isdecimal():
                with suppress(OSError):
                    half.unlink()
        try:
            yield
        finally:
            with suppress(OSError):  # gone with the folder, or the folder holds more
                path.unlink()
                folder.rmdir()


def _locked(file: BinaryIO, path: Path) -> bool:
    """Take the lock of a file, if it is still the one of that name and no other process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network disks know no locks
        return True
    return path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino


def fsync_tree(folder: Path) -> None:
    """Have everything in a folder, and the folder itself, on the disk."""
    for file in sorted(folder.rglob("*")):
        _fsync(file)
    _fsync(folder)


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
