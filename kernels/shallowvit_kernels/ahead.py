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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import kept
from .errors import KernelError
from .kept import Compiled
from .targets import pick_targets
from .tiles import check_target, tiles_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .records import Tile, Variant

__all__ = ["Compiled", "Request", "compile_variant", "compile_variants", "pick_targets"]


@dataclass(frozen=True)
class Request:
    """A variant to be compiled.

    Args:
        variant: What it computes.
        sm: The compute capability, as 86 for 8.6.
        tile: How the work is cut; by default the first of ``tiles_for`` whose code fits into shared memory and spills nothing.
    """

    variant: Variant
    sm: int
    tile: Tile | None = None


@dataclass(frozen=True)
class _Order:
    """A request with the tiles to try, in this order."""

    variant: Variant
    sm: int
    tiles: tuple[Tile, ...]


def compile_variant(variant: Variant, sm: int, tile: Tile | None = None) -> Compiled:
    """Compile one variant, or return it as it was compiled before; see ``compile_variants``."""
    return compile_variants([Request(variant, sm, tile)])[0]


def compile_variants(requests: Sequence[Request]) -> tuple[Compiled, ...]:
    """Compile variants in a process of its own; those that were compiled before are read.

    Raises:
        KernelError: a target or type isn't known, no tile fits into shared memory, Triton isn't there, or the compiler fails.
    """
    for request in requests:
        check_target(request.sm, request.variant.dtype)
    orders = [_Order(one.variant, one.sm, (one.tile,) if one.tile else tiles_for(one.variant, one.sm)) for one in requests]
    folders = {order: kept.folder_of(order.variant, order.sm, order.tiles) for order in orders}
    found = {order: kept.read(folder) for order, folder in folders.items()}
    result = {order: known for order, known in found.items() if known is not None}
    missing = [order for order in found if order not in result]
    for order, compiled in zip(missing, _compiled(missing), strict=True):
        kept.write(folders[order], compiled)
        result[order] = compiled
    return tuple(result[order] for order in orders)


def _compiled(orders: list[_Order]) -> Iterator[Compiled]:
    if not orders:
        return
    with tempfile.TemporaryDirectory(prefix="shallowvit-kernels-") as name:
        folder = Path(name)
        said = _run_worker(orders, folder)
        for number, one in enumerate(orders):
            refused = folder / f"{number}.refused"
            if refused.is_file():
                raise KernelError(refused.read_text())
            compiled = kept.read(folder / str(number))
            if compiled is None:
                raise KernelError(
                    f"compile: the compiler ended on {one.variant.name} for compute capability {one.sm / 10:.1f}: {said}"
                )
            yield compiled


def _run_worker(orders: list[_Order], folder: Path) -> str:
    """Let a process write what it compiles into a folder, and return the last line it said."""
    wanted = {
        "folder": str(folder),
        "orders": [
            {"variant": one.variant.to_json(), "sm": one.sm, "tiles": [asdict(tile) for tile in one.tiles]} for one in orders
        ],
    }
    # Lines of source in the code would hold this machine's folders; settings of Triton from outside (the interpreter is one)
    # would change the code.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    ours = {"TRITON_DISABLE_LINE_INFO": "1", "TRITON_CACHE_DIR": str(folder / "triton")}
    done = subprocess.run(
        [sys.executable, "-m", f"{__package__}.compile_worker"],
        input=json.dumps(wanted),
        env=clean | ours,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'nothing said'} (exit {done.returncode})"
