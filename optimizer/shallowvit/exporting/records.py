"""The configuration of the stage *export* and the records it returns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FLOATS", "OPSETS", "ExportConfig", "ExportedOnnx", "GraphInput", "GraphOutput", "Parity", "Precision"]

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
        embed_preprocessing: Take uint8 frames (NTHWC or NHWC) and resize, crop and normalise inside the graph.
        frame_size: (height, width) of those frames where it isn't the model's own; then they are resized and cropped in the
        graph.
    """

    precision: Precision = Precision.FP32
    opset: int = 23
    embed_preprocessing: bool = False
    frame_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.precision not in list(Precision):
            raise ShallowvitError(f"export: unknown precision {str(self.precision)!r}; choose from {', '.join(Precision)}")
        object.__setattr__(self, "precision", Precision(self.precision))  # the plain text "fp16" is as good
        if self.opset not in OPSETS:
            raise ShallowvitError(f"export: opset {self.opset} is not offered; choose from {', '.join(map(str, OPSETS))}")
        if self.frame_size and not self.embed_preprocessing:
            raise ShallowvitError("export: --frame-size needs --embed-preprocessing, which puts the resize into the graph")


@dataclass(frozen=True)
class GraphInput:
    """The graph's one input; ``shape`` without the batch, which is dynamic and stands first."""

    name: str
    dtype: str
    layout: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GraphOutput:
    """The graph's one output; ``shape`` starts with ``"batch"``."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Parity:
    """The graph's outputs in onnxruntime against torch in fp32 on the same inputs.

    ``relative_error`` is the largest absolute difference over the largest absolute output of torch.
    """

    precision: str
    inputs: int
    inputs_from: str
    computed_by: str
    max_abs_error: float
    relative_error: float
    tolerance: float
    top1_agreement: float | None


@dataclass(frozen=True)
class ExportedOnnx:
    """An ONNX graph on disk that passed the checker and parity. ``attention_nodes`` counts fused nodes (opset 23) or
    softmaxes.
    """

    path: Path
    opset: int
    precision: str
    input: GraphInput
    output: GraphOutput
    attention_nodes: int
    blocks: int
    parity: Parity
