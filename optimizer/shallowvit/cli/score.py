"""``shallowvit score``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..scoring.criteria import ScoreConfig
from .options import Arch, Blocks, Criterion, Force, Json, MantissaBits, PruneRatio, Quiet, Seed, Source

__all__ = ["score"]


def score(
    source: Source,
    criterion: Criterion = ScoreConfig.criterion,
    mantissa_bits: MantissaBits = ScoreConfig.mantissa_bits,
    seed: Seed = ScoreConfig.seed,
    prune_ratio: PruneRatio = None,
    arch: Arch = None,
    blocks: Blocks = None,
    plot: Annotated[Path | None, typer.Option(help="Write a bar chart of the scores, .svg or .png.")] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score the blocks of a model: which matter, which could go.

    Prints one row a block; --prune-ratio marks the blocks it would remove. Nothing is changed.
    """
    config = ScoreConfig(criterion, mantissa_bits, seed)
    from ..pruning import PlanConfig, plan

    plan_config = PlanConfig(prune_ratio=prune_ratio)
    from .. import scoring
    from . import printing

    if plot:
        from ..scoring.plot import check_plot

        check_plot(plot, force)
    model = printing.load_model(source, arch, blocks, quiet)
    with printing.progress("scoring", quiet):
        scores = scoring.score(model, config)
    chosen = plan(model, scores, plan_config)
    if plot:
        from ..scoring.plot import plot_scores

        plot_scores(scores, plot, removed=chosen.removed)
    printing.print_warnings(scores.warnings)
    if json:
        printing.print_json(printing.scores_record(model, scores) | {"would_remove": list(chosen.removed)})
        return
    printing.print_model(model)
    printing.print_scores(model, scores, chosen)
