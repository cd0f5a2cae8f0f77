"""From a torch model to an ONNX file whose bytes depend on nothing but the model and the settings."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from shallowvit_kernels.records import DOMAIN

from ..errors import ShallowvitError
from .ladder import export_program

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import onnx_ir
    from torch import nn

    from .records import ExportConfig, ExportStep, GraphInput

__all__ = ["EXTERNAL_DATA_ABOVE_BYTES", "batch_of", "count_attention", "output_facts", "trace", "write_graph"]

EXTERNAL_DATA_ABOVE_BYTES = 2_000_000_000  # a protobuf message can't pass 2 GiB
_FOLDED_NUMBERS = 2**23  # a bias of 577 x 577 tokens and 16 heads is 5.3 million
_SAMPLES = 16  # pairs
_KEPT_METADATA = ("namespace", "pkg.torch.onnx.name_scopes")  # which block a node is of; the rest holds paths of this machine


def trace(
    module: nn.Module,
    graph_inputs: Sequence[GraphInput],
    output_names: Sequence[str],
    config: ExportConfig,
    items: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> tuple[onnx_ir.Model, tuple[ExportStep, ...]]:
    """Trace the module into an ONNX model in memory, the batch and named sizes dynamic, and say how that came about.

    Args:
        module: Takes the inputs by position.
        graph_inputs: The main one first.
        output_names: One an output.
        config: Its opset.
        items: Four items or more of every input, by name, real ones: what the values of inputs beside the main one may be, and
            what the main one may be where its values decide what is traced.

    Raises:
        ShallowvitError: torch can't trace or translate it; the sentence names the model's line.
    """
    batch = torch.export.Dim("batch")
    named = {name: _dim(name, *ranges) for one in graph_inputs for name, ranges in one.ranges.items()}
    main, *others = graph_inputs
    example = (_zeros(main), *(_zeros(one) if items is None else _taken(one, items, 0) for one in others))
    with _quiet():
        model, steps = export_program(
            module,
            example,
            tuple(_dynamic(one, batch, named) for one in graph_inputs),
            opset=config.opset,
            input_names=[one.name for one in graph_inputs],
            output_names=list(output_names),
            samples=_samples(graph_inputs, items) if items else (),
        )
        _fold_constants(model)
    for node in model.graph.all_nodes():
        for key in [key for key in node.metadata_props if key not in _KEPT_METADATA]:
            del node.metadata_props[key]
    return model, steps


def _dim(name: str, low: int, high: int, step: int) -> Any:
    """A size from ``low`` to ``high`` by ``step``."""
    if step == 1:
        return torch.export.Dim(name, min=low, max=high)
    return step * torch.export.Dim(f"{name}_steps", min=low // step, max=high // step)


def _dynamic(one: GraphInput, batch: Any, named: Mapping[str, Any]) -> dict[int, Any]:
    before = 1 if one.batch else 0
    found = {place + before: named[size] for place, size in enumerate(one.shape) if isinstance(size, str)}
    return {0: batch, **found} if one.batch else found


def _zeros(one: GraphInput) -> torch.Tensor:
    """Two items, since a batch of 1 would be taken for a constant; likewise no square where its sides are to differ."""
    steps = {name: number for number, name in enumerate(one.ranges, start=1)}
    sizes = tuple(size if isinstance(size, int) else _between(one.ranges[size], steps[size]) for size in one.shape)
    shape = (2, *sizes) if one.batch else sizes
    return torch.zeros(shape, dtype=getattr(torch, one.dtype))


def _between(size: tuple[int, int, int], steps: int) -> int:
    low, high, step = size
    return min(low + steps * step, high)


def _samples(graph_inputs: Sequence[GraphInput], items: Mapping[str, np.ndarray[Any, Any]]) -> list[tuple[torch.Tensor, ...]]:
    """Pairs of real items: the more there are, the longer the longest of their loops."""
    count = len(items[graph_inputs[0].name])
    starts = range(0, min(count - 1, 2 * _SAMPLES), 2)
    return [tuple(_taken(one, items, first) for one in graph_inputs) for first in starts]


def _taken(one: GraphInput, items: Mapping[str, np.ndarray[Any, Any]], first: int) -> torch.Tensor:
    return torch.from_numpy(np.array(items[one.name][first : first + 2] if one.batch else items[one.name]))


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
    """Count the attentions: ``Attention`` nodes from opset 23 on, else the softmaxes of the pattern, and nodes of our own."""
    wanted = "Attention" if opset >= 23 else "Softmax"
    return sum(node.op_type == wanted or node.domain == DOMAIN for node in model.graph.all_nodes())


def output_facts(model: onnx_ir.Model) -> tuple[tuple[str, tuple[int | str, ...]], ...]:
    """Return numpy's type and the shape of each output, dynamic sizes by name."""
    found = []
    for value in model.graph.outputs:
        assert value.shape is not None and value.dtype is not None
        dims = tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)
        found.append((str(value.dtype.numpy()), dims))
    return tuple(found)


def batch_of(model: onnx_ir.Model) -> int | Literal["dynamic"]:
    """Return the batch of the main input where it was fixed."""
    shape = model.graph.inputs[0].shape
    first = shape[0] if shape is not None else None
    return first if isinstance(first, int) else "dynamic"


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
