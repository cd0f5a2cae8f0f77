"""``shallowvit tune``."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ShallowvitError
from ..recovery.settings import TrainConfig
from ..tuning.budgets import budgets_from_text
from ..tuning.config import SELECTS, TuneConfig
from .options import Arch, Blocks, Json, Quiet, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..tuning.records import Progress, TuneResult

__all__ = ["tune"]

_TRAINING = TrainConfig()


def tune(
    source: Source,
    data: Annotated[str, typer.Option(help="Labelled items to report accuracy on, measured once at the end: demo or a path.")],
    train: Annotated[str, typer.Option(help="Labelled items to repair and train on, none of --data: demo:train or a path.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for state and results; a search that is there goes on.")],
    validation: Annotated[
        str | None,
        typer.Option(help="Labelled items that judge candidates; use some the model never saw.  [default: some of --train]"),
    ] = TuneConfig.validation,
    max_latency: Annotated[
        str | None, typer.Option(metavar="10ms", help="The median latency of an inference at most; ms, us or s.")
    ] = None,
    min_accuracy: Annotated[str | None, typer.Option(metavar="85%", help="Top-1 at least.")] = None,
    max_drop: Annotated[
        str | None, typer.Option(metavar="1%", help="Top-1 below the unpruned model's at most; 1% is a point.")
    ] = None,
    max_energy: Annotated[str | None, typer.Option(metavar="5mJ", help="Energy of an inference at most; mJ, uJ or J.")] = None,
    max_size: Annotated[str | None, typer.Option(metavar="20MB", help="Size of the graph at most; kB, MB, GB, MiB.")] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="The device, whose recipe goes into bundles; alone, its roofline stands for latency."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Measure there over SSH: user@host[:port] or a name from 'shallowvit devices'.")
    ] = None,
    provider: Annotated[str | None, typer.Option(help="What runs the bundles, as in bench.")] = TuneConfig.provider,
    latencies: Annotated[
        Path | None, typer.Option(metavar="ROWS", help="Rows that bench wrote on the device, in place of measuring.")
    ] = TuneConfig.latencies,
    batch: Annotated[str, typer.Option(metavar="N,N", help="Items an inference.")] = "1",
    precision: Annotated[str, typer.Option(metavar="NAMES", help="Precisions of the graph to try.")] = ",".join(
        TuneConfig.precisions
    ),
    depths: Annotated[
        str | None, typer.Option(metavar="N,N", help="Numbers of blocks that may be kept.  [default: all]")
    ] = None,
    criteria: Annotated[str, typer.Option(metavar="NAMES", help="Rankings to try, as of score.")] = ",".join(
        TuneConfig.criteria
    ),
    select: Annotated[str, typer.Option(metavar="NAMES", help=f"How a ranking chooses: {', '.join(SELECTS)}.")] = ",".join(
        TuneConfig.selects
    ),
    keep_tokens: Annotated[str, typer.Option(metavar="SHARES", help="Shares of tokens to keep, 1 for all.")] = "1",
    trials: Annotated[int, typer.Option(help="Candidates at most; a smaller space is tried whole.")] = TuneConfig.trials,
    method: Annotated[str, typer.Option(help="Of the recovery, as of recover; a closed form first.")] = TuneConfig.method,
    epochs: Annotated[int, typer.Option(help="Of the last rung of trainings.")] = _TRAINING.epochs,
    learning_rate: Annotated[float, typer.Option(help="Of trainings, at its peak.")] = _TRAINING.learning_rate,
    trained: Annotated[int, typer.Option(help="Models in the first rung at most.")] = TuneConfig.trained,
    finalists: Annotated[int, typer.Option(help="Models measured at the end at most.")] = TuneConfig.finalists,
    samples: Annotated[int, typer.Option(help="Items that closed forms fit on.")] = TuneConfig.samples,
    items: Annotated[int, typer.Option(help="Items of --train to train on at most.")] = TuneConfig.items,
    holdout: Annotated[
        int, typer.Option(help="Items that judge candidates, of --validation or held out of --train.")
    ] = TuneConfig.holdout,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = TuneConfig.seed,
    jobs: Annotated[
        int | None, typer.Option(help="Workers, each of one thread.  [default: one a usable core]")
    ] = TuneConfig.jobs,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS|auto", help="Work on this Ray cluster; auto starts one here.")
    ] = TuneConfig.ray,
    measure_seconds: Annotated[float, typer.Option(help="Timed seconds a bundle and batch.")] = TuneConfig.measure_seconds,
    arch: Arch = None,
    blocks: Blocks = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search the depth, the blocks, the precision and the batch of the cheapest bundle that meets every budget.

    Writes front/ (bundles), table.md, front.svg and tune.json into --out. Run it again to go on after an interruption. Exits
    with 1 where no point meets the budgets; the nearest is told and everything is written all the same.
    """
    config = TuneConfig(
        data=data,
        train=train,
        budgets=budgets_from_text(max_latency, min_accuracy, max_drop, max_energy, max_size),
        out=out,
        validation=validation,
        target=target,
        device=device,
        provider=provider,
        latencies=latencies,
        batches=_whole_numbers(batch, "--batch"),
        precisions=_names(precision),
        depths=_whole_numbers(depths, "--depths") if depths else (),
        criteria=_names(criteria),
        selects=_names(select),
        keep_tokens=_shares(keep_tokens),
        trials=trials,
        method=method,
        training=replace(_TRAINING, epochs=epochs, learning_rate=learning_rate),
        trained=trained,
        finalists=finalists,
        samples=samples,
        items=items,
        holdout=holdout,
        seed=seed,
        jobs=jobs,
        ray=ray,
        measure_seconds=measure_seconds,
        arch=arch,
        blocks=_names(blocks) if blocks else (),
    )
    from shallowvit_bench.datasets import check_dataset

    for spec in filter(None, (data, train, validation)):
        check_dataset(spec)
    from ..tuning.run import tune as run_tune
    from . import printing

    with _progress(json or quiet) as watch:
        result = run_tune(source, config, watch)
    if json:
        printing.print_json({"out": str(out), **result.record})
    else:
        _print(result, out)
    if result.recommended is None:
        raise typer.Exit(1)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _whole_numbers(text: str, option: str) -> tuple[int, ...]:
    if not all(part.isdecimal() for part in _names(text)):
        raise ShallowvitError(f"tune: {option} {text!r} isn't a list of numbers; write it like 1,8")
    return tuple(map(int, _names(text)))


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, _names(text)))
    except ValueError as err:
        raise ShallowvitError(f"tune: --keep-tokens {text!r} isn't a list of shares; write it like 1,0.7,0.5") from err


@contextmanager
def _progress(silent: bool) -> Iterator[Callable[[Progress], None]]:
    """Show what is done now on stderr, when a person is watching."""
    if silent or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("tune: {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        line = bar.add_task("starting", total=None)
        yield lambda seen: bar.update(line, completed=seen.done, total=seen.total or None, description=seen.doing)


def _print(result: TuneResult, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..tuning.report import HEAD, table_rows
    from . import printing

    printing.print_warnings(result.warnings)
    table = Table()
    for number, title in enumerate(HEAD):
        table.add_column(title, justify="right" if 0 < number < len(HEAD) - 1 else "left")
    for row in table_rows([point for point in result.points if point.bundle or point.failure], result):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for failure in result.failures:
        sys.stderr.write(f"left out: {failure}\n")
    printing.print_line(f"{result.candidates} candidates repaired, {result.trainings} trainings of {result.epochs} epochs")
    printing.print_line(f"{result.reason}")
    printing.print_line(f"wrote front/, table.md, front.svg and tune.json into {out}")
