"""What a variant computes as plain ONNX operators: the body that other runtimes run in the place of a node of ours.

The body computes in fp32 whatever the variant's type is, as kernels do, and rounds once at its end. A newcomer's trap: written
out for TensorRT's own kernels it mustn't, since fp32 attention is what those don't take; ``nodes_of`` has both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir

from .records import DOMAIN, Dtype, FeatureMap, Kernel, Layout, Modifier
from .tensors import inputs_of, outputs_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .records import Variant

__all__ = ["ATTRIBUTES", "DOMAIN", "TYPES", "function_of", "nodes_of"]

ATTRIBUTES = ("plugin_namespace", "plugin_version", "variant")  # of a node
TYPES = {
    Dtype.FP32: onnx_ir.DataType.FLOAT,
    Dtype.FP16: onnx_ir.DataType.FLOAT16,
    Dtype.BF16: onnx_ir.DataType.BFLOAT16,
}
_SWAP = (0, 2, 1, 3)  # [b, n, h, d] <-> [b, h, n, d]
_ATTENTION_OPSET = 23
_OF_MASKS = ("Where", "Add", "Unsqueeze", "Cast")  # what a mask is made with


class _Body:
    """Makes nodes in order; values are the handles."""

    def __init__(self, metadata: Mapping[str, str] | None = None, anchor: str = "") -> None:
        self.nodes: list[onnx_ir.Node] = []
        self.metadata, self.anchor = dict(metadata or {}), anchor

    def op(self, kind: str, *inputs: onnx_ir.Value, anchor: bool = False, **attributes: Any) -> onnx_ir.Value:
        name = self.anchor if anchor and self.anchor else None
        node = onnx_ir.node(kind, inputs, attributes, name=name, metadata_props=dict(self.metadata))
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, array: Any, dtype: onnx_ir.DataType | None = None) -> onnx_ir.Value:
        """Whole numbers as int64, others as fp32 unless a type is given."""
        numbers = np.asarray(array)
        numbers = numbers.astype(np.int64 if numbers.dtype.kind == "i" else np.float32)
        tensor = onnx_ir.tensor(numbers if dtype is None else numbers.astype(dtype.numpy()))
        return self.op("Constant", value=tensor)

    def cast(self, value: onnx_ir.Value, dtype: onnx_ir.DataType) -> onnx_ir.Value:
        return self.op("Cast", value, to=int(dtype))

    def times(self, value: onnx_ir.Value, number: float, dtype: onnx_ir.DataType = onnx_ir.DataType.FLOAT) -> onnx_ir.Value:
        return value if number == 1 else self.op("Mul", value, self.constant(float(number), dtype))

    def not_zero(self, value: onnx_ir.Value) -> onnx_ir.Value:
        """Zeros as ones, since what is divided by them is zero too."""
        return self.op("Where", self.op("Equal", value, self.constant(0.0)), self.constant(1.0), value)

    def last_swapped(self, value: onnx_ir.Value) -> onnx_ir.Value:
        return self.op("Transpose", value, perm=(0, 1, 3, 2))


def function_of(variant: Variant, opset: int = 18) -> onnx_ir.Function:
    """Return the ONNX function of a variant's operator, with the node's attributes declared.

    Args:
        variant: What is computed.
        opset: Of the model that it goes into, 18 or later.
    """
    inputs = [onnx_ir.Value(name=one.name, type=onnx_ir.TensorType(TYPES[one.dtype]), shape=None) for one in inputs_of(variant)]
    nodes, results = nodes_of(variant, inputs, opset)
    for spec, value in zip(outputs_of(variant), results, strict=True):
        value.name = spec.name
    graph = onnx_ir.Graph(inputs, results, nodes=nodes, opset_imports={"": opset}, name=variant.name)
    declared = [onnx_ir.Attr(name, onnx_ir.AttributeType.STRING, None) for name in ATTRIBUTES]
    return onnx_ir.Function(DOMAIN, variant.name, "", graph=graph, attributes=declared)


def nodes_of(
    variant: Variant,
    inputs: Sequence[onnx_ir.Value],
    opset: int,
    *,
    widened: bool = True,
    metadata: Mapping[str, str] | None = None,
    anchor: str = "",
) -> tuple[list[onnx_ir.Node], list[onnx_ir.Value]]:
    """Make the nodes that compute a variant, in order, and return them with its outputs.

    Args:
        variant: What is computed.
        inputs: In the order of ``inputs_of(variant)``.
        opset: Of the graph that they go into.
        widened: In fp32 throughout, with zeros for queries that see no key; else products in the variant's own type and, from
            opset 23 on, one ``Attention`` node where that computes it: what TensorRT has kernels for.
        metadata: Of each node.
        anchor: The name of the softmax, or of the node that is most like one.
    """
    body = _Body(metadata, anchor)
    own, fp32 = TYPES[variant.dtype], onnx_ir.DataType.FLOAT
    given = dict(zip([one.name for one in inputs_of(variant)], inputs, strict=True))
    q, k, v = _heads_first(body, variant, given)
    narrow = not widened and variant.kernel is Kernel.ATTENTION and own is not fp32
    if own is not fp32 and not narrow:
        q, k, v = (body.cast(one, fp32) for one in (q, k, v))
    plain = not set(given) - {"q", "k", "v", "bias"} and not variant.soft_cap and not variant.log_sum_exp
    if variant.kernel is Kernel.GAUSSIAN:
        results = [_gaussian(body, variant, q, k, v)]
    elif variant.kernel is Kernel.LINEAR:
        results = [_linear(body, variant, q, k, v)]
    elif plain and not widened and opset >= _ATTENTION_OPSET:
        results = [_attention_node(body, variant, (q, k, v), given)]
    else:
        results = _attention(body, variant, (q, k, v), given, widened=widened)
    if variant.output_layout is Layout.TOKENS_FIRST:
        results[0] = body.op("Transpose", results[0], perm=_SWAP)
    if own is not fp32 and not narrow:
        results[0] = body.cast(results[0], own)
    return body.nodes, results


def _heads_first(body: _Body, variant: Variant, given: Mapping[str, onnx_ir.Value]) -> tuple[onnx_ir.Value, ...]:
    """Queries, keys and values as [b, h, n, d]."""
    if variant.layout is Layout.PACKED:
        parts = [body.op("Gather", given["q"], body.constant(place), axis=2) for place in range(3)]
    else:
        parts = [given[name] for name in ("q", "k", "v")]
    if variant.layout is Layout.HEADS_FIRST:
        return tuple(parts)
    return tuple(body.op("Transpose", one, perm=_SWAP) for one in parts)


def _attention_node(
    body: _Body, variant: Variant, main: tuple[onnx_ir.Value, ...], given: Mapping[str, onnx_ir.Value]
) -> onnx_ir.Value:
    """One node of opset 23, whose mask must be spread over queries and keys and of the type of the queries."""
    inputs = list(main)
    for operand in variant.operands:
        mask = given[str(operand.modifier)]
        if operand.dtype is not variant.dtype:
            mask = body.cast(mask, TYPES[variant.dtype])
        if set(operand.broadcast) & {"n", "m"}:
            sizes = [body.op("Shape", main[at], start=2, end=3) for at in (0, 1)]
            mask = body.op("Expand", mask, body.op("Concat", body.constant([1, 1]), *sizes, axis=0))
        inputs.append(mask)
    return body.op("Attention", *inputs, anchor=True, scale=variant.scale)


def _attention(
    body: _Body,
    variant: Variant,
    main: tuple[onnx_ir.Value, ...],
    given: Mapping[str, onnx_ir.Value],
    *,
    widened: bool,
) -> list[onnx_ir.Value]:
    """Scores, softmax, modifiers; the output [b, h, n, e] and the log-sum-exp where it is wanted."""
    q, k, v = main
    fp32, own = onnx_ir.DataType.FLOAT, TYPES[variant.dtype]
    widen = not widened and own is not fp32
    dtypes = {str(one.modifier): TYPES[one.dtype] for one in variant.operands}
    operands = {
        name: value if dtypes.get(name, fp32) is fp32 else body.cast(value, fp32)
        for name, value in given.items()
        if name not in ("q", "k", "v")
    }
    # in a narrow type the scale comes first, since unscaled products may pass 65,504
    q = body.times(q, variant.scale, own) if widen else q
    scores = body.op("MatMul", q, body.last_swapped(k))
    scores = body.cast(scores, fp32) if widen else body.times(scores, variant.scale)
    if Modifier.SCORE_MASK in operands:
        scores = body.op("Mul", scores, operands[Modifier.SCORE_MASK])
    if variant.soft_cap is not None:
        scores = body.times(body.op("Tanh", body.times(scores, 1 / variant.soft_cap)), variant.soft_cap)
    if Modifier.BIAS in operands:
        scores = body.op("Add", scores, operands[Modifier.BIAS])
    probabilities = body.op("Softmax", scores, anchor=True, axis=-1)
    if Modifier.BIAS in operands and (widened or _hides(given[Modifier.BIAS])):  # a row of nothing but minus infinity
        zero = body.constant(0.0)
        probabilities = body.op("Where", body.op("IsNaN", probabilities), zero, probabilities)
    probabilities = _modified(body, variant, probabilities, operands)
    results = [body.op("MatMul", body.cast(probabilities, own) if widen else probabilities, v)]
    if variant.log_sum_exp:
        results.append(body.op("ReduceLogSumExp", scores, body.constant([-1]), keepdims=0))
    return results


def _hides(bias: onnx_ir.Value | None) -> bool:
    """Whether minus infinity is put into it for masked keys; then a query may see none."""
    if bias is None:
        return False
    numbers = onnx_ir.convenience.get_const_tensor(bias)
    if numbers is not None:
        return bool(np.isneginf(np.atleast_1d(numbers.numpy().astype(np.float32))).all(-1).any())
    node = bias.producer()
    return node is not None and node.op_type in _OF_MASKS and any(_hides(one) for one in node.inputs)


def _modified(
    body: _Body, variant: Variant, probabilities: onnx_ir.Value, operands: Mapping[str, onnx_ir.Value]
) -> onnx_ir.Value:
    """A mask on the probabilities, and their mixture with positions."""
    if Modifier.PROBABILITY_MASK in operands:
        probabilities = body.op("Mul", probabilities, operands[Modifier.PROBABILITY_MASK])
        if variant.renormalise:
            total = body.op("ReduceSum", probabilities, body.constant([-1]), keepdims=1)
            if variant.epsilon:
                total = body.op("Add", total, body.constant(variant.epsilon))
            probabilities = body.op("Div", probabilities, body.not_zero(total))
    if Modifier.POSITIONS in operands:
        gate = body.op("Unsqueeze", operands["gate"], body.constant([1, 2]))
        kept = body.op("Mul", probabilities, body.op("Sub", body.constant(1.0), gate))
        probabilities = body.op("Add", kept, body.op("Mul", operands[Modifier.POSITIONS], gate))
    return probabilities


def _gaussian(body: _Body, variant: Variant, q: onnx_ir.Value, k: onnx_ir.Value, v: onnx_ir.Value) -> onnx_ir.Value:
    """exp(scale * q k^T - scale / 2 * |q|^2 - scale / 2 * |k|^2) v."""
    norms = [body.op("ReduceSum", body.op("Mul", one, one), body.constant([-1]), keepdims=1) for one in (q, k)]
    halves = body.times(body.op("Add", norms[0], body.last_swapped(norms[1])), variant.scale / 2)
    products = body.times(body.op("MatMul", q, body.last_swapped(k)), variant.scale)
    return body.op("MatMul", body.op("Exp", body.op("Sub", products, halves), anchor=True), v)


def _linear(body: _Body, variant: Variant, q: onnx_ir.Value, k: onnx_ir.Value, v: onnx_ir.Value) -> onnx_ir.Value:
    """phi(q) (phi(k)^T v) / (phi(q) sum phi(k) + epsilon)."""
    if variant.feature_map is FeatureMap.RELU:
        q, k = body.op("Relu", q), body.op("Relu", k)
    else:
        q, k = (body.op("Add", body.op("Elu", one), body.constant(1.0)) for one in (q, k))
    state = body.op("MatMul", body.last_swapped(k), v)
    total = body.op("ReduceSum", k, body.constant([-2]), keepdims=1)
    share = body.op("MatMul", q, body.last_swapped(total))
    if variant.epsilon:
        share = body.op("Add", share, body.constant(variant.epsilon))
    return body.op("Div", body.op("MatMul", q, state), body.not_zero(share), anchor=True)
