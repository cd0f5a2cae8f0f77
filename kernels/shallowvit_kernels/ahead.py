"""Kernels compiled ahead of time, for GPUs that aren't here: PTX, machine code, the launch as data, and what the code takes.

The work is done by a process of its own (see ``compile_worker``) and kept in a folder by what it was made from. A newcomer's
trap: nothing of this needs a GPU, and nothing of it says that a kernel is right or fast on one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import kept
from .assembly import assemble, facts_of
from .errors import KernelError
from .kept import Compiled
from .launching import launch_of, launched_arguments
from .ptx import PTX_VERSIONS, own_ptx
from .tiles import SHARED_BYTES, check_target, tile_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .records import Tile, Variant

    _Whole = tuple[Variant, int, Tile]

__all__ = ["Compiled", "Request", "compile_variant", "compile_variants"]


@dataclass(frozen=True)
class Request:
    """A variant to be compiled.

    Args:
        variant: What it computes.
        sm: The compute capability, as 86 for 8.6.
        tile: How the work is cut; by default as ``tile_for`` says.
    """

    variant: Variant
    sm: int
    tile: Tile | None = None


def compile_variant(variant: Variant, sm: int, tile: Tile | None = None) -> Compiled:
    """Compile one variant, or return it as it was compiled before; see ``compile_variants``."""
    return compile_variants([Request(variant, sm, tile)])[0]


def compile_variants(requests: Sequence[Request]) -> tuple[Compiled, ...]:
    """Compile variants in a process of its own; those that were compiled before are read.

    Raises:
        KernelError: a target or type isn't known, a tile needs too much shared memory, Triton isn't there, or the compiler fails.
    """
    whole: list[_Whole] = []
    for one in requests:
        check_target(one.sm, one.variant.dtype)
        whole.append((one.variant, one.sm, one.tile or tile_for(one.variant, one.sm)))
    folders = {one: kept.folder_of(*one) for one in whole}
    found = {one: kept.read(folder) for one, folder in folders.items()}
    result = {one: known for one, known in found.items() if known is not None}
    missing = [one for one, known in found.items() if known is None]
    for one, compiled in zip(missing, _compile(missing), strict=True):
        kept.write(folders[one], compiled)
        result[one] = compiled
    return tuple(result[one] for one in whole)


def _compile(requests: list[_Whole]) -> Iterator[Compiled]:
    if not requests:
        return
    with tempfile.TemporaryDirectory(prefix="shallowvit-kernels-") as folder:
        said = _run_worker(requests, Path(folder))
        for number, one in enumerate(requests):
            answer = Path(folder, f"{number}.json")
            if not answer.is_file():
                raise KernelError(f"compile: the compiler ended on {_words(one)}: {said}")
            yield _finished(one, json.loads(answer.read_text()))


def _run_worker(requests: list[_Whole], folder: Path) -> str:
    """Let a process write what it compiles into a folder, and return the last line it said."""
    order = {
        "folder": str(folder),
        "requests": [
            {"variant": variant.to_json(), "sm": sm, "tile": asdict(tile), "ptx_version": PTX_VERSIONS[sm]}
            for variant, sm, tile in requests
        ],
    }
    # Lines of source in the code would hold this machine's folders; settings of Triton from outside (the interpreter is one)
    # would change the code.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    ours = {"TRITON_DISABLE_LINE_INFO": "1", "TRITON_CACHE_DIR": str(folder / "triton")}
    done = subprocess.run(
        [sys.executable, "-m", f"{__package__}.compile_worker"],
        input=json.dumps(order),
        env=clean | ours,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if "No module named 'triton'" in done.stderr:
        raise KernelError("compile: Triton isn't installed, and kernels are compiled with it; pip install triton (Linux)")
    return f"{lines[-1] if lines else 'nothing said'} (exit {done.returncode})"


def _finished(one: _Whole, answer: dict[str, Any]) -> Compiled:
    variant, _, tile = one
    if answer["shared"] > SHARED_BYTES:
        raise KernelError(
            f"compile: {_words(one)} needs {answer['shared']} bytes of shared memory a block, and {SHARED_BYTES} is what a launch "
            "gets without asking; choose a smaller tile"
        )
    start = time.monotonic()
    arguments = launched_arguments(answer["names"], variant)
    assembled = assemble(own_ptx(answer["ptx"], variant.name, len(arguments)))
    seconds = answer["seconds"] + time.monotonic() - start
    facts = facts_of(assembled, answer["shared"], seconds)
    launch = launch_of(variant, answer["names"], tile, assembled.ptx, answer["shared"])
    return Compiled(launch, assembled.ptx, assembled.cubin, facts)


def _words(one: _Whole) -> str:
    variant, sm, tile = one
    return f"{variant.name} for compute capability {sm / 10:.1f} with tiles of {tile.queries} by {tile.keys}"
