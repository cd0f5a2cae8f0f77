"""The manifest of a bundle, as a schema: what may stand in ``manifest.json``, and nothing else.

A newcomer's trap: readers on the device (``shallowvit_bench``) read this file without pydantic, so a change of a field's name
or meaning, or a new field, is a new ``schema_version``. 2 added engines, the recipe, quantisation and the search over
precisions.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["SCHEMA_VERSION", "Attention", "Engine", "File", "Graph", "Manifest", "Plan", "Score", "Scores", "Source"]

SCHEMA_VERSION = 2


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Record):
    """A file of the bundle."""

    sha256: str
    bytes: int


class Source(_Record):
    """The unpruned model: how it was named, what it is, the hash of its weights; ``parent`` is the lineage of a pruned
    folder, the last three are what was changed about the model before its blocks were looked for.
    """

    spec: str
    family: str
    architecture: str
    weights_sha256: str
    arch: str | None
    blocks: tuple[str, ...]
    parent: dict[str, Any] | None
    head: str | None = None
    image_size: tuple[int, int] | None = None
    frames: int | None = None


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
    attention_precision: str | None = None
    attention_rewritten: int = 0
    attention_left: tuple[tuple[str, str], ...] = ()
    kept_precise: tuple[str, ...] = ()


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


class KeptNode(_Record):
    """A node with weights that stayed in the float type, and why."""

    node: str
    module: str
    reason: str


class Check(_Record):
    """The graph against the fp32 graph on real inputs that didn't calibrate it."""

    precision: str
    base: str
    data: str
    items: int
    held_out: int
    computed_by: str
    max_abs_error: float
    relative_error: float
    top1_agreement: float | None
    top1_reference: float | None
    top1_reference_interval: tuple[float, float] | None
    top1: float | None
    top1_interval: tuple[float, float] | None
    lost: int | None
    gained: int | None
    drop: float | None
    drop_interval: tuple[float, float] | None
    p_value: float | None
    within_noise: bool | None
    max_drop: float


class Quantization(_Record):
    """How the graph was quantised and what that cost; the table of ranges stands in ``calibration.json``."""

    precision: str
    base: str
    quantized: int
    kept: tuple[KeptNode, ...]
    attention_nodes: int
    method: str | None
    percentile: float | None
    block_sizes: tuple[int, ...]
    samples: int
    inputs_sha256: str | None
    data: str | None
    tool: str
    bytes_before: int
    bytes_after: int
    check: Check


class Trial(_Record):
    """A candidate of the search over precisions."""

    name: str
    precision: str
    base: str
    calibration: str | None
    status: str
    reason: str
    bytes: int | None
    median_ms: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    check: Check | None


class PrecisionSearch(_Record):
    """Which precisions were measured, on what, and why the graph has the one it has."""

    chosen: str
    backend: str
    batch: int
    runs: int
    data: str
    max_drop: float
    trials: tuple[Trial, ...]


class Attention(_Record):
    """An attention of the graph in an engine: its kernel where it is fused, the reason where it isn't."""

    path: str
    block: int | None
    node: str
    fused: bool
    kernel: str | None
    reason: str | None
    dtype: str
    heads: int | None
    head_size: int | None
    queries: int | None
    keys: int | None


class Engine(_Record):
    """A TensorRT engine of the graph; ``path``, ``report`` and ``log`` are files of the bundle.

    ``sm`` are compute capabilities as 86 for 8.6, none for a portable engine; ``kernels`` were found in the engine's bytes,
    None where its flavour doesn't name them there; ``not_inspected`` says why the engine wasn't loaded after the build.
    """

    path: str
    report: str
    log: str
    flavour: str
    version: str
    target: str | None
    sm: tuple[int, ...]
    built_on: str
    profiles: tuple[dict[str, tuple[tuple[int, ...], ...]], ...]
    options: dict[str, int | float | str | bool | None]
    attention_fused: int
    attention_expected: int
    fusion_source: str
    attentions: tuple[Attention, ...]
    kernels: tuple[str, ...] | None
    activation_bytes: int | None
    weights_bytes: int | None
    build_s: float
    not_inspected: str | None


class Manifest(_Record):
    """``manifest.json``."""

    schema_version: Literal[1, 2]
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
    target: str | None = None
    recipe: str | None = None
    engines: tuple[Engine, ...] = ()
    quantization: Quantization | None = None
    precision_search: PrecisionSearch | None = None
