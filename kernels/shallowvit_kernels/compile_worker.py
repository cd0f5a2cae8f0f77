"""A process of its own that compiles variants: orders on stdin, a folder of files out.

It imports Triton, which may end the process on a target it doesn't know, so it is never imported elsewhere. A newcomer's trap:
arguments that are the same for every launch are settled here, so a compiled kernel has fewer than its source.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import kept
from .assembly import assemble, facts_of
from .catalogue import definition_of
from .errors import KernelError
from .launching import launch_of, launched_arguments
from .ptx import PTX_VERSIONS, own_ptx
from .records import Tile, Variant
from .tensors import arguments_of, inputs_of, outputs_of
from .tiles import SHARED_BYTES, precision_for

if TYPE_CHECKING:
    from .records import Argument

__all__ = ["main"]


def main() -> None:
    """Compile each order of stdin's JSON into a folder ``N``, N counting from 0, or say in ``N.refused`` why not."""
    wanted = json.load(sys.stdin)
    for number, order in enumerate(wanted["orders"]):
        tiles = [Tile(**one) for one in order["tiles"]]
        try:
            compiled = _best_of(Variant.from_json(order["variant"]), order["sm"], tiles)
        except KernelError as err:
            Path(wanted["folder"], f"{number}.refused").write_text(str(err))
            return
        kept.write(Path(wanted["folder"], str(number)), compiled)


def _best_of(variant: Variant, sm: int, tiles: list[Tile]) -> kept.Compiled:
    """The first that fits into shared memory without spilling, else what fits and spills least."""
    best: kept.Compiled | None = None
    asked: dict[Tile, int] = {}
    for tile in tiles:
        source, seconds = _translated(variant, sm, tile)
        asked[tile] = source.metadata.shared
        if asked[tile] > SHARED_BYTES:
            continue
        compiled = _finished(variant, tile, source, seconds)
        if best is None or compiled.facts.spilled_bytes < best.facts.spilled_bytes:
            best = compiled
        if best.facts.spilled_bytes == 0:
            break
    if best is None:
        found = ", ".join(f"{shared} with tiles of {tile.queries} by {tile.keys}" for tile, shared in asked.items())
        raise KernelError(
            f"compile: {variant.name} for compute capability {sm / 10:.1f} needs more shared memory than the {SHARED_BYTES} "
            f"bytes that a launch gets without asking: {found}; choose smaller tiles or a smaller head"
        )
    return best


def _finished(variant: Variant, tile: Tile, source: Any, seconds: float) -> kept.Compiled:
    names, shared = definition_of(variant.kernel).kernel.arg_names, source.metadata.shared
    start = time.monotonic()
    assembled = assemble(own_ptx(source.asm["ptx"], variant.name, len(launched_arguments(names, variant))))
    facts = facts_of(assembled, tile, shared, seconds + time.monotonic() - start)
    return kept.Compiled(launch_of(variant, names, tile, assembled.ptx, shared), assembled.ptx, assembled.cubin, facts)


def _translated(variant: Variant, sm: int, tile: Tile) -> tuple[Any, float]:
    """What Triton makes of a variant, and the seconds it took."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    definition = definition_of(variant.kernel)
    constants = definition.constants(variant, tile, precision_for(sm))
    names = definition.kernel.arg_names
    all_arguments = arguments_of(names, variant)
    launched = {one.name: one for one in launched_arguments(names, variant)}
    types = _types(variant)
    signature: dict[str, str] = {}
    settled: dict[tuple[int], Any] = {}
    known: dict[tuple[int], list[list[object]]] = {}
    for place, name in enumerate(names):
        if name in launched:
            signature[name] = types.get(name, "i32")
            if launched[name].divisor > 1:
                known[place,] = [["tt.divisibility", launched[name].divisor]]
        else:
            signature[name] = "constexpr"
            settled[place,] = constants[name] if name in constants else _settled(name, all_arguments[name])
    start = time.monotonic()
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "ptx_version": PTX_VERSIONS[sm]}
    source = ASTSource(definition.kernel, signature, settled, known)
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options), time.monotonic() - start


def _types(variant: Variant) -> dict[str, str]:
    return {f"{spec.name}_ptr": f"*{spec.dtype}" for spec in (*inputs_of(variant), *outputs_of(variant))}


def _settled(name: str, argument: Argument | None) -> int | None:
    if argument is not None and argument.size is not None:
        return argument.size.number
    return None if name.endswith("_ptr") else 0


if __name__ == "__main__":
    main()
