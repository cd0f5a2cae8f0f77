"""The launch of a compiled variant: which of a kernel's parameters are passed, and the record that says how.

A newcomer's trap: parameters that are the same for every launch (strides that are a head's size, tensors that aren't there)
are settled when a kernel is compiled, and aren't passed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .launches import Launch
from .ptx import target_of, threads_of
from .tensors import arguments_of, grid_of, inputs_of, outputs_of, size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .records import Argument, Tile, Variant

__all__ = ["launch_of", "launched_arguments"]


def launched_arguments(names: Sequence[str], variant: Variant) -> tuple[Argument, ...]:
    """Return what a compiled kernel is called with, in the order of its parameters.

    Args:
        names: The parameters of its source.
        variant: What is computed.
    """
    found = arguments_of(names, variant).values()
    return tuple(one for one in found if one is not None and (one.size is None or one.size.dims))


def launch_of(variant: Variant, names: Sequence[str], tile: Tile, ptx: str, shared_bytes: int) -> Launch:
    """Return the launch of a variant's PTX.

    Args:
        variant: What it computes.
        names: The parameters of its source.
        tile: How the work is cut.
        ptx: Its final form.
        shared_bytes: Dynamic shared memory of a block.
    """
    target, outputs = target_of(ptx), outputs_of(variant)
    version = next(line for line in ptx.splitlines() if line.startswith(".version ")).split()[1]
    return Launch(
        kernel=variant.name,
        variant=variant,
        sm=target.sm,
        exact=bool(target.suffix),
        ptx_version=int(version.replace(".", "")),
        threads=threads_of(ptx),
        shared_bytes=shared_bytes,
        grid=grid_of(variant, tile.queries),
        arguments=launched_arguments(names, variant),
        inputs=inputs_of(variant),
        outputs=outputs,
        output_shapes=tuple(tuple(size_of(letter, variant) for letter in spec.axes) for spec in outputs),
    )
