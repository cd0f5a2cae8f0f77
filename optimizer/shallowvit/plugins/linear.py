"""Find linear attention: ``phi(q) (phi(k)^T v) / (phi(q) sum phi(k) + epsilon)`` with a feature map phi.

The maps are elu + 1 (Katharopoulos et al., arXiv 2006.16236) and relu (EfficientViT, Cai et al., arXiv 2205.14756). The sum
comes as a product of its own, or as one more column of ones behind the values. A newcomer's trap: TensorRT computes all of this
without anything of size N x N, so it is no attention that lacks a kernel, only one that ours does in one launch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shallowvit_kernels.records import FeatureMap, Kernel

from ..exporting.attention import AttentionSite, UnfitError, check_shapes, is_product
from ..exporting.operands import untransposed
from ..exporting.values import constant_of, dims_of, is_float, scalar_of
from .found import Found

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["found_in_division"]

_LARGEST_EPSILON = 1e-2
_IDENTITY = (0, 1, 2, 3)


@dataclass(frozen=True)
class _State:
    """phi(q) (phi(k)^T v)."""

    product: onnx_ir.Node
    phi_query: onnx_ir.Value
    phi_key: onnx_ir.Value
    value: onnx_ir.Value


def found_in_division(node: onnx_ir.Node) -> Found | None:
    """Return the attention whose last step a Div, or a Mul by a reciprocal, is; None where it isn't linear attention.

    Raises:
        UnfitError: it is one, and isn't understood; the text is the reason.
    """
    parts = _parts(node)
    if parts is None:
        return None
    above, below = parts
    epsilon, below = _without_epsilon(below)
    state = _with_column(above, below) or _with_sum(above, below)
    if state is None:
        return None
    (query, feature_map), (key, other) = _mapped(state.phi_query), _mapped(state.phi_key)
    if query is None or key is None or feature_map is None or feature_map is not other:
        raise UnfitError("queries and keys don't go through one feature map that is understood (relu, elu + 1)")
    query, key, value = (_uncast(one) for one in (query, key, state.value))
    if len({one.dtype for one in (query, key, value)}) > 1 or not is_float(query):
        raise UnfitError("queries, keys and values are of different types")
    if len(dims_of(query)) != 4:
        raise UnfitError("queries haven't four dimensions")
    if not 0 <= epsilon <= _LARGEST_EPSILON:
        raise UnfitError(f"{epsilon:g} is added to the sum, which is no small number")
    check_shapes(query, key, _IDENTITY, value)
    site = AttentionSite(
        first=state.product,
        softmax=node,
        second=node,
        left=query,
        right=key,
        query=query,
        key=key,
        key_permutation=_IDENTITY,
        value=value,
        scale=1.0,
        scale_behind=1.0,
        head_scale=None,
        masks=(),
        guarded=False,
    )
    return Found(site, kernel=Kernel.LINEAR, feature_map=feature_map, epsilon=epsilon)


def _parts(node: onnx_ir.Node) -> tuple[onnx_ir.Value, onnx_ir.Value] | None:
    """What is divided by what."""
    first, second = node.inputs[0], node.inputs[1]
    if first is None or second is None:
        return None
    if node.op_type == "Div":
        return first, second
    for above, factor in ((first, second), (second, first)):
        inverse = factor.producer()
        if inverse is None:
            continue
        one_above = inverse.op_type == "Div" and scalar_of(inverse.inputs[0]) == 1
        below = inverse.inputs[1] if one_above else inverse.inputs[0] if inverse.op_type == "Reciprocal" else None
        if below is not None:
            return above, below
    return None


def _without_epsilon(value: onnx_ir.Value) -> tuple[float, onnx_ir.Value]:
    node = value.producer()
    if node is not None and node.op_type == "Add":
        for place in (0, 1):
            number, other = scalar_of(node.inputs[place]), node.inputs[1 - place]
            if number is not None and other is not None:
                return number, other
    return 0.0, value


def _state(value: onnx_ir.Value) -> _State | None:
    outer = value.producer()
    if outer is None or not is_product(outer) or outer.inputs[0] is None or outer.inputs[1] is None:
        return None
    inner = outer.inputs[1].producer()
    if inner is None or not is_product(inner) or inner.inputs[0] is None or inner.inputs[1] is None:
        return None
    swap = inner.inputs[0].producer()
    if swap is None or swap.op_type != "Transpose" or tuple(swap.attributes.get_ints("perm", ())) != (0, 1, 3, 2):
        return None
    key = swap.inputs[0]
    assert key is not None
    return _State(outer, outer.inputs[0], key, inner.inputs[1])


def _with_column(above: onnx_ir.Value, below: onnx_ir.Value) -> _State | None:
    """``out[..., :-1] / out[..., -1:]``, the values having a last column of ones."""
    slices = above.producer(), below.producer()
    first, last = slices
    if first is None or last is None or first.op_type != "Slice" or last.op_type != "Slice":
        return None
    whole = first.inputs[0]
    if whole is None or last.inputs[0] is not whole or whole.is_graph_output():
        return None
    width = dims_of(whole)[-1] if dims_of(whole) else None
    if (
        not isinstance(width, int)
        or _last_range(first, width) != (0, width - 1)
        or _last_range(last, width) != (width - 1, width)
    ):
        return None
    if {user for user, _ in whole.uses()} != {first, last}:
        return None
    state = _state(whole)
    value = _without_ones(state.value) if state is not None else None
    return None if state is None or value is None else _State(state.product, state.phi_query, state.phi_key, value)


def _last_range(node: onnx_ir.Node, width: int) -> tuple[int, int] | None:
    """From where to where a Slice goes along the last axis, which is its only one."""
    rank = len(dims_of(node.inputs[0]))
    numbers = [constant_of(one) for one in node.inputs[1:]]
    if len(numbers) < 3 or any(one is None or one.size != 1 for one in numbers):
        return None
    start, end, axis, *step = (int(one.reshape(())) for one in numbers if one is not None)
    if axis % rank != rank - 1 or step not in ([], [1]):
        return None
    places = slice(start, end).indices(width)
    return places[0], places[1]


def _without_ones(value: onnx_ir.Value) -> onnx_ir.Value | None:
    """The values in front of a Pad, or a Concat, that puts a column of ones behind them."""
    value = _uncast(value)
    node = value.producer()
    if node is None or node.inputs[0] is None:
        return None
    rank = len(dims_of(node.inputs[0]))
    if node.op_type == "Pad":
        pads = constant_of(node.inputs[1])
        filled = len(node.inputs) > 2 and scalar_of(node.inputs[2]) == 1
        axes = constant_of(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
        mode = node.attributes.get_string("mode", "constant")
        if pads is None or not filled or mode != "constant":
            return None
        if axes is not None:
            fits = axes.size == 1 and int(axes.reshape(())) % rank == rank - 1 and pads.reshape(-1).tolist() == [0, 1]
        else:
            fits = pads.reshape(-1).tolist() == [0] * (2 * rank - 1) + [1]
        return node.inputs[0] if fits else None
    return None


def _with_sum(above: onnx_ir.Value, below: onnx_ir.Value) -> _State | None:
    """The share of each query as ``phi(q) @ sum(phi(k))^T``, or as a sum of their products."""
    state = _state(above)
    if state is None or above.is_graph_output() or len(above.uses()) != 1:
        return None
    node = below.producer()
    if node is not None and node.op_type == "MatMul" and node.inputs[0] is state.phi_query:
        total = _total_keys(node.inputs[1], "column")
        return state if total is state.phi_key else None
    if node is not None and node.op_type == "ReduceSum" and _over(node, -1) and node.inputs[0] is not None:
        product = node.inputs[0].producer()
        if product is not None and product.op_type == "Mul" and state.phi_query in product.inputs:
            other = next((one for one in product.inputs if one is not state.phi_query), None)
            return state if _total_keys(other, "row") is state.phi_key else None
    return None


def _total_keys(value: onnx_ir.Value | None, form: str) -> onnx_ir.Value | None:
    """The keys of whose sum over the tokens a value is [b, h, d, 1] (column) or [b, h, 1, d] (row)."""
    node = value.producer() if value is not None else None
    if node is not None and form == "column":
        if node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == (0, 1, 3, 2):
            return _total_keys(node.inputs[0], "row")
        if node.op_type == "ReduceSum" and _over(node, -1):  # of the transposed keys
            key, order, scale = untransposed(node.inputs[0])  # type: ignore[arg-type]
            return key if scale == 1 and order == _IDENTITY else None
        if node.op_type == "Unsqueeze" and _one_axis(node, 3):
            return _lost_sum(node)
    if node is not None and form == "row":
        if node.op_type == "ReduceSum" and _over(node, -2):
            return node.inputs[0]
        if node.op_type == "Unsqueeze" and _one_axis(node, 2):
            return _lost_sum(node)
    return None


def _lost_sum(node: onnx_ir.Node) -> onnx_ir.Value | None:
    inner = node.inputs[0].producer() if node.inputs[0] is not None else None
    if inner is None or inner.op_type != "ReduceSum" or inner.attributes.get_int("keepdims", 1) == 1:
        return None
    axes = constant_of(inner.inputs[1]) if len(inner.inputs) > 1 else None
    return inner.inputs[0] if axes is not None and axes.reshape(-1).tolist() in ([-2], [2]) else None


def _one_axis(node: onnx_ir.Node, axis: int) -> bool:
    axes = constant_of(node.inputs[1])
    return axes is not None and axes.reshape(-1).tolist() in ([axis], [axis - 4])


def _over(node: onnx_ir.Node, axis: int) -> bool:
    axes = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    kept = node.attributes.get_int("keepdims", 1) == 1
    return kept and axes is not None and axes.reshape(-1).tolist() in ([axis], [axis + 4])


def _mapped(value: onnx_ir.Value) -> tuple[onnx_ir.Value | None, FeatureMap | None]:
    """What goes into a feature map, and which it is."""
    value = _uncast(value)
    node = value.producer()
    if node is None:
        return None, None
    if node.op_type == "Relu":
        return node.inputs[0], FeatureMap.RELU
    if node.op_type == "Add":
        for place in (0, 1):
            elu = node.inputs[place].producer() if node.inputs[place] is not None else None  # type: ignore[union-attr]
            if scalar_of(node.inputs[1 - place]) == 1 and elu is not None and elu.op_type == "Elu":
                plain = elu.attributes.get_float("alpha", 1.0) == 1
                return (elu.inputs[0], FeatureMap.ELU_PLUS_ONE) if plain else (None, None)
    return None, None


def _uncast(value: onnx_ir.Value) -> onnx_ir.Value:
    node = value.producer()
    while node is not None and node.op_type in ("Cast", "Identity") and is_float(node.inputs[0]):
        inner = node.inputs[0]
        assert inner is not None
        value, node = inner, inner.producer()
    return value
