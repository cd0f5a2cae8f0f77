"""Take queries, keys and values as a model has them in memory, so that nothing is copied on the way to a kernel.

A newcomer's trap: a transposition may go into the kernel only if queries, keys and values all have it, since a variant has one
layout for the three. Those left without a user are removed with the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shallowvit_kernels.records import Layout

from ..exporting.fusing import in_four_dimensions, transposed
from ..exporting.values import constant_of, dims_of, is_float, scalar_of

if TYPE_CHECKING:
    import onnx_ir

    from ..exporting.attention import AttentionSite
    from ..exporting.values import Emitter

__all__ = ["SWAP", "main_inputs", "transposition_behind"]

SWAP = (0, 2, 1, 3)  # [b, n, h, d] <-> [b, h, n, d]
_PACKED = (2, 0, 3, 1, 4)  # [b, n, 3, h, d] -> [3, b, h, n, d]


@dataclass(frozen=True)
class _Selected:
    """One of the parts that ``source`` has along ``axis``."""

    source: onnx_ir.Value
    axis: int
    place: int
    count: int


def main_inputs(emitter: Emitter, site: AttentionSite) -> tuple[list[onnx_ir.Value], Layout]:
    """Return a variant's inputs for queries, keys and values, and the layout that they are in."""
    key_order, dtype = site.key_permutation, site.query.dtype
    assert dtype is not None
    plain = tuple((_uncast(one), order) for one, order in ((site.query, None), (site.key, key_order), (site.value, None)))
    if len(dims_of(site.query)) == 4:
        packed = _packed(emitter, plain)
        if packed is not None:
            return [emitter.cast(packed, dtype)], Layout.PACKED
        found = [_tokens_first(value, order) for value, order in plain]
        if all(one is not None for one in found):
            parts = [_emitted(emitter, one) for one in found if one is not None]
            return [emitter.cast(one, dtype) for one in parts], Layout.TOKENS_FIRST
    parts = [site.query, transposed(emitter, site.key, key_order), site.value]
    return [in_four_dimensions(emitter, one) for one in parts], Layout.HEADS_FIRST


def _uncast(value: onnx_ir.Value) -> onnx_ir.Value:
    """What a cast was of: it may as well stand in front of the transposition."""
    node = value.producer()
    inner = node.inputs[0] if node is not None and node.op_type == "Cast" else None
    return inner if inner is not None and is_float(inner) else value


def transposition_behind(output: onnx_ir.Value) -> onnx_ir.Node | None:
    """Return the node that makes an output [b, h, n, d] tokens first, where that is its only use; a cast may come first."""
    users = [user for user, _ in output.uses()]
    if len(users) != 1 or output.is_graph_output():
        return None
    if users[0].op_type == "Cast" and is_float(users[0].outputs[0]):
        return transposition_behind(users[0].outputs[0])
    swaps = users[0].op_type == "Transpose" and tuple(users[0].attributes.get_ints("perm", ())) == SWAP
    return users[0] if swaps else None


def _tokens_first(value: onnx_ir.Value, order: tuple[int, ...] | None) -> onnx_ir.Value | _Selected | None:
    """What [b, h, n, d] is as [b, n, h, d]: a value, or a part to take out of one."""
    if order == SWAP:
        return value
    if order not in (None, (0, 1, 2, 3)):
        return None
    node = value.producer()
    if node is not None and node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == SWAP:
        return node.inputs[0]
    selected = _selected(value)
    return None if selected is None else _before_transposition(selected)


def _emitted(emitter: Emitter, found: onnx_ir.Value | _Selected) -> onnx_ir.Value:
    import numpy as np

    if not isinstance(found, _Selected):
        return found
    dims = list(dims_of(found.source))
    del dims[found.axis]
    return emitter.op("Gather", [found.source, emitter.constant(np.int64(found.place))], {"axis": found.axis}, dims=dims)


def _before_transposition(selected: _Selected) -> _Selected | None:
    """A part of ``Transpose(packed)`` as a part of ``packed``."""
    node = selected.source.producer()
    if selected.axis != 0 or node is None or node.op_type != "Transpose" or node.inputs[0] is None:
        return None
    fits = tuple(node.attributes.get_ints("perm", ())) == _PACKED
    return _Selected(node.inputs[0], 2, selected.place, selected.count) if fits else None


def _packed(emitter: Emitter, parts: tuple[tuple[onnx_ir.Value, tuple[int, ...] | None], ...]) -> onnx_ir.Value | None:
    """The one tensor [b, n, 3, h, d] whose parts they are, in their order."""
    found = []
    for value, order in parts:
        tokens = _tokens_first(value, order)
        if tokens is None:
            return None
        found.append(tokens if isinstance(tokens, _Selected) else _selected(tokens) or _split_flat(tokens))
    if any(one is None for one in found):
        return None
    chosen = [one for one in found if one is not None]
    first = chosen[0]
    same = all((one.source, one.axis, one.count) == (first.source, first.axis, 3) for one in chosen)
    if not same or [one.place for one in chosen] != [0, 1, 2]:
        return None
    source, dims = first.source, dims_of(first.source)
    if first.axis == 2 and len(dims) == 5:
        return source
    if first.axis == 2 and len(dims) == 3:
        heads, size = dims_of(parts[0][0])[1], dims_of(parts[0][0])[3]
        if not isinstance(heads, int) or not isinstance(size, int):
            return None
        shape = emitter.constant([0, 0, 3, heads, size])
        return emitter.op("Reshape", [source, shape], dims=[*dims[:2], 3, heads, size])
    return None


def _selected(value: onnx_ir.Value) -> _Selected | None:
    """A part along an axis, which is gone then: Gather of one place, or Split or Slice and Squeeze."""
    node = value.producer()
    if node is None or not node.inputs or node.inputs[0] is None:
        return None
    source = node.inputs[0]
    if node.op_type == "Gather":
        places, dims = constant_of(node.inputs[1]), dims_of(source)
        axis = node.attributes.get_int("axis", 0)
        count = dims[axis] if dims else None
        if places is None or places.shape != () or not isinstance(count, int):
            return None
        return _Selected(source, axis % len(dims), int(places) % count, count)
    if node.op_type != "Squeeze" or len(node.inputs) < 2:
        return None
    axes, inner = constant_of(node.inputs[1]), source.producer()
    if axes is None or axes.size != 1 or inner is None or inner.inputs[0] is None:
        return None
    rank = len(dims_of(source))
    return _one_of(source, inner, int(axes.reshape(())) % rank) if rank else None


def _one_of(part: onnx_ir.Value, node: onnx_ir.Node, axis: int) -> _Selected | None:
    """Of a Split or Slice along the axis into single ones: which."""
    source = node.inputs[0]
    assert source is not None
    dims = dims_of(source)
    count = dims[axis] if len(dims) > axis else None
    if not isinstance(count, int) or dims_of(part)[axis] != 1:
        return None
    if node.op_type == "Split":
        same = node.attributes.get_int("axis", 0) % len(dims) == axis and len(node.outputs) == count
        return _Selected(source, axis, part.index() or 0, count) if same else None
    if node.op_type != "Slice" or len(node.inputs) < 4:
        return None
    start, along = scalar_of(node.inputs[1]), scalar_of(node.inputs[3])
    step = scalar_of(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else 1
    if start is None or along is None or step != 1 or int(along) % len(dims) != axis:
        return None
    return _Selected(source, axis, int(start) % count, count)


def _split_flat(tokens: onnx_ir.Value) -> _Selected | None:
    """[b, n, h, d] as a third of [b, n, 3 * h * d], split and reshaped."""
    reshape = tokens.producer()
    part = reshape.inputs[0] if reshape is not None and reshape.op_type == "Reshape" else None
    split = part.producer() if part is not None else None
    if part is None or split is None or split.op_type != "Split" or split.inputs[0] is None:
        return None
    source, after = split.inputs[0], dims_of(tokens)
    whole, third = dims_of(source), dims_of(part)
    fits = (
        len(whole) == 3
        and len(split.outputs) == 3
        and split.attributes.get_int("axis", 0) % 3 == 2
        and isinstance(whole[2], int)
        and third == (*whole[:2], whole[2] // 3)
        and whole[2] % 3 == 0
        and after[:2] == whole[:2]
        and None not in whole
    )
    return _Selected(source, 2, part.index() or 0, 3) if fits else None
