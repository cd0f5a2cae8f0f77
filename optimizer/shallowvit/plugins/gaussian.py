"""Find attention without softmax: ``exp(-|q - k|^2 / 2 * scale) v`` (SOFT, Lu et al., arXiv 2110.11945), however it is written.

The squared distance comes as |q|^2 + |k|^2 - 2 q k^T, with norms as sums or as products with ones, as the square of
``torch.cdist``, or as a difference spread over [n, m, d]. A newcomer's trap: norms are of the queries as they are multiplied,
so a scale in front of them stays where it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shallowvit_kernels.records import Kernel

from ..exporting.attention import AttentionSite, UnfitError, check_shapes, is_product, passes
from ..exporting.operands import untransposed, without_scale
from ..exporting.values import constant_of, dims_of, scalar_of
from .found import Found
from .terms import terms_of

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["found_in_exp"]

_NEAR = 1e-4  # of factors that are constants rounded to the graph's type
_DEEP = 6


@dataclass(frozen=True)
class _Distance:
    """|q - k|^2 times a factor: queries [b, h, n, d], and keys that ``permutation`` makes that."""

    factor: float
    query: onnx_ir.Value
    key: onnx_ir.Value
    permutation: tuple[int, ...]
    product: onnx_ir.Node


@dataclass(frozen=True)
class _Norm:
    """|x|^2 over an axis of x, as [b, h, n, 1] or repeated over the keys (rows), or as [b, h, 1, m] (columns)."""

    base: onnx_ir.Value
    side: str
    axis: int


def found_in_exp(exp: onnx_ir.Node) -> Found | None:
    """Return the attention around an Exp; None where it isn't an exponential of distances times values.

    Raises:
        UnfitError: it is one, and isn't understood; the text is the reason.
    """
    distance = _distance(exp.inputs[0])
    if distance is None:
        return None
    if not distance.factor < 0:
        raise UnfitError("the exponential grows with the distance")
    second = _second(exp)
    value = second.inputs[1]
    assert value is not None
    check_shapes(distance.query, distance.key, distance.permutation, value)
    if len(dims_of(distance.query)) not in (3, 4):
        raise UnfitError("queries haven't three or four dimensions")
    if len({one.dtype for one in (distance.query, distance.key, value)}) > 1:
        raise UnfitError("queries, keys and values are of different types")
    site = AttentionSite(
        first=distance.product,
        softmax=exp,
        second=second,
        left=distance.query,
        right=distance.key,
        query=distance.query,
        key=distance.key,
        key_permutation=distance.permutation,
        value=value,
        scale=-2 * distance.factor,
        scale_behind=1.0,
        head_scale=None,
        masks=(),
        guarded=False,
    )
    return Found(site, kernel=Kernel.GAUSSIAN)


def _second(exp: onnx_ir.Node) -> onnx_ir.Node:
    value = exp.outputs[0]
    for _ in range(_DEEP):
        users = list(dict.fromkeys(user for user, _ in value.uses()))
        if value.is_graph_output():
            raise UnfitError("the exponentials are an output of the graph")
        if len(users) != 1:
            kinds = ", ".join(sorted({user.op_type for user in users})) or "nothing"
            raise UnfitError(f"the exponentials are used by more than the product with the values: {kinds}")
        user = users[0]
        if user.op_type == "MatMul" and user.inputs[0] is value and user.inputs[1] is not value and is_product(user):
            return user
        if not (passes(user) and user.inputs[0] is value):
            raise UnfitError(f"{user.op_type} changes the exponentials before the product with the values")
        value = user.outputs[0]
    raise UnfitError(f"no product with the values within {_DEEP} nodes behind the exponential")


def _distance(value: onnx_ir.Value | None) -> _Distance | None:
    """The squared distance times a factor that a value is, if it is one."""
    terms = terms_of(value)
    if len(terms) == 1:
        factor, term = terms[0]
        squared = _squared(term)
        inner = _distance(_root(squared)) if squared is not None and _root(squared) is not None else _spread(term)
        return None if inner is None else _times(inner, factor)
    products = [(factor, term) for factor, term in terms if _is_pair(term)]
    norms = [one for one in terms if one not in products]
    if len(products) != 1 or len(norms) != 2:
        return None
    factor, term = products[0]
    sums = [(norm, _normed(of)) for norm, of in norms]
    product = term.producer()
    assert product is not None
    for query, query_scale, query_norm in _query_forms(product):
        for key, permutation, key_scale, key_norm in _key_forms(product):
            found = {norm: coefficient for coefficient, norm in sums}
            wanted = factor * query_scale * key_scale / -2
            fits = all(abs(found.get(one, 0.0) - wanted) <= _NEAR * abs(wanted) for one in (query_norm, key_norm))
            if fits:
                return _Distance(wanted, query, key, permutation, product)
    return None


def _query_forms(product: onnx_ir.Node) -> list[tuple[onnx_ir.Value, float, _Norm]]:
    """The left side as it is and without its scale, and the norms that belong to it."""
    left = product.inputs[0]
    assert left is not None
    bare, scale = without_scale(left)
    return [(one, factor, _Norm(one, "rows", -1)) for one, factor in ((left, 1.0), (bare, scale))]


def _key_forms(product: onnx_ir.Node) -> list[tuple[onnx_ir.Value, tuple[int, ...], float, _Norm]]:
    """The right side as it is, in front of its transposition and without its scale, and the norms that belong to it."""
    right = product.inputs[1]
    assert right is not None
    swap = _last_swapped(right)
    plain = tuple(range(len(swap)))
    forms = []
    node = right.producer()
    before = node.inputs[0] if node is not None and node.op_type == "Transpose" else None
    if node is not None and before is not None and tuple(node.attributes.get_ints("perm", ())) == swap:
        forms += [(before, plain, 1.0, norm) for norm in (_Norm(before, "columns", -1), _Norm(right, "columns", -2))]
    else:
        forms.append((right, swap, 1.0, _Norm(right, "columns", -2)))
    key, permutation, scale = untransposed(right)
    if permutation == plain:
        forms.append((key, plain, scale, _Norm(key, "columns", -1)))
    return forms


def _times(distance: _Distance, factor: float) -> _Distance:
    return _Distance(distance.factor * factor, distance.query, distance.key, distance.permutation, distance.product)


def _last_swapped(value: onnx_ir.Value) -> tuple[int, ...]:
    last = len(dims_of(value)) - 1
    return (*range(last - 1), last, last - 1)


def _is_pair(value: onnx_ir.Value) -> bool:
    """A product of two computed matrices of which neither is a square times ones."""
    node = value.producer()
    return node is not None and is_product(node) and all(not _is_ones(one) for one in node.inputs)


def _is_ones(value: onnx_ir.Value | None) -> bool:
    numbers = constant_of(value)
    if numbers is not None:
        return bool((numbers == 1).all())
    node = value.producer() if value is not None else None
    if node is None:
        return False
    if node.op_type == "Expand":
        return _is_ones(node.inputs[0])
    if node.op_type == "ConstantOfShape":
        filling = node.attributes.get_tensor("value", None) if "value" in node.attributes else None
        return filling is not None and bool((filling.numpy() == 1).all())
    return False


def _squared(value: onnx_ir.Value | None) -> onnx_ir.Value | None:
    """What a value is the square of."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Pow" and scalar_of(node.inputs[1]) == 2:
        return node.inputs[0]
    if node is not None and node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return node.inputs[0]
    return None


def _root(value: onnx_ir.Value | None) -> onnx_ir.Value | None:
    """What a value is the root of, where that is kept from being negative or can't be."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Sqrt":
        return None
    inner = node.inputs[0]
    clip = inner.producer() if inner is not None else None
    low = clip is not None and clip.op_type in ("Clip", "Max") and scalar_of(clip.inputs[1])
    if clip is not None and low is not False and low is not None and 0 <= low <= 1e-12:
        unbounded = clip.op_type == "Max" or len(clip.inputs) < 3 or clip.inputs[2] is None
        return clip.inputs[0] if unbounded and len(clip.inputs) < 4 else None
    return clip.inputs[0] if clip is not None and clip.op_type == "Relu" else inner


def _normed(value: onnx_ir.Value) -> _Norm | None:
    """The norms that a term is, whatever the order of summing and transposing."""
    node, turned = value.producer(), False
    while node is not None and node.op_type in ("Transpose", "Identity", "Cast") and node.inputs[0] is not None:
        if node.op_type == "Transpose":
            order = tuple(node.attributes.get_ints("perm", ()))
            if order != _last_swapped(node.inputs[0]):
                return None
            turned = not turned
        node = node.inputs[0].producer()
    if node is None:
        return None
    if node.op_type == "MatMul":
        return _by_ones(node, turned)
    found = _summed_square(node)
    if found is None:
        return None
    base, axis, over, rank = found
    side = {rank - 1: "rows", rank - 2: "columns"}.get(over)
    if side is None:
        return None
    if turned:
        side = "columns" if side == "rows" else "rows"
    return _Norm(base, side, axis)


def _summed_square(node: onnx_ir.Node) -> tuple[onnx_ir.Value, int, int, int] | None:
    """Of sum(x^2): x, the axis from the end, the place of the 1 that is in the result, and the rank."""
    kept, lost = node.attributes.get_int("keepdims", 1) == 1, None
    if node.op_type == "Unsqueeze" and node.inputs[0] is not None:
        axes, inner = constant_of(node.inputs[1]), node.inputs[0].producer()
        if axes is None or axes.size != 1 or inner is None or inner.attributes.get_int("keepdims", 1) == 1:
            return None
        rank = len(dims_of(node.outputs[0]))
        node, kept, lost = inner, True, int(axes.reshape(())) % rank
    if node.op_type not in ("ReduceSum", "ReduceSumSquare") or len(node.inputs) < 2 or not kept:
        return None
    base = node.inputs[0] if node.op_type == "ReduceSumSquare" else _squared(node.inputs[0])
    axes = constant_of(node.inputs[1])
    if base is None or axes is None or axes.size != 1 or not dims_of(base):
        return None
    rank = len(dims_of(base))
    axis = int(axes.reshape(())) % rank
    if axis != rank - 1 and lost is not None:
        return None
    # a sum over the last axis that comes back one place earlier is a column
    return base, axis - rank, axis if lost is None else lost, rank


def _by_ones(node: onnx_ir.Node, turned: bool) -> _Norm | None:
    """x^2 @ ones or ones @ x^2."""
    for place, side, axis in ((0, "rows", -1), (1, "columns", -2)):
        base = _squared(node.inputs[place])
        if base is not None and _is_ones(node.inputs[1 - place]) and not turned:
            return _Norm(base, side, axis)
    return None


def _spread(value: onnx_ir.Value) -> _Distance | None:
    """sum((q[..., n, 1, d] - k[..., 1, m, d])^2) over d."""
    node = value.producer()
    if node is None or node.op_type not in ("ReduceSum", "ReduceSumSquare") or node.attributes.get_int("keepdims", 1) == 1:
        return None
    base = node.inputs[0] if node.op_type == "ReduceSumSquare" else _squared(node.inputs[0])
    axes = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    minus = base.producer() if base is not None else None
    if base is None or axes is None or minus is None or minus.op_type != "Sub":
        return None
    rank = len(dims_of(base))
    if axes.size != 1 or int(axes.reshape(())) % max(rank, 1) != rank - 1 or rank not in (4, 5):
        return None
    sides = {}
    for part in minus.inputs:
        unsqueeze = part.producer() if part is not None else None
        places = constant_of(unsqueeze.inputs[1]) if unsqueeze is not None and unsqueeze.op_type == "Unsqueeze" else None
        if unsqueeze is None or places is None or places.size != 1:
            return None
        sides[int(places.reshape(())) % rank] = unsqueeze.inputs[0]
    query, key = sides.get(rank - 2), sides.get(rank - 3)
    if query is None or key is None:
        return None
    return _Distance(1.0, query, key, tuple(range(rank - 1)), minus)
