"""``shallowvit score``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..pruning.planning import PlanConfig, choose, removal_warnings
from ..scoring.criteria import ScoreConfig
from .options import (
    Arch,
    Blocks,
    Calibration,
    Criterion,
    Force,
    Frames,
    Granularity,
    Head,
    ImageSize,
    Json,
    MantissaBits,
    MaxGaps,
    Mix,
    Protect,
    PruneRatio,
    Quiet,
    Quota,
    Samples,
    Seed,
    Select,
    Source,
    SplitPairs,
)

if TYPE_CHECKING:
    from ..scoring import BlockScores

__all__ = ["score"]


def score(
    source: Source,
    criterion: Criterion = ScoreConfig.criterion,
    mantissa_bits: MantissaBits = ScoreConfig.mantissa_bits,
    bins: Annotated[int, typer.Option(help="Of interval-entropy: the number of intervals.")] = ScoreConfig.bins,
    bin_range: Annotated[
        str, typer.Option(help="Of interval-entropy: each block's own range, or one common to all.")
    ] = ScoreConfig.bin_range,
    calibration: Calibration = ScoreConfig.data,
    samples: Samples = ScoreConfig.samples,
    batch: Annotated[int, typer.Option(help="Items a forward.")] = ScoreConfig.batch,
    metric: Annotated[str, typer.Option(help="Of bypass: the rise of the loss or the drop of accuracy.")] = ScoreConfig.metric,
    mix: Mix = ScoreConfig.mix,
    finetune_items: Annotated[
        int, typer.Option(help="Of oracle: calibration items to finetune on.")
    ] = ScoreConfig.finetune_items,
    finetune_epochs: Annotated[int, typer.Option(help="Of oracle: epochs of that.")] = ScoreConfig.finetune_epochs,
    seed: Seed = ScoreConfig.seed,
    compare_with: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="CRITERIA",
            help="Criteria to put beside it, with commas; 'all': what the data allows.",
        ),
    ] = None,
    prune_ratio: PruneRatio = None,
    select: Select = PlanConfig.select,
    protect: Protect = None,
    quota: Quota = None,
    max_gaps: MaxGaps = PlanConfig.max_gaps,
    granularity: Granularity = PlanConfig.granularity,
    split_pairs: SplitPairs = PlanConfig.split_pairs,
    arch: Arch = None,
    blocks: Blocks = None,
    head: Head = None,
    image_size: ImageSize = None,
    frames: Frames = None,
    plot: Annotated[Path | None, typer.Option(help="Write a bar chart of the scores, .svg or .png.")] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the scores as JSON, for --scores of prune and export.")
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score the blocks of a model: which matter, which could go.

    Prints one row a block; --prune-ratio marks the blocks it would remove. Nothing is changed. Criteria of the weights alone
    read a .safetensors file or a checkpoint folder directly, without building the model.
    """
    config = ScoreConfig(
        criterion=criterion,
        mantissa_bits=mantissa_bits,
        bins=bins,
        bin_range=bin_range,
        data=calibration,
        samples=samples,
        batch=batch,
        metric=metric,
        mix=mix,
        finetune_items=finetune_items,
        finetune_epochs=finetune_epochs,
        seed=seed,
        granularity=granularity,
    )
    plan_config = PlanConfig(
        prune_ratio,
        select=select,
        protect=protect,
        quota=quota,
        max_gaps=max_gaps,
        granularity=granularity,
        split_pairs=split_pairs,
    )
    _check_paths(plot, save, force)
    from ..scoring.comparison import compare, parse_criteria
    from ..scoring.subjects import open_subject
    from . import printing

    changes = printing.changes_from_options(head, image_size, frames)
    criteria = parse_criteria(compare_with, criterion) if compare_with else (criterion, "depth")
    with printing.progress("scoring", quiet):
        subject = open_subject(
            source,
            config,
            criteria,
            arch=arch,
            stacks=printing.split(blocks),
            fingerprint=json or save is not None,
            changes=changes,
        )
        compared = compare(subject.score_by, config, criteria, subject.met)
    scores = compared.scores[0]
    pairs = subject.model.pairs if subject.model else ()
    removed = choose(scores, plan_config, pairs).removed
    _write(scores, removed, save, plot)
    doubts = removal_warnings(removed, granularity, pairs)
    printing.print_warnings((*(subject.model.notes if subject.model else ()), *scores.warnings, *doubts))
    if json:
        printing.print_json(printing.scores_record(source, subject.model, compared) | {"would_remove": list(removed)})
        return
    printing.print_subject(source, subject.model, scores)
    printing.print_scores(scores, removed)
    if compare_with:
        printing.print_comparison(compared, removed)


def _write(scores: BlockScores, removed: tuple[int, ...], save: Path | None, plot: Path | None) -> None:
    if save:
        from ..scoring import write_scores

        write_scores(scores, save)
    if plot:
        from ..scoring.plot import plot_scores

        plot_scores(scores, plot, removed=removed)


def _check_paths(plot: Path | None, save: Path | None, force: bool) -> None:
    """Find what is in the way before anything slow."""
    from ..scoring.plot import check_plot
    from ..scoring.saved import check_save

    if plot:
        check_plot(plot, force)
    if save:
        check_save(save, force)
