"""``shallowvit export``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ShallowvitError
from ..exporting.records import ExportConfig, Precision
from ..pruning.planning import PlanConfig
from ..scoring.criteria import ScoreConfig
from .options import (
    Arch,
    Blocks,
    Calibration,
    Criterion,
    Force,
    Json,
    Keep,
    MantissaBits,
    MaxGaps,
    Mix,
    Out,
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
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["export"]

_ENGINES = ("none", "rtx", "tensorrt")


def export(
    source: Source,
    out: Out,
    prune_ratio: PruneRatio = None,
    remove: Remove = None,
    keep: Keep = None,
    select: Select = PlanConfig.select,
    protect: Protect = None,
    quota: Quota = None,
    max_gaps: MaxGaps = PlanConfig.max_gaps,
    criterion: Criterion = ScoreConfig.criterion,
    scores: ScoresFile = None,
    mantissa_bits: MantissaBits = ScoreConfig.mantissa_bits,
    calibration: Calibration = ScoreConfig.data,
    samples: Samples = ScoreConfig.samples,
    mix: Mix = ScoreConfig.mix,
    seed: Seed = ScoreConfig.seed,
    precision: Annotated[
        str, typer.Option(help="What the graph computes in: fp32, fp16 or bf16; inputs and outputs stay fp32.")
    ] = ExportConfig.precision.value,
    opset: Annotated[int, typer.Option(help="23: one Attention node a block; 18: MatMul and Softmax.")] = ExportConfig.opset,
    embed_preprocessing: Annotated[
        bool, typer.Option("--embed-preprocessing", help="Take uint8 frames; resize, crop and normalise inside the graph.")
    ] = ExportConfig.embed_preprocessing,
    frame_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size of those frames where it isn't the model's own, e.g. 240x320.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Engine to build beside the graph: none (rtx and tensorrt aren't built yet).")
    ] = "none",
    data: Annotated[
        str | None, typer.Option(help="Measure the graph's accuracy on this into the manifest: demo or a path.")
    ] = None,
    arch: Arch = None,
    blocks: Blocks = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the line: score, plan, prune, export to ONNX, check, and write a bundle.

    Without --prune-ratio, --remove, --keep or --quota the whole model is exported.
    """
    _check_engine(engine)
    score_config = ScoreConfig(criterion, mantissa_bits, data=calibration, samples=samples, mix=mix, seed=seed)
    plan_config = PlanConfig(prune_ratio, remove, keep, select, protect, quota, max_gaps)
    export_config = ExportConfig(_precision(precision), opset, embed_preprocessing, _frame_size(frame_size))
    _check_paths(source, out, force, data)
    from .. import bundle
    from . import printing
    from .prune import check_scores_file, pruned_from_options

    check_scores_file(scores, score_config)
    model = printing.load_model(source, arch, blocks, quiet)
    with printing.progress("removing blocks", quiet):
        pruned = pruned_from_options(model, score_config, plan_config, scores)
    printing.print_warnings(pruned.plan.warnings)
    if not json:
        printing.print_pruning(model, pruned.plan)
    with printing.progress("exporting, checking and bundling", quiet):
        written = bundle.export(pruned, out, export_config, data=data, force=force)
    if json:
        printing.print_json({"out": str(out), "manifest": written.manifest.model_dump(mode="json")})
    else:
        printing.print_bundle(written)


def _check_paths(source: str, out: Path, force: bool, data: str | None) -> None:
    """Find what is missing or in the way before anything slow."""
    from shallowvit_bench.datasets import check_dataset

    from ..files import check_out

    check_out(out, force, "export", source)
    if data:
        check_dataset(data)


def _precision(text: str) -> Precision:
    if text not in list(Precision):
        raise ShallowvitError(f"export: unknown precision {text!r}; choose from {', '.join(Precision)}")
    return Precision(text)


def _check_engine(engine: str) -> None:
    if engine not in _ENGINES:
        raise ShallowvitError(f"export: unknown engine {engine!r}; choose from {', '.join(_ENGINES)}")
    if engine != "none":
        raise ShallowvitError(
            f"export: --engine {engine}: this version builds no engines; use --engine none and build from model.onnx"
        )


def _frame_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise ShallowvitError(f"export: --frame-size {text!r} isn't height x width in pixels; write 240x320")
    return int(height), int(width)
