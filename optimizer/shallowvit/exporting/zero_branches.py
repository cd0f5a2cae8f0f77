"""Take out of a graph what adds zeros: of a block whose attention or MLP was cut, nothing is left where it was.

A newcomer's trap: the zeros have the state's shape, which depends on the batch, so that no constant folding finds them; they
come as ``ConstantOfShape`` or ``Expand`` and pass through reshapes and windows first. A bias that happens to be zero stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .values import constant_of, dims_of

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["drop_zero_branches"]

# Zero in, zero out, by the first input alone; the others say where and how.
_MOVES = ("Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Identity", "Cast", "CastLike", "Expand", "Flatten", "Split",
          "Gather", "GatherND", "Tile", "Neg", "Gelu", "Relu", "Tanh", "Erf", "Dropout", "ReduceMean", "ReduceSum", "ReduceMax",
          "GlobalAveragePool", "AveragePool")  # fmt: skip
_ALL = ("Concat", "Add", "Sub", "Sum")  # zero where every input is
_PRODUCTS = ("Mul", "MatMul")  # zero where one input is and the other is a finite constant


def drop_zero_branches(model: onnx_ir.Model) -> int:
    """Let ``Add(x, zeros)`` and ``Sub(x, zeros)`` be ``x``, in place, and remove what nobody needs then; return how many.

    Args:
        model: The graph in memory, with the shapes of its values.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    zeros: set[onnx_ir.Value] = set()
    dropped = 0
    for node in list(model.graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        if _gives_zeros(node, zeros):
            zeros.update(node.outputs)
        elif node.op_type in ("Add", "Sub"):
            dropped += _dropped(node, zeros)
    if dropped:
        RemoveUnusedNodesPass()(model)
    return dropped


def _gives_zeros(node: onnx_ir.Node, zeros: set[onnx_ir.Value]) -> bool:
    inputs = [value for value in node.inputs if value is not None]
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill is None or not fill.as_tensor().numpy().any()
    if node.op_type == "Expand" and not _is_zero(inputs[0], zeros):
        numbers = constant_of(inputs[0])
        return numbers is not None and numbers.size == 1 and not numbers.any()
    if node.op_type in _MOVES:
        return bool(inputs) and _is_zero(inputs[0], zeros)
    if node.op_type == "Pad":
        filled = constant_of(inputs[2]) if len(inputs) > 2 else None
        return _is_zero(inputs[0], zeros) and (len(inputs) < 3 or (filled is not None and not filled.any()))
    if node.op_type in _ALL:
        return bool(inputs) and all(_is_zero(value, zeros) for value in inputs)
    if node.op_type in _PRODUCTS:
        one, other = inputs
        return any(_is_zero(a, zeros) and (_is_zero(b, zeros) or _is_finite(b)) for a, b in ((one, other), (other, one)))
    return False


def _is_zero(value: onnx_ir.Value, zeros: set[onnx_ir.Value]) -> bool:
    """Whether it is known to be zero: a computed one by its node, a constant that isn't a bias by its numbers."""
    if value in zeros:
        return True
    if len(dims_of(value)) < 2:
        return False
    numbers = constant_of(value)
    return numbers is not None and numbers.size > 0 and not numbers.any()


def _is_finite(value: onnx_ir.Value) -> bool:
    numbers = constant_of(value)
    return numbers is not None and bool(np.isfinite(numbers.astype(np.float32)).all())


def _dropped(node: onnx_ir.Node, zeros: set[onnx_ir.Value]) -> bool:
    """Whether the node only added zeros and is out of use now."""
    first, second = node.inputs
    assert first is not None and second is not None
    pairs = ((first, second),) if node.op_type == "Sub" else ((first, second), (second, first))
    kept = next((a for a, b in pairs if _is_zero(b, zeros) and _spreads_over(b, a)), None)
    output = node.outputs[0]
    if kept is None or kept.dtype != output.dtype:
        return False
    if output.is_graph_output():
        if kept.producer() is None or kept.is_graph_output():
            return False
        name = output.name
        output.replace_all_uses_with(kept, replace_graph_outputs=True)
        output.name, kept.name = f"{name}_with_zeros", name  # an output's name is the contract
        kept.shape = output.shape
        return True
    output.replace_all_uses_with(kept)
    return True


def _spreads_over(zero: onnx_ir.Value, kept: onnx_ir.Value) -> bool:
    """Whether adding it leaves the other one's shape as it is."""
    own, other = dims_of(zero), dims_of(kept)
    if kept.shape is None or zero.shape is None or len(own) > len(other):
        return False
    aligned = other[len(other) - len(own) :]
    return all(a == 1 or (a is not None and a == b) for a, b in zip(own, aligned, strict=True))
