"""Work out what depends on constants alone, also where it is repeated for every item of a batch of unknown size.

Models expand positions over the batch before they project them, and a graph then holds [batch, heads, N, N] of the same
numbers. A newcomer's trap: only the first axis may be of unknown size, and every step must leave it the first, so each operator
says when it does; what isn't listed isn't worked out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..exporting.operands import sizes_in
from ..exporting.values import constant_of, dims_of, fixed_dims

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir

    from ..exporting.values import Dim

__all__ = ["folded"]

Array = np.ndarray[Any, Any]
_DEEPEST = 64


@dataclass(frozen=True)
class _Numbers:
    """``repeated``: the first axis stands for the batch, and holds one item."""

    array: Array
    repeated: bool = False


class _NotConstantError(Exception):
    """It depends on an input, or on a step that isn't listed."""


def folded(value: onnx_ir.Value | None, *, collapse: bool = True) -> Array | None:
    """Return a value's numbers, those of one item where all are the same; None where it depends on an input.

    Args:
        value: Of the graph.
        collapse: Axes along which all numbers are the same get the size 1.
    """
    if value is None:
        return None
    try:
        array = _of(value, {}, _DEEPEST).array
    except _NotConstantError:
        return None
    return _collapsed(array) if collapse else array


def _collapsed(array: Array) -> Array:
    for axis, size in enumerate(array.shape):
        first = array.take([0], axis) if size > 1 else array
        if size > 1 and bool((array == first).all()):
            array = first
    return array


def _of(value: onnx_ir.Value, known: dict[int, _Numbers], depth: int) -> _Numbers:
    if id(value) in known:
        return known[id(value)]
    numbers = constant_of(value)
    if numbers is not None:
        return _Numbers(numbers)
    node = value.producer()
    step = _STEPS.get(node.op_type) if node is not None and node.domain in ("", "ai.onnx") else None
    if node is None or step is None or depth == 0:
        raise _NotConstantError
    if node.op_type in _OWN_SHAPE:  # the sizes are the output's own
        inputs = [_of(_input(node, 0), known, depth - 1)]
    else:
        inputs = [_of(_input(node, at), known, depth - 1) for at in range(len(node.inputs))]
    result = step(node, inputs)
    known[id(value)] = result
    return result


def _input(node: onnx_ir.Node, place: int) -> onnx_ir.Value:
    value = node.inputs[place]
    if value is None:
        raise _NotConstantError
    return value


def _elementwise(function: Callable[..., Array]) -> Callable[[onnx_ir.Node, list[_Numbers]], _Numbers]:
    def step(node: onnx_ir.Node, inputs: list[_Numbers]) -> _Numbers:
        rank = max(one.array.ndim for one in inputs)
        if any(one.repeated and one.array.ndim < rank for one in inputs):
            raise _NotConstantError  # its batch would be an inner axis of the result
        repeated = any(one.repeated for one in inputs)
        if repeated and any(one.array.ndim == rank and one.array.shape[0] != 1 for one in inputs):
            raise _NotConstantError
        result = np.asarray(function(*(one.array for one in inputs)))
        kept = result if result.dtype.kind != "f" else result.astype(inputs[-1].array.dtype)
        return _Numbers(kept, repeated)

    return step


def _cast(node: onnx_ir.Node, inputs: list[_Numbers]) -> _Numbers:
    dtype = node.outputs[0].dtype
    if dtype is None:
        raise _NotConstantError
    return _Numbers(inputs[0].array.astype(dtype.numpy()), inputs[0].repeated)


def _expand(node: onnx_ir.Node, inputs: list[_Numbers]) -> _Numbers:
    array, dims = inputs[0].array, _expanded_dims(node, inputs[0].array)
    if not dims or fixed_dims(dims[1:]) is None or array.ndim > len(dims):
        raise _NotConstantError
    if isinstance(dims[0], int):
        return _Numbers(np.broadcast_to(array, fixed_dims(dims) or ()), inputs[0].repeated)
    array = array.reshape((1,) * (len(dims) - array.ndim) + array.shape)
    if array.shape[0] != 1:
        raise _NotConstantError
    return _Numbers(np.broadcast_to(array, (1, *(fixed_dims(dims[1:]) or ()))), repeated=True)


def _expanded_dims(node: onnx_ir.Node, array: Array) -> tuple[Dim, ...]:
    """The output's shape, of which inference knows less where an axis of 1 may stay 1."""
    sizes = sizes_in(node.inputs[1])
    if sizes is None or len(sizes) < array.ndim:
        return dims_of(node.outputs[0])
    before = (1,) * (len(sizes) - array.ndim) + array.shape
    return tuple(one if size == 1 else size for one, size in zip(before, sizes, strict=True))


def _reshape(node: onnx_ir.Node, inputs: list[_Numbers]) -> _Numbers:
    one, dims = inputs[0], dims_of(node.outputs[0])
    if not one.repeated:
        fixed = fixed_dims(dims)
        if fixed is None or not dims:
            raise _NotConstantError
        return _Numbers(one.array.reshape(fixed))
    inner, before = fixed_dims(dims[1:]), dims_of(node.inputs[0])
    if not dims or inner is None or dims[0] is None or not before or before[0] != dims[0]:
        raise _NotConstantError
    return _Numbers(one.array.reshape([1, *inner]), repeated=True)


def _transpose(node: onnx_ir.Node, inputs: list[_Numbers]) -> _Numbers:
    one = inputs[0]
    order = tuple(node.attributes.get_ints("perm", ())) or tuple(reversed(range(one.array.ndim)))
    if one.repeated and order[0] != 0:
        raise _NotConstantError
    return _Numbers(one.array.transpose(order), one.repeated)


def _axes(node: onnx_ir.Node, inputs: list[_Numbers]) -> tuple[int, ...]:
    if len(inputs) > 1:
        return tuple(int(axis) for axis in inputs[1].array.reshape(-1))
    return tuple(node.attributes.get_ints("axes", ()))


def _unsqueeze(node: onnx_ir.Node, inputs: list[_Numbers]) -> _Numbers:
    one, axes = inputs[0], _axes(node, inputs)
    rank = one.array.ndim + len(axes)
    if not axes or (one.repeated and any(axis % rank == 0 for axis in axes)):
        raise _NotConstantError
    return _Numbers(np.expand_dims(one.array, axes), one.repeated)


def _squeeze(node: onnx_ir.Node, inputs: list[_Numbers]) -> _Numbers:
    one, axes = inputs[0], _axes(node, inputs)
    if not axes or (one.repeated and any(axis % one.array.ndim == 0 for axis in axes)):
        raise _NotConstantError
    return _Numbers(np.squeeze(one.array, axes), one.repeated)


def _matmul(node: onnx_ir.Node, inputs: list[_Numbers]) -> _Numbers:
    left, right = inputs
    fits = left.array.ndim > 1 and (right.array.ndim == 2 and not right.repeated)
    if not fits:
        raise _NotConstantError
    dtype = left.array.dtype
    return _Numbers((left.array.astype(np.float32) @ right.array.astype(np.float32)).astype(dtype), left.repeated)


def _softmax(node: onnx_ir.Node, inputs: list[_Numbers]) -> _Numbers:
    one = inputs[0]
    axis = node.attributes.get_int("axis", -1) % one.array.ndim
    if one.repeated and axis == 0:
        raise _NotConstantError
    wide = one.array.astype(np.float32)
    powers = np.exp(wide - wide.max(axis, keepdims=True))
    return _Numbers((powers / powers.sum(axis, keepdims=True)).astype(one.array.dtype), one.repeated)


_OWN_SHAPE = ("Expand", "Reshape")
_STEPS: dict[str, Callable[[onnx_ir.Node, list[_Numbers]], _Numbers]] = {
    "Identity": lambda _node, inputs: inputs[0],
    "Cast": _cast,
    "Expand": _expand,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "MatMul": _matmul,
    "Softmax": _softmax,
    "Add": _elementwise(np.add),
    "Sub": _elementwise(np.subtract),
    "Mul": _elementwise(np.multiply),
    "Div": _elementwise(
        lambda one, other: (np.trunc(one / other) if one.dtype.kind in "iu" else one / other).astype(one.dtype)
    ),
    "Pow": _elementwise(lambda one, other: np.power(one, other.astype(one.dtype)).astype(one.dtype)),
    "Neg": _elementwise(np.negative),
    "Exp": _elementwise(np.exp),
    "Sqrt": _elementwise(np.sqrt),
    "Reciprocal": _elementwise(np.reciprocal),
    "Tanh": _elementwise(np.tanh),
    "Sigmoid": _elementwise(lambda one: (1 / (1 + np.exp(-one.astype(np.float32)))).astype(one.dtype)),
    "Relu": _elementwise(lambda one: np.maximum(one, 0)),
    "Not": _elementwise(np.logical_not),
    "And": _elementwise(np.logical_and),
    "Or": _elementwise(np.logical_or),
    "Where": _elementwise(np.where),
}
