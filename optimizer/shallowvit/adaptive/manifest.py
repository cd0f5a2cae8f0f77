"""``adaptive.json``: what stands beside the gate and the depths in an adaptive bundle, each an ordinary bundle of its own.

A newcomer's trap: hashes are of the graphs; an engine that is built into a depth later changes that bundle's own manifest, and
nothing here.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

__all__ = ["ADAPTIVE_FILE", "SCHEMA_VERSION", "AdaptiveManifest", "DepthEntry", "GateEntry", "MixEntry"]

ADAPTIVE_FILE = "adaptive.json"
SCHEMA_VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GateEntry(_Record):
    """The gate: its folder, its graph, the blocks in front of its head and what it costs of the deepest's FLOPs."""

    path: str
    sha256: str
    blocks: int
    hidden: int
    cost: float


class DepthEntry(_Record):
    """A depth: its folder, its graph, the blocks it keeps of the whole model, its cost."""

    path: str
    sha256: str
    kept: tuple[int, ...]
    cost: float


class MixEntry(_Record):
    """What a way to use the depths does on the items that judged it; see ``thresholds.Mix``."""

    shares: tuple[float, ...]
    cost: float
    accuracy: float
    drop: float
    drop_error: float
    behind_gate: float
    behind_gate_error: float


class AdaptiveManifest(_Record):
    """Depths stand from the shallowest; ``thresholds`` has one for each but the deepest, ``expected`` each way's figures.

    ``measure`` is top1 or, on data without labels, agreement with the deepest; ``remarks`` are what a user must know.
    """

    schema_version: Literal[1]
    kind: Literal["adaptive"]
    name: str
    gate: GateEntry
    depths: tuple[DepthEntry, ...]
    thresholds: tuple[float, ...]
    cascade_thresholds: tuple[float, ...] | None
    measure: Literal["top1", "agreement"]
    expected: dict[str, MixEntry]
    items: dict[str, int]
    settings: dict[str, Any]
    source: dict[str, Any]
    remarks: tuple[str, ...] = ()
    tools: dict[str, str]

    @model_validator(mode="after")
    def _one_threshold_a_depth(self) -> AdaptiveManifest:
        if len(self.depths) < 2 or len(self.thresholds) != len(self.depths) - 1:
            raise ValueError(f"{len(self.depths)} depths and {len(self.thresholds)} thresholds, expected one less than depths")
        return self
