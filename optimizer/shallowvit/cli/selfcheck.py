"""``shallowvit selfcheck``: does what this project claims hold on this machine? A row for every step."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .options import Json, Quiet

__all__ = ["selfcheck"]


def selfcheck(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write rows and bundles into.")] = Path(
        "selfcheck-out"
    ),
    gpu: Annotated[bool, typer.Option("--gpu", help="Check the NVIDIA GPU too: engines, ceilings, power, VideoMAE-B.")] = False,
    minutes: Annotated[float, typer.Option(help="Steps that haven't begun by then are skipped.")] = 8.0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure this machine's ceilings, compare the runtimes' answers, and time the demo model pruned, whole and in torch."""
    from ..selfcheck import SelfcheckConfig
    from ..selfcheck import selfcheck as run_selfcheck
    from .bench_printing import progress_lines
    from .selfcheck_printing import print_checks

    with progress_lines(as_json or quiet) as progress:
        result = run_selfcheck(out, SelfcheckConfig(gpu=gpu, minutes=minutes), progress)
    if as_json:
        from shallowvit_bench.measurement import row_from_measurement

        rows = [row_from_measurement(measurement, samples=False) for measurement in result.measurements]
        typer.echo(json.dumps({"checks": [asdict(check) for check in result.checks], "measurements": rows, "out": str(out)}))
    else:
        print_checks(result, out)
    if any(check.status == "failed" for check in result.checks):
        raise typer.Exit(1)
