"""The stage *build*: an ONNX graph in, a TensorRT engine out, with its attentions counted.

graph checked -> flavour chosen -> built in a process of its own -> layers, graph and bytes held against each other

Nothing here needs torch or a GPU.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ShallowvitError
from .flavours import Choice, check_precision, choose
from .fusion import check_fused, fusion_report
from .graph_check import check_graph
from .process import BuildRefusedError, run_job
from .profiles import profiles_for
from .records import BuildConfig, EngineBuild, Flavour, FusionReport, Layer
from .sites import find_attentions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .profiles import Profile
    from .sites import AttentionSite

__all__ = ["ENGINE", "LOG", "REPORT", "build_engine", "job_from_config"]

ENGINE, REPORT, LOG = "model.engine", "fusion.json", "build.log.gz"
_NO_KERNEL = "dedicated kernel"  # of the message with which TensorRT refuses an Attention that it can't fuse


def build_engine(
    graph: str | Path, out: Path, config: BuildConfig | None = None, blocks: Mapping[str, int] | None = None
) -> EngineBuild:
    """Build the engine of an ONNX graph into the folder ``out``.

    Writes ``model.engine``, ``fusion.json`` (every attention and every layer) and ``build.log.gz`` (the verbose log). Fused
    attention is checked on the engine's layers, on its bytes and on the graph; see ``FusionReport``.

    Args:
        graph: The ONNX file, its external weights beside it.
        out: An empty folder that is there.
        config: See ``BuildConfig``.
        blocks: Module path -> number of each block, as ``block_paths`` returns, for the report.

    Raises:
        ShallowvitError: one sentence on what is wrong with the graph, the options, the target, or the build; an attention isn't
            fused and ``allow_unfused`` isn't set.
    """
    graph, config = Path(graph).absolute(), config or BuildConfig()
    facts = check_graph(graph)
    choice = choose(config)
    check_precision(choice, facts, config.jetpack)
    profiles = profiles_for(facts.inputs, config)
    sites = find_attentions(graph, blocks)
    job = job_from_config(config, choice, profiles) | {"onnx": str(graph)}
    with tempfile.TemporaryDirectory(dir=out, prefix=".build-") as name:
        work = Path(name)
        result, report = _built(job, work, config, sites)
        _check_gpu(choice, result)
        os.replace(work / ENGINE, out / ENGINE)
        layers = tuple(Layer(**layer | {"nodes": tuple(layer["nodes"])}) for layer in result["inspected"] or result["layers"])
        _write_report(out / REPORT, report, layers)
        _write_log(work / job["log"], out / LOG)
    return _record(out / ENGINE, choice, config, profiles, result, report, layers)


def job_from_config(config: BuildConfig, choice: Choice, profiles: Sequence[Profile]) -> dict[str, Any]:
    """Return what the worker reads, but for the graph."""
    workspace = config.workspace_mib
    return {
        "flavour": str(choice.flavour),
        "engine": ENGINE,
        "log": "build.log",
        "result": "result.json",
        "name": "model",
        "profiles": profiles,
        "workspace_bytes": None if workspace is None else workspace * 2**20,
        "compute_capabilities": choice.compute_capabilities,
        "level": config.level,
        "dla_core": config.dla_core,
        "version_compatible": config.version_compatible,
        "hardware_compatibility": str(config.hardware_compatibility) if config.hardware_compatibility else None,
        "timing_cache_folder": str(_cache_folder()) if config.timing_cache else None,
        "decomposable": False,
    }


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "shallowvit" / "timing"


def _built(
    job: dict[str, Any], work: Path, config: BuildConfig, sites: Sequence[AttentionSite]
) -> tuple[dict[str, Any], FusionReport]:
    """Build; where TensorRT refuses an Attention node, build again with fusion left open, to say which ones and why."""
    try:
        result = run_job(job, work, python=config.python, time_limit_s=config.time_limit_s)
    except BuildRefusedError as err:
        if _NO_KERNEL not in err.message:
            foreseen = next((site for site in sites if site.obstacle and "mask" in site.obstacle), None)
            if foreseen is None:
                raise
            raise ShallowvitError(f"{err}. The attention of {foreseen.path} {foreseen.obstacle}, which may be why") from err
        result = run_job(job | {"decomposable": True}, work, python=config.python, time_limit_s=config.time_limit_s)
        # an attention of one query (of a pooling head) is refused above, and has its kernel in this engine all the same
    report = _report(result, work, sites, job)
    if not config.allow_unfused:
        check_fused(report)
    return result, report


def _report(result: dict[str, Any], work: Path, sites: Sequence[AttentionSite], job: dict[str, Any]) -> FusionReport:
    source = "engine inspector" if result["inspected"] else "builder log"
    engine = (work / ENGINE).read_bytes()
    layers, profiles = result["inspected"] or result["layers"], max(1, len(job["profiles"]))
    return fusion_report(sites, layers, engine, source, named=job["flavour"] == Flavour.RTX, profiles=profiles)


def _check_gpu(choice: Choice, result: dict[str, Any]) -> None:
    """Full TensorRT builds for the GPU it ran on, so that must be the target's."""
    target, found = choice.target, result["gpu"]
    if choice.flavour is Flavour.TENSORRT and target and found and found["sm"] != target.sm:
        raise ShallowvitError(
            f"build: full TensorRT builds for the GPU it runs on, and {found['name']} (compute capability "
            f"{found['sm'] / 10:.1f}) is no {target.key} ({target.compute_capability}); build on the target"
        )


def _write_report(path: Path, report: FusionReport, layers: Sequence[Layer]) -> None:
    record = asdict(report) | {
        "fused": report.fused,
        "expected": report.expected,
        "layers": [asdict(layer) for layer in layers],
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def _write_log(log: Path, out: Path) -> None:
    """Compress the log; without a time in its header, though what it says differs from build to build."""
    with log.open("rb") as source, out.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as sink:
        shutil.copyfileobj(source, sink)


def _record(
    path: Path,
    choice: Choice,
    config: BuildConfig,
    profiles: tuple[Profile, ...],
    result: dict[str, Any],
    report: FusionReport,
    layers: tuple[Layer, ...],
) -> EngineBuild:
    return EngineBuild(
        path=path,
        flavour=choice.flavour,
        version=result["version"],
        target=choice.target.key if choice.target else None,
        sm=choice.compute_capabilities or ((result["gpu"]["sm"],) if _local(choice, result) else ()),
        built_on=result["gpu"]["name"] if result["gpu"] else "no GPU",
        profiles=profiles,
        options={
            "workspace_mib": config.workspace_mib,
            "level": config.level,
            "dla_core": config.dla_core,
            "version_compatible": config.version_compatible,
            "hardware_compatibility": str(config.hardware_compatibility) if config.hardware_compatibility else None,
        },
        fusion=report,
        layers=layers,
        bytes=result["bytes"],
        activation_bytes=result["activation_bytes"],
        weights_bytes=result["weights_bytes"],
        build_s=result["parse_s"] + result["build_s"],
        not_inspected=result["not_inspected"],
    )


def _local(choice: Choice, result: dict[str, Any]) -> bool:
    return choice.flavour is Flavour.TENSORRT and result["gpu"] is not None
