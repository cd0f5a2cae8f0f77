"""``shallowvit prune``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from ..pruning.planning import PlanConfig
from ..scoring.criteria import ScoreConfig
from .options import Arch, Blocks, Criterion, Force, Json, Keep, MantissaBits, Out, PruneRatio, Quiet, Remove, Seed, Source

if TYPE_CHECKING:
    from ..models import LoadedModel
    from ..pruning import PrunedModel

__all__ = ["prune", "pruned_from_options"]


def prune(
    source: Source,
    out: Out,
    prune_ratio: PruneRatio = None,
    remove: Remove = None,
    keep: Keep = None,
    criterion: Criterion = ScoreConfig.criterion,
    mantissa_bits: MantissaBits = ScoreConfig.mantissa_bits,
    seed: Seed = ScoreConfig.seed,
    arch: Arch = None,
    blocks: Blocks = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove blocks and save a model that stock transformers or timm loads.

    Give one of --prune-ratio, --remove and --keep.
    """
    score_config = ScoreConfig(criterion, mantissa_bits, seed)
    plan_config = PlanConfig(prune_ratio, remove, keep)
    if plan_config == PlanConfig():
        raise ShallowvitError("prune: nothing to remove; give --prune-ratio, --remove or --keep")
    from ..files import check_out

    check_out(out, force, "prune", source)
    from .. import pruning
    from . import printing

    model = printing.load_model(source, arch, blocks, quiet)
    with printing.progress("removing blocks", quiet):
        pruned = pruned_from_options(model, score_config, plan_config)
    with printing.progress(f"saving {out}", quiet):
        saved = pruning.save_pruned(pruned, out, force=force)
    if pruned.plan.scores:
        printing.print_warnings(pruned.plan.scores.warnings)
    if json:
        plan = asdict(pruned.plan)
        printing.print_json({"out": str(out), "stock": saved.stock, "reload": saved.reload, "plan": plan})
        return
    printing.print_model(model)
    printing.print_plan(pruned.plan)
    printing.print_line(f"{out}: load it with {saved.reload}")


def pruned_from_options(model: LoadedModel, score_config: ScoreConfig, plan_config: PlanConfig) -> PrunedModel:
    """Score if a ranking decides, plan and prune."""
    from .. import pruning, scoring

    scores = scoring.score(model, score_config) if plan_config.needs_scores else None
    return pruning.prune(model, pruning.plan(model, scores, plan_config))
