"""Read per-layer profiles as trtexec --exportProfile writes them, and find the attention layers in them.

A newcomer's trap: the engine that was profiled was often built on the device, so its layers needn't have the names of the
engine in the bundle; then the kernel's name without its hash decides.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..bundles import BundleInfo

__all__ = ["LayerTime", "Profile", "is_profile", "read_profile"]

_ATTENTION = re.compile(r"mha|fmha|attention", re.IGNORECASE)  # in the names that TensorRT gives its fused kernels


@dataclass(frozen=True)
class LayerTime:
    """A layer's time in a run; ``share`` is of the whole run."""

    name: str
    mean_ms: float
    median_ms: float | None
    share: float
    attention: bool


@dataclass(frozen=True)
class Profile:
    """Layers in the order of the engine, and over how many runs they were timed."""

    title: str
    runs: int
    layers: tuple[LayerTime, ...]


def is_profile(path: Path) -> bool:
    """Say whether a file holds a profile: a JSON list, where rows are JSON objects."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(64).lstrip().startswith("[")
    except OSError:
        return False


def read_profile(path: Path, bundles: Sequence[BundleInfo]) -> Profile:
    """Read a profile.

    Args:
        path: What ``trtexec --exportProfile=FILE`` wrote.
        bundles: Whose engines say which layers and kernels are attention.

    Raises:
        BenchError: it isn't one.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise BenchError(f"report: {path} is no profile ({err}); write one with: trtexec --exportProfile={path.name}") from err
    known = _attention_layers(bundles)
    try:
        runs = int(records[0]["count"])
        layers = records[1:]
        total = sum(float(layer["averageMs"]) for layer in layers)
        timed = tuple(
            LayerTime(
                str(layer["name"]),
                float(layer["averageMs"]),
                float(layer["medianMs"]) if "medianMs" in layer else None,
                float(layer["averageMs"]) / total if total else 0.0,
                str(layer["name"]) in known or bool(_ATTENTION.search(str(layer["name"]))),
            )
            for layer in layers
        )
    except (KeyError, IndexError, TypeError, ValueError) as err:
        raise BenchError(
            f"report: {path} is no profile of trtexec: {err!r} where a list of a count and layers is expected; write one with: "
            f"trtexec --exportProfile={path.name}"
        ) from err
    return Profile(path.name, runs, timed)


def _attention_layers(bundles: Sequence[BundleInfo]) -> set[str]:
    """Names of the layers of the bundles' engines whose kernel is that of a fused attention."""
    names: set[str] = set()
    for bundle in bundles:
        for engine in bundle.manifest.get("engines") or ():
            kernels = {attention["kernel"] for attention in engine["attentions"] if attention["fused"]}
            report = bundle.path / engine["report"]
            if report.is_file():
                layers = json.loads(report.read_text(encoding="utf-8"))["layers"]
                names |= {layer["name"] for layer in layers if layer["tactic"] in kernels}
    return names
