"""The manifest of a bundle, as a schema: what may stand in ``manifest.json``, and nothing else.

A newcomer's trap: readers on the device (``shallowvit_bench``) read this file without pydantic, so a change of a field's name
or meaning is a new ``schema_version``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["SCHEMA_VERSION", "File", "Graph", "Manifest", "Plan", "Score", "Scores", "Source"]

SCHEMA_VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Record):
    """A file of the bundle."""

    sha256: str
    bytes: int


class Source(_Record):
    """The unpruned model: how it was named, what it is, the hash of its weights; ``parent`` is the lineage of a pruned
    folder.
    """

    spec: str
    family: str
    architecture: str
    weights_sha256: str
    arch: str | None
    blocks: tuple[str, ...]
    parent: dict[str, Any] | None


class Score(_Record):
    """One block's score."""

    block: int
    path: str
    score: float
    weights: int
    stack: str = ""
    noise: float | None = None


class Scores(_Record):
    """The ranking the plan came from."""

    criterion: str
    needs: str
    unit: str
    settings: dict[str, int | float | str | None]
    blocks: tuple[Score, ...]


class Plan(_Record):
    """Which blocks went, by number and module path, why each of them, and what it saved."""

    removed: tuple[int, ...]
    kept: tuple[int, ...]
    paths: tuple[str, ...]
    reason: str
    why: tuple[str, ...] = ()
    parameters_before: int
    parameters_after: int
    flops_before: int
    flops_after: int


class Tensor(_Record):
    """An output of the graph."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Input(_Record):
    """The graph's input, without the batch."""

    name: str
    dtype: str
    layout: str
    shape: tuple[int, ...]


class Graph(_Record):
    """The ONNX graph."""

    opset: int
    precision: str
    attention_nodes: int
    input: Input
    outputs: tuple[Tensor, ...]


class Preprocessing(_Record):
    """From uint8 frames to the graph's input; done inside the graph when ``in_graph``."""

    in_graph: bool
    frame_shape: tuple[int, ...]
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: dict[str, int] | None
    crop: dict[str, int] | None
    resample: str
    crop_rounding: str = "down"


class Parity(_Record):
    """The graph against torch."""

    precision: str
    inputs: int
    inputs_from: str
    computed_by: str
    max_abs_error: float
    relative_error: float
    tolerance: float
    top1_agreement: float | None


class Metrics(_Record):
    """Accuracy of the graph on labelled data, its interval at 95 % (Wilson), the number of items."""

    top1: float
    top1_interval: tuple[float, float]
    items: int


class Manifest(_Record):
    """``manifest.json``."""

    schema_version: Literal[1]
    name: str
    files: dict[str, File]
    source: Source
    scores: Scores | None
    plan: Plan
    graph: Graph
    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None
    parity: Parity
    metrics: dict[str, Metrics]
    tools: dict[str, str]
