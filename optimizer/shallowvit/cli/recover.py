"""``shallowvit recover``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Force, Json, Out, Quiet

if TYPE_CHECKING:
    from ..recovery.closed_form import Repair

__all__ = ["recover"]


def recover(
    path: Annotated[Path, typer.Argument(metavar="PRUNED", help="A folder that shallowvit prune wrote.")],
    out: Out,
    data: Annotated[
        str,
        typer.Option(
            help="Unlabelled inputs: demo:train, a .npz, or a folder of those or of images. Best not what you measure "
            "accuracy on."
        ),
    ],
    method: Annotated[
        str,
        typer.Option(
            metavar="projection|linear|scale",
            help="What is fitted in front of each gap: the whole last layer, one map of its answers, or a factor a channel.",
        ),
    ] = "projection",
    samples: Annotated[int, typer.Option(help="Items to fit on.")] = 256,
    seed: Annotated[int, typer.Option(help="Of which items are drawn.")] = 0,
    teacher: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="The unpruned model, where the one that PRUNED names has moved.")
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make good some of what removing blocks cost, in seconds and without labels, by fitting the layer in front of each gap.

    The fit goes into the layer's own weights: the model keeps its form, and its graph has no node more.
    """
    from ..files import check_out

    check_out(out, force, "recover", str(path))
    from ..pruning import save_pruned
    from ..recovery.records import Training
    from ..recovery.settings import RecoverConfig
    from ..recovery.stage import pruned_from_folder
    from ..recovery.stage import recover as recover_pruned
    from . import printing

    config = RecoverConfig(data, method, samples, seed=seed)
    with printing.progress(f"loading {path} and the model it came from", quiet):
        whole, pruned = pruned_from_folder(path, teacher)
    with printing.progress("fitting", quiet):
        recovered = recover_pruned(whole, pruned, config)
    with printing.progress(f"saving {out}", quiet):
        saved = save_pruned(recovered.pruned, out, force=force)
    if json:
        printing.print_json({"out": str(out), "steps": recovered.lines, "seconds": recovered.seconds})
        return
    for step in recovered.steps:
        if not isinstance(step, Training):
            _print(step)
    printing.print_line(f"{out}: load it with {saved.reload}")


def _print(repair: Repair) -> None:
    from rich.table import Table

    from . import printing

    table = Table("block", "stands for", "layer", "error before", "after", "")
    for gap in repair.gaps:
        stands = f"{gap.block} to {gap.target}" if gap.target != gap.block else f"{gap.block}, and those in front"
        errors = ["" if one is None else f"{one:.3g}" for one in (gap.error_before, gap.error_after)]
        table.add_row(str(gap.block), stands, gap.layer or "", *errors, gap.reason or "")
    printing.print_table(table)
    printing.print_line(
        f"{repair.inputs} inputs, {repair.seconds:.1f} s; errors are mean squares of the states behind the gap, on inputs that "
        "were held out"
    )
