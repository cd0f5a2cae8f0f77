"""``shallowvit bench``: measure a bundle on this machine, alone or against another bundle or the full model in torch."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.config import BenchConfig
from shallowvit_bench.errors import BenchError

from .options import Json, Quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shallowvit_bench.measurement import Measurement

__all__ = ["bench"]

_DEFAULTS = BenchConfig()


def bench(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder to measure.")],
    against: Annotated[str | None, typer.Option(help="Another bundle, or 'torch' for the full model in torch eager.")] = None,
    data: Annotated[
        str | None, typer.Option(help="'demo', a .npz, or a folder of .npz files or of class folders of images.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Items per inference.")] = _DEFAULTS.batches[0],
    max_runs: Annotated[int, typer.Option(help="Timed runs a side at most.")] = _DEFAULTS.max_runs,
    max_seconds: Annotated[float, typer.Option(help="Timed seconds a side at most.")] = _DEFAULTS.max_seconds,
    threads: Annotated[int | None, typer.Option(help="Threads of each side.  [default: all usable cores]")] = None,
    rows: Annotated[Path | None, typer.Option(help="Where to append rows.  [default: BUNDLE.bench.jsonl]")] = None,
    plot: Annotated[Path | None, typer.Option(help="Where to draw the distributions.  [default: BUNDLE.bench.png]")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure latency, memory and accuracy of a bundle; append a row per side and draw the distributions."""
    from shallowvit_bench.datasets import check_dataset, open_dataset

    ours = read_bundle(bundle)
    other = read_bundle(Path(against)) if against not in (None, "torch") else None
    if data is not None:
        check_dataset(data)
    rows = _output(bundle, rows, ".bench.jsonl", "--rows")
    plot = _output(bundle, plot, ".bench.png", "--plot")

    from shallowvit_bench.compare import bench as run_bench
    from shallowvit_bench.compare import side_from_bundle
    from shallowvit_bench.conditions import usable_cores
    from shallowvit_bench.measurement import append_rows, row_from_measurement
    from shallowvit_bench.plot import draw_latencies

    cores = usable_cores() if threads is None else threads
    config = BenchConfig(batches=(batch,), max_runs=max_runs, max_seconds=max_seconds, threads=cores)
    sides = [side_from_bundle(ours, config.threads)]
    if other is not None:
        sides.append(side_from_bundle(other, config.threads))
    elif against == "torch":
        from ..baselines import side_from_source

        sides.append(side_from_source(ours, config.threads))
    datasets = [open_dataset(data, side.bundle) for side in sides] if data else []
    with _progress(as_json or quiet) as report:
        measurements = run_bench(sides, config, datasets, report)
    append_rows(rows, measurements)
    drawn = draw_latencies(measurements, plot)
    if as_json:
        listed = [row_from_measurement(measurement, samples=False) for measurement in measurements]
        typer.echo(json.dumps({"measurements": listed, "rows": str(rows), "plot": str(plot) if drawn else None}))
    else:
        _print_table(measurements, rows, plot if drawn else None)
    if any(measurement.status == "failed" for measurement in measurements):
        raise typer.Exit(1)


def _output(bundle: Path, given: Path | None, suffix: str, option: str) -> Path:
    """Where to write: beside the bundle unless told, and never inside it, since ``verify`` takes no extra files."""
    whole = bundle.resolve()
    path = given if given is not None else whole.with_name(whole.name + suffix)
    if whole in path.resolve().parents:
        raise BenchError(
            f"bench: {option} {path} is inside the bundle, which must stay as it was exported; choose a place outside it"
        )
    if not path.parent.is_dir():
        raise BenchError(f"bench: no folder {path.parent} for {option} {path.name}; create it first")
    return path


@contextmanager
def _progress(silent: bool) -> Iterator[Callable[[str], None]]:
    """Show what is going on, on stderr, when a person is watching."""
    if silent or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("bench") as status:
        yield lambda text: status.update(text)


def _print_table(measurements: tuple[Measurement, ...], rows: Path, plot: Path | None) -> None:
    """Print figures down and sides across, which stays readable in 80 columns."""
    from rich.console import Console
    from rich.table import Table

    from shallowvit_bench.figures import FIGURES, busy_text

    console = Console()
    shared = measurements[0]
    table = Table(title=f"batch {shared.batch}, {shared.conditions.threads} threads, {shared.conditions.device}")
    table.add_column("")
    for measurement in measurements:
        table.add_column(f"{measurement.side}\n{measurement.backend} {measurement.precision}", justify="right")
    for figure in FIGURES:
        cells = [figure.text(vars(measurement)) for measurement in measurements]
        if any(cells):
            table.add_row(figure.title, *cells)
    console.print(table)
    for measurement in measurements:
        if measurement.reason:
            console.print(f"{measurement.side} failed: {measurement.reason}", markup=False, soft_wrap=True)
    if text := busy_text(vars(shared.conditions)):
        console.print(text, markup=False, soft_wrap=True)
    written: list[Any] = [rows, *([plot] if plot else [])]
    console.print("wrote " + " and ".join(map(str, written)), markup=False, soft_wrap=True)
