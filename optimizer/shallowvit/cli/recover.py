"""``shallowvit recover``."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..recovery.settings import RecoverConfig, RecoverMethod, TrainConfig
from .options import Force, Json, Out, Quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..recovery.closed_form import Repair
    from ..recovery.records import Training

__all__ = ["recover"]


def recover(
    path: Annotated[Path, typer.Argument(metavar="PRUNED", help="A folder that shallowvit prune wrote.")],
    out: Out,
    data: Annotated[
        str,
        typer.Option(
            help="Items, with labels for finetune: demo:train, a .npz, a folder of those or of images, a list of videos. Best "
            "not what you measure accuracy on."
        ),
    ],
    method: Annotated[
        str,
        typer.Option(
            metavar="|".join(RecoverMethod),
            help="In seconds, fitted in front of each gap: projection (the whole last layer), linear (one map of its answers) "
            "or scale (a factor a channel). Trainings: distill (the unpruned model's states and output), pretrain (masked, by "
            "the decoder), finetune (labels). Several with commas, in this order: projection,finetune.",
        ),
    ] = RecoverConfig.method,
    samples: Annotated[int, typer.Option(help="Items that a closed form is fitted on.")] = RecoverConfig.samples,
    items: Annotated[
        int | None, typer.Option(help="Items of --data that trainings use at most.  [default: all]")
    ] = RecoverConfig.items,
    validation: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Labelled items that judge epochs.  [default: a share of --data]"),
    ] = RecoverConfig.validation,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = RecoverConfig.seed,
    teacher: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="The unpruned model, where the one that PRUNED names has moved.")
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where trainings keep checkpoints and TensorBoard's logs; the same command again goes on from there.  "
            "[default: OUT.training, removed when OUT is written]",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Times that each item is seen.")] = TrainConfig.epochs,
    batch: Annotated[int, typer.Option(help="Items at a time, on each device.")] = TrainConfig.batch,
    accumulate: Annotated[int, typer.Option(help="Such batches a step.")] = TrainConfig.accumulate,
    optimizer: Annotated[str, typer.Option(help="As timm calls it.")] = TrainConfig.optimizer,
    learning_rate: Annotated[
        float, typer.Option(help="At the peak, of the last block and the head.")
    ] = TrainConfig.learning_rate,
    layer_decay: Annotated[
        float, typer.Option(help="Factor of the learning rate a block towards the input; 1 for none.")
    ] = TrainConfig.layer_decay,
    weight_decay: Annotated[float, typer.Option(help="Of matrices; vectors don't decay.")] = TrainConfig.weight_decay,
    warmup_share: Annotated[float, typer.Option(help="Share of the steps in which the rate rises.")] = TrainConfig.warmup_share,
    clip_norm: Annotated[float, typer.Option(help="The most that a gradient's norm may be.")] = TrainConfig.clip_norm,
    label_smoothing: Annotated[float, typer.Option(help="Of labels.")] = TrainConfig.label_smoothing,
    mixup: Annotated[float, typer.Option(help="The alpha of mixup; 0 for none.")] = TrainConfig.mixup,
    cutmix: Annotated[float, typer.Option(help="The alpha of CutMix; 0 for none.")] = TrainConfig.cutmix,
    drop_path: Annotated[
        float, typer.Option(help="The last block's chance to be skipped for an item.")
    ] = TrainConfig.drop_path,
    ema_decay: Annotated[
        float, typer.Option(help="Of a running mean of the weights, which is what is kept then; 0 for none.")
    ] = TrainConfig.ema_decay,
    augment: Annotated[
        str,
        typer.Option(
            help="One draw a clip. Where labels are directions, as in demo, a flip makes them wrong.",
            metavar="none|flip|rand-...",
        ),
    ] = TrainConfig.augment,
    precision: Annotated[
        str, typer.Option(help="Of forwards and gradients.", metavar="fp32|bf16|fp16")
    ] = TrainConfig.precision,
    lora_rank: Annotated[
        int, typer.Option(help="Train matrices of this rank beside the blocks' weights, and fold them in; 0: all.")
    ] = TrainConfig.lora_rank,
    patience: Annotated[
        int, typer.Option(help="Epochs without a better validation after which it ends; 0 for never.")
    ] = TrainConfig.patience,
    validation_share: Annotated[
        float, typer.Option(help="Share of the items that judges epochs, where no --validation is named.")
    ] = TrainConfig.validation_share,
    checkpoint_steps: Annotated[
        int, typer.Option(help="Steps between checkpoints; 0: one an epoch.")
    ] = TrainConfig.checkpoint_steps,
    workers: Annotated[int, typer.Option(help="Processes that read and augment items ahead.")] = TrainConfig.workers,
    with_teacher: Annotated[bool, typer.Option("--with-teacher", help="Of finetune: --teacher-weight 1.")] = False,
    teacher_weight: Annotated[
        float, typer.Option(help="Of finetune: how much the unpruned model counts beside the labels.")
    ] = TrainConfig.teacher_weight,
    output_weight: Annotated[float, typer.Option(help="Of its output.")] = TrainConfig.output_weight,
    hidden_weight: Annotated[float, typer.Option(help="Of its states behind kept blocks.")] = TrainConfig.hidden_weight,
    temperature: Annotated[float, typer.Option(help="That softens both outputs.")] = TrainConfig.temperature,
    mask_ratio: Annotated[
        float | None, typer.Option(help="Of pretrain: the share that is hidden.  [default: the model's own]")
    ] = TrainConfig.mask_ratio,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make good some of what removing blocks cost: in seconds and without labels by fitting the layer in front of each gap, or
    by training what is left.

    What is fitted or trained are the model's own weights: it keeps its form, and its graph has no node more. On several
    devices: torchrun --nproc-per-node 2 --no-python shallowvit recover ...
    """
    given = locals()  # of the options, those that are a training's settings go there by their names
    if with_teacher and not teacher_weight:
        given["teacher_weight"] = 1.0
    training = TrainConfig(**{name: given[name] for name in TrainConfig.__dataclass_fields__})
    config = RecoverConfig(data, method, samples, items, validation, seed, training=training)
    _check_places(path, out, config, force)
    from ..pruning import save_pruned
    from ..recovery.records import Training, Workplace
    from ..recovery.stage import pruned_from_folder
    from ..recovery.stage import recover as recover_pruned
    from . import printing

    quiet = quiet or not _first_process()
    folder = checkpoints or out.with_name(f"{out.name}.training")
    with printing.progress(f"loading {path} and the model it came from", quiet):
        whole, pruned = pruned_from_folder(path, teacher)
    with _bar(quiet) as watch:
        recovered = recover_pruned(whole, pruned, config, Workplace(folder, watch))
    if not _first_process():
        return
    with printing.progress(f"saving {out}", quiet):
        saved = save_pruned(recovered.pruned, out, force=force)
    if checkpoints is None:
        shutil.rmtree(folder, ignore_errors=True)
    if json:
        printing.print_json({"out": str(out), "steps": recovered.lines, "seconds": recovered.seconds})
        return
    for step in recovered.steps:
        if isinstance(step, Training):
            _print_training(step)
        else:
            _print_repair(step)
    printing.print_line(f"{out}: load it with {saved.reload}")


def _check_places(path: Path, out: Path, config: RecoverConfig, force: bool) -> None:
    """Find what is missing before anything is loaded."""
    from shallowvit_bench.datasets import check_dataset

    from ..errors import ShallowvitError
    from ..files import check_out

    if not path.is_dir():
        raise ShallowvitError(f"recover: no folder {path}; give one that shallowvit prune wrote")
    check_out(out, force, "recover", str(path))
    for data in (config.data, config.validation):
        if data is not None:
            check_dataset(data)


def _first_process() -> bool:
    """Whether this process is the one that writes, of those that accelerate launched."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _bar(silent: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Show a training's steps and the time left on stderr, when a person is watching."""
    if silent or not sys.stderr.isatty():
        yield lambda _done, _all, _line: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("fitting", total=None)
        yield lambda done, steps, line: bar.update(task, completed=done, total=steps, description=line)


def _print_training(training: Training) -> None:
    from rich.table import Table

    from . import printing

    parts = list(training.epochs[0].parts)
    table = Table("epoch", "loss", *parts, "validation", "learning rate", "seconds", "")
    for number, epoch in enumerate(training.epochs):
        judged = "" if epoch.validation is None else f"{epoch.validation:.4f}"
        figures = [f"{value:.4f}" for value in (epoch.loss, *(epoch.parts[part] for part in parts))]
        kept = "kept" if number == training.kept else ""
        table.add_row(str(number + 1), *figures, judged, f"{epoch.learning_rate:.2g}", f"{epoch.seconds:.1f}", kept)
    printing.print_table(table)
    stopped = f"; it ended early: {training.stopped}" if training.stopped else ""
    printing.print_line(
        f"{training.method}: {training.items} items, {training.inputs_seen} inputs seen, {training.seconds:.1f} s{stopped}"
    )


def _print_repair(repair: Repair) -> None:
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
