"""Take attention traced as MatMul, Softmax, MatMul apart, with what stands between them that TensorRT has no kernel for.

A newcomer's trap: the same operators in another order are another function (a soft cap behind a mask, a mask behind a division
by the sum), and a probability that anything else looks at must exist; each of these comes back with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..exporting.attention import (
    AttentionSite,
    ScoresWalk,
    UnfitError,
    check_shapes,
    is_product,
    nan_guard,
    one_type,
    passes,
    scores_place,
    step_back,
)
from ..exporting.masks import no_row_is_empty
from ..exporting.operands import untransposed, without_scale
from ..exporting.values import Emitter, constant_of, dims_of, is_float, scalar_of
from .folding import folded
from .found import Factor, Found, Gate
from .operands import hides_entirely

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["found_in_softmax"]

_DEEP = 16
_LEAST_EPSILON = 1e-8  # added to a sum of probabilities that is 1, it is below what fp32 can tell
_LARGEST_EPSILON = 1e-2  # behind a mask
_SUMS_TO_ONE = {"FLOAT": 1e-5, "DOUBLE": 1e-5, "FLOAT16": 4e-3, "BFLOAT16": 3e-2}


@dataclass
class _Scores(ScoresWalk):
    """On the way back from the softmax."""

    score_masks: list[Factor] = field(default_factory=list)
    soft_cap: float | None = None


@dataclass
class _Probabilities:
    """On the way from the softmax to the values."""

    factors: list[Factor] = field(default_factory=list)
    renormalise: bool = False
    epsilon: float = 0.0
    gate: Gate | None = None
    guarded: bool = False


def found_in_softmax(softmax: onnx_ir.Node) -> Found:
    """Return the attention around a softmax.

    Raises:
        UnfitError: it isn't understood; the text is the reason.
    """
    scores = softmax.inputs[0]
    assert scores is not None
    axis = softmax.attributes.get_int("axis", -1)
    if axis not in (-1, len(dims_of(scores)) - 1):
        raise UnfitError(f"the softmax is over axis {axis}, not over the keys")
    seen = _Probabilities()
    second = _second(softmax, seen)
    walk = _Scores()
    first = _first(scores, walk)
    left, right, value = first.inputs[0], first.inputs[1], second.inputs[1]
    assert left is not None
    assert right is not None
    assert value is not None
    query, left_scale = _queries(left)
    key, permutation, right_scale = _keys(right)
    query, key, value = one_type(query, key, value, walk)
    scale = walk.factor * left_scale * right_scale
    if not scale > 0:
        raise UnfitError(f"the scores are scaled by {scale:g}, and a kernel takes only a positive scale")
    check_shapes(query, key, permutation, value)
    modified = walk.masks or walk.score_masks or seen.factors or seen.gate is not None
    if len(dims_of(query)) == 5 and modified:
        raise UnfitError("the scores have five dimensions and are modified by a tensor")
    site = AttentionSite(
        first=first,
        softmax=softmax,
        second=second,
        left=left,
        right=right,
        query=query,
        key=key,
        key_permutation=permutation,
        value=value,
        scale=scale * (walk.soft_cap or 1.0),  # cap * tanh(scores / cap) divides by it again
        scale_behind=walk.factor,
        head_scale=None,
        masks=tuple(reversed(walk.masks)),
        guarded=seen.guarded,
    )
    if site.guarded and not no_row_is_empty(site) and not hides_entirely(site):
        raise UnfitError("queries that see no key give zeros here, and their mask would be turned into finite numbers")
    return Found(
        site=site,
        score_masks=tuple(walk.score_masks),
        soft_cap=walk.soft_cap,
        factors=tuple(seen.factors),
        renormalise=seen.renormalise,
        gate=seen.gate,
        epsilon=seen.epsilon,
    )


def _users(value: onnx_ir.Value) -> list[onnx_ir.Node]:
    """Who reads a value; exporters leave nodes behind that nobody reads."""
    readers = dict.fromkeys(user for user, _ in value.uses())
    return [user for user in readers if any(one.uses() or one.is_graph_output() for one in user.outputs)]


def _queries(left: onnx_ir.Value) -> tuple[onnx_ir.Value, float]:
    """``without_scale``, also where a cast stands behind the scale: it is made anew in front of it."""
    bare, scale = without_scale(left)
    cast = _cast_of(bare)
    if cast is None or cast.inputs[0] is None:
        return bare, scale
    inner, more = without_scale(cast.inputs[0])
    return (bare, scale) if more == 1 else (_narrowed(inner, cast), scale * more)


def _keys(right: onnx_ir.Value) -> tuple[onnx_ir.Value, tuple[int, ...], float]:
    """``untransposed``, likewise."""
    cast = _cast_of(right)
    if cast is None or cast.inputs[0] is None:
        return untransposed(right)
    key, permutation, scale = untransposed(cast.inputs[0])
    return _narrowed(key, cast), permutation, scale


def _cast_of(value: onnx_ir.Value) -> onnx_ir.Node | None:
    node = value.producer()
    return node if node is not None and node.op_type == "Cast" and is_float(node.inputs[0]) and is_float(value) else None


def _narrowed(value: onnx_ir.Value, cast: onnx_ir.Node) -> onnx_ir.Value:
    """The value cast as another is."""
    dtype = cast.outputs[0].dtype
    assert dtype is not None
    assert cast.graph is not None
    emitter = Emitter(cast.graph, dict(cast.metadata_props))
    result = emitter.cast(value, dtype)
    emitter.insert_before(cast)
    return result


def _first(scores: onnx_ir.Value, walk: _Scores) -> onnx_ir.Node:
    """Go back from the softmax's input to the MatMul of queries and keys."""
    value = scores
    for _ in range(_DEEP):
        users = _users(value)
        if value.is_graph_output():
            raise UnfitError("the scores are an output of the graph")
        if len(users) != 1:
            raise UnfitError(f"the scores are used elsewhere: {', '.join(sorted({user.op_type for user in users}))}")
        node = value.producer()
        if node is None:
            raise UnfitError("the softmax is over an input of the graph")
        if node.op_type == "MatMul":
            if not is_product(node):
                raise UnfitError("a product with weights changes the scores before the softmax")
            if walk.view is not None:
                raise UnfitError("the scores are reshaped and not shaped back")
            return node
        value = _back(node, value, walk)
    raise UnfitError(f"no product of queries and keys within {_DEEP} nodes before the softmax")


def _back(node: onnx_ir.Node, value: onnx_ir.Value, walk: _Scores) -> onnx_ir.Value:
    """One node further back; what only our kernels do is noted here, the rest as for an ``Attention`` node."""
    if node.op_type == "Tanh":
        return _capped(node, walk)
    place = scores_place(node)
    if node.op_type in ("Add", "Where") and place is not None:
        if walk.soft_cap is not None:
            raise UnfitError("a mask is added before the soft cap")
        if walk.score_masks:
            raise UnfitError("a mask is added before the scores are multiplied by a tensor")
    if node.op_type in ("Mul", "Div") and place is not None:
        scores, other = node.inputs[place], node.inputs[1 - place]
        if other is scores:
            raise UnfitError("the scores are multiplied by themselves")
        if scores is not None and other is not None and scalar_of(other) in (None, 0.0):
            same = folded(other)
            if same is not None and same.size == 1 and float(same.reshape(())) > 0:  # a temperature that all heads share
                walk.factor *= float(same.reshape(())) ** (-1 if node.op_type == "Div" else 1)
                return scores
            if walk.view is not None:
                raise UnfitError("the scores are multiplied by a tensor while they are reshaped")
            walk.score_masks.append(Factor(other, turned=node.op_type == "Div"))
            return scores
    return step_back(node, value, walk)


def _capped(node: onnx_ir.Node, walk: _Scores) -> onnx_ir.Value:
    """``cap * tanh(scores / cap)``: what stands behind is the cap, whatever stands before goes into the scale."""
    if walk.soft_cap is not None:
        raise UnfitError("there are two soft caps")
    if walk.score_masks or walk.view is not None:
        raise UnfitError("the scores are multiplied by a tensor or reshaped behind the soft cap")
    if not walk.factor > 0:
        raise UnfitError(f"the soft cap is {walk.factor:g}, and a kernel takes only a positive one")
    walk.soft_cap, walk.factor = walk.factor, 1.0
    scores = node.inputs[0]
    assert scores is not None
    return scores


def _second(softmax: onnx_ir.Node, seen: _Probabilities) -> onnx_ir.Node:
    """Go on from the softmax to the MatMul of probabilities and values."""
    value = softmax.outputs[0]
    for _ in range(_DEEP):
        if value.is_graph_output():
            raise UnfitError("the probabilities are an output of the graph")
        users = _users(value)
        guard, divided = nan_guard(value, users), _divided(value, users)
        if guard is not None and not (seen.factors or seen.gate):
            value, seen.guarded = guard.outputs[0], True
            continue
        if divided is not None:
            _note_division(seen, divided[1])
            value = divided[0].outputs[0]
            continue
        if len(users) != 1:
            kinds = ", ".join(sorted({user.op_type for user in users})) or "nothing"
            raise UnfitError(f"the probabilities are used by more than the product with the values: {kinds}")
        user = users[0]
        if user.op_type == "MatMul":
            if user.inputs[0] is not value or user.inputs[1] is value or not is_product(user):
                raise UnfitError("the probabilities aren't the left side of a product with computed values")
            return user
        if not (passes(user) and user.inputs[0] is value):
            _note_change(user, value, seen)
        value = user.outputs[0]
    raise UnfitError(f"no product with the values within {_DEEP} nodes behind the softmax")


def _note_change(user: onnx_ir.Node, value: onnx_ir.Value, seen: _Probabilities) -> None:
    """Note a node that changes the probabilities."""
    what = f"{user.op_type} changes the probabilities between softmax and values"
    if user.op_type not in ("Mul", "Where", "Add"):
        raise UnfitError(what)
    if seen.renormalise or seen.gate is not None:
        raise UnfitError(f"{what}, behind a division by their sum or a gate")
    places = [place for place, one in enumerate(user.inputs) if one is value]
    if len(places) != 1:
        raise UnfitError(f"{what}: it takes them twice")
    others = [one for one in user.inputs if one is not value]
    first, second = others[0], others[-1]
    assert first is not None
    if user.op_type == "Mul":
        seen.factors.append(Factor(first))
    elif user.op_type == "Where":
        if places == [0] or scalar_of(second) != 0:
            raise UnfitError(f"{what}, putting other numbers than zero in")
        seen.factors.append(Factor(first, turned=places == [2]))
    else:
        seen.gate = _gate(first, seen.factors.pop() if seen.factors else None)


def _gate(other: onnx_ir.Value, factor: Factor | None) -> Gate:
    """The gate of ``(1 - gate) * probabilities + other``, where ``other`` is ``gate * positions``."""
    product = other.producer()
    if factor is None or factor.turned or product is None or product.op_type != "Mul":
        raise UnfitError("Add changes the probabilities between softmax and values, and isn't the mixture of a gate")
    for place in (0, 1):
        gate, positions = product.inputs[place], product.inputs[1 - place]
        if gate is not None and positions is not None and _one_together(factor.value, gate):
            return Gate(gate, positions)
    raise UnfitError("Add mixes the probabilities with shares that aren't a gate and what is left of 1")


def _one_together(one: onnx_ir.Value, other: onnx_ir.Value) -> bool:
    """Whether both, numbers a head, are 1 in sum."""
    numbers = [folded(value, collapse=False) for value in (one, other)]
    if numbers[0] is not None and numbers[1] is not None:
        dtype = one.dtype.name if one.dtype is not None else "FLOAT"
        total = numbers[0].astype(np.float64) + numbers[1].astype(np.float64)
        return bool(np.abs(total - 1).max() < _SUMS_TO_ONE.get(dtype, 1e-5))
    return any(_is_rest(a, b) for a, b in ((one, other), (other, one)))


def _is_rest(rest: onnx_ir.Value, gate: onnx_ir.Value) -> bool:
    node = rest.producer()
    return node is not None and node.op_type == "Sub" and scalar_of(node.inputs[0]) == 1 and _same(node.inputs[1], gate, 4)


def _same(one: onnx_ir.Value | None, other: onnx_ir.Value | None, depth: int) -> bool:
    """Whether two values are computed alike from the same ones: a model often writes its gate twice."""
    if one is other:
        return True
    if one is None or other is None:
        return False
    numbers = constant_of(one), constant_of(other)
    if numbers[0] is not None and numbers[1] is not None:
        return np.array_equal(numbers[0], numbers[1])
    a, b = one.producer(), other.producer()
    if a is None or b is None or depth == 0 or one.index() != other.index():
        return False
    alike = (a.op_type, a.domain, len(a.inputs)) == (b.op_type, b.domain, len(b.inputs)) and dict(a.attributes) == dict(
        b.attributes
    )
    return alike and all(_same(x, y, depth - 1) for x, y in zip(a.inputs, b.inputs, strict=True))


def _divided(value: onnx_ir.Value, users: list[onnx_ir.Node]) -> tuple[onnx_ir.Node, float] | None:
    """The Div of ``p / (sum(p) + epsilon)``, the sum being over the keys and perhaps in a wider type, and the epsilon."""
    if len(users) != 2 or "Div" not in (users[0].op_type, users[1].op_type):
        return None
    divide, total = users if users[0].op_type == "Div" else users[::-1]
    if total.op_type == "Cast" and passes(total) and len(total.outputs[0].uses()) == 1:
        total = next(user for user, _ in total.outputs[0].uses())
    if total.op_type != "ReduceSum":
        return None
    axes = constant_of(total.inputs[1]) if len(total.inputs) > 1 else None
    over_keys = axes is not None and axes.reshape(-1).tolist() in ([-1], [len(dims_of(value)) - 1])
    if not over_keys or divide.inputs[0] is not value or divide.inputs[1] is value:
        return None
    share, kept, epsilon = divide.inputs[1], total.attributes.get_int("keepdims", 1) == 1, 0.0
    for _ in range(4):
        node = share.producer() if share is not None else None
        if share is None or node is None or len(share.uses()) != 1 or share.is_graph_output():
            return None
        if node is total:
            return (divide, epsilon) if kept else None
        numbers = [scalar_of(one) for one in node.inputs] if node.op_type == "Add" else []
        number = next((one for one in numbers if one is not None), None)
        if number is not None and None in numbers and 0 <= number <= _LARGEST_EPSILON:
            share, epsilon = node.inputs[numbers.index(None)], epsilon + number
        elif node.op_type == "Cast" and passes(node):
            share = node.inputs[0]
        elif node.op_type == "Unsqueeze" and not kept and _unsqueezes_last(node):
            share, kept = node.inputs[0], True
        else:
            return None
    return None


def _unsqueezes_last(node: onnx_ir.Node) -> bool:
    axes = constant_of(node.inputs[1])
    return axes is not None and axes.reshape(-1).tolist() in ([-1], [len(dims_of(node.outputs[0])) - 1])


def _note_division(seen: _Probabilities, epsilon: float) -> None:
    """Division by a sum of 1 changes nothing; behind a mask it renormalises."""
    if seen.renormalise:
        raise UnfitError("the probabilities are divided by their sum twice")
    if seen.gate is None and seen.factors:
        seen.renormalise, seen.epsilon = True, epsilon
        return
    if epsilon > _LEAST_EPSILON:
        raise UnfitError(f"the probabilities are divided by their sum and {epsilon:g}, which isn't known to be 1")
    if seen.gate is None:
        return
    if seen.factors or not _sums_to_one(seen.gate.positions):
        raise UnfitError("the mixture of a gate is divided by its sum, which isn't known to be 1")


def _sums_to_one(positions: onnx_ir.Value) -> bool:
    numbers = folded(positions, collapse=False)
    dtype = positions.dtype.name if positions.dtype is not None else "FLOAT"
    if numbers is not None:
        keys = dims_of(positions)[-1]
        repeats = keys // numbers.shape[-1] if isinstance(keys, int) else 1
        sums = numbers.astype(np.float64).sum(-1) * repeats
        return bool(np.abs(sums - 1).max() < 10 * _SUMS_TO_ONE.get(dtype, 1e-5))
    node = positions.producer()
    while node is not None and passes(node) and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Softmax":
        return False
    return node.attributes.get_int("axis", -1) in (-1, len(dims_of(positions)) - 1)
