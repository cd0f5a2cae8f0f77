"""Read a value as a sum of terms with constant factors, as of |q - k|^2 written out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..exporting.values import is_float, scalar_of

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["terms_of"]

_MOST = 16


def terms_of(value: onnx_ir.Value | None, factor: float = 1.0, depth: int = 12) -> list[tuple[float, onnx_ir.Value]]:
    """Return (factor, value) of each term; a value that isn't a sum or a multiple is one term."""
    if value is None:
        return []
    node = value.producer()
    if node is None or depth == 0:
        return [(factor, value)]
    if node.op_type in ("Add", "Sub"):
        sign = -1.0 if node.op_type == "Sub" else 1.0
        found = [
            *terms_of(node.inputs[0], factor, depth - 1),
            *terms_of(node.inputs[1], factor * sign, depth - 1),
        ]
        return found if len(found) <= _MOST else [(factor, value)]
    if node.op_type in ("Neg", "Identity") or (node.op_type == "Cast" and is_float(node.inputs[0])):
        return terms_of(node.inputs[0], -factor if node.op_type == "Neg" else factor, depth - 1)
    if node.op_type in ("Mul", "Div"):
        for place in (1, 0) if node.op_type == "Mul" else (1,):
            number = scalar_of(node.inputs[place])
            if number:
                return terms_of(node.inputs[1 - place], factor * (number if node.op_type == "Mul" else 1 / number), depth - 1)
    return [(factor, value)]
