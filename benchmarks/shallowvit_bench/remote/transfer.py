"""Pack what a device needs and send what it doesn't have: the harness, bundles and data, each file by its content hash.

A newcomer's trap: a file that was cut off half way is continued at its size, whoever began it; so only the hash that the device
takes of the whole file says that it came.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.specs import DEMO, FORMS, check_spec
from ..errors import BenchError
from .connection import ask, open_files, ssh_package

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import asyncssh

    from ..datasets.specs import DataSpec
    from .registry import Device

__all__ = ["CACHE", "ON_DEVICE", "Blob", "Parcel", "harness_bytes", "pack", "send"]

CACHE = "<cache>"  # stands for a folder that only the device knows
ON_DEVICE = "device:"  # before data that is on the device already
_PACKAGE = Path(__file__).parents[1]
_PROGRAM = "shallowvit_bench.pyz"
_AT_HOME = ("remote", "__pycache__")
_MAIN = "import sys\n\nfrom shallowvit_bench.__main__ import main\n\nsys.exit(main())\n"
_PART_BYTES = 1 << 20  # asyncssh has that many bytes on the way at once, so a far device costs a round trip per part
_SPARE_BYTES = 16 << 20  # for rows, events and predictions


@dataclass(frozen=True)
class Blob:
    """A file to send: its hash, its size, and where it is; ``content`` when it is in memory only."""

    sha256: str
    size: int
    path: Path | None = None
    content: bytes | None = None


@dataclass(frozen=True)
class Parcel:
    """What a job needs on a device.

    Args:
        harness: The sha256 of the zip file with this package; ``program`` is where it is, under the cache.
        bundles: Folders under the cache, in the order of the job.
        data: What ``open_dataset`` takes there, with ``CACHE`` in place of the cache's folder; None: no accuracy.
        trees: Folder under the cache -> path in it -> sha256.
    """

    harness: str
    program: str
    bundles: tuple[str, ...]
    data: str | None
    blobs: tuple[Blob, ...]
    trees: dict[str, dict[str, str]]


def harness_bytes() -> bytes:
    """Return this package as a zip file that Python runs, without what stays at home; the same bytes for the same files."""
    buffer = io.BytesIO()
    files = {path.relative_to(_PACKAGE): path for path in sorted(_PACKAGE.rglob("*")) if path.is_file()}
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_entry("__main__.py"), _MAIN)
        for name, path in files.items():
            if not set(_AT_HOME) & set(name.parts):
                archive.writestr(_entry(f"{_PACKAGE.name}/{name.as_posix()}"), path.read_bytes())
    return buffer.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry


def pack(bundles: Sequence[Path], data: str | None) -> Parcel:
    """Hash what is to be sent; nothing is copied.

    Args:
        bundles: Folders.
        data: As ``open_dataset`` takes it: ``demo``, or a file or folder here, which is sent; behind ``device:`` one there.

    Raises:
        BenchError: a file can't be read, or there is no such data.
    """
    harness = harness_bytes()
    sha256 = hashlib.sha256(harness).hexdigest()
    blobs = {sha256: Blob(sha256, len(harness), content=harness)}
    folder = f"harness/{sha256[:16]}"
    trees = {folder: {_PROGRAM: sha256}}
    places = [_add_tree(bundle.resolve(), "bundles", blobs, trees) for bundle in bundles]
    spec = data.removeprefix(ON_DEVICE) if data is not None else None
    if data is not None and spec == data and data not in DEMO:
        parsed = check_spec(data)
        _check_whole(data, parsed)
        place = _add_tree(parsed.path.resolve(), "data", blobs, trees)
        start, options = _around_path(data)
        spec = f"{start}{CACHE}/{place}{options}"
    return Parcel(sha256, f"{folder}/{_PROGRAM}", tuple(places), spec, tuple(blobs.values()), trees)


def _check_whole(data: str, parsed: DataSpec) -> None:
    """Refuse data whose files lie elsewhere: a list of videos, or options that name files."""
    elsewhere = [name for name in ("root", "classes", "list") if name in parsed.options]
    if elsewhere or (parsed.form and parsed.path.is_file()):
        raise BenchError(
            f"pack: {data} names files beside it, which aren't sent; copy all of it to the device and give "
            f"{ON_DEVICE}{parsed.form}:PATH-THERE"
        )


def _around_path(data: str) -> tuple[str, str]:
    """What stands before the path in a specification, and what stands behind it."""
    rest = data
    while (form := rest.partition(":")[0]) != rest and form in FORMS:
        rest = rest.removeprefix(f"{form}:")
    start = data.removesuffix(rest)
    _, mark, options = rest.partition("?") if start else (rest, "", "")
    return start, mark + options


def _add_tree(path: Path, kind: str, blobs: dict[str, Blob], trees: dict[str, dict[str, str]]) -> str:
    """Add the files under a path, and return where it will be under the cache: its content decides on the folder."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    if links := [file for file in found if file.is_symlink() and file.is_dir()]:
        raise BenchError(
            f"pack: {links[0]} is a link to a folder, which isn't sent; put the folder itself there, or copy the data to the "
            f"device and give {ON_DEVICE}PATH-THERE"
        )
    files = [file for file in found if file.is_file()]
    listed = {}
    for file in files:
        blob = _blob_of_file(file)
        blobs[blob.sha256] = blob
        listed[file.relative_to(path.parent).as_posix()] = blob.sha256
    folder = f"{kind}/{hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:16]}"
    trees[folder] = listed
    return f"{folder}/{path.name}"


def _blob_of_file(path: Path) -> Blob:
    try:
        with path.open("rb") as file:
            return Blob(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size, path)
    except OSError as err:
        raise BenchError(f"pack: {path} can't be read ({err.strerror}); mend its permissions or remove it") from err


async def send(
    connection: asyncssh.SSHClientConnection,
    device: Device,
    parcel: Parcel,
    probed: dict[str, Any],
    progress: Callable[[str], None],
) -> int:
    """Send the blobs that a device lacks and have it link the folders; return the bytes that were sent.

    Args:
        connection: To the device.
        device: For sentences.
        parcel: What it needs.
        probed: Its answer to ``probe`` with the parcel's blobs.
        progress: Told the share that is sent.

    Raises:
        BenchError: too little room, or a file comes damaged twice.
    """
    missing = [blob for blob in parcel.blobs if blob.sha256 not in probed["have"]]
    partial: dict[str, int] = probed["partial"]
    _check_room(device, missing, partial, probed)
    sent = 0
    for _attempt in range(2):
        sent += await _send_blobs(connection, device, missing, partial, probed["cache"], progress)
        reply = await ask(
            connection, device, "receive", blobs=[(blob.sha256, blob.size) for blob in missing], trees=parcel.trees
        )
        bad = reply["bad"]
        if not bad:
            return sent
        missing, partial = [blob for blob in missing if blob.sha256 in bad], {}
        progress(f"{len(missing)} files came damaged; sending again")
    names = ", ".join(str(blob.path or "the harness") for blob in missing)
    raise BenchError(f"{device.name}: {names} came damaged twice (sha256 after arrival); check the device's disk and memory")


def _check_room(device: Device, missing: Iterable[Blob], partial: dict[str, int], probed: dict[str, Any]) -> None:
    needed = sum(blob.size - min(blob.size, partial.get(blob.sha256, 0)) for blob in missing) + _SPARE_BYTES
    if needed > probed["free_bytes"]:
        raise BenchError(
            f"{device.name}: {probed['cache']} has {probed['free_bytes'] / 2**20:.0f} MiB free, {needed / 2**20:.0f} MiB are "
            "needed; make room, or choose another folder with: shallowvit devices add --cache"
        )


async def _send_blobs(
    connection: asyncssh.SSHClientConnection,
    device: Device,
    blobs: Sequence[Blob],
    partial: dict[str, int],
    cache: str,
    progress: Callable[[str], None],
) -> int:
    ssh = ssh_package()
    total, sent = sum(blob.size for blob in blobs), 0
    if not blobs:
        return 0
    async with open_files(connection, device) as sftp:
        for blob in blobs:
            start = partial.get(blob.sha256, 0)
            start = start if start < blob.size else 0  # a whole one that wasn't moved yet, or a longer one: its hash tells
            try:
                flags = ssh.FXF_WRITE | ssh.FXF_CREAT | (0 if start else ssh.FXF_TRUNC)
                async with sftp.open(f"{cache}/blobs/{blob.sha256}.partial", flags, encoding=None) as file:
                    for place in range(start, blob.size, _PART_BYTES):
                        sent += await _send_part(file, blob, place)
                        progress(f"sent {sent / 2**20:.1f} of {total / 2**20:.1f} MiB")
            except (ssh.SFTPConnectionLost, ssh.SFTPNoConnection):
                raise
            except ssh.SFTPError as err:
                free = (await ask(connection, device, "probe"))["free_bytes"]
                raise BenchError(
                    f"{device.name}: writing to {cache} failed ({err.reason}), {free / 2**20:.0f} MiB are free there; make "
                    "room and run the same command again, which goes on from here"
                ) from err
    return sent


async def _send_part(file: Any, blob: Blob, place: int) -> int:
    if blob.content is not None:
        content = blob.content[place : place + _PART_BYTES]
    else:
        assert blob.path is not None
        with blob.path.open("rb") as source:
            source.seek(place)
            content = source.read(_PART_BYTES)
    await file.write(content, place)
    return len(content)
