"""The configuration of the stage *export* and the records it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from ..engines.records import AttentionChoice
from ..errors import ShallowvitError

if TYPE_CHECKING:
    from pathlib import Path

    from .quantize_records import QuantizationCheck, QuantizeConfig, QuantizedGraph

__all__ = [
    "FLOATS",
    "OPSETS",
    "ExportConfig",
    "ExportStep",
    "ExportedOnnx",
    "GraphInput",
    "GraphOutput",
    "OutputParity",
    "Parity",
    "Precision",
]

OPSETS = (23, 18)  # one Attention node a block; the MatMul/Softmax pattern, for TensorRT before 10.14


class Precision(StrEnum):
    """The type the graph computes in. Inputs and outputs stay fp32 (or uint8) either way.

    int8, fp8 and int4 are explicit QuantizeLinear/DequantizeLinear pairs in a graph of a float type; int4 is of weights only.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"
    INT4 = "int4"


FLOATS = (Precision.FP32, Precision.FP16, Precision.BF16)


@dataclass(frozen=True)
class ExportConfig:
    """How to export.

    Args:
        precision: ``fp32``, ``fp16`` or ``bf16``; LayerNorm is computed in fp32 in each.
        opset: 23 (one ``Attention`` node a block) or 18 (MatMul and Softmax).
        float_precision: Of int8, fp8 and int4: what the rest of the graph computes in, by default fp16.
        attention_precision: Of an fp32 graph: ``fp16`` or ``bf16`` for its attentions alone, so that they fuse.
        keep_precise: Blocks by module path or nodes by name that stay in fp32 in an fp16 or bf16 graph, and float in a
            quantised one.
        quantize: How to quantise; needed for int8, fp8 and int4.
        max_accuracy_drop: Of a quantised graph: the share of top-1 it may lose against fp32.
        embed_preprocessing: Take uint8 frames (NTHWC or NHWC) and resize, crop and normalise inside the graph.
        frame_size: (height, width) of those frames where it isn't the model's own; then they are resized and cropped in the
            graph.
        outputs: What the graph gives, in this order, by the names that ``wanted_outputs`` knows (``logits``, ``features``, an
            entry of the model's output, a module path, ``PATH:keys``); by default the logits, else the first tensor.
        dynamic_size: Least and greatest height and width that the graph takes, each by itself, in steps of the patch.
        dynamic_frames: Least and greatest number of frames, likewise.
        attention: ``plugin`` makes each attention that is understood one node of our own with a function body, ``auto`` each
            that TensorRT doesn't fuse; engines compute such a node by a kernel of ours, other runtimes by its body.
    """

    precision: Precision = Precision.FP32
    opset: int = 23
    float_precision: Precision | None = None
    attention_precision: Precision | None = None
    keep_precise: tuple[str, ...] = ()
    quantize: QuantizeConfig | None = None
    max_accuracy_drop: float = 0.01
    embed_preprocessing: bool = False
    frame_size: tuple[int, int] | None = None
    outputs: tuple[str, ...] = ()
    dynamic_size: tuple[int, int] | None = None
    dynamic_frames: tuple[int, int] | None = None
    attention: AttentionChoice = AttentionChoice.NATIVE

    def __post_init__(self) -> None:
        if self.precision not in list(Precision):
            raise ShallowvitError(f"export: unknown precision {str(self.precision)!r}; choose from {', '.join(Precision)}")
        object.__setattr__(self, "precision", Precision(self.precision))  # the plain text "fp16" is as good
        if self.opset not in OPSETS:
            raise ShallowvitError(f"export: opset {self.opset} is not offered; choose from {', '.join(map(str, OPSETS))}")
        self._check_mixed()
        self._check_dynamic()
        if self.frame_size and not self.embed_preprocessing:
            raise ShallowvitError("export: --frame-size needs --embed-preprocessing, which puts the resize into the graph")

    def _check_dynamic(self) -> None:
        for option, bounds in (("--dynamic-size", self.dynamic_size), ("--dynamic-frames", self.dynamic_frames)):
            if bounds is None:
                continue
            if not 0 < bounds[0] < bounds[1]:
                raise ShallowvitError(
                    f"export: {option} {bounds[0]}-{bounds[1]} is no range; give the least and a greater size above 0"
                )
            if self.embed_preprocessing:
                raise ShallowvitError(
                    f"export: {option} and --embed-preprocessing exclude each other: frames of one size stand before the "
                    "model; leave one out"
                )

    def _check_mixed(self) -> None:
        """Settle what is computed in which type; a combination that means nothing is refused."""
        quantised = self.precision not in FLOATS
        if self.float_precision is not None and not (quantised and self.float_precision in FLOATS):
            raise ShallowvitError(
                f"export: --float-precision {self.float_precision} is of what int8, fp8 and int4 leave; choose from "
                f"{', '.join(FLOATS)} beside --precision int8, fp8 or int4"
            )
        if quantised and (self.quantize is None or self.quantize.precision is not self.precision):
            raise ShallowvitError(f"export: precision {self.precision} needs a QuantizeConfig for it in ExportConfig.quantize")
        if not 0 <= self.max_accuracy_drop <= 1:
            raise ShallowvitError(
                f"export: --max-accuracy-drop {self.max_accuracy_drop:g} is no share of top-1; 0.01 is one point"
            )
        if self.attention_precision is None:
            return
        if self.attention_precision not in (Precision.FP16, Precision.BF16):
            raise ShallowvitError(f"export: --attention-precision {self.attention_precision} isn't fp16 or bf16")
        object.__setattr__(self, "attention_precision", Precision(self.attention_precision))
        if self.base is not Precision.FP32 and self.base is not self.attention_precision:
            raise ShallowvitError(
                f"export: --attention-precision {self.attention_precision} is of graphs in fp32, and this one's attention "
                f"computes in {self.base} already; leave it out"
            )

    @property
    def base(self) -> Precision:
        """The float type of the graph: what isn't quantised computes in it."""
        return self.precision if self.precision in FLOATS else self.float_precision or Precision.FP16


@dataclass(frozen=True)
class GraphInput:
    """An input of the graph.

    Args:
        name: As in the graph and, but for ``frames``, in the model's ``forward``.
        dtype: numpy's name.
        layout: Its letters, with N for the batch.
        shape: Without the batch; a size that isn't fixed is a name of ``ranges``.
        ranges: Least and greatest value and step of each such size.
        batch: Whether the batch stands in front of ``shape``; what has none is the same for every item.
        native: The model's own shape, where a size isn't fixed.
    """

    name: str
    dtype: str
    layout: str
    shape: tuple[int | str, ...]
    ranges: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    batch: bool = True
    native: tuple[int, ...] | None = None

    @property
    def least_shape(self) -> tuple[int, ...]:
        """The shape without the batch, each size that isn't fixed at its least."""
        return tuple(size if isinstance(size, int) else self.ranges[size][0] for size in self.shape)


@dataclass(frozen=True)
class GraphOutput:
    """An output of the graph; ``source`` is what it is of, as ``logits`` or ``blocks.5``."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    source: str = ""


@dataclass(frozen=True)
class ExportStep:
    """One rung of the export ladder: what was tried, what came of it, and what it fixed in place or why it failed."""

    name: str
    outcome: Literal["used", "failed", "not needed"]
    detail: str = ""


@dataclass(frozen=True)
class OutputParity:
    """One output against torch; integers and booleans are equal, with errors of 0."""

    name: str
    max_abs_error: float
    relative_error: float


@dataclass(frozen=True)
class Parity:
    """The graph's outputs in onnxruntime against torch in fp32 on the same inputs.

    ``relative_error`` is the largest absolute difference over the largest absolute output of torch. With several outputs, the
    errors are those of the worst, and ``top1_agreement`` is of the first.
    """

    precision: str
    inputs: int
    inputs_from: str
    computed_by: str
    max_abs_error: float
    relative_error: float
    tolerance: float
    top1_agreement: float | None
    outputs: tuple[OutputParity, ...] = ()


@dataclass(frozen=True)
class ExportedOnnx:
    """An ONNX graph on disk that passed the checker and parity.

    ``attention_nodes`` counts fused nodes (opset 23) or softmaxes, and nodes of our own; ``attention_rewritten`` says how many
    of the first were MatMul and Softmax in the traced model, ``attention_left`` which attention stayed as it was and why,
    ``attention_plugins`` the nodes of our own with their operators. ``quantized`` and ``check`` are of int8, fp8 and int4. The
    first input is the model's main one; ``steps`` is how the trace came about.
    """

    path: Path
    opset: int
    precision: str
    inputs: tuple[GraphInput, ...]
    outputs: tuple[GraphOutput, ...]
    attention_nodes: int
    blocks: int
    parity: Parity
    attention_rewritten: int = 0
    attention_left: tuple[tuple[str, str], ...] = ()
    attention_plugins: tuple[tuple[str, str], ...] = ()
    quantized: QuantizedGraph | None = None
    check: QuantizationCheck | None = None
    steps: tuple[ExportStep, ...] = ()
    batch: int | Literal["dynamic"] = "dynamic"

    @property
    def input(self) -> GraphInput:
        """The main input."""
        return self.inputs[0]

    @property
    def output(self) -> GraphOutput:
        """The first output."""
        return self.outputs[0]
