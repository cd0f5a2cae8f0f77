"""Find every attention of an ONNX graph, which block it is of, and what about it no fused kernel takes.

This is what a build is held against: TensorRT says what it fused, the graph says what there was to fuse. A newcomer's trap: an
attention is one ``Attention`` node from opset 23 on, and before that MatMul, Softmax, MatMul with anything in between.
"""

from __future__ import annotations

import ast
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shallowvit_kernels.records import DOMAIN

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import onnx_ir

__all__ = ["AttentionSite", "anchor_of", "block_paths", "find_attentions"]

# Head sizes with a fused kernel, as probed on TensorRT-RTX 1.7. Full TensorRT's documentation says 16 to 256.
HEAD_SIZES = (9, 256)
_ONE_HEAD = "has one head and a mask or bias, for which there is no fused kernel"
_SCOPES = "pkg.torch.onnx.name_scopes"
_log = logging.getLogger("onnx_ir.passes")
_WRAPPER = "model."  # the exported module holds the user's model under this name
_DEEP = 8  # nodes between a softmax and its MatMuls, at most
_BEFORE = ("Add", "Sub", "Mul", "Div", "Cast", "Where", "Reshape", "Tanh", "Identity", "QuantizeLinear", "DequantizeLinear")
_AFTER = ("Cast", "Mul", "Dropout", "Identity", "Reshape", "Where", "Add", "Div", "QuantizeLinear", "DequantizeLinear")
# What no attention of a paper that we know does, but a user's may: it is an attention all the same, and has to be counted.
_UNUSUAL = ("Abs", "Clip", "Cos", "Exp", "Log", "Max", "Min", "Neg", "Pow", "Relu", "Sigmoid", "Sin", "Sqrt", "Sub")
_BREAKING = ("Pow", "Relu", "Sigmoid")  # on scores, as probed with TensorRT-RTX 1.7, which fuses with the others there


@dataclass(frozen=True)
class AttentionSite:
    """One attention of the graph.

    Args:
        anchor: The node that a fused kernel must cover: the ``Attention`` node, the pattern's ``Softmax``, or a node of ours.
        kind: ``Attention``, ``pattern`` or ``plugin``.
        path: The module path of its block in the exported model, or of its own module outside the blocks.
        block: The block's number in the unpruned model; None outside the blocks.
        dtype: What it computes in, as ``fp32``, ``fp16`` or ``bf16``.
        heads: None where the shape is dynamic, as are the sizes below.
        head_size: Numbers a head.
        queries: Tokens that ask.
        keys: Tokens that are asked.
        obstacle: Why no fused kernel takes it, read off the graph; None where nothing speaks against one.
        operator: Of a node of ours; the plugin of that name is its kernel.
    """

    anchor: str
    kind: str
    path: str
    block: int | None
    dtype: str
    heads: int | None
    head_size: int | None
    queries: int | None
    keys: int | None
    obstacle: str | None
    operator: str | None = None


def block_paths(paths: Sequence[str], kept: Sequence[int]) -> dict[str, int]:
    """Return module path in the pruned model -> number in the unpruned one; removal moves later blocks of a list up."""
    positions: dict[str, int] = {}
    found = {}
    for block in sorted(kept):
        stack = paths[block].rpartition(".")[0]
        found[f"{stack}.{positions.get(stack, 0)}"] = block
        positions[stack] = positions.get(stack, 0) + 1
    return found


def anchor_of(node: onnx_ir.Node) -> str:
    """Return a node's name, or the one that TensorRT's parser gives a node without."""
    return node.name or f"node_of_{node.outputs[0].name}"


def find_attentions(graph: Path | onnx_ir.Model, blocks: Mapping[str, int] | None = None) -> tuple[AttentionSite, ...]:
    """Return the attentions in the order of the graph.

    Args:
        graph: An ONNX file, or the model in memory, whose missing shapes are then inferred in place.
        blocks: What ``block_paths`` returns; without it no site knows its block.
    """
    import onnx_ir
    from onnx_ir.passes.common import ShapeInferencePass

    model = graph if isinstance(graph, onnx_ir.Model) else onnx_ir.load(graph)
    if any(value.shape is None for node in model.graph for value in node.outputs):
        _log.setLevel(logging.ERROR)  # where shapes can't be inferred it prints a traceback and goes on without, as we do
        ShapeInferencePass()(model)
    sites = [_site(node, blocks or {}) for node in model.graph.all_nodes()]
    return tuple(site for site in sites if site is not None)


def _site(node: onnx_ir.Node, blocks: Mapping[str, int]) -> AttentionSite | None:
    if node.domain == DOMAIN:
        return _of_ours(node, blocks)
    if node.op_type == "Attention":
        return _of_attention(node, blocks)
    return _of_softmax(node, blocks) if node.op_type == "Softmax" else None


def _of_ours(node: onnx_ir.Node, blocks: Mapping[str, int]) -> AttentionSite:
    """A node whose operator is a kernel of ours; nothing about it speaks against one."""
    from shallowvit_kernels.errors import KernelError
    from shallowvit_kernels.records import Variant
    from shallowvit_kernels.tensors import inputs_of

    try:
        variant = Variant.from_json(node.attributes.get_string("variant", ""))
    except KernelError as err:
        raise ShallowvitError(f"build: the node {node.name} ({node.op_type}) doesn't say what it computes: {err}") from err
    given = zip(inputs_of(variant), node.inputs, strict=False)
    sizes: dict[str, int | None] = {}
    for spec, value in given:
        for letter, size in zip(spec.axes, _dims(value), strict=False):
            if letter not in spec.broadcast and sizes.get(letter) is None:
                sizes[letter] = size
    queries = sizes.get("n")
    path, block = _place(node, blocks)
    return AttentionSite(
        anchor=anchor_of(node),
        kind="plugin",
        path=path,
        block=block,
        dtype=str(variant.dtype),
        heads=sizes.get("h"),
        head_size=variant.head_size,
        queries=queries,
        keys=sizes.get("m", queries),
        obstacle=None,
        operator=node.op_type,
    )


def _of_attention(node: onnx_ir.Node, blocks: Mapping[str, int]) -> AttentionSite:
    query, key = node.inputs[0], node.inputs[1]
    shape, key_shape = _dims(query), _dims(key)
    heads = node.attributes.get_int("q_num_heads", 0) or (shape[1] if len(shape) == 4 else None)
    size = shape[-1] if shape else None
    if len(shape) == 3 and heads and size:
        size //= heads
    dtype = _dtype(query)
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    path, block = _place(node, blocks)
    obstacle = _shape_obstacle(dtype, size) or _mask_obstacle(mask, dtype) or _attribute_obstacle(node)
    obstacle = obstacle or _quantised_obstacle(node.inputs[:3])
    if obstacle is None and heads == 1 and mask is not None:
        obstacle = _ONE_HEAD
    sizes = (heads, size, shape[-2] if len(shape) > 1 else None, key_shape[-2] if len(key_shape) > 1 else None)
    return AttentionSite(anchor_of(node), "Attention", path, block, dtype, *sizes, obstacle)


def _of_softmax(node: onnx_ir.Node, blocks: Mapping[str, int]) -> AttentionSite | None:
    """The pattern around a softmax, or None where it isn't an attention's."""
    first, before = _scores(node)
    last, after = _weighted_sum(node)
    if first is None or last is None:
        return None
    query, key = _dims(first.inputs[0]), _dims(first.inputs[1])  # [B, heads, N, d], [B, heads, d, N]
    heads, size = (query[-3] if len(query) > 3 else None), (query[-1] if query else None)
    dtype = _dtype(first.outputs[0])
    path, block = _place(node, blocks)
    obstacle = _shape_obstacle(dtype, size) or _quantised_obstacle([*first.inputs, last.inputs[1]])
    obstacle = obstacle or _pattern_obstacle(node, before, after, last)
    if obstacle is None and heads == 1 and any(each.op_type == "Add" for each in before):
        obstacle = _ONE_HEAD
    if obstacle is None and (len(query) == 3 or query[:2] == [1, 1]):  # as probed: MatMul and Softmax of [N, size] alone
        obstacle = "is MatMul and Softmax without an axis for batch or heads, which isn't recognised; export with opset 23"
    sizes = (heads, size, query[-2] if len(query) > 1 else None, key[-1] if key else None)
    return AttentionSite(anchor_of(node), "pattern", path, block, dtype, *sizes, obstacle)


def _shape_obstacle(dtype: str, head_size: int | None) -> str | None:
    if dtype == "fp32":
        return "computes in fp32, and only fp16 and bf16 have a fused kernel; use --attention-precision or --precision fp16"
    low, high = HEAD_SIZES
    if head_size is not None and not low <= head_size <= high:
        return f"has a head size of {head_size}, and fused kernels take {low} to {high}"
    return None


def _mask_obstacle(mask: onnx_ir.Value | None, dtype: str) -> str | None:
    if mask is not None and _dtype(mask) not in (dtype, "bool"):
        return f"has a {_dtype(mask)} mask on {dtype} attention; the mask must be {dtype} or boolean"
    return None


def _attribute_obstacle(node: onnx_ir.Node) -> str | None:
    if node.attributes.get_float("softcap", 0.0):
        return "has a soft cap (tanh on the scores)"
    if len(node.outputs) > 3 and (node.outputs[3].uses() or node.outputs[3].is_graph_output()):
        return "gives its scores or probabilities away as an output"
    return None


def _quantised_obstacle(inputs: Sequence[onnx_ir.Value | None]) -> str | None:
    for value in inputs:
        producer = value.producer() if value is not None else None
        while producer is not None and producer.op_type in ("Transpose", "Reshape"):
            first = producer.inputs[0]
            producer = first.producer() if first is not None else None
        if producer is not None and producer.op_type == "DequantizeLinear":
            return "has quantised q, k or v while the probabilities aren't; quantise the products with weights alone"
    return None


def _pattern_obstacle(
    softmax: onnx_ir.Node, before: Sequence[onnx_ir.Node], after: Sequence[onnx_ir.Node], last: onnx_ir.Node
) -> str | None:
    if any(node.op_type == "Tanh" for node in before):
        return "has tanh on its scores"
    breaking = next((node for node in before if node.op_type in _BREAKING), None)
    if breaking is not None:
        return f"has {breaking.op_type} on its scores"
    unusual = next((node for node in after if node.op_type in _UNUSUAL), None)
    if unusual is not None:
        return f"has its probabilities changed by {unusual.name or unusual.op_type} before the values"
    for node in after:
        others = [value for value in node.inputs if value is not None and not _comes_from(value, (softmax, *after))]
        if node.op_type in ("Mul", "Where", "Add", "Div") and any(not _is_scalar(value) for value in others):
            return f"has its probabilities changed by {node.name or node.op_type} (a gate or a mask) before the values"
    chain = (softmax, *after)
    for node in chain:
        for output in node.outputs:
            users = [user for user, _ in output.uses() if user not in chain and user is not last]
            if users or output.is_graph_output():
                what = f"by {users[0].name}" if users else "as an output of the graph"
                return f"has its probabilities used elsewhere, {what}"
    return None


def _comes_from(value: onnx_ir.Value, nodes: Sequence[onnx_ir.Node]) -> bool:
    return value.producer() in nodes


def _is_scalar(value: onnx_ir.Value) -> bool:
    return value.shape is not None and math.prod(dim if isinstance(dim, int) else 2 for dim in value.shape) == 1


def _scores(softmax: onnx_ir.Node) -> tuple[onnx_ir.Node | None, list[onnx_ir.Node]]:
    """The MatMul of queries and keys, and what stands between it and the softmax."""
    level: list[onnx_ir.Value | None] = [softmax.inputs[0]]
    seen: list[onnx_ir.Node] = []
    for _ in range(_DEEP):
        producers = [node for value in level if value is not None and (node := value.producer()) is not None]
        for node in producers:
            if _is_product(node):
                return node, seen
        passed = [node for node in producers if node.op_type in _BEFORE + _UNUSUAL]
        seen += passed
        level = [value for node in passed for value in node.inputs]
    return None, seen


def _weighted_sum(softmax: onnx_ir.Node) -> tuple[onnx_ir.Node | None, list[onnx_ir.Node]]:
    """The MatMul of probabilities and values, and what stands between the softmax and it."""
    level: list[onnx_ir.Value] = [softmax.outputs[0]]
    seen: list[onnx_ir.Node] = []
    for _ in range(_DEEP):
        users = [user for value in level for user, _ in value.uses()]
        for node in users:
            if _is_product(node) and node.inputs[0] in level:
                return node, seen
        passed = [node for node in users if node.op_type in _AFTER + _UNUSUAL]
        seen += passed
        level = [value for node in passed for value in node.outputs]
    return None, seen


def _is_product(node: onnx_ir.Node) -> bool:
    """A MatMul of two computed matrices, neither of them weights."""
    return node.op_type == "MatMul" and all(value is not None and not _is_constant(value) for value in node.inputs)


def _is_constant(value: onnx_ir.Value) -> bool:
    producer = value.producer()
    if producer is not None and producer.op_type in ("DequantizeLinear", "Cast", "Transpose"):
        return producer.inputs[0] is not None and _is_constant(producer.inputs[0])
    return value.const_value is not None or (producer is not None and producer.op_type == "Constant")


def _place(node: onnx_ir.Node, blocks: Mapping[str, int]) -> tuple[str, int | None]:
    scopes = [scope.removeprefix(_WRAPPER) for scope in _scopes(node)]
    for scope in reversed(scopes):
        if scope in blocks:
            return scope, blocks[scope]
    return (scopes[-1] if scopes else node.name or ""), None


def _scopes(node: onnx_ir.Node) -> Iterator[str]:
    """The modules a node was traced in, outermost first, without the model itself and the operation."""
    text = node.metadata_props.get(_SCOPES, "[]")
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError):  # another exporter's words under the same key
        return iter(())
    return (scope for scope in scopes[:-1] if scope)


def _dims(value: onnx_ir.Value | None) -> list[int | None]:
    if value is None or value.shape is None:
        return []
    return [dim if isinstance(dim, int) else None for dim in value.shape]


def _dtype(value: onnx_ir.Value | None) -> str:
    names = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "BOOL": "bool"}
    name = value.dtype.name if value is not None and value.dtype is not None else "unknown"
    return names.get(name, name.lower())
