"""``shallowvit study``."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ShallowvitError
from ..study.config import StudyConfig
from .options import Arch, Blocks, Json, Quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..study.records import Progress, StudyResult

__all__ = ["study"]


def study(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="Finetuned classifiers of one architecture, each from other seeds; as score takes them."
        ),
    ],
    data: Annotated[str, typer.Option(help="Labelled items to measure accuracy on: demo or a path.")],
    train: Annotated[str, typer.Option(help="Labelled items to finetune on, none of --data: demo:train or a path.")],
    pretrained: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE", help="Masked-pretraining checkpoint of each model, in the same order: an oracle more."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Finetuning seeds a model.")] = StudyConfig.seeds,
    criteria: Annotated[
        str,
        typer.Option(metavar="NAMES|all", help="Criteria with commas; also entropy:mantissa_bits=23 or entropy@pretrained."),
    ] = StudyConfig.criteria,
    counts: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Numbers of blocks to remove.  [default: 1/12, 3/12, ... 11/12 of the blocks]"),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder for cells, tables and plots; a study that is there goes on.")
    ] = StudyConfig.out,
    jobs: Annotated[
        int | None, typer.Option(help="Workers, each of one thread.  [default: one a usable core]")
    ] = StudyConfig.jobs,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS|auto", help="Work on this Ray cluster; auto starts one here.")
    ] = StudyConfig.ray,
    finetune_items: Annotated[int, typer.Option(help="Items of --train at most.")] = StudyConfig.finetune_items,
    finetune_epochs: Annotated[int, typer.Option(help="Epochs of each finetuning.")] = StudyConfig.finetune_epochs,
    learning_rate: Annotated[float, typer.Option(help="Of each finetuning, at its peak.")] = StudyConfig.learning_rate,
    samples: Annotated[int, typer.Option(help="Items of --train that criteria look at.")] = StudyConfig.samples,
    arch: Arch = None,
    blocks: Blocks = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask which criterion foresees what removing blocks costs: remove, finetune, measure, and compare.

    Writes tables, plots and every measurement into --out. Run it again to go on after an interruption.
    """
    config = StudyConfig(
        sources=tuple(sources),
        data=data,
        train=train,
        pretrained=tuple(pretrained or ()),
        seeds=seeds,
        criteria=criteria,
        counts=_counts(counts),
        out=out,
        jobs=jobs,
        ray=ray,
        finetune_items=finetune_items,
        finetune_epochs=finetune_epochs,
        learning_rate=learning_rate,
        samples=samples,
        arch=arch,
        blocks=tuple(blocks.split(",")) if blocks else (),
    )
    from shallowvit_bench.datasets import check_dataset

    for spec in (data, train):
        check_dataset(spec)
    from ..study.run import study as run_study
    from . import printing

    with _progress(json or quiet) as watch:
        result = run_study(config, watch)
    printing.print_warnings(result.warnings)
    if json:
        printing.print_json({"out": str(out), "computed": result.computed, **result.record})
    else:
        _print(result, out)
    if result.failures:
        raise typer.Exit(1)


def _counts(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ShallowvitError(f"study: --counts {text!r} isn't a list of numbers of blocks; write 1,3,5")
    return tuple(map(int, parts))


@contextmanager
def _progress(silent: bool) -> Iterator[Callable[[Progress], None]]:
    """Show cells done and the time left on stderr, when a person is watching."""
    if silent or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    # cells take from a second to minutes, so the speed is taken over long
    bar = Bar(
        TextColumn("study"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        speed_estimate_period=1800,
    )
    with bar:
        line = bar.add_task("reading models and data", total=None)

        def watch(seen: Progress) -> None:
            failed = f", {seen.failed} failed" if seen.failed else ""
            bar.update(line, completed=seen.done, total=seen.total, description=f"{seen.cells} cells{failed}")

        yield watch


def _print(result: StudyResult, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..study.tables import matrix
    from . import printing

    for power in result.powers:
        printing.print_line(f"{power.sentence}.")
    head, rows = matrix(result)
    table = Table()
    for number, title in enumerate(head):
        table.add_column(title, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for failure in result.failures:
        sys.stderr.write(f"failed: {failure}\n")
    printing.print_line(f"computed {result.computed} cells; wrote tables.md, study.json, rows.jsonl and four plots into {out}")
