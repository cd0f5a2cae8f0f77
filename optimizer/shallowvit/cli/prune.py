"""``shallowvit prune``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from ..pruning.planning import PlanConfig
from ..scoring.criteria import ScoreConfig
from ..tokens.config import TokenConfig
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
    Keep,
    KeepTokens,
    MantissaBits,
    MaxGaps,
    Mix,
    Out,
    PrefixTokens,
    Protect,
    PruneRatio,
    Quiet,
    Quota,
    Remove,
    Samples,
    ScoresFile,
    Seed,
    Select,
    Source,
    SplitPairs,
    TokenScoring,
)

if TYPE_CHECKING:
    from pathlib import Path

    from ..models import LoadedModel
    from ..pruning import PrunedModel

__all__ = ["check_scores_file", "prune", "pruned_from_options", "reduced_from_options", "token_config"]


def prune(
    source: Source,
    out: Out,
    prune_ratio: PruneRatio = None,
    remove: Remove = None,
    keep: Keep = None,
    select: Select = PlanConfig.select,
    protect: Protect = None,
    quota: Quota = None,
    max_gaps: MaxGaps = PlanConfig.max_gaps,
    granularity: Granularity = PlanConfig.granularity,
    split_pairs: SplitPairs = PlanConfig.split_pairs,
    criterion: Criterion = ScoreConfig.criterion,
    scores: ScoresFile = None,
    mantissa_bits: MantissaBits = ScoreConfig.mantissa_bits,
    calibration: Calibration = ScoreConfig.data,
    samples: Samples = ScoreConfig.samples,
    mix: Mix = ScoreConfig.mix,
    seed: Seed = ScoreConfig.seed,
    keep_tokens: KeepTokens = None,
    token_scorer: TokenScoring = TokenConfig.scorer,
    prefix_tokens: PrefixTokens = TokenConfig.prefix,
    arch: Arch = None,
    blocks: Blocks = None,
    head: Head = None,
    image_size: ImageSize = None,
    frames: Frames = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove blocks and save a model that stock transformers or timm loads.

    Give one of --prune-ratio, --remove, --keep and --quota with counts, or --keep-tokens, or both. With --keep-tokens it is
    shallowvit that loads the model.
    """
    tokens = token_config(keep_tokens, token_scorer, prefix_tokens, "prune")
    score_config = ScoreConfig(
        criterion, mantissa_bits, data=calibration, samples=samples, mix=mix, seed=seed, granularity=granularity
    )
    plan_config = PlanConfig(prune_ratio, remove, keep, select, protect, quota, max_gaps, granularity, split_pairs)
    if not plan_config.needs_scores and remove is None and keep is None and tokens is None:
        raise ShallowvitError("prune: nothing to remove; give --prune-ratio, --remove, --keep, --quota or --keep-tokens")
    check_scores_file(scores, score_config)
    from ..files import check_out

    check_out(out, force, "prune", source)
    from .. import pruning
    from . import printing

    changes = printing.changes_from_options(head, image_size, frames)
    model = printing.load_model(source, arch, blocks, quiet, changes)
    with printing.progress("removing blocks", quiet):
        whole = pruned_from_options(model, score_config, plan_config, scores)
        pruned = reduced_from_options(whole, tokens)
    with printing.progress(f"saving {out}", quiet):
        saved = pruning.save_pruned(pruned, out, force=force)
    printing.print_warnings(pruned.plan.warnings)
    if json:
        plan = asdict(pruned.plan)
        plan["tokens"] = asdict(pruned.tokens) if pruned.tokens else None
        printing.print_json({"out": str(out), "stock": saved.stock, "reload": saved.reload, "plan": plan})
        return
    printing.print_model(model)
    printing.print_plan(whole.plan)
    printing.print_tokens(whole, pruned)
    printing.print_line(f"{out}: load it with {saved.reload}")


def check_scores_file(scores: Path | None, config: ScoreConfig) -> None:
    """Refuse a score file that can't be read, or that contradicts how to score, before anything slow."""
    if scores is None:
        return
    settings = ("criterion", "mantissa_bits", "data", "mix")
    given = [name for name in settings if getattr(config, name) != getattr(ScoreConfig, name)]
    if given:
        raise ShallowvitError(
            f"prune: --scores {scores} already says how the blocks were scored; leave out the {given[0].replace('_', ' ')}"
        )
    from ..scoring import read_scores

    read_scores(scores)


def pruned_from_options(
    model: LoadedModel, score_config: ScoreConfig, plan_config: PlanConfig, scores_file: Path | None = None
) -> PrunedModel:
    """Score if a ranking decides (or read the scores), plan and prune."""
    from .. import pruning, scoring

    pruning.check_plan(model, plan_config)
    scores = None
    if scores_file is not None:
        scores = scoring.read_scores(scores_file)
        score_config = scoring.config_from_scores(scores)
    elif plan_config.needs_scores:
        scores = scoring.score(model, score_config)
    plan = pruning.plan(model, scores, plan_config, rescore=lambda shallower: scoring.score(shallower, score_config))
    return pruning.prune(model, plan)


def token_config(keep: str | None, scorer: str, prefix: int | None, stage: str) -> TokenConfig | None:
    """How to reduce tokens; None where nothing was said, and how without which is refused before anything slow."""
    if keep is None:
        if scorer != TokenConfig.scorer or prefix is not None:
            raise ShallowvitError(
                f"{stage}: --token-scorer and --prefix-tokens say how to keep tokens; add --keep-tokens 3:0.7"
            )
        return None
    return TokenConfig(keep, scorer, prefix)


def reduced_from_options(pruned: PrunedModel, config: TokenConfig | None) -> PrunedModel:
    """Reduce the tokens if that is asked for."""
    if config is None:
        return pruned
    from ..tokens import reduce_tokens

    return reduce_tokens(pruned, config)
