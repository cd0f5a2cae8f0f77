"""Find attention that was traced as MatMul, Softmax, MatMul, and take it apart into queries, keys, values, scale and masks.

A newcomer's trap: that a softmax stands between two products doesn't make it an attention that one node may replace. What looks
at the probabilities, or changes them, keeps it apart, so each site that isn't understood comes back with the reason.

The walk is over ``onnx_ir`` values; a pattern for onnxscript's rewriter would have to list every order of scales, masks, casts
and views (its own ``ort_fusions/sdpa.py`` has 54 of them and neither views nor reasons).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .operands import untransposed, without_scale
from .values import constant_of, dims_of, is_float, scalar_of

if TYPE_CHECKING:
    import onnx_ir

    from .values import Dim

__all__ = [
    "AttentionSite",
    "Left",
    "MaskTerm",
    "ScoresWalk",
    "UnfitError",
    "check_rank",
    "check_shapes",
    "find_sites",
    "is_attention",
    "is_product",
    "nan_guard",
    "one_type",
    "passes",
    "scores_place",
    "step_back",
]

_DEEP = 16  # nodes between a softmax and its products, at most


@dataclass(frozen=True)
class MaskTerm:
    """What is added to the scores.

    Args:
        value: Added to the scores, or where it is False the score is replaced by ``fill``.
        factor: What the sum is multiplied by before the softmax, so the mask too.
        view: The shape that the scores are seen in when it is added, [batch, windows, heads, N, M] or with N and M as the
            products of two sizes each; None for their own.
        fill: Of a masked fill: ``value`` is boolean, and ``fill`` stands where it is ``fill_where``.
        fill_where: See ``fill``.
    """

    value: onnx_ir.Value
    factor: float = 1.0
    view: tuple[Dim, ...] | None = None
    fill: float | None = None
    fill_where: bool = False


@dataclass(frozen=True)
class AttentionSite:
    """One attention as a pattern of nodes.

    ``left`` and ``right`` are the operands of the first MatMul with the scales that stand before it; ``query`` and ``key``
    are without. ``key`` transposed by ``key_permutation`` is [B, heads, M, d] (or [B, M, d]); ``scale`` holds every factor,
    ``scale_behind`` those behind the first MatMul. ``head_scale`` [heads, 1, 1] is a factor of the queries too.
    """

    first: onnx_ir.Node
    softmax: onnx_ir.Node
    second: onnx_ir.Node
    left: onnx_ir.Value
    right: onnx_ir.Value
    query: onnx_ir.Value
    key: onnx_ir.Value
    key_permutation: tuple[int, ...]
    value: onnx_ir.Value
    scale: float
    scale_behind: float
    head_scale: onnx_ir.Value | None
    masks: tuple[MaskTerm, ...]
    guarded: bool

    @property
    def name(self) -> str:
        """The softmax's."""
        return _name(self.softmax)

    @property
    def metadata(self) -> dict[str, str]:
        """Where in the model it is: the softmax's scopes, else those of a MatMul."""
        return dict(self.softmax.metadata_props or self.second.metadata_props or self.first.metadata_props)

    @property
    def scores_dims(self) -> tuple[Dim, ...]:
        """[B, heads, N, M] with as many dimensions in front of N as the queries have."""
        return (*dims_of(self.query)[:-1], dims_of(self.value)[-2])


@dataclass(frozen=True)
class Left:
    """An attention that stays as it is, by the name of its softmax, and why."""

    node: str
    reason: str


class UnfitError(Exception):
    """Not a site, with the reason as its text."""


@dataclass
class ScoresWalk:
    """What is gathered on the way from the softmax back to the first MatMul."""

    factor: float = 1.0
    head_scale: onnx_ir.Value | None = None
    masks: list[MaskTerm] = field(default_factory=list)
    view: tuple[Dim, ...] | None = None
    outside: tuple[Dim, ...] | None = None


def find_sites(model: onnx_ir.Model) -> tuple[list[AttentionSite], list[Left]]:
    """Return the attentions of the main graph that are understood, and those that aren't with the reason, in order."""
    sites: list[AttentionSite] = []
    left: list[Left] = []
    for node in model.graph:
        if node.op_type == "Softmax" and node.domain in ("", "ai.onnx") and is_attention(node):
            try:
                sites.append(_site(node))
            except UnfitError as err:
                left.append(Left(_name(node), str(err)))
    return sites, left


def _name(node: onnx_ir.Node) -> str:
    return node.name or node.outputs[0].name or ""


def is_attention(softmax: onnx_ir.Node) -> bool:
    """Whether a product of two computed matrices leads to the softmax and its result to another product."""
    level, found = [softmax.inputs[0]], False
    for _ in range(_DEEP):
        producers = [node for value in level if value is not None and (node := value.producer()) is not None]
        found = found or any(is_product(node) for node in producers)
        level = [value for node in producers if not _is_weighted(node) for value in node.inputs][:_DEEP]
    if not found:
        return False
    values = list(softmax.outputs)
    for _ in range(_DEEP // 2):
        users = [user for value in values for user, _ in value.uses()]
        if any(is_product(user) for user in users):
            return True
        values = [output for user in users if not _is_weighted(user) for output in user.outputs][:_DEEP]
    return False


def is_product(node: onnx_ir.Node) -> bool:
    """Whether it multiplies two computed matrices."""
    return node.op_type == "MatMul" and all(constant_of(value) is None for value in node.inputs)


def _is_weighted(node: onnx_ir.Node) -> bool:
    """A layer with weights of its own: behind it another part of the model begins."""
    return node.op_type in ("Conv", "Gemm", "LayerNormalization") or (node.op_type == "MatMul" and not is_product(node))


def _site(softmax: onnx_ir.Node) -> AttentionSite:
    scores = softmax.inputs[0]
    assert scores is not None
    axis = softmax.attributes.get_int("axis", -1)
    if axis not in (-1, len(dims_of(scores)) - 1):
        raise UnfitError(f"the softmax is over axis {axis}, not over the keys")
    second, guarded = _second(softmax)
    walk = ScoresWalk()
    first = _first(scores, walk)
    left, right, value = first.inputs[0], first.inputs[1], second.inputs[1]
    assert left is not None
    assert right is not None
    assert value is not None
    query, left_scale = without_scale(left)
    key, permutation, right_scale = untransposed(right)
    query, key, value = one_type(query, key, value, walk)
    scale = walk.factor * left_scale * right_scale
    if not scale > 0:
        raise UnfitError(f"the scores are scaled by {scale:g}, and an Attention node takes only a positive scale")
    check_shapes(query, key, permutation, value)
    if len(dims_of(query)) == 5 and (walk.masks or walk.head_scale is not None):
        raise UnfitError("the scores have five dimensions and a mask or a scale of each head")
    return AttentionSite(
        first=first,
        softmax=softmax,
        second=second,
        left=left,
        right=right,
        query=query,
        key=key,
        key_permutation=permutation,
        value=value,
        scale=scale,
        scale_behind=walk.factor,
        head_scale=walk.head_scale,
        masks=tuple(reversed(walk.masks)),
        guarded=guarded,
    )


def _second(softmax: onnx_ir.Node) -> tuple[onnx_ir.Node, bool]:
    """The MatMul of probabilities and values, and whether rows of NaN are turned to zeros on the way."""
    value, guarded = softmax.outputs[0], False
    for _ in range(_DEEP):
        if value.is_graph_output():
            raise UnfitError("the probabilities are an output of the graph")
        users = list(dict.fromkeys(user for user, _ in value.uses()))
        guard = nan_guard(value, users)
        if guard is not None:
            value, guarded = guard.outputs[0], True
            continue
        if len(users) != 1:
            kinds = ", ".join(sorted({user.op_type for user in users})) or "nothing"
            raise UnfitError(f"the probabilities are used by more than the product with the values: {kinds}")
        user = users[0]
        if user.op_type == "MatMul":
            if user.inputs[0] is not value or not is_product(user):
                raise UnfitError("the probabilities aren't the left side of a product with computed values")
            return user, guarded
        if not (passes(user) and user.inputs[0] is value):
            raise UnfitError(f"{user.op_type} changes the probabilities between softmax and values")
        value = user.outputs[0]
    raise UnfitError(f"no product with the values within {_DEEP} nodes behind the softmax")


def nan_guard(value: onnx_ir.Value, users: list[onnx_ir.Node]) -> onnx_ir.Node | None:
    """``Where(IsNaN(p), 0, p)``, which torch writes behind a boolean mask before opset 23."""
    if {user.op_type for user in users} != {"IsNaN", "Where"} or len(users) != 2:
        return None
    test, where = sorted(users, key=lambda user: user.op_type)
    fits = where.inputs[0] is test.outputs[0] and where.inputs[2] is value and scalar_of(where.inputs[1]) == 0
    return where if fits and len(test.outputs[0].uses()) == 1 else None


def passes(node: onnx_ir.Node) -> bool:
    """A node that hands its first input on: Identity, Dropout at inference, a Cast between float types."""
    if node.op_type == "Cast":
        return is_float(node.inputs[0]) and is_float(node.outputs[0])
    if node.op_type == "Dropout":
        training = node.inputs[2] if len(node.inputs) > 2 else None
        masked = len(node.outputs) > 1 and bool(node.outputs[1].uses())
        return (training is None or scalar_of(training) == 0) and not masked
    return node.op_type == "Identity"


def _first(scores: onnx_ir.Value, walk: ScoresWalk) -> onnx_ir.Node:
    """Go back from the softmax's input to the MatMul of queries and keys."""
    value = scores
    for _ in range(_DEEP):
        users = list(dict.fromkeys(user for user, _ in value.uses()))
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
        value = step_back(node, value, walk)
    raise UnfitError(f"no product of queries and keys within {_DEEP} nodes before the softmax")


def step_back(node: onnx_ir.Node, value: onnx_ir.Value, walk: ScoresWalk) -> onnx_ir.Value:
    """One node further back: note what it does to the scores, return what it does it to."""
    inside = scores_place(node)
    if inside is None:
        raise UnfitError(f"{node.op_type} changes the scores before the softmax")
    scores = node.inputs[inside]
    assert scores is not None
    if passes(node):
        return scores
    if node.op_type == "Reshape":
        _see_through(walk, dims_of(value), dims_of(scores))
        return scores
    other = node.inputs[1 - inside] if node.op_type != "Where" else node.inputs[0]
    assert other is not None
    if node.op_type == "Add":
        if walk.head_scale is not None:
            raise UnfitError("a mask is added before the scores of each head are scaled apart")
        walk.masks.append(MaskTerm(other, walk.factor, walk.view))
    elif node.op_type == "Where":
        fill = scalar_of(node.inputs[3 - inside])
        if fill is None or not fill < -1e4 or walk.head_scale is not None:
            raise UnfitError("Where puts other numbers than a very negative constant into the scores")
        walk.masks.append(MaskTerm(other, walk.factor, walk.view, fill, fill_where=inside == 2))
    else:
        _scale(walk, node.op_type, inside, other)
    return scores


def scores_place(node: onnx_ir.Node) -> int | None:
    """Which input of the node the scores come in by; None for a node that isn't understood."""
    if passes(node) or node.op_type == "Reshape":
        return 0
    if node.op_type not in ("Add", "Mul", "Div", "Where"):
        return None
    places = (1, 2) if node.op_type == "Where" else (0, 1)
    for place in places[:1] if node.op_type == "Div" else places:
        value = node.inputs[place]
        for _ in range(_DEEP):
            producer = value.producer() if value is not None else None
            if producer is None:
                break
            if is_product(producer):
                return place
            if producer.op_type in ("Add", "Mul", "Div", "Where"):
                inner = scores_place(producer)
                value = None if inner is None else producer.inputs[inner]
            elif passes(producer) or producer.op_type in ("Reshape", "Tanh"):
                value = producer.inputs[0]
            else:
                break
    return None


def _see_through(walk: ScoresWalk, outer: tuple[Dim, ...], inner: tuple[Dim, ...]) -> None:
    """A view of windows or of grids apart, see ``MaskTerm.view``, or the way back out of it."""
    if walk.view is None:
        windows = len(inner) == 5 and outer[1:] == inner[2:]
        grids = len(inner) == 6 and outer[1] == inner[1] and outer[2:] == (_product(inner[2:4]), _product(inner[4:]))
        if len(outer) != 4 or not (windows or grids) or not all(isinstance(dim, int) for dim in inner[1:]):
            raise UnfitError(f"the scores are reshaped from {list(inner)} to {list(outer)} before the softmax")
        walk.view, walk.outside = inner, outer
    else:
        if walk.outside is None or len(inner) != 4 or inner[1:] != walk.outside[1:]:  # then the batch is the same too
            raise UnfitError(f"the scores are reshaped from {list(inner)}, not to what they are reshaped to later")
        walk.view = walk.outside = None


def _product(dims: tuple[Dim, ...]) -> int | None:
    return math.prod(dim for dim in dims if isinstance(dim, int)) if all(isinstance(dim, int) for dim in dims) else None


def _scale(walk: ScoresWalk, kind: str, inside: int, other: onnx_ir.Value) -> None:
    number = scalar_of(other)
    if number is not None and number != 0:
        walk.factor *= 1 / number if kind == "Div" else number
        return
    dims = dims_of(other)
    one_a_head = len(dims) in (3, 4) and dims[-2:] == (1, 1) and (len(dims) == 3 or dims[0] == 1)
    if kind != "Mul" or not one_a_head or walk.head_scale is not None or walk.view is not None:
        raise UnfitError(f"{kind} changes the scores by more than a constant scale or one number a head")
    walk.head_scale = other


def one_type(
    query: onnx_ir.Value, key: onnx_ir.Value, value: onnx_ir.Value, walk: ScoresWalk
) -> tuple[onnx_ir.Value, onnx_ir.Value, onnx_ir.Value]:
    """Look behind casts where queries, keys and values aren't of one type: the fused kernel widens products itself."""
    found = (query, key, value)
    if len({one.dtype for one in found}) > 1:
        found = tuple(_uncast(one) for one in found)  # type: ignore[assignment]
    kinds = {one.dtype for one in found}
    if len(kinds) != 1 or not is_float(found[0]):
        names = [one.dtype.name if one.dtype is not None else "unknown" for one in found]
        raise UnfitError(f"queries, keys and values are of the types {', '.join(names)}")
    if walk.head_scale is not None and walk.head_scale.dtype != query.dtype:
        raise UnfitError("the scale of each head is of another type than the queries")
    return found


def _uncast(value: onnx_ir.Value) -> onnx_ir.Value:
    node = value.producer()
    inner = node.inputs[0] if node is not None and node.op_type == "Cast" else None
    return inner if inner is not None and is_float(inner) else value


def check_shapes(query: onnx_ir.Value, key: onnx_ir.Value, permutation: tuple[int, ...], value: onnx_ir.Value) -> None:
    """One node takes [B, heads, N, d] each with the same batch and heads; MatMul would broadcast them."""
    q, v = dims_of(query), dims_of(value)
    k = tuple(dims_of(key)[axis] for axis in permutation) if len(dims_of(key)) == len(permutation) else ()
    fits = len(q) == len(k) == len(v) and len(q) in (3, 4, 5)
    if not fits:
        raise UnfitError(f"queries, keys and values have the shapes {list(q)}, {list(k)}, {list(v)}")
    same = q[:-2] == k[:-2] == v[:-2] and None not in q[:-2] and q[-1] == k[-1] and isinstance(q[-1], int) and k[-2] == v[-2]
    if not same:
        raise UnfitError(
            f"queries {list(q)}, keys {list(k)} and values {list(v)} don't have the same known batch, heads and head size"
        )


def check_rank(site: AttentionSite) -> None:
    """Refuse a mask, or a number of several dimensions, that gives the output more of them than the queries have."""
    found, own = len(dims_of(site.second.outputs[0])), len(dims_of(site.query))
    if found > own:
        raise UnfitError(f"a mask or a number makes {found} dimensions of the {own} of the queries")
