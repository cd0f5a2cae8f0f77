"""``shallowvit targets``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .options import Json, Quiet

__all__ = ["targets"]


def targets(
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="A target to explain; all are listed without it.")] = None,
    jetpack: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Of a Jetson: its JetPack; the newest whose TensorRT is known.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Estimate this bundle's latency on the target (a roofline).")
    ] = None,
    batch: Annotated[int, typer.Option(help="Of the estimate: items in a batch.")] = 1,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the devices that engines are built for, or explain one: facts, JetPack, precisions, flavour, traps.

    Figures carry how they are known: A NVIDIA's own table, B several sources, C one source, D derived, - not graded.
    What was not read stands as unknown and is never filled in.
    """
    from ..engines.targets import all_targets, find_target
    from ..errors import ShallowvitError
    from . import printing, target_printing

    if key is None:
        if jetpack is not None or bundle is not None:
            raise ShallowvitError("targets: --jetpack and --bundle are about one target; name it: shallowvit targets KEY")
        if json:
            printing.print_json([target_printing.record_from_target(target) for target in all_targets()])
        else:
            target_printing.print_targets(all_targets())
        return
    target = find_target(key)
    record = target_printing.record_from_target(target, jetpack)
    estimate = None
    if bundle is not None:
        with printing.progress(f"counting the bytes of {bundle}", quiet):
            estimate = target_printing.estimate_of_bundle(bundle, target, batch)
    if json:
        printing.print_json(record | ({"estimate": asdict(estimate)} if estimate is not None else {}))
    else:
        target_printing.print_target(target, jetpack)
        if estimate is not None:
            target_printing.print_estimate(estimate)
