"""``shallowvit build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .engine_options import (
    AllowUnfused,
    Attention,
    Batch,
    ComputeCapability,
    DlaCore,
    Engine,
    HardwareCompatible,
    JetPack,
    Level,
    Python,
    Shape,
    Target,
    TimeLimit,
    TimingCache,
    VersionCompatible,
    Workspace,
    build_config,
    check_attention,
    check_engine,
)
from .options import Json, Quiet

__all__ = ["build"]


def build(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that shallowvit export wrote.")],
    engine: Engine = None,
    target: Target = None,
    jetpack: JetPack = None,
    batch: Batch = None,
    shape: Shape = None,
    workspace: Workspace = None,
    compute_capability: ComputeCapability = None,
    level: Level = None,
    timing_cache: TimingCache = None,
    dla_core: DlaCore = None,
    version_compatible: VersionCompatible = None,
    hardware_compatibility: HardwareCompatible = None,
    attention: Attention = None,
    allow_unfused: AllowUnfused = None,
    time_limit: TimeLimit = None,
    python: Python = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Build a TensorRT engine of a bundle's graph into the bundle, and prove that its attention is fused.

    Needs no GPU with TensorRT-RTX. Options that aren't given are the bundle's recipe's, where it has one. Fails, and leaves the
    bundle as it was, unless every attention is one kernel.
    """
    given = {
        "flavour": check_engine(engine),
        "target": target,
        "jetpack": jetpack,
        "batches": batch,
        "shapes": shape,
        "workspace_mib": workspace,
        "compute_capabilities": compute_capability,
        "level": level,
        "timing_cache": timing_cache,
        "dla_core": dla_core,
        "version_compatible": version_compatible,
        "hardware_compatibility": hardware_compatibility,
        "attention": check_attention(attention, "build"),
        "allow_unfused": allow_unfused,
        "time_limit_s": time_limit,
        "python": python,
    }
    from ..adaptive import is_adaptive, parts_of
    from ..bundle import build as build_bundle
    from ..bundle.building import config_of
    from . import engine_printing, printing

    bundles = []
    for part in parts_of(path):  # of an adaptive bundle the gate and every depth
        config = build_config(config_of(part), given)
        with printing.progress(f"building an engine of {part}", quiet):
            bundles.append(build_bundle(part, config))
    built = [bundle.manifest.engines[-1] for bundle in bundles]
    if json and is_adaptive(path):
        engines = {str(bundle.path): one.model_dump(mode="json") for bundle, one in zip(bundles, built, strict=True)}
        printing.print_json({"bundle": str(path), "engines": engines})
    elif json:
        printing.print_json({"bundle": str(path), "engine": built[0].model_dump(mode="json")})
    else:
        for bundle, one in zip(bundles, built, strict=True):
            engine_printing.print_engine(bundle, one)
