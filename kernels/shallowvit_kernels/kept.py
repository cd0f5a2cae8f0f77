"""Compiled kernels in a folder each, named by a digest of all that they were made from.

A folder is written beside its place and renamed, so two processes at once do no harm, and one whose files aren't what its
digests say counts as missing. A newcomer's trap: a changed line in a kernel's file, or in one it imports, is another digest.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .assembly import Facts, tool_versions
from .errors import KernelError
from .launches import Launch, launch_from_json
from .records import Tile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .records import Kernel, Variant

__all__ = ["Compiled", "folder_of", "read", "sources_of", "write"]

_HERE = Path(__file__).parent
# What a kernel's code is made by, beside its own file; what these import counts too.
_MAKERS = ("compile_worker", "ahead")


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel.

    Args:
        launch: How it is called.
        ptx: What a driver compiles.
        cubin: The machine code of this PTX for the launch's compute capability.
        facts: What it takes.
    """

    launch: Launch
    ptx: str
    cubin: bytes
    facts: Facts


def folder_of(variant: Variant, sm: int, tiles: Sequence[Tile]) -> Path:
    """Return where a variant's code is kept: below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    digest = hashlib.sha256()
    for path in sources_of(variant.kernel):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    made_from = [variant.to_json(), sm, [asdict(one) for one in tiles], *tool_versions(sm)]
    digest.update(json.dumps(made_from, sort_keys=True).encode())
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "shallowvit", "kernels", digest.hexdigest()[:32])


def sources_of(kernel: Kernel) -> tuple[Path, ...]:
    """Return the files of this package that a kernel's code is made from."""
    found: set[str] = set()
    waiting = [str(kernel), *_MAKERS]
    while waiting:
        name = waiting.pop()
        path = _HERE / f"{name}.py"
        if name in found or not path.is_file():
            continue
        found.add(name)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                waiting += [node.module] if node.module else [alias.name for alias in node.names]
    return tuple(_HERE / f"{name}.py" for name in sorted(found))


def read(folder: Path) -> Compiled | None:
    """Return what is kept in a folder, or None if there is nothing, or it is damaged."""
    try:
        files = {name: (folder / name).read_bytes() for name in ("launch.json", "kernel.ptx", "kernel.cubin")}
        record = json.loads((folder / "facts.json").read_text())
        if record.pop("sha256") != _digests(files):
            return None
        facts = Facts(tile=Tile(**record.pop("tile")), **record)
        return Compiled(
            launch_from_json(files["launch.json"].decode()),
            files["kernel.ptx"].decode(),
            files["kernel.cubin"],
            facts,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, KernelError):
        return None


def write(folder: Path, compiled: Compiled) -> None:
    """Keep what was compiled; a folder that another process has written meanwhile stays if it is whole."""
    files = {
        "launch.json": compiled.launch.to_json().encode(),
        "kernel.ptx": compiled.ptx.encode(),
        "kernel.cubin": compiled.cubin,
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    except OSError as err:
        raise KernelError(
            f"compile: {folder.parent} can't be written ({err.strerror}), and compiled kernels are kept there; set "
            "XDG_CACHE_HOME to a folder that can"
        ) from err
    try:
        for name, content in files.items():
            (beside / name).write_bytes(content)
        (beside / "facts.json").write_text(json.dumps(asdict(compiled.facts) | {"sha256": _digests(files)}, indent=1) + "\n")
        if folder.exists() and read(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    except OSError as err:
        if read(folder) is None:
            raise KernelError(
                f"compile: {folder} can't be written ({err.strerror}), and compiled kernels are kept there; make room, or set "
                "XDG_CACHE_HOME to another folder"
            ) from err
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
