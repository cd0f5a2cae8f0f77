"""From a torch model to an ONNX file whose bytes depend on nothing but the model and the settings."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError
from .ladder import export_program

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import onnx_ir
    from torch import nn

    from .records import ExportConfig, GraphInput

__all__ = ["EXTERNAL_DATA_ABOVE_BYTES", "count_attention", "output_shape", "trace", "write_graph"]

EXTERNAL_DATA_ABOVE_BYTES = 2_000_000_000  # a protobuf message can't pass 2 GiB
_FOLDED_NUMBERS = 2**23  # a bias of 577 x 577 tokens and 16 heads is 5.3 million
_KEPT_METADATA = ("namespace", "pkg.torch.onnx.name_scopes")  # which block a node is of; the rest holds paths of this machine


def trace(module: nn.Module, graph_input: GraphInput, output_name: str, config: ExportConfig) -> onnx_ir.Model:
    """Trace the module with a dynamic batch into an ONNX model in memory.

    Raises:
        ShallowvitError: torch can't trace or translate it; the sentence names the model's line.
    """
    dtype = torch.uint8 if graph_input.dtype == "uint8" else torch.float32
    example = torch.zeros(2, *graph_input.shape, dtype=dtype)  # a batch of 1 would be taken for a constant
    with _quiet():
        model, _steps = export_program(
            module,
            (example,),
            ({0: torch.export.Dim("batch")},),
            opset=config.opset,
            input_names=[graph_input.name],
            output_names=[output_name],
        )
    _fold_constants(model)
    for node in model.graph.all_nodes():
        for key in [key for key in node.metadata_props if key not in _KEPT_METADATA]:
            del node.metadata_props[key]
    return model


def _fold_constants(model: onnx_ir.Model) -> None:
    """Compute what depends on weights alone, in place; the exporter itself stops at 8,192 numbers.

    A relative position bias that is left as Gather, Reshape and Transpose keeps TensorRT from fusing its attention: of a Swin-T
    in fp16 it fused 6 of 12, and 12 with the biases computed.
    """
    from onnxscript.optimizer import fold_constants

    fold_constants(model, input_size_limit=_FOLDED_NUMBERS, output_size_limit=_FOLDED_NUMBERS)


def write_graph(model: onnx_ir.Model, path: Path, metadata: Mapping[str, str]) -> None:
    """Save the graph as ``path``, its weights beside it in ``path + ".data"`` when together they pass 2 GB, and check it.

    Raises:
        ShallowvitError: the onnx checker refuses the graph.
    """
    import onnx
    import onnx_ir

    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    external = f"{path.name}.data" if size > EXTERNAL_DATA_ABOVE_BYTES else None
    onnx_ir.save(model, path, external_data=external)
    try:
        onnx.checker.check_model(str(path), full_check=False)
    except onnx.checker.ValidationError as err:
        raise ShallowvitError(f"export: the onnx checker refuses the exported graph: {err}") from err


def count_attention(model: onnx_ir.Model, opset: int) -> int:
    """Count the attentions: ``Attention`` nodes from opset 23 on, else the softmaxes of the pattern."""
    wanted = "Attention" if opset >= 23 else "Softmax"
    return sum(node.op_type == wanted for node in model.graph.all_nodes())


def output_shape(model: onnx_ir.Model) -> tuple[int | str, ...]:
    """Return the shape of the first output, its dynamic dimensions by name."""
    shape = model.graph.outputs[0].shape
    assert shape is not None
    return tuple(dim if isinstance(dim, int) else str(dim) for dim in shape)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes to itself: what fails is raised."""
    loggers: list[Any] = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
