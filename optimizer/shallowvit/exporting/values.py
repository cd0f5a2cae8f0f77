"""Small questions about ONNX values, and an emitter of nodes: what the rewrites of attention have in common.

A newcomer's trap: ``onnx_ir`` infers nothing for a node it is handed, so type and shape of each new value are set here; a value
without a type would be skipped by the emulation of bf16 and by the type checks of the next rewrite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    import onnx_ir

    Dim = int | str | None

__all__ = ["FLOAT_NAMES", "Emitter", "constant_of", "dims_of", "finite_limit", "fixed_dims", "is_float", "scalar_of"]

FLOAT_NAMES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "DOUBLE": "fp64"}
# Half of the largest finite numbers: a score of the other sign added to a mask at the very end of the range becomes infinite,
# and a row of nothing but infinities gives NaN. The probability behind either is exactly zero.
_LIMITS = {"FLOAT16": 32752.0, "BFLOAT16": 1.6e38, "FLOAT": 1.7e38, "DOUBLE": 8e307}


class Emitter:
    """Makes nodes in order, each with the scope metadata of what it stands for, and keeps them until they are inserted."""

    def __init__(self, graph: onnx_ir.Graph, metadata: Mapping[str, str]) -> None:
        self.graph = graph
        self.metadata = metadata
        self.nodes: list[onnx_ir.Node] = []

    def op(
        self,
        kind: str,
        inputs: Sequence[onnx_ir.Value],
        attributes: Mapping[str, Any] | None = None,
        *,
        dims: Sequence[Dim] | onnx_ir.Shape | None = None,
        dtype: onnx_ir.DataType | None = None,
        name: str | None = None,
    ) -> onnx_ir.Value:
        """Make a node with one output of the given shape and type (by default those of the first input)."""
        import onnx_ir

        node = onnx_ir.node(kind, inputs, attributes or {}, name=name or None, metadata_props=dict(self.metadata))
        output = node.outputs[0]
        own = dtype or inputs[0].dtype
        if own is not None:
            output.dtype = own
        shape = inputs[0].shape if dims is None else dims
        output.shape = None if shape is None else onnx_ir.Shape(list(shape))
        self.nodes.append(node)
        return output

    def cast(self, value: onnx_ir.Value, dtype: onnx_ir.DataType) -> onnx_ir.Value:
        """Cast, where the type isn't right yet."""
        return value if value.dtype == dtype else self.op("Cast", [value], {"to": int(dtype)}, dtype=dtype)

    def constant(self, array: npt.ArrayLike, like: onnx_ir.Value | None = None) -> onnx_ir.Value:
        """Add an initializer: whole numbers as int64, else an array, in the type of ``like``."""
        import numpy as np
        import onnx_ir

        numbers = np.asarray(array, dtype=None if like is None or like.dtype is None else like.dtype.numpy())
        taken = self.graph.initializers
        count = len(taken)
        while f"shallowvit_{count}" in taken:
            count += 1
        tensor = onnx_ir.Tensor(numbers, name=f"shallowvit_{count}")
        shape = onnx_ir.Shape(numbers.shape)
        value = onnx_ir.Value(name=tensor.name, shape=shape, type=onnx_ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def retype_output(self, node: onnx_ir.Node, output: onnx_ir.Value, dtype: onnx_ir.DataType) -> onnx_ir.Value:
        """Let the node give ``output`` in ``dtype``; those behind it get a cast to the type it had, which is returned."""
        former, name = output.dtype, output.name
        assert former is not None
        output.dtype = dtype
        made, self.nodes = self.nodes, []
        result = self.op("Cast", [output], {"to": int(former)}, dtype=former)
        cast = self.nodes[0]
        self.nodes = made
        self.graph.insert_after(node, [cast])
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        cast.replace_input_with(0, output)
        if result.is_graph_output():  # its name is the contract, so it goes to the cast
            output.name, result.name = f"{name}_{dtype.name.lower()}", name
        return result

    def insert_before(self, node: onnx_ir.Node) -> None:
        """Put the nodes made so far in front of ``node``."""
        self.graph.insert_before(node, self.nodes)
        self.nodes = []

    def insert_behind(self, value: onnx_ir.Value) -> None:
        """Put the nodes made so far right behind where ``value`` comes from."""
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, self.nodes)
        elif len(self.graph):
            self.graph.insert_before(self.graph[0], self.nodes)
        self.nodes = []


def dims_of(value: onnx_ir.Value | None) -> tuple[Dim, ...]:
    """Return the shape: numbers, names of dynamic sizes, None for what isn't known; empty without a shape."""
    if value is None or value.shape is None:
        return ()
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def fixed_dims(dims: Sequence[Dim]) -> list[int] | None:
    """Return the sizes where none of them is dynamic."""
    fixed = [dim for dim in dims if isinstance(dim, int)]
    return fixed if len(fixed) == len(dims) else None


def constant_of(value: onnx_ir.Value | None) -> np.ndarray[Any, Any] | None:
    """Return the numbers of an initializer or ``Constant``; None for what is computed or fed."""
    from onnx_ir.convenience import get_const_tensor

    if value is None or value.is_graph_input():
        return None
    tensor = get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar_of(value: onnx_ir.Value | None) -> float | None:
    """Return a constant's one number, else None."""
    numbers = constant_of(value)
    return float(numbers.reshape(())) if numbers is not None and numbers.size == 1 else None


def is_float(value: onnx_ir.Value | None) -> bool:
    """Whether the value is of a float type that attention is computed in."""
    return value is not None and value.dtype is not None and value.dtype.name in FLOAT_NAMES


def finite_limit(dtype: onnx_ir.DataType) -> float:
    """Return how far a mask may go in a type without turning scores into infinities."""
    return _LIMITS[dtype.name]
