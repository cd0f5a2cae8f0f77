"""``shallowvit inspect``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .options import Arch, Blocks, Frames, Head, ImageSize, Json, Quiet, Source

if TYPE_CHECKING:
    from ..inspecting import BlockOutlook, Inspection

__all__ = ["inspect"]


def inspect(
    source: Source,
    removal: Annotated[
        bool, typer.Option("--removal/--no-removal", help="Try what would become of each block if it were removed.")
    ] = True,
    arch: Arch = None,
    blocks: Blocks = None,
    head: Head = None,
    image_size: ImageSize = None,
    frames: Frames = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print a model's stacks, inputs, outputs, parameters and FLOPs a block, and what removing each block would do.

    A block is deleted where that equals handing its input on, keeps its place as a module without weights (placeholder) where
    the model relies on the place, and is refused where neither works. Each is tried on a copy. The columns
    attention and mlp hold the parameters that would go with that half alone.
    """
    from . import printing

    changes = printing.changes_from_options(head, image_size, frames)
    model = printing.load_model(source, arch, blocks, quiet, changes)
    from ..inspecting import inspect_model

    with printing.progress("trying each block", quiet or not removal):
        found = inspect_model(model, removal=removal)
    if json:
        printing.print_json(_record(source, found))
        return
    _print(found)


def _print(found: Inspection) -> None:
    from . import printing

    model = found.model
    size = f"{model.parameters:,} parameters, {model.flops / 1e9:,.3g} GFLOPs an item"
    printing.print_line(f"{model.origin.architecture} ({model.origin.family}): {size}")
    for title, tensors in (("input", found.inputs), ("output", found.outputs)):
        for one in tensors:
            printing.print_line(f"  {title} {one.name}: {one.dtype} {list(one.shape)}")
    for name, value in found.constants.items():
        printing.print_line(f"  constant {name} = {value}")
    used = {block.block.stack for block in found.blocks}
    stacks = Table(title="stacks of removable blocks", title_justify="left")
    for column in ("stack", "block", "blocks", "parameters", "GFLOPs", "used"):
        stacks.add_column(column, justify="left" if column in ("stack", "block", "used") else "right")
    for stack in model.stacks:
        cells = (str(stack.length), f"{stack.parameters:,}", f"{stack.flops / 1e9:,.3g}")
        stacks.add_row(stack.path, stack.class_name, *cells, "yes" if stack.path in used else "")
    printing.print_table(stacks)
    table = Table(title="blocks", title_justify="left")
    for column in ("block", "path", "parameters", "attention", "mlp", "GFLOPs", "pair", "if removed", "why"):
        table.add_column(column, justify="left" if column in ("path", "pair", "if removed", "why") else "right")
    for outlook in found.blocks:
        table.add_row(*_cells(outlook))
    printing.print_table(table)
    reasons = {
        f"{part} can't go alone: {why}" for one in found.blocks for part, why in one.halves.items() if isinstance(why, str)
    }
    for note in (*sorted(reasons), *found.notes):
        printing.print_line(f"note: {note}")


def _cells(outlook: BlockOutlook) -> tuple[str, ...]:
    block = outlook.block
    pair = "" if len(outlook.pair) == 1 else "+".join(map(str, outlook.pair))
    way = outlook.way or "not tried"
    if outlook.pair_way:
        way += f"; as a pair {outlook.pair_way}"
    flops = f"{block.flops / 1e9:,.3g}"
    halves = [f"{one:,}" if isinstance(one := outlook.halves.get(part), int) else "" for part in ("attention", "mlp")]
    return (str(block.index), block.path, f"{block.parameters:,}", *halves, flops, pair, way, outlook.reason)


def _record(source: str, found: Inspection) -> dict[str, Any]:
    model = found.model
    return {
        "source": source,
        "architecture": model.origin.architecture,
        "family": model.origin.family,
        "weights_sha256": model.sha256,
        "parameters": model.parameters,
        "flops": model.flops,
        "inputs": [asdict(one) for one in found.inputs],
        "constants": found.constants,
        "outputs": [asdict(one) for one in found.outputs],
        "stacks": [asdict(one) for one in model.stacks],
        "blocks": [asdict(one) for one in found.blocks],
        "notes": found.notes,
    }
