"""The manifest of a bundle, as a schema: what may stand in ``manifest.json``, and nothing else.

A newcomer's trap: readers on the device (``shallowvit_bench``) read this file without pydantic, so a change of a field's name
or meaning, or a new field, is a new ``schema_version``. 2 added engines, the recipe, quantisation and the search over
precisions; 3 several inputs and outputs, how the trace came about, and where the kept blocks stand. Older ones are upgraded on
reading.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

__all__ = ["SCHEMA_VERSION", "Attention", "Engine", "File", "Graph", "Manifest", "Plan", "Score", "Scores", "Source"]

SCHEMA_VERSION = 3


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


class Removal(_Record):
    """How one list's blocks went: ``length`` and ``gone`` count in the list at ``list``; ``way`` is what was done, ``reason``
    why that.
    """

    list: str
    length: int
    gone: tuple[int, ...]
    way: str
    reason: str = ""


class TokenSite(_Record):
    """A block, by number and path, and the numbers of tokens in front of and behind the reduction that follows it."""

    block: int
    path: str
    before: int
    after: int
    width: int


class Tokens(_Record):
    """What chooses the tokens that stay, how many in front always do, and behind which blocks."""

    scorer: str
    prefix: int
    sites: tuple[TokenSite, ...]


class Plan(_Record):
    """Which blocks went, by number and module path, why each of them, and what it saved; ``tokens`` which of those stay.

    ``paths`` are those of the unpruned model, ``places`` where the kept blocks stand in the pruned one (none: not told).
    """

    removed: tuple[int, ...]
    kept: tuple[int, ...]
    paths: tuple[str, ...]
    reason: str
    why: tuple[str, ...] = ()
    parameters_before: int
    parameters_after: int
    flops_before: int
    flops_after: int
    places: tuple[str, ...] = ()
    granularity: str = "block"
    pairs: tuple[tuple[int, ...], ...] = ()
    removals: tuple[Removal, ...] = ()
    tokens: Tokens | None = None

    @property
    def places_of_blocks(self) -> dict[str, int]:
        """Module path in the pruned model -> number in the unpruned one, of each block that stands."""
        if self.places:
            standing = self.kept if self.granularity == "block" else range(len(self.paths))
            return dict(zip(self.places, standing, strict=True))
        from ..engines.sites import block_paths

        return block_paths(self.paths, self.kept)


class Tensor(_Record):
    """An output of the graph; ``source`` is what it is of, as ``logits`` or ``blocks.5``."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    source: str = ""


class Input(_Record):
    """An input of the graph, its shape without the batch, which stands in front where ``batch``.

    A size that isn't fixed is a name of ``ranges``: least, greatest, step; then ``native`` is the model's own shape.
    """

    name: str
    dtype: str
    layout: str
    shape: tuple[int | str, ...]
    ranges: dict[str, tuple[int, int, int]] = {}
    batch: bool = True
    native: tuple[int, ...] | None = None

    @property
    def least_shape(self) -> tuple[int, ...]:
        """The shape without the batch, each size that isn't fixed at its least."""
        return tuple(size if isinstance(size, int) else self.ranges[size][0] for size in self.shape)


class Step(_Record):
    """A step of the trace: what was tried, what came of it (used, failed, not needed) and what it fixed in place."""

    name: str
    outcome: str
    detail: str = ""


class Graph(_Record):
    """The ONNX graph; the first input is the main one, and ``batch`` a number where it is fixed."""

    opset: int
    precision: str
    attention_nodes: int
    inputs: tuple[Input, ...]
    outputs: tuple[Tensor, ...]
    steps: tuple[Step, ...] = ()
    batch: int | Literal["dynamic"] = "dynamic"
    attention_precision: str | None = None
    attention_rewritten: int = 0
    attention_left: tuple[tuple[str, str], ...] = ()
    attention_plugins: tuple[tuple[str, str], ...] = ()
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


class OutputParity(_Record):
    """One output against torch."""

    name: str
    max_abs_error: float
    relative_error: float


class Parity(_Record):
    """The graph against torch: the worst output's errors, and each output's."""

    precision: str
    inputs: int
    inputs_from: str
    computed_by: str
    max_abs_error: float
    relative_error: float
    tolerance: float
    top1_agreement: float | None
    outputs: tuple[OutputParity, ...] = ()


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


class Plugin(_Record):
    """A kernel of ours in an engine: its operator in the graph, the nodes, and what it was compiled for and takes."""

    operator: str
    nodes: tuple[str, ...]
    sm: tuple[int, ...]
    registers: int
    spilled_bytes: int
    shared_bytes: int


class PluginTiming(_Record):
    """The engine with a kernel of ours against the engine without it, medians of a run."""

    operator: str
    native_ms: float
    plugin_ms: float


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
    plugins: tuple[Plugin, ...] = ()
    plugins_refused: tuple[tuple[str, str], ...] = ()
    plugin_timings: tuple[PluginTiming, ...] = ()


class Manifest(_Record):
    """``manifest.json``; ``recovery`` says what was done about what pruning cost, a step each: method, data, what it took."""

    schema_version: Literal[1, 2, 3]
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
    recovery: tuple[dict[str, Any], ...] = ()
    tools: dict[str, str]
    target: str | None = None
    recipe: str | None = None
    engines: tuple[Engine, ...] = ()
    quantization: Quantization | None = None
    precision_search: PrecisionSearch | None = None

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, content: Any) -> Any:
        """Bring a manifest of schema 1 or 2, which had one input, into the present form; its version stays what it was."""
        graph = content.get("graph") if isinstance(content, dict) else None
        if not isinstance(graph, dict) or content.get("schema_version") not in (1, 2) or "input" not in graph:
            return content
        rest = {key: value for key, value in graph.items() if key != "input"}
        return content | {"graph": rest | {"inputs": [graph["input"]]}}
