"""``shallowvit export``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..engines.records import BuildConfig
from ..errors import ShallowvitError
from ..exporting.quantize_records import MAX_ACCURACY_DROP, CalibrationMethod, QuantizeConfig
from ..exporting.records import FLOATS, ExportConfig, Precision
from ..pruning.planning import PlanConfig
from ..scoring.criteria import ScoreConfig
from ..tokens.config import TokenConfig
from .engine_options import (
    AllowUnfused,
    Attention,
    Batch,
    ComputeCapability,
    JetPack,
    Target,
    TimeLimit,
    Workspace,
    build_config,
    check_attention,
    check_engine,
)
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
    Outputs,
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
from .prune import check_scores_file, pruned_from_options, reduced_from_options, token_config

if TYPE_CHECKING:
    from pathlib import Path

    from ..exporting.precision_search import SearchConfig

__all__ = ["export"]

_AUTO = "auto"


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
    precision: Annotated[
        str,
        typer.Option(
            metavar="|".join((*Precision, _AUTO)),
            help="What the graph computes in; inputs and outputs stay fp32. int8 and fp8 need --calibration, int4 is of "
            "weights only; auto measures what runs here and keeps the fastest within --max-accuracy-drop.",
        ),
    ] = ExportConfig.precision.value,
    attention_precision: Annotated[
        str | None,
        typer.Option(metavar="fp16|bf16", help="Of an fp32 graph: compute attention in this, so that it fuses."),
    ] = None,
    attention: Attention = None,
    keep_precise: Annotated[
        str | None,
        typer.Option(
            metavar="BLOCKS",
            help="What stays in fp32 (of int8, fp8, int4: unquantised), with commas: blocks by number or path as in the "
            "unpruned model, other modules by path, nodes of the graph by name.",
        ),
    ] = None,
    float_precision: Annotated[
        str | None,
        typer.Option(metavar="|".join(FLOATS), help="Of int8, fp8, int4: what the rest computes in.  [default: fp16]"),
    ] = None,
    calibration_method: Annotated[
        str,
        typer.Option(metavar="|".join(CalibrationMethod), help="Of int8 and fp8: how the ranges of activations are chosen."),
    ] = QuantizeConfig.calibration.value,
    percentile: Annotated[
        float, typer.Option(help="Of that method: percent of the values inside.")
    ] = QuantizeConfig.percentile,
    max_accuracy_drop: Annotated[
        float, typer.Option(help="Top-1 that a quantised graph may lose against fp32, as a share; more fails.")
    ] = MAX_ACCURACY_DROP,
    opset: Annotated[
        int | None,
        typer.Option(help="23: one Attention node a block; 18: MatMul and Softmax.  [default: 23, or what --target reads]"),
    ] = None,
    embed_preprocessing: Annotated[
        bool, typer.Option("--embed-preprocessing", help="Take uint8 frames; resize, crop and normalise inside the graph.")
    ] = ExportConfig.embed_preprocessing,
    frame_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size of those frames where it isn't the model's own, e.g. 240x320.")
    ] = None,
    output: Outputs = None,
    dynamic_size: Annotated[
        str | None,
        typer.Option(
            metavar="MIN-MAX", help="Take pictures from MIN to MAX in height and width; positions follow in the graph."
        ),
    ] = None,
    dynamic_frames: Annotated[
        str | None, typer.Option(metavar="MIN-MAX", help="Take clips of MIN to MAX frames, where the model can.")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="none|rtx|tensorrt|auto",
            help="Build a TensorRT engine into the bundle; its attention must be fused. rtx needs no GPU.",
        ),
    ] = "none",
    target: Target = None,
    jetpack: JetPack = None,
    batch: Batch = None,
    workspace: Workspace = None,
    compute_capability: ComputeCapability = None,
    allow_unfused: AllowUnfused = None,
    time_limit: TimeLimit = None,
    data: Annotated[
        str | None, typer.Option(help="Measure the graph's accuracy on this into the manifest: demo or a path.")
    ] = None,
    arch: Arch = None,
    blocks: Blocks = None,
    head: Head = None,
    image_size: ImageSize = None,
    frames: Frames = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the line: score, plan, prune, export to ONNX, check, and write a bundle.

    Without --prune-ratio, --remove, --keep or --quota the whole model is exported. With --target the bundle carries a recipe
    with which shallowvit build makes the engine on the device.
    """
    given: dict[str, Any] = {"flavour": check_engine(engine, none=True), "target": target, "jetpack": jetpack}
    given |= {"batches": batch, "workspace_mib": workspace, "compute_capabilities": compute_capability}
    given |= {"allow_unfused": allow_unfused, "time_limit_s": time_limit}
    wanted = check_attention(attention, "export")
    build = replace(build_config(BuildConfig(), given), attention=wanted if engine != "none" else None)
    score_config = ScoreConfig(
        criterion, mantissa_bits, data=calibration, samples=samples, mix=mix, seed=seed, granularity=granularity
    )
    plan_config = PlanConfig(prune_ratio, remove, keep, select, protect, quota, max_gaps, granularity, split_pairs)
    tokens = token_config(keep_tokens, token_scorer, prefix_tokens, "export")
    chosen = _precision(precision)
    quantize = _quantize(chosen, calibration, calibration_method, percentile, samples, seed)
    export_config = ExportConfig(
        precision=chosen or Precision.FP32,
        opset=opset or _opset(build),
        float_precision=_precision(float_precision),
        attention_precision=_precision(attention_precision),
        keep_precise=tuple(keep_precise.split(",")) if keep_precise else (),
        quantize=quantize if chosen not in (None, *FLOATS) else None,
        max_accuracy_drop=max_accuracy_drop,
        embed_preprocessing=embed_preprocessing,
        frame_size=_frame_size(frame_size),
        outputs=tuple(output or ()),
        dynamic_size=_range(dynamic_size, "--dynamic-size"),
        dynamic_frames=_range(dynamic_frames, "--dynamic-frames"),
        attention=wanted or ExportConfig.attention,
    )
    _check_paths(source, out, force, (data, calibration))
    _check_wish(build, export_config, engine, data, auto=chosen is None)
    from .. import bundle
    from . import engine_printing, printing

    check_scores_file(scores, score_config)
    model = printing.load_model(source, arch, blocks, quiet, printing.changes_from_options(head, image_size, frames))
    with printing.progress("removing blocks", quiet):
        whole = pruned_from_options(model, score_config, plan_config, scores)
        pruned = reduced_from_options(whole, tokens)
    printing.print_warnings(pruned.plan.warnings)
    if not json:
        printing.print_pruning(model, whole, pruned)
    with printing.progress("exporting, checking and bundling", quiet):
        written = bundle.export(
            pruned,
            out,
            export_config,
            data=data,
            build=build if engine != "none" else None,
            recipe=build if target and engine == "none" else None,
            search=_search(quantize, data, max_accuracy_drop) if chosen is None else None,
            force=force,
        )
    if json:
        printing.print_json({"out": str(out), "manifest": written.manifest.model_dump(mode="json")})
    else:
        engine_printing.print_written(written)


def _check_paths(source: str, out: Path, force: bool, datasets: tuple[str | None, ...]) -> None:
    """Find what is missing or in the way before anything slow."""
    from shallowvit_bench.datasets import check_dataset

    from ..files import check_out

    check_out(out, force, "export", source)
    for spec in filter(None, datasets):
        check_dataset(spec)


def _precision(text: str | None) -> Precision | None:
    """The precision that a text names; None for ``auto`` and for none."""
    if text is None or text == _AUTO:
        return None
    if text not in list(Precision):
        raise ShallowvitError(f"export: unknown precision {text!r}; choose from {', '.join((*Precision, _AUTO))}")
    return Precision(text)


def _quantize(
    precision: Precision | None, data: str | None, method: str, percentile: float, samples: int, seed: int
) -> QuantizeConfig:
    """How to quantise, which ``auto`` wants too; what can't be calibrated is refused before anything slow."""
    quantised = precision if precision not in (None, *FLOATS) else Precision.INT8
    if data is None and precision in (Precision.INT8, Precision.FP8):
        raise ShallowvitError(
            f"export: --precision {precision} takes the ranges of activations from real inputs; name some with --calibration "
            "(not those of --data), or use --precision int4, which needs none"
        )
    calibration = _method(method)
    return QuantizeConfig(quantised, calibration, percentile=percentile, data=data, samples=samples, seed=seed)


def _search(quantize: QuantizeConfig, data: str | None, max_drop: float) -> SearchConfig:
    from ..exporting.precision_search import SearchConfig

    assert data is not None  # _check_auto
    return SearchConfig(data, quantize, max_drop)


def _check_wish(build: BuildConfig, config: ExportConfig, engine: str, data: str | None, *, auto: bool) -> None:
    """Refuse what can't be measured, run on the target, or built here, before anything slow."""
    if auto:
        _check_auto(config, data, engine, build.target)
    if build.target is not None:
        _check_target(build, config)
    elif engine == "none" and build != BuildConfig():
        given = [name for name, value in vars(build).items() if value != getattr(BuildConfig(), name)]
        raise ShallowvitError(
            f"export: {', '.join(given).replace('_', ' ')} given, but no engine is asked for; add --engine or --target"
        )
    if engine != "none":
        from ..engines.flavours import choose

        choose(build)


def _check_auto(config: ExportConfig, data: str | None, engine: str, target: str | None) -> None:
    """Refuse a search that has nothing to measure on, or for a device that isn't this machine's CPU."""
    if data is None:
        raise ShallowvitError("export: --precision auto measures accuracy; name inputs, best labelled ones, with --data")
    if config.keep_precise or config.attention_precision:
        raise ShallowvitError(
            "export: --precision auto chooses for the whole graph; name a --precision beside --keep-precise or "
            "--attention-precision"
        )
    if engine != "none" or target is not None:
        what = f"--target {target}" if target else f"--engine {engine}"
        raise ShallowvitError(
            f"export: --precision auto measures what it can reach, which is onnxruntime on this machine's CPU, and that says "
            f"nothing about {what}; name a --precision and measure there"
        )


def _method(text: str) -> CalibrationMethod:
    if text not in list(CalibrationMethod):
        raise ShallowvitError(f"export: unknown calibration method {text!r}; choose from {', '.join(CalibrationMethod)}")
    return CalibrationMethod(text)


def _opset(build: BuildConfig) -> int:
    """What the target's TensorRT reads, else the newest."""
    if build.target is None:
        return ExportConfig.opset
    from ..engines.targets import find_target, opset_for

    return opset_for(find_target(build.target), build.jetpack)


def _check_target(build: BuildConfig, config: ExportConfig) -> None:
    from ..engines.flavours import check_typing
    from ..engines.targets import find_target, precision_refusal

    assert build.target is not None
    target = find_target(build.target)
    check_typing(target, build.jetpack)
    for precision in dict.fromkeys((config.precision, config.base, config.attention_precision or config.base)):
        reason = precision_refusal(target, str(precision), build.jetpack)
        if reason:
            raise ShallowvitError(f"export: --target {target.key}: {reason}. Choose another --precision")


def _frame_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise ShallowvitError(f"export: --frame-size {text!r} isn't height x width in pixels; write 240x320")
    return int(height), int(width)


def _range(text: str | None, option: str) -> tuple[int, int] | None:
    if text is None:
        return None
    low, _, high = text.partition("-")
    if not (low.isdecimal() and high.isdecimal()):
        raise ShallowvitError(f"export: {option} {text!r} is no range; write 160-448")
    return int(low), int(high)
