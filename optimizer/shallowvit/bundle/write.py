"""Write a bundle: the graph, its manifest and a page for the person who receives it, all or nothing."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shallowvit
from shallowvit_bench.bundles import SAMPLES
from shallowvit_bench.datasets import check_dataset

from ..errors import ShallowvitError
from ..exporting import ExportConfig, Precision, export_onnx
from ..exporting.automatic import settle_precision
from ..files import folder_when_whole, hash_file
from ..models.rebuild import LINEAGE_FILE, read_lineage
from ..pruning import PrunedModel, plan, prune
from .building import add_engine, add_recipe, write_manifest
from .manifest import SCHEMA_VERSION, File, Manifest, Metrics
from .manifest import PrecisionSearch as ManifestSearch
from .readme import readme_text
from .records import Bundle

if TYPE_CHECKING:
    from ..engines import BuildConfig
    from ..exporting import ExportedOnnx
    from ..exporting.precision_search import SearchConfig
    from ..exporting.quantize_records import PrecisionSearch, QuantizeConfig, QuantizedGraph
    from ..exporting.records import GraphInput
    from ..models import LoadedModel

__all__ = ["export"]

CALIBRATION = "calibration.json"
_SAMPLES = 4  # items

_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")
_FAMILY_TOOLS = {"transformers": ("transformers",), "timm": ("timm",), "torchvision": ("torchvision",)}


def export(
    pruned: PrunedModel | LoadedModel,
    out: str | Path,
    config: ExportConfig | None = None,
    *,
    data: str | None = None,
    build: BuildConfig | None = None,
    recipe: BuildConfig | None = None,
    search: SearchConfig | None = None,
    force: bool = False,
) -> Bundle:
    """Export a model to ONNX, check it, and write the bundle ``out``.

    Args:
        pruned: What ``prune`` returned; a model straight from ``load`` is exported whole.
        out: The folder to write. It appears under this name only when whole.
        config: Precision, opset, preprocessing.
        data: ``demo`` or a path of labelled data, on which the graph's accuracy is measured into the manifest.
        build: Build an engine into the bundle too, as this says.
        recipe: Put the recipe for its target into the bundle, for ``build`` on the device.
        search: Measure precisions on this machine first and export in the fastest; ``config.precision`` isn't used then.
        force: Replace ``out`` if it is a bundle.

    Raises:
        ShallowvitError: ``out`` exists, the disk is full, or the model can't be exported.
        ParityError: the graph doesn't answer as torch does.
        AccuracyError: the quantised graph loses more top-1 than ``config.max_accuracy_drop``.
    """
    if not isinstance(pruned, PrunedModel):
        pruned = prune(pruned, plan(pruned))
    out = Path(out)
    config = config or ExportConfig()
    if data:
        check_dataset(data)
        if config.precision is Precision.BF16:
            raise ShallowvitError(
                "export: --data can't be measured on a bf16 graph, since onnxruntime's CPU provider has no bf16 kernels; leave "
                "it out or export fp16 or fp32"
            )
    with folder_when_whole(out, "export", force) as folder:
        found = None
        if search:
            config, found = settle_precision(pruned, config, search)
        exported = export_onnx(pruned, folder / "model.onnx", config, data=data)
        manifest = _manifest(pruned, exported, out.name, config, found)
        if exported.quantized:
            _write_calibration(folder, exported.quantized, config.quantize)
        if len(exported.inputs) > 1:
            _write_samples(folder, pruned.model, exported.inputs)
        if recipe:
            manifest = add_recipe(folder, manifest, recipe)
        if build:
            manifest = add_engine(folder, manifest, build, folder / "model.onnx")
        (folder / "README.md").write_text(readme_text(manifest))
        manifest = manifest.model_copy(update={"files": _files(folder)})
        write_manifest(manifest, folder)
        if data and exported.check is None:  # of a quantised graph the check has measured it, on what didn't calibrate
            manifest = manifest.model_copy(update={"metrics": {data: _accuracy(folder, data)}})
            write_manifest(manifest, folder)
    return Bundle(out, manifest)


def _write_samples(folder: Path, model: LoadedModel, inputs: tuple[GraphInput, ...]) -> None:
    """A few items of every input, for whoever measures the graph or writes the code around it."""
    import numpy as np

    from ..exporting.inputs import sample_inputs

    items, _inputs_from = sample_inputs(inputs, model, _SAMPLES)
    np.savez_compressed(folder / SAMPLES, **items)  # type: ignore[arg-type]


def _files(folder: Path) -> dict[str, File]:
    """Every file but the manifest, by name."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(folder).as_posix(): File(sha256=hash_file(path), bytes=path.stat().st_size) for path in found}


def _manifest(
    pruned: PrunedModel, exported: ExportedOnnx, name: str, config: ExportConfig, found: PrecisionSearch | None
) -> Manifest:
    embedded = config.embed_preprocessing
    model, chosen = pruned.model, asdict(pruned.plan)
    scores: dict[str, Any] | None = chosen.pop("scores")
    source = asdict(model.origin) | {"weights_sha256": chosen.pop("weights_sha256"), "parent": _parent(model)}
    settings = model.input_spec.preprocessing
    preprocessing = asdict(settings) | {"in_graph": embedded} if settings else None
    if preprocessing and embedded:
        preprocessing["frame_shape"] = exported.input.least_shape
    return Manifest.model_validate(
        {
            "schema_version": SCHEMA_VERSION,
            "name": name,
            "files": {},
            "source": source,
            "scores": {key: scores[key] for key in ("criterion", "needs", "unit", "settings", "blocks")} if scores else None,
            "plan": chosen | _places(pruned),
            "graph": {
                "opset": exported.opset,
                "precision": exported.precision,
                "attention_nodes": exported.attention_nodes,
                "inputs": tuple(map(asdict, exported.inputs)),
                "outputs": tuple(map(asdict, exported.outputs)),
                "steps": tuple(map(asdict, exported.steps)),
                "batch": exported.batch,
                "attention_precision": str(config.attention_precision) if config.attention_precision else None,
                "attention_rewritten": exported.attention_rewritten,
                "attention_left": exported.attention_left,
                "attention_plugins": exported.attention_plugins,
                "kept_precise": config.keep_precise,
            },
            "preprocessing": preprocessing,
            "labels": model.labels,
            "parity": asdict(exported.parity),
            "metrics": _checked_metrics(exported),
            "recovery": pruned.recovery or tuple((source["parent"] or {}).get("recovery", ())),
            "quantization": _quantization(exported, config),
            "precision_search": _search(found) if found else None,
            "tools": _tool_versions(model.origin.family),
        }
    )


def _places(pruned: PrunedModel) -> dict[str, Any]:
    """Where the kept blocks stand now, and how the others went."""
    removals = [
        {"list": one.path, "length": one.length, "gone": one.gone, "way": one.way, "reason": one.reason}
        for one in pruned.removals
    ]
    return {
        "places": tuple(pruned.places),
        "granularity": str(pruned.plan.granularity),
        "removals": tuple(removals),
        "tokens": asdict(pruned.tokens) if pruned.tokens else None,
    }


def _quantization(exported: ExportedOnnx, config: ExportConfig) -> dict[str, Any] | None:
    quantized, check = exported.quantized, exported.check
    if quantized is None or check is None or config.quantize is None:
        return None
    record = asdict(quantized)
    for gone in ("path", "opset", "ranges"):
        del record[gone]
    return record | {"data": config.quantize.data if quantized.method else None, "check": asdict(check)}


def _search(found: PrecisionSearch) -> ManifestSearch:
    record = asdict(found)
    for trial in record["trials"]:
        del trial["quantized"], trial["file"]
    return ManifestSearch.model_validate(record)


def _checked_metrics(exported: ExportedOnnx) -> dict[str, dict[str, Any]]:
    """The accuracy that the check of a quantised graph has measured."""
    check = exported.check
    if check is None or check.top1 is None:
        return {}
    return {check.data: {"top1": check.top1, "top1_interval": check.top1_interval, "items": check.items}}


def _write_calibration(folder: Path, quantized: QuantizedGraph, config: QuantizeConfig | None) -> None:
    """The calibration table, for whoever wants to see or reuse the ranges; the graph holds them as scales already."""
    if config is None or not quantized.ranges:
        return
    table = {
        "precision": quantized.precision,
        "method": quantized.method,
        "data": config.data,
        "samples": quantized.samples,
        "inputs_sha256": quantized.inputs_sha256,
        "ranges": [asdict(row) for row in quantized.ranges],
    }
    (folder / CALIBRATION).write_text(json.dumps(table, indent=1) + "\n")


def _parent(model: LoadedModel) -> dict[str, Any] | None:
    """The lineage of a source that is itself a folder written by ``prune``."""
    return read_lineage(model.folder) if model.folder and (model.folder / LINEAGE_FILE).is_file() else None


def _tool_versions(family: str) -> dict[str, str]:
    names = (*_TOOLS, *_FAMILY_TOOLS.get(family, ()))
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"shallowvit": shallowvit.__version__, "python": platform.python_version(), **versions}


def _accuracy(folder: Path, data: str) -> Metrics:
    """Top-1 of the graph on labelled data with its 95 % interval, measured by the harness that also runs on devices."""
    from shallowvit_bench.accuracy import measure_accuracy
    from shallowvit_bench.bundles import read_bundle
    from shallowvit_bench.datasets import open_dataset
    from shallowvit_bench.runners import RunnerOptions, open_onnxruntime

    info = read_bundle(folder)
    with open_onnxruntime(info.model_path, RunnerOptions()) as runner:
        measured = measure_accuracy(runner, info, open_dataset(data, info))
    top1 = measured.metrics.get("top1")
    if top1 is None or top1.low is None or top1.high is None:
        raise ShallowvitError(
            f"bundle: {data} gives {', '.join(measured.metrics) or 'no figures'}, expected top1; give data with a class an "
            "item, and measure the rest with: shallowvit bench"
        )
    return Metrics(top1=top1.value, top1_interval=(top1.low, top1.high), items=measured.items)
