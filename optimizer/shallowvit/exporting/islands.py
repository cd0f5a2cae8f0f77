"""Compute attention alone in fp16 or bf16 inside an fp32 graph, so that it fuses: no fp32 attention has a fused kernel.

A newcomer's trap: casting isn't all. A mask of -3.4e38 becomes infinite in fp16, and so may scores that are scaled only behind
their product; masks are clipped, and such a scale moves to the queries, before the cast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from .attention import UnfitError, find_sites
from .masks import additive_mask, narrowed, no_row_is_empty
from .records import Precision
from .values import Emitter, dims_of, is_float

if TYPE_CHECKING:
    import onnx_ir

    from .attention import AttentionSite

__all__ = ["cast_attention"]


def cast_attention(model: onnx_ir.Model, precision: Precision) -> int:
    """Cast queries, keys, values and float masks of each fp32 attention down and its result up again, in place.

    ``Attention`` nodes and, before opset 23, the pattern MatMul, Softmax, MatMul with its mask; the nodes keep their names and
    scopes. What computes in that type already stays as it is, and so does a pattern that ``fuse_attention`` would leave.

    Args:
        model: The graph in memory, with the types and shapes of its values.
        precision: ``fp16`` or ``bf16``.

    Returns:
        How many attentions were cast.

    Raises:
        ShallowvitError: the precision is neither, or an attention computes in the other of the two already.
    """
    import onnx_ir.passes.common

    types = {Precision.FP16: onnx_ir.DataType.FLOAT16, Precision.BF16: onnx_ir.DataType.BFLOAT16}
    if precision not in types:
        raise ShallowvitError(
            f"export: attention in {precision} has no fused kernel to be cast for; choose --attention-precision fp16 or bf16"
        )
    dtype = types[Precision(precision)]
    nodes = [node for node in model.graph if node.op_type == "Attention"]
    sites = find_sites(model)[0]
    kinds = [(node.name, node.inputs[0].dtype) for node in nodes if node.inputs[0] is not None]
    kinds += [(site.name, site.query.dtype) for site in sites]
    for name, kind in kinds:
        if kind not in (dtype, onnx_ir.DataType.FLOAT):
            found = "an unknown type" if kind is None else kind.name.lower()
            raise ShallowvitError(
                f"export: attention {name} computes in {found}, and --attention-precision {precision} is for fp32; leave it "
                "out, or export with --precision fp32"
            )
    cast = sum(_cast_node(model.graph, node, dtype) for node in nodes)
    cast += sum(_cast_pattern(model.graph, site, dtype) for site in sites)
    if cast:
        onnx_ir.passes.common.RemoveUnusedNodesPass()(model)
    return cast


def _cast_node(graph: onnx_ir.Graph, node: onnx_ir.Node, dtype: onnx_ir.DataType) -> bool:
    query = node.inputs[0]
    if query is None or query.dtype == dtype:
        return False
    emitter = Emitter(graph, node.metadata_props)
    for place, value in enumerate(node.inputs):
        if value is not None and is_float(value):
            node.replace_input_with(place, narrowed(emitter, value, dtype) if place == 3 else emitter.cast(value, dtype))
    emitter.insert_before(node)
    for output in node.outputs:
        if output.dtype is not None and (output.uses() or output.is_graph_output()):
            emitter.retype_output(node, output, dtype)
    return True


def _cast_pattern(graph: onnx_ir.Graph, site: AttentionSite, dtype: onnx_ir.DataType) -> bool:
    import onnx_ir

    single = onnx_ir.DataType.FLOAT
    unguarded = site.guarded and not no_row_is_empty(site)
    if {value.dtype for value in (site.left, site.right, site.value)} != {single} or unguarded:
        return False
    emitter = Emitter(graph, site.metadata)
    try:
        mask = additive_mask(emitter, site, dtype)
    except UnfitError:
        return False
    if mask is not None and len(dims_of(site.left)) == 3:
        mask = emitter.op("Squeeze", [mask, emitter.constant([1])], dims=[*dims_of(mask)[:1], *dims_of(mask)[2:]])
    left = site.left
    if site.scale_behind != 1:
        left = emitter.op("Mul", [left, emitter.constant(site.scale_behind, left)])
    if site.head_scale is not None:
        left = emitter.op("Mul", [left, site.head_scale])
    left, right, value = (emitter.cast(one, dtype) for one in (left, site.right, site.value))
    scores = emitter.op("MatMul", [left, right], dims=site.scores_dims, name=site.first.name)
    if mask is not None:
        scores = emitter.op("Add", [scores, mask])
    weights = emitter.op("Softmax", [scores], {"axis": -1}, name=site.softmax.name)
    output = site.second.outputs[0]
    result = emitter.op("MatMul", [weights, value], dims=output.shape, name=site.second.name)
    result = emitter.cast(result, single)
    emitter.insert_before(site.second)
    name = output.name
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(site.second, safe=True)
    result.name = name
    return True
