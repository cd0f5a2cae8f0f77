"""Count the bytes that a graph's weights, inputs, outputs and intermediate results take, from the ONNX file alone.

A newcomer's trap: a weight may be stored in fp32 and quantised or cast by nodes of the graph. An engine folds those nodes, so
such a weight counts in the type it becomes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import onnx

__all__ = ["GraphBytes", "count_graph_bytes"]

# Their results are their inputs under another shape.
_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
_FOLDED = frozenset({"QuantizeLinear", "Cast"})


@dataclass(frozen=True)
class GraphBytes:
    """Bytes at a batch size. ``activation_bytes`` is None where the shape of some results (``unsized``) isn't known."""

    weight_bytes: int
    io_bytes: int
    activation_bytes: int | None
    unsized: tuple[str, ...]


def count_graph_bytes(path: Path, batch: int) -> GraphBytes:
    """Count the bytes of a graph whose dynamic batch is set to ``batch``; files with external weights aren't read.

    Raises:
        ShallowvitError: no file there, it is no ONNX graph, or an input or output has a dimension that isn't known.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ShallowvitError(f"estimate: no graph at {path}; check the path")
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as err:
        raise ShallowvitError(f"estimate: {path} is not an ONNX file ({err}); export the model again") from err
    graph = model.graph
    if not graph.output:
        raise ShallowvitError(f"estimate: {path} holds no graph with outputs; export the model again")
    _set_batch(graph, batch)
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except onnx.shape_inference.InferenceError as err:
        raise ShallowvitError(f"estimate: no shapes can be inferred in {path}: {err}; export the model again") from err
    io_bytes = 0
    for value in (*_inputs(graph), *graph.output):
        size = _value_bytes(value)
        if size is None:
            raise ShallowvitError(
                f"estimate: {value.name!r} of {path} has a dimension other than the batch that isn't fixed; fix it to estimate"
            )
        io_bytes += size
    activation_bytes, unsized = _activation_bytes(graph)
    return GraphBytes(_weight_bytes(graph), io_bytes, None if unsized else activation_bytes, unsized)


def _inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that aren't weights: before IR version 4 weights were listed as inputs too."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _set_batch(graph: onnx.GraphProto, batch: int) -> None:
    """Put ``batch`` in place of the first dimension of each input, and of its name wherever it stands; in place."""
    names = set()
    for value in _inputs(graph):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            names.add(dims[0].dim_param)
            dims[0].dim_value = batch
    for value in (*graph.output, *graph.value_info):
        for place, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_param") and (dim.dim_param in names or (place == 0 and value in graph.output)):
                dim.dim_value = batch


def _value_bytes(value: onnx.ValueInfoProto) -> int | None:
    kind = value.type.tensor_type
    dims = kind.shape.dim
    if not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in dims):
        return None
    return _size(kind.elem_type, [dim.dim_value for dim in dims])


def _size(elem_type: int, dims: Sequence[int]) -> int:
    """Bytes of a tensor, values of less than a byte packed."""
    return -(-prod(dims) * _bits(elem_type) // 8)


def _bits(elem_type: int) -> int:
    import onnx

    name = onnx.TensorProto.DataType.Name(elem_type)
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return 4
    if name in ("INT2", "UINT2"):
        return 2
    return int(onnx.helper.tensor_dtype_to_np_dtype(elem_type).itemsize) * 8


def _weight_bytes(graph: onnx.GraphProto) -> int:
    """Bytes of the weights that nodes take, each in the type that it is computed with."""
    takers: dict[str, list[onnx.NodeProto]] = {}
    for node in _all_nodes(graph):
        for name in node.input:
            takers.setdefault(name, []).append(node)
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    total = 0
    for tensor in graph.initializer:
        nodes = takers.get(tensor.name, [])
        kind = tensor.data_type
        if nodes and all(node.op_type in _FOLDED and node.input[0] == tensor.name for node in nodes):
            kind = _result_type(nodes[0], types)
        total += _size(kind, tensor.dims) if nodes else 0
    return total


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the bodies of its If and Loop nodes, which take values of the graph around them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_nodes(attribute.g)


def _result_type(node: onnx.NodeProto, types: dict[str, int]) -> int:
    """The type that a Cast or QuantizeLinear gives; without a zero point the latter gives uint8."""
    own = {attribute.name: attribute.i for attribute in node.attribute}
    if given := own.get("to") or own.get("output_dtype"):
        return int(given)
    uint8 = 2  # of TensorProto.DataType
    return types.get(node.input[2], uint8) if len(node.input) > 2 else uint8


def _activation_bytes(graph: onnx.GraphProto) -> tuple[int, tuple[str, ...]]:
    """Bytes of what each node computes from the inputs, and the names of results whose shape isn't known.

    Results that come of weights alone are folded away by any runtime; a graph's outputs are counted with its inputs.
    """
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    outputs = {value.name for value in graph.output}
    moving = {value.name for value in _inputs(graph)}
    total, unsized = 0, []
    for name in _results(graph, moving):
        if name in outputs:
            continue
        size = _value_bytes(known[name]) if name in known else None
        if size is None:
            unsized.append(name)
        else:
            total += size
    return total, tuple(unsized)


def _results(graph: onnx.GraphProto, moving: set[str]) -> Iterator[str]:
    """Yield what depends on the inputs (``moving``, which grows) and is written to memory."""
    for node in graph.node:
        if not moving.intersection(node.input):
            continue
        if node.op_type == "Shape":
            continue  # constant, once the batch is set
        results = [name for name in node.output if name]
        moving.update(results)
        if node.op_type not in _VIEWS:
            yield from results
