"""Take the operands of queries times keys apart: constant scales, and the several ways to transpose the keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .values import constant_of, dims_of, scalar_of

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["sizes_in", "untransposed", "without_scale"]


def without_scale(value: onnx_ir.Value) -> tuple[onnx_ir.Value, float]:
    """Strip multiplications by a constant number; return what was multiplied and the product of the numbers."""
    scale = 1.0
    while (node := value.producer()) is not None and node.op_type in ("Mul", "Div"):
        place = next((at for at in (1, 0) if scalar_of(node.inputs[at]) not in (None, 0.0)), None)
        if place is None or (node.op_type == "Div" and place == 0):
            break
        number, inner = scalar_of(node.inputs[place]), node.inputs[1 - place]
        assert number is not None
        if inner is None or len(dims_of(inner)) != len(dims_of(value)):
            break
        scale *= 1 / number if node.op_type == "Div" else number
        value = inner
    return value, scale


def untransposed(right: onnx_ir.Value) -> tuple[onnx_ir.Value, tuple[int, ...], float]:
    """Return the keys behind the second operand of a product, how to transpose them to [..., M, d], and their scale."""
    bare, scale = without_scale(right)
    node = bare.producer()
    if node is not None and node.op_type == "Transpose" and node.inputs[0] is not None:
        order = node.attributes.get_ints("perm", ())
        if order:
            permutation = (*order[:-2], order[-1], order[-2])
            if permutation == tuple(range(len(order))):  # a plain swap; a scale may stand before it too
                key, more = without_scale(node.inputs[0])
                return key, permutation, scale * more
            return node.inputs[0], permutation, scale
    key_before = _transposed_by_three(bare)
    if key_before is not None:
        key, more = without_scale(key_before)
        return key, tuple(range(len(dims_of(key)))), scale * more
    last = len(dims_of(right)) - 1
    return bare, (*range(last - 1), last, last - 1), scale


def _transposed_by_three(value: onnx_ir.Value) -> onnx_ir.Value | None:
    """The keys in front of Reshape to [-1, M, d], Transpose, Reshape to [B, heads, d, M]: torch's way before opset 23."""
    back = value.producer()
    swap = back.inputs[0].producer() if back is not None and back.op_type == "Reshape" and back.inputs[0] is not None else None
    if swap is None or swap.op_type != "Transpose" or tuple(swap.attributes.get_ints("perm", ())) != (0, 2, 1):
        return None
    flat = swap.inputs[0].producer() if swap.inputs[0] is not None else None
    key = flat.inputs[0] if flat is not None and flat.op_type == "Reshape" else None
    if back is None or flat is None or key is None or len(dims_of(key)) != 4:
        return None
    own = _sizes_of(key)
    flattened, unflattened = sizes_in(flat.inputs[1]), sizes_in(back.inputs[1])
    if flattened is None or unflattened is None or len(flattened) != 3 or len(unflattened) != 4:
        return None
    outer = [size if size != -1 else own[at] for at, size in enumerate(unflattened)]
    return key if flattened[1:] == own[2:] and outer == [own[0], own[1], own[3], own[2]] else None


def _sizes_of(value: onnx_ir.Value) -> list[int | str]:
    """The shape as numbers and names, a name of our own for a size that has none."""
    return [dim if dim is not None else f"{value.name}.{axis}" for axis, dim in enumerate(dims_of(value))]


def sizes_in(value: onnx_ir.Value | None) -> list[int | str] | None:
    """Return what a vector of sizes holds, from constants and other values' shapes; None where that can't be said."""
    numbers = constant_of(value)
    if numbers is not None:
        return [int(number) for number in numbers.reshape(-1)]
    node = value.producer() if value is not None else None
    if node is None or node.inputs[0] is None:
        return None
    if node.op_type == "Shape":
        return _sizes_of(node.inputs[0])[slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", 1 << 30))]
    if node.op_type == "Concat":
        parts = [sizes_in(part) for part in node.inputs]
        return None if any(part is None for part in parts) else [size for part in parts if part for size in part]
    if node.op_type == "Slice" and len(node.inputs) < 5:
        start, end, inner = scalar_of(node.inputs[1]), scalar_of(node.inputs[2]), sizes_in(node.inputs[0])
        return None if inner is None or start is None or end is None else inner[int(start) : int(end)]
    return None
