"""Rewrite attention that was traced as MatMul, Softmax, MatMul into one ``Attention`` node of opset 23.

TensorRT recognises most of the patterns too, but only the node is a promise: what it can't fuse is a build error there, while a
pattern falls back to a slow engine without a word. A newcomer's trap: the node scales queries and keys by the square root of
``scale`` each, so the factor goes into the attribute once, whatever the model multiplied before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from .attention import UnfitError, check_rank, find_sites
from .masks import additive_mask, no_row_is_empty
from .values import Emitter, dims_of, fixed_dims

if TYPE_CHECKING:
    import onnx_ir

    from .attention import AttentionSite
    from .values import Dim

__all__ = [
    "ATTENTION_OPSET",
    "FusedAttention",
    "fuse_attention",
    "in_four_dimensions",
    "out_of_four_dimensions",
    "transposed",
]

ATTENTION_OPSET = 23
_ATTENTION_IR_VERSION = 11  # onnx 1.18, which brought opset 23
_HEADS_FIRST = (1, 0, 2, 3)


@dataclass(frozen=True)
class FusedAttention:
    """What became of the attentions traced as a pattern.

    Args:
        found: How many there are.
        rewritten: How many are one ``Attention`` node now.
        left: The name of each other one's softmax and the reason.
    """

    found: int
    rewritten: int
    left: tuple[tuple[str, str], ...]


def fuse_attention(model: onnx_ir.Model) -> FusedAttention:
    """Replace each attention of the pattern by one ``Attention`` node, in place; the node has the softmax's name and scopes.

    A graph below opset 23 is converted first, and only if something in it is replaced. A softmax that was computed in fp32
    between fp16 or bf16 products loses its casts: fused kernels compute it in fp32 anyway.

    Args:
        model: The graph in memory, with the types and shapes of its values, which the exporter and shape inference write.

    Raises:
        ShallowvitError: the graph can't be converted to opset 23.
    """
    import onnx_ir.passes.common

    if model.functions:
        onnx_ir.passes.common.InlinePass()(model)
    if any(value.shape is None or value.dtype is None for node in model.graph for value in node.outputs):
        onnx_ir.passes.common.ShapeInferencePass()(model)
    sites, left = find_sites(model)
    if sites and model.graph.opset_imports.get("", 0) < ATTENTION_OPSET:
        _convert(model)
        sites, left = find_sites(model)
    reasons = [(one.node, one.reason) for one in left]
    rewritten = 0
    for site in sites:
        try:
            _replace(model.graph, site)
            rewritten += 1
        except UnfitError as err:
            reasons.append((site.name, str(err)))
    if sites:
        onnx_ir.passes.common.RemoveUnusedNodesPass()(model)
    return FusedAttention(len(sites) + len(left), rewritten, tuple(reasons))


def _convert(model: onnx_ir.Model) -> None:
    from onnxscript import version_converter

    before = model.graph.opset_imports.get("", 0)
    try:
        version_converter.convert_version(model, ATTENTION_OPSET, fallback=True)
    except (version_converter._version_converter.VersionConverterError, ValueError) as err:
        raise _not_converted(before, str(err)) from err
    if model.graph.opset_imports.get("", 0) != ATTENTION_OPSET:
        raise _not_converted(before, "an operator of it has changed")
    model.ir_version = max(model.ir_version, _ATTENTION_IR_VERSION)


def _not_converted(opset: int, why: str) -> ShallowvitError:
    return ShallowvitError(
        f"export: the graph of opset {opset} can't be converted to {ATTENTION_OPSET}, which has the Attention node: {why}. "
        f"Export with --opset {ATTENTION_OPSET}, or keep the pattern"
    )


def _replace(graph: onnx_ir.Graph, site: AttentionSite) -> None:
    if site.guarded and not no_row_is_empty(site):
        raise UnfitError("queries that see no key give zeros here and would give NaN in an Attention node")
    check_rank(site)
    emitter = Emitter(graph, site.metadata)
    output = site.second.outputs[0]
    dtype = site.query.dtype
    assert dtype is not None
    mask = additive_mask(emitter, site, dtype)
    query = site.query
    if site.head_scale is not None:
        query = emitter.op("Mul", [query, site.head_scale])
    key, value = transposed(emitter, site.key, site.key_permutation), site.value
    inputs = [in_four_dimensions(emitter, one) for one in (query, key, value)]
    dims = (*dims_of(inputs[0])[:-1], dims_of(inputs[2])[-1])
    if mask is not None:
        inputs.append(mask)
    # TensorRT-RTX 1.7 has no kernel for one head with a mask, but it has one for a single item of as many heads as the batch
    swap = mask is not None and dims[1] == 1
    if swap:
        inputs = [transposed(emitter, one, _HEADS_FIRST) for one in inputs]
    result = emitter.op(
        "Attention", inputs, {"scale": site.scale}, dims=(dims[1], dims[0], *dims[2:]) if swap else dims, name=site.softmax.name
    )
    if swap:
        result = transposed(emitter, result, _HEADS_FIRST)
    result = out_of_four_dimensions(emitter, result, query)
    assert output.dtype is not None
    result = emitter.cast(result, output.dtype)
    emitter.insert_before(site.second)
    name = output.name
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(site.second, safe=True)
    result.name = name


def transposed(emitter: Emitter, key: onnx_ir.Value, permutation: tuple[int, ...]) -> onnx_ir.Value:
    """Emit a Transpose, where it changes the order."""
    if permutation == tuple(range(len(permutation))):
        return key
    dims = [dims_of(key)[axis] for axis in permutation]
    return emitter.op("Transpose", [key], {"perm": permutation}, dims=dims)


def out_of_four_dimensions(emitter: Emitter, result: onnx_ir.Value, query: onnx_ir.Value) -> onnx_ir.Value:
    """Give an output [B, heads, N, d] the dimensions that the queries had before ``in_four_dimensions``."""
    dims, rank = dims_of(result), len(dims_of(query))
    if rank == 3:
        return emitter.op("Squeeze", [result, emitter.constant([1])], dims=(dims[0], *dims[2:]))
    if rank == 5:
        *apart, size = _fixed(*dims_of(query)[1:3], dims[-1])
        shape = emitter.constant([0, *apart, -1, size])
        return emitter.op("Reshape", [result, shape], dims=(dims[0], *apart, *dims[2:]))
    return result


def in_four_dimensions(emitter: Emitter, value: onnx_ir.Value) -> onnx_ir.Value:
    """[B, N, d] -> [B, 1, N, d], as three dimensions mean something else to the node; [B, a, b, N, d] -> [B, a * b, N, d]."""
    dims = dims_of(value)
    if len(dims) == 3:
        return emitter.op("Unsqueeze", [value, emitter.constant([1])], dims=[dims[0], 1, *dims[1:]])
    if len(dims) == 5:
        one, other, size = _fixed(*dims[1:3], dims[-1])
        shape = emitter.constant([0, one * other, -1, size])
        return emitter.op("Reshape", [value, shape], dims=[dims[0], one * other, *dims[3:]])
    return value


def _fixed(*dims: Dim) -> list[int]:
    fixed = fixed_dims(dims)
    if fixed is None:
        raise UnfitError(f"the sizes {list(dims)} of five dimensions are dynamic")
    return fixed
