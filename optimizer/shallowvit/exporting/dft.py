"""ONNX ``DFT`` nodes of a fixed length as products with constant cosines and sines, which every runtime has.

A newcomer's trap: ONNX holds complex numbers as a last dimension of 2, and a real signal as one of 1; the transformed axis is
never that last one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["LONGEST_DFT", "dft_matrix", "dft_to_matmul"]

LONGEST_DFT = 4096  # the matrix of a complex transform of that length holds 67 million numbers


def dft_to_matmul(model: onnx_ir.Model) -> int:
    """Replace, in place, each DFT of a fixed length up to ``LONGEST_DFT``; return how many."""
    from onnx_ir import convenience

    nodes = [node for node in model.graph.all_nodes() if node.op_type == "DFT" and node.domain == ""]
    replaced = 0
    for node in nodes:
        facts = _facts(node, model.opset_imports.get("", 20))
        if facts is None:
            continue
        shape, axis, length, onesided, inverse = facts
        matrix = dft_matrix(shape[axis], length, shape[-1], onesided=onesided, inverse=inverse)
        found = node.inputs[0]
        assert found is not None
        assert node.graph is not None
        new = _product(node, found, (len(shape), axis, 1 if onesided and inverse else 2), matrix)
        convenience.replace_nodes_and_values(
            node.graph, node, [node], new, [node.outputs[0]], [_like(new[-1].outputs[0], node.outputs[0])]
        )
        replaced += 1
    if replaced:
        _drop_unused(model)
    return replaced


def dft_matrix(points: int, length: int, parts: int, *, onesided: bool, inverse: bool) -> np.ndarray[Any, Any]:
    """Return what takes [points * parts] to [frequencies * 2], or half a spectrum to [length], from the right, in fp64.

    Args:
        points: Of the signal; more than ``length`` are cut off, fewer are as if zeros followed.
        length: Of the transform.
        parts: 1 of a real signal, 2 of a complex one.
        onesided: Only the frequencies up to half the length; with ``inverse`` those are given, and a real signal comes of them.
        inverse: Divided by the length, and turning the other way.
    """
    if onesided and inverse:
        return _from_half_spectrum(points, length)
    frequencies = length // 2 + 1 if onesided else length
    turns = np.outer(np.arange(points), np.arange(frequencies)) % length  # whole turns lose digits
    angle = (2 if inverse else -2) * np.pi * turns / length
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.zeros((points, parts, frequencies, 2))
    matrix[:, 0, :, 0], matrix[:, 0, :, 1] = cosine, sine
    if parts == 2:
        matrix[:, 1, :, 0], matrix[:, 1, :, 1] = -sine, cosine
    matrix[length:] = 0
    return matrix.reshape(points * parts, frequencies * 2) / (length if inverse else 1)


def _from_half_spectrum(points: int, length: int) -> np.ndarray[Any, Any]:
    """[frequencies * 2] to [length]: each frequency stands for its mirror too, but the first and an even length's last."""
    frequencies = min(points, length // 2 + 1)
    angle = 2 * np.pi * (np.outer(np.arange(frequencies), np.arange(length)) % length) / length
    count = np.full((frequencies, 1), 2.0)
    count[0] = 1
    if length % 2 == 0 and frequencies == length // 2 + 1:
        count[-1] = 1
    matrix = np.zeros((points, 2, length))
    matrix[:frequencies, 0], matrix[:frequencies, 1] = count * np.cos(angle), -count * np.sin(angle)
    return matrix.reshape(points * 2, length) / length


def _facts(node: onnx_ir.Node, opset: int) -> tuple[tuple[int, ...], int, int, bool, bool] | None:
    """Shape of the input (-1 where it is dynamic), axis, length, onesided, inverse; None of one that can't be replaced."""
    found = node.inputs[0]
    if found is None or found.shape is None or found.dtype is None:
        return None
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in found.shape)
    axis = _constant(node, 2, -2) if opset >= 20 else node.attributes.get_int("axis", 1)
    if axis is None:
        return None
    axis %= len(shape)
    onesided, inverse = (bool(node.attributes.get_int(name, 0)) for name in ("onesided", "inverse"))
    length = _constant(node, 1, 2 * (shape[axis] - 1) if onesided and inverse else shape[axis])
    if length is None or not 0 < length <= LONGEST_DFT or shape[axis] < 1 or shape[-1] not in (1, 2):
        return None
    return shape, axis, length, onesided, inverse


def _constant(node: onnx_ir.Node, place: int, default: int) -> int | None:
    """The one number an input holds, ``default`` where there is no input, None where it is computed."""
    from onnx_ir import convenience

    value = node.inputs[place] if place < len(node.inputs) else None
    if value is None:
        return default
    tensor = convenience.get_const_tensor(value)
    return None if tensor is None else int(tensor.numpy().reshape(-1)[0])


def _product(
    node: onnx_ir.Node, found: onnx_ir.Value, place: tuple[int, int, int], matrix: np.ndarray[Any, Any]
) -> list[onnx_ir.Node]:
    """The axis beside the parts, one product over both, and the axis back where it was."""
    import onnx_ir

    rank, axis, parts = place
    forth = [*(one for one in range(rank - 1) if one != axis), axis, rank - 1]
    back = [forth.index(one) for one in range(rank)]
    moved = forth != list(range(rank))
    made: list[onnx_ir.Node] = []

    def add(kind: str, *inputs: onnx_ir.Value, **attributes: Any) -> onnx_ir.Value:
        name = f"{node.name or node.outputs[0].name}_{kind}_{len(made)}"
        one = onnx_ir.node(kind, list(inputs), attributes=attributes, name=name)
        one.metadata_props.update(node.metadata_props)
        one.outputs[0].name = f"{node.outputs[0].name}_{kind}_{len(made)}"
        made.append(one)
        return one.outputs[0]

    def constant(array: np.ndarray[Any, Any]) -> onnx_ir.Value:
        tensor = onnx_ir.tensor(array)
        return add("Constant", value=tensor)

    assert found.dtype is not None
    value = add("Transpose", found, perm=forth) if moved else found
    value = add("Reshape", value, constant(np.array([0] * (rank - 2) + [matrix.shape[0]], np.int64)))
    value = add("MatMul", value, constant(matrix.astype(found.dtype.numpy())))
    value = add("Reshape", value, constant(np.array([0] * (rank - 2) + [matrix.shape[1] // parts, parts], np.int64)))
    if moved:
        add("Transpose", value, perm=back)
    return made


def _like(new: onnx_ir.Value, old: onnx_ir.Value) -> onnx_ir.Value:
    new.type, new.shape, new.name = old.type, old.shape, old.name
    return new


def _drop_unused(model: onnx_ir.Model) -> None:
    from onnx_ir.passes import common

    common.LiftConstantsToInitializersPass(lift_all_constants=True)(model)
    common.RemoveUnusedNodesPass()(model)
