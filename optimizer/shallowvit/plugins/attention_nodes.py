"""Take an ``Attention`` node of opset 23 apart into what a kernel's inputs are.

A newcomer's trap: whether a soft cap stands before or behind the mask was turned round in ONNX's own definition, so a node that
has both is left as it is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..exporting.attention import AttentionSite, MaskTerm, UnfitError, check_shapes
from ..exporting.values import Emitter, dims_of, fixed_dims, is_float
from .found import Found
from .layouts import SWAP

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["found_in_attention"]

_INPUTS = ("queries", "keys", "values", "mask", "past keys", "past values", "lengths of its keys")
_IDENTITY = (0, 1, 2, 3)


def found_in_attention(node: onnx_ir.Node) -> Found:
    """Return what a node computes; for one with three dimensions nodes that make them four are put in front of it.

    Raises:
        UnfitError: it is of a form that isn't understood; the text is the reason.
    """
    _check_form(node)
    query, key, value = node.inputs[:3]
    assert query is not None
    assert key is not None
    assert value is not None
    if len({one.dtype for one in (query, key, value)}) > 1 or not is_float(query):
        raise UnfitError("queries, keys and values are of different types")
    rank = {len(dims_of(one)) for one in (query, key, value)}
    if rank not in ({3}, {4}):
        raise UnfitError("queries, keys and values haven't three or four dimensions that are known")
    heads = None
    if rank == {3}:
        heads = _heads(node)
        query, key, value = _in_heads(node, (query, key, value), heads)
    check_shapes(query, key, _IDENTITY, value)
    size = dims_of(query)[-1]
    assert isinstance(size, int)
    site = AttentionSite(
        first=node,
        softmax=node,
        second=node,
        left=query,
        right=key,
        query=query,
        key=key,
        key_permutation=_IDENTITY,
        value=value,
        scale=node.attributes.get_float("scale", 0.0) or 1 / math.sqrt(size),
        scale_behind=1.0,
        head_scale=None,
        masks=_masks(node, query, key),
        guarded=False,
    )
    if not site.scale > 0:
        raise UnfitError(f"the scores are scaled by {site.scale:g}, and a kernel takes only a positive scale")
    cap = node.attributes.get_float("softcap", 0.0)
    if cap and site.masks:
        raise UnfitError("it has a soft cap and a mask, and runtimes differ in which comes first")
    if cap < 0:
        raise UnfitError(f"the soft cap is {cap:g}, and a kernel takes only a positive one")
    return Found(site, soft_cap=cap or None, heads=heads)


def _check_form(node: onnx_ir.Node) -> None:
    for place in (4, 5, 6):
        if len(node.inputs) > place and node.inputs[place] is not None:
            raise UnfitError(f"it takes {_INPUTS[place]}")
    used = [place for place, one in enumerate(node.outputs) if place and (one.uses() or one.is_graph_output())]
    if used:
        raise UnfitError("it gives its keys, values or scores away as an output")
    q_heads, kv_heads = (node.attributes.get_int(f"{name}_num_heads", 0) for name in ("q", "kv"))
    if q_heads != kv_heads:
        raise UnfitError(f"{q_heads} heads of queries share {kv_heads} heads of keys and values")


def _heads(node: onnx_ir.Node) -> int:
    heads = node.attributes.get_int("q_num_heads", 0)
    if not heads:
        raise UnfitError("queries have three dimensions, and the number of heads isn't given")
    return heads


def _in_heads(node: onnx_ir.Node, parts: tuple[onnx_ir.Value, ...], heads: int) -> tuple[onnx_ir.Value, ...]:
    """[b, n, h * d] -> [b, n, h, d] -> [b, h, n, d], of which the second step goes into the kernel's layout."""
    graph = node.graph
    assert graph is not None
    found, emitter = [], Emitter(graph, dict(node.metadata_props))
    for part in parts:
        batch, tokens, width = dims_of(part)
        if not isinstance(width, int) or width % heads:
            raise UnfitError(f"a width of {width} isn't {heads} heads")
        size = width // heads
        shape = emitter.constant([0, 0, heads, size])
        apart = emitter.op("Reshape", [part, shape], dims=[batch, tokens, heads, size])
        found.append(emitter.op("Transpose", [apart], {"perm": SWAP}, dims=[batch, heads, tokens, size]))
    emitter.insert_before(node)
    return tuple(found)


def _masks(node: onnx_ir.Node, query: onnx_ir.Value, key: onnx_ir.Value) -> tuple[MaskTerm, ...]:
    found = []
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is not None:
        boolean = mask.dtype is not None and mask.dtype.name == "BOOL"
        found.append(MaskTerm(mask, fill=-math.inf) if boolean else MaskTerm(mask))
    if node.attributes.get_int("is_causal", 0):
        sizes = fixed_dims([dims_of(query)[-2], dims_of(key)[-2]])
        if sizes is None:
            raise UnfitError("it is causal, and its number of tokens isn't fixed")
        assert node.graph is not None
        emitter = Emitter(node.graph, {})
        found.append(MaskTerm(emitter.constant(np.tri(*sizes, dtype=bool), _boolean()), fill=-math.inf))
    return tuple(found)


def _boolean() -> onnx_ir.Value:
    import onnx_ir

    return onnx_ir.Value(type=onnx_ir.TensorType(onnx_ir.DataType.BOOL))
