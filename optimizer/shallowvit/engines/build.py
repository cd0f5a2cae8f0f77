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
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ShallowvitError
from ..plugins.choosing import compare_engines, time_plugins
from ..plugins.preparing import Prepared, prepare_graph
from .flavours import Choice, check_precision, choose
from .fusion import check_fused, fusion_report
from .graph_check import check_graph
from .process import BuildRefusedError, run_job
from .profiles import profiles_for
from .records import AttentionChoice, BuildConfig, EngineBuild, Flavour, FusionReport, Layer, PluginTiming
from .sites import find_attentions

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from .profiles import Profile
    from .sites import AttentionSite

__all__ = ["ENGINE", "LOG", "REPORT", "build_engine", "job_from_config"]

ENGINE, REPORT, LOG = "model.engine", "fusion.json", "build.log.gz"
_LOG = "build.log"
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
    task = _Task(graph, config, choice, profiles, dict(blocks or {}))
    with tempfile.TemporaryDirectory(dir=out, prefix=".build-") as name:
        attempt = _settled(task, Path(name))
        if not config.allow_unfused:
            check_fused(attempt.report, config.attention, attempt.prepared.refused)
        _check_gpu(choice, attempt.result)
        os.replace(attempt.folder / ENGINE, out / ENGINE)
        _write_report(out / REPORT, attempt.report, attempt.layers)
        _write_log(attempt.folder / _LOG, out / LOG)
    return _record(out / ENGINE, task, attempt)


@dataclass(frozen=True)
class _Task:
    """What is to be built; the same for every attempt."""

    graph: Path
    config: BuildConfig
    choice: Choice
    profiles: tuple[Profile, ...]
    blocks: Mapping[str, int]


@dataclass(frozen=True)
class _Attempt:
    """An engine in ``folder``, and what became of the graph's attentions in it."""

    folder: Path
    prepared: Prepared
    result: dict[str, Any]
    report: FusionReport
    timings: tuple[PluginTiming, ...] = ()

    @property
    def layers(self) -> tuple[Layer, ...]:
        listed = self.result["inspected"] or self.result["layers"]
        return tuple(Layer(**layer | {"nodes": tuple(layer["nodes"])}) for layer in listed)


def _settled(task: _Task, work: Path) -> _Attempt:
    """Build; with ``auto`` once more for what TensorRT left unfused, and on a GPU with plugins only where they are faster."""
    attempt = _attempt(task, work / "first")
    if task.config.attention is not AttentionChoice.AUTO:
        return attempt
    unfused = frozenset(one.node for one in attempt.report.attentions if not one.fused)
    if unfused:
        attempt = _attempt(task, work / "second", unfused=unfused)
    if attempt.result["inspected"] is None or not attempt.prepared.kernels:
        return attempt  # nothing can be timed here, or there is nothing to time
    operators = [kernel.operator for kernel in attempt.prepared.kernels]
    made = {frozenset(operators): attempt}

    def engine_with(some: frozenset[str]) -> Path:
        if some not in made:
            made[some] = _attempt(task, work / f"with-{len(made)}", unfused=unfused, only=some)
        return made[some].folder / ENGINE

    timings = time_plugins(operators, engine_with, partial(compare_engines, task.choice.flavour, _usual_inputs(task)))
    faster = frozenset(one.operator for one in timings if one.plugin_is_faster)
    engine_with(faster)
    return replace(made[faster], timings=timings)


def _attempt(
    task: _Task, folder: Path, unfused: Collection[str] = frozenset(), only: Collection[str] | None = None
) -> _Attempt:
    folder.mkdir()
    low = {name: shapes[0] for name, shapes in (task.profiles[0] if task.profiles else {}).items()}
    prepared = prepare_graph(
        task.graph,
        folder,
        task.config.attention,
        task.choice,
        unfused=unfused,
        only=only,
        shapes=low,
    )
    sites = find_attentions(prepared.graph, task.blocks)
    job = job_from_config(task.config, task.choice, task.profiles) | {"onnx": str(prepared.graph)} | dict(prepared.job)
    result, report = _built(job, folder, task.config, sites)
    return _Attempt(folder, prepared, result, report)


def _usual_inputs(task: _Task) -> dict[str, Any]:
    """What plugins are timed on: the usual shapes of the first profile, else the graph's own."""
    from ..plugins.checking import random_inputs

    return random_inputs(task.graph, {name: shapes[1] for name, shapes in (task.profiles or ({},))[0].items()})


def job_from_config(config: BuildConfig, choice: Choice, profiles: Sequence[Profile]) -> dict[str, Any]:
    """Return what the worker reads, but for the graph."""
    workspace = config.workspace_mib
    return {
        "flavour": str(choice.flavour),
        "engine": ENGINE,
        "log": _LOG,
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
    return result, _report(result, work, sites, job)


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


def _record(path: Path, task: _Task, attempt: _Attempt) -> EngineBuild:
    choice, config, result = task.choice, task.config, attempt.result
    return EngineBuild(
        path=path,
        flavour=choice.flavour,
        version=result["version"],
        target=choice.target.key if choice.target else None,
        sm=choice.compute_capabilities or ((result["gpu"]["sm"],) if _local(choice, result) else ()),
        built_on=result["gpu"]["name"] if result["gpu"] else "no GPU",
        profiles=task.profiles,
        options={
            "workspace_mib": config.workspace_mib,
            "level": config.level,
            "dla_core": config.dla_core,
            "version_compatible": config.version_compatible,
            "hardware_compatibility": str(config.hardware_compatibility) if config.hardware_compatibility else None,
        },
        fusion=attempt.report,
        layers=attempt.layers,
        bytes=result["bytes"],
        activation_bytes=result["activation_bytes"],
        weights_bytes=result["weights_bytes"],
        build_s=result["parse_s"] + result["build_s"],
        not_inspected=result["not_inspected"],
        plugins=attempt.prepared.kernels,
        plugins_refused=attempt.prepared.refused,
        plugin_timings=attempt.timings,
    )


def _local(choice: Choice, result: dict[str, Any]) -> bool:
    return choice.flavour is Flavour.TENSORRT and result["gpu"] is not None
