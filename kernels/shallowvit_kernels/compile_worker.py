"""A process of its own that turns variants into Triton's PTX: requests on stdin, a folder of files out.

It imports Triton, which may end the process on a target it doesn't know, so it is never imported elsewhere. A newcomer's trap:
arguments that are the same for every launch are settled here, so a compiled kernel has fewer than its source.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .catalogue import definition_of
from .launching import launched_arguments
from .records import Tile, Variant
from .tensors import arguments_of, inputs_of, outputs_of
from .tiles import precision_for

if TYPE_CHECKING:
    from .records import Argument

__all__ = ["main"]


def main() -> None:
    """Compile each request of stdin's JSON into ``N.ptx`` and ``N.json`` in its folder, N counting from 0."""
    order = json.load(sys.stdin)
    folder = Path(order["folder"])
    for number, request in enumerate(order["requests"]):
        variant = Variant.from_json(request["variant"])
        compiled, seconds = _compiled(variant, request["sm"], Tile(**request["tile"]), request["ptx_version"])
        names = definition_of(variant.kernel).kernel.arg_names
        facts = {"names": names, "seconds": seconds, "shared": compiled.metadata.shared, "ptx": compiled.asm["ptx"]}
        beside = folder / f"{number}.part"
        beside.write_text(json.dumps(facts))
        beside.rename(folder / f"{number}.json")


def _compiled(variant: Variant, sm: int, tile: Tile, ptx_version: int) -> tuple[Any, float]:
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
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "ptx_version": ptx_version}
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
