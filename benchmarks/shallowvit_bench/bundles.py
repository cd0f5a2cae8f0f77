"""Read a bundle folder into a record, without pydantic: what the harness needs on a device.

A newcomer's trap: this checks the graph's hash only, because a wrong graph makes every figure wrong; ``shallowvit verify``
checks the whole folder.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BenchError

__all__ = ["SAMPLES", "SCHEMA_VERSION", "BundleInfo", "GraphInput", "Preprocessing", "read_bundle"]

SCHEMA_VERSION = 3  # the newest that is read; 1 had no engines, and 1 and 2 one input
SAMPLES = "inputs.npz"  # a few items of every input, in bundles of several


@dataclass(frozen=True)
class GraphInput:
    """An input of the graph.

    ``shape`` is without the batch, which stands first unless ``batch`` is False; a size that isn't fixed is a name of
    ``ranges``: least, greatest, step.
    """

    name: str
    dtype: str
    layout: str
    shape: tuple[int | str, ...]
    batch: bool = True
    ranges: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    native: tuple[int, ...] | None = None

    @property
    def measured_shape(self) -> tuple[int, ...]:
        """The shape without the batch that is measured: the model's own, where sizes aren't fixed and it is in their ranges."""
        bounds = [None if isinstance(size, int) else self.ranges[size] for size in self.shape]
        inside = self.native is not None and all(
            bound is None or bound[0] <= size <= bound[1] for size, bound in zip(self.native, bounds, strict=True)
        )
        return self.native if self.native is not None and inside else self.least_shape

    @property
    def least_shape(self) -> tuple[int, ...]:
        """The shape without the batch, each size that isn't fixed at its least."""
        return tuple(size if isinstance(size, int) else self.ranges[size][0] for size in self.shape)


@dataclass(frozen=True)
class Preprocessing:
    """From uint8 frames of ``frame_shape`` to the graph's input; nothing is left to do when ``in_graph``."""

    in_graph: bool
    frame_shape: tuple[int, ...]  # [T, H, W, C] or [H, W, C]
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: dict[str, int] | None
    crop: dict[str, int] | None
    resample: str
    crop_rounding: str


@dataclass(frozen=True)
class BundleInfo:
    """A bundle on disk: the facts that the harness works with, and the whole manifest for the report.

    The first of ``inputs`` is the main one; ``samples`` are items of every input where there are several; ``batch`` is the
    graph's where it is fixed.
    """

    path: Path
    name: str
    model_path: Path
    model_sha256: str
    precision: str
    inputs: tuple[GraphInput, ...]
    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None
    flops_before: int
    flops_after: int
    manifest: dict[str, Any]
    samples: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict, repr=False, compare=False)
    batch: int | None = None

    @property
    def input(self) -> GraphInput:
        """The main input."""
        return self.inputs[0]


def read_bundle(path: Path) -> BundleInfo:
    """Read the manifest of the bundle folder ``path`` and check the graph's sha256.

    Raises:
        BenchError: no bundle there, a newer schema, a field is missing, or the graph isn't the one the manifest names.
    """
    manifest = _read_manifest(path)
    try:
        info = _info_from_manifest(path, manifest)
        expected = str(manifest["files"]["model.onnx"]["sha256"])
    except (KeyError, TypeError, ValueError) as err:
        raise BenchError(
            f"read_bundle: {path / 'manifest.json'} lacks or misuses the field {err}; export the bundle again"
        ) from err
    if not info.model_path.is_file():
        raise BenchError(f"read_bundle: {path} has no model.onnx; copy the whole folder again")
    found = _sha256(info.model_path)
    if found != expected:
        raise BenchError(
            f"read_bundle: {info.model_path} has sha256 {found[:12]}..., the manifest says {expected[:12]}...; "
            "copy the bundle again"
        )
    return replace(info, samples=_samples(path)) if len(info.inputs) > 1 else info


def _samples(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Items of every input, which bundles of several carry."""
    file = path / SAMPLES
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as err:
        raise BenchError(f"read_bundle: {file} can't be read ({err}); copy the whole folder again") from err


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):  # hashlib.file_digest came with Python 3.11
            total.update(block)
    return total.hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise BenchError(f"read_bundle: no bundle folder at {path}; write one with: shallowvit export MODEL -o {path}")
    file = path / "manifest.json"
    if (path / "adaptive.json").is_file():
        raise BenchError(
            f"read_bundle: {path} is an adaptive bundle, whose depths are bundles of their own; measure it with: shallowvit "
            f"bench {path} --data DATA, or name one of its folders"
        )
    if not file.is_file():
        raise BenchError(
            f"read_bundle: {path} is no bundle, it has no manifest.json; write one with: shallowvit export MODEL -o DIR"
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as err:
        raise BenchError(f"read_bundle: {file} is not JSON ({err}); copy the bundle again") from err
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        advice = "update shallowvit here" if newer else "export the bundle again"
        raise BenchError(f"read_bundle: {file} has schema_version {version}, this harness reads {SCHEMA_VERSION}; {advice}")
    return dict(manifest)


def _info_from_manifest(path: Path, manifest: dict[str, Any]) -> BundleInfo:
    graph, plan, settings = manifest["graph"], manifest["plan"], manifest["preprocessing"]
    inputs = graph["inputs"] if manifest["schema_version"] > 2 else [graph["input"]]
    batch = graph.get("batch", "dynamic")
    return BundleInfo(
        path=path,
        name=str(manifest["name"]),
        model_path=path / "model.onnx",
        model_sha256=str(manifest["files"]["model.onnx"]["sha256"]),
        precision=str(graph["precision"]),
        inputs=tuple(_input_from_manifest(entry) for entry in inputs),
        preprocessing=_preprocessing_from_manifest(settings) if settings else None,
        labels=tuple(manifest["labels"]) if manifest["labels"] else None,
        flops_before=int(plan["flops_before"]),
        flops_after=int(plan["flops_after"]),
        manifest=manifest,
        batch=None if batch == "dynamic" else int(batch),
    )


def _input_from_manifest(entry: dict[str, Any]) -> GraphInput:
    return GraphInput(
        name=entry["name"],
        dtype=entry["dtype"],
        layout=entry["layout"],
        shape=tuple(entry["shape"]),
        batch=bool(entry.get("batch", True)),
        ranges={name: (low, high, step) for name, (low, high, step) in entry.get("ranges", {}).items()},
        native=tuple(entry["native"]) if entry.get("native") else None,
    )


def _preprocessing_from_manifest(settings: dict[str, Any]) -> Preprocessing:
    return Preprocessing(
        in_graph=bool(settings["in_graph"]),
        frame_shape=tuple(settings["frame_shape"]),
        rescale=float(settings["rescale"]),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        resize=settings["resize"],
        crop=settings["crop"],
        resample=str(settings["resample"]),
        crop_rounding=str(settings["crop_rounding"]),
    )
