"""Replace attentions of a graph by one node of our own each, and such nodes by plain operators again, in place.

The node's operator is its variant's name, so that TensorRT finds the plugin by it, and the model carries an ONNX function of
the same name, which every other runtime runs instead. A newcomer's trap: a function of the domain without a plugin is inlined
by TensorRT too, without a word; that a kernel is used is for the fusion report to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shallowvit_kernels.functions import DOMAIN, TYPES, function_of, nodes_of
from shallowvit_kernels.records import Layout, Variant
from shallowvit_kernels.tiles import TARGETS, largest_head, padded

from ..engines.sites import anchor_of, find_attentions
from ..exporting.attention import UnfitError, check_rank, is_attention
from ..exporting.fusing import ATTENTION_OPSET, out_of_four_dimensions
from ..exporting.values import Emitter, dims_of
from .attention_nodes import found_in_attention
from .gaussian import found_in_exp
from .layouts import SWAP, main_inputs, transposition_behind
from .linear import found_in_division
from .operands import gate_of, operands_of
from .patterns import found_in_softmax

if TYPE_CHECKING:
    from collections.abc import Collection

    import onnx_ir

    from shallowvit_kernels.records import Operand

    from .found import Found

__all__ = ["PluginRewrite", "inline_plugins", "plugins_of", "rewrite_attention"]

_STANDARD = ("", "ai.onnx")
_ATTENTION_IR_VERSION = 11
_OLDEST_OPSET = 13  # before it a softmax was over all axes behind its own, and axes were attributes
_SAME_SCALE = 5e-7


@dataclass(frozen=True)
class PluginRewrite:
    """What became of the attentions of a graph.

    Args:
        found: How many there are, nodes of our own aside.
        replaced: The name of each node of our own and what it computes.
        left: The name of each other attention that was to be replaced, and why it wasn't.
    """

    found: int
    replaced: tuple[tuple[str, Variant], ...]
    left: tuple[tuple[str, str], ...]


def rewrite_attention(model: onnx_ir.Model, which: str, *, unfused: Collection[str] = ()) -> PluginRewrite:
    """Replace attentions of the main graph by nodes of our own, in place; each has the name and scopes of what it stands for.

    Args:
        model: The graph in memory.
        which: ``plugin`` for each that is understood, ``auto`` for each of which the graph tells that TensorRT won't fuse it.
        unfused: With ``auto`` also those of these names.
    """
    import onnx_ir.passes.common

    _prepare(model)
    opset = model.graph.opset_imports.get("", _OLDEST_OPSET)
    auto = which == "auto"
    wanted = set(unfused) | {site.anchor for site in find_attentions(model) if auto and site.obstacle is not None}
    found, nodes = 0, len(model.graph)
    replaced: list[tuple[str, Variant]] = []
    left: list[tuple[str, str]] = []
    for node in list(model.graph):
        name = anchor_of(node)
        asked = not auto or name in wanted or node.op_type == "Exp"
        one: Found | None = None
        try:
            one = _found(node, opset)
            if one is None:
                continue
            found += 1
            if asked:
                replaced.append((name, _replace(model, one, name)))
        except UnfitError as err:
            found += one is None
            if asked:
                left.append((name, str(err)))
    if replaced or len(model.graph) != nodes:
        onnx_ir.passes.common.RemoveUnusedNodesPass()(model)
    return PluginRewrite(found, tuple(replaced), tuple(left))


def inline_plugins(model: onnx_ir.Model, *, operators: Collection[str] | None = None) -> int:
    """Replace nodes of our own by plain operators that TensorRT has kernels for, in place; return how many.

    Args:
        model: The graph in memory.
        operators: Only those; by default all.
    """
    import onnx_ir.passes.common

    opset, inlined = model.graph.opset_imports.get("", 18), 0
    for node in _plugin_nodes(model):
        if operators is not None and node.op_type not in operators:
            continue
        variant = _variant_of(node)
        inputs = [one for one in node.inputs if one is not None]
        nodes, results = nodes_of(variant, inputs, opset, widened=False, metadata=node.metadata_props, anchor=node.name or "")
        model.graph.insert_before(node, nodes)
        for output, result in zip(node.outputs, results, strict=True):
            assert output.dtype is not None
            result.dtype, result.shape, name = output.dtype, output.shape, output.name
            output.replace_all_uses_with(result, replace_graph_outputs=True)
            output.name, result.name = None, name
        model.graph.remove(node, safe=True)
        inlined += 1
    if inlined:
        _forget_unused(model)
        if opset >= ATTENTION_OPSET:
            model.ir_version = max(model.ir_version, _ATTENTION_IR_VERSION)
        onnx_ir.passes.common.LiftConstantsToInitializersPass(lift_all_constants=True)(model)
        onnx_ir.passes.common.ShapeInferencePass()(model)
    return inlined


def plugins_of(model: onnx_ir.Model) -> tuple[tuple[str, Variant], ...]:
    """Return the nodes of our own in the main graph by name, with what each computes.

    Raises:
        KernelError: a node's variant is damaged or of another version.
    """
    return tuple((anchor_of(node), _variant_of(node)) for node in _plugin_nodes(model))


def _plugin_nodes(model: onnx_ir.Model) -> list[onnx_ir.Node]:
    return [node for node in model.graph if node.domain == DOMAIN]


def _variant_of(node: onnx_ir.Node) -> Variant:
    return Variant.from_json(node.attributes.get_string("variant", ""))


def _forget_unused(model: onnx_ir.Model) -> None:
    """Drop functions of our own that no node calls, and the domain with the last."""
    used = {node.op_type for node in _plugin_nodes(model)}
    for key in [key for key in model.functions if key[0] == DOMAIN and key[1] not in used]:
        del model.functions[key]
    if not used:
        model.graph.opset_imports.pop(DOMAIN, None)


def _prepare(model: onnx_ir.Model) -> None:
    """Others' functions inlined, types and shapes inferred."""
    import onnx_ir.passes.common

    if any(key[0] != DOMAIN for key in model.functions):
        onnx_ir.passes.common.InlinePass(criteria=lambda function: function.domain != DOMAIN)(model)
    if any(value.shape is None or value.dtype is None for node in model.graph for value in node.outputs if value.name):
        onnx_ir.passes.common.ShapeInferencePass()(model)


def _found(node: onnx_ir.Node, opset: int) -> Found | None:
    if node.domain not in _STANDARD:
        return None
    if opset < _OLDEST_OPSET:
        if node.op_type == "Softmax" and is_attention(node):
            raise UnfitError(f"the graph is of opset {opset}, and nodes of ours go into {_OLDEST_OPSET} and later")
        return None
    if node.op_type == "Attention":
        return found_in_attention(node)
    if node.op_type == "Softmax":
        return found_in_softmax(node) if is_attention(node) else None
    if node.op_type == "Exp":
        return found_in_exp(node)
    return found_in_division(node) if node.op_type in ("Div", "Mul") else None


def _replace(model: onnx_ir.Model, found: Found, name: str) -> Variant:
    graph, site = model.graph, found.site
    check_rank(site)
    emitter = Emitter(graph, site.metadata)
    main, layout = main_inputs(emitter, site)
    operands = operands_of(emitter, found)
    gate = gate_of(emitter, found)
    last, output = _output(site.second.outputs[0], site.query.dtype)
    behind = None if found.heads or len(dims_of(site.query)) != 4 else transposition_behind(output)
    variant = _variant(found, layout, tuple(one for one, _ in operands), tokens_first=bool(found.heads or behind))
    inputs = [*main, *(value for _, value in operands), *([gate] if gate is not None else [])]
    result = _emitted(emitter, variant, inputs, found, name)
    if found.heads:
        batch, tokens, heads, size = dims_of(result)
        assert isinstance(heads, int)
        assert isinstance(size, int)
        shape = emitter.constant([0, 0, heads * size])
        result = emitter.op("Reshape", [result, shape], dims=[batch, tokens, heads * size])
    elif behind is None:
        result = out_of_four_dimensions(emitter, result, site.query)
    end = behind or last
    former = end.outputs[0]
    assert former.dtype is not None
    result = emitter.cast(result, former.dtype)
    emitter.insert_before(site.second)
    shape_before, name_before = former.shape, former.name
    former.replace_all_uses_with(result, replace_graph_outputs=True)
    former.name = None
    result.name, result.shape = name_before, shape_before or result.shape
    function = function_of(variant, graph.opset_imports.get("", 18))
    model.functions.setdefault(function.identifier(), function)
    graph.opset_imports[DOMAIN] = 1
    return variant


def _output(output: onnx_ir.Value, dtype: onnx_ir.DataType | None) -> tuple[onnx_ir.Node, onnx_ir.Value]:
    """The last node of an attention and what it gives: a cast back to the type of the queries belongs to it."""
    users = [user for user, _ in output.uses()]
    last = output.producer()
    assert last is not None
    if len(users) == 1 and users[0].op_type == "Cast" and not output.is_graph_output():
        cast = users[0]
        if output.dtype != dtype and cast.outputs[0].dtype == dtype:
            return cast, cast.outputs[0]
    return last, output


def _variant(found: Found, layout: Layout, operands: tuple[Operand, ...], *, tokens_first: bool) -> Variant:
    site = found.site
    names = {one: name for name, one in TYPES.items()}
    size, value_size = dims_of(site.query)[-1], dims_of(site.value)[-1]
    if not isinstance(size, int) or not isinstance(value_size, int):
        raise UnfitError("the head size isn't known")
    if site.query.dtype not in names:
        raise UnfitError(f"it computes in {site.query.dtype.name if site.query.dtype else 'an unknown type'}")
    variant = Variant(
        kernel=found.kernel,
        dtype=names[site.query.dtype],
        head_size=size,
        value_size=value_size,
        scale=_settled(site.scale, size),
        layout=layout,
        output_layout=Layout.TOKENS_FIRST if tokens_first else Layout.HEADS_FIRST,
        operands=operands,
        soft_cap=found.soft_cap,
        renormalise=found.renormalise,
        feature_map=found.feature_map,
        epsilon=found.epsilon,
    )
    largest = min(largest_head(variant, sm) for sm in TARGETS)
    if padded(max(size, value_size)) > largest:
        raise UnfitError(f"a head size of {max(size, value_size)}, and kernels take up to {largest} in {variant.dtype}")
    return variant


def _settled(scale: float, size: int) -> float:
    """The usual scale in one writing, whatever roots and products of fp32 numbers it was made of: one variant, one kernel."""
    usual = size**-0.5
    return usual if abs(scale - usual) < _SAME_SCALE * usual else scale


def _emitted(emitter: Emitter, variant: Variant, inputs: list[onnx_ir.Value], found: Found, name: str) -> onnx_ir.Value:
    """The node itself; its output [b, h, n, e] or [b, n, h, e]."""
    import onnx_ir

    site = found.site
    query = dims_of(site.query)
    if len(query) != 4:
        query = (*dims_of(inputs[0])[:3], query[-1])
    dims = [*query[:3], dims_of(site.value)[-1]]
    dims = [dims[axis] for axis in SWAP] if variant.output_layout is Layout.TOKENS_FIRST else dims
    attributes = {"variant": variant.to_json(), "plugin_namespace": DOMAIN, "plugin_version": "1"}
    node = onnx_ir.node(
        variant.name, inputs, attributes, domain=DOMAIN, name=name, metadata_props=dict(site.metadata), version=1
    )
    output = node.outputs[0]
    output.dtype, output.shape = TYPES[variant.dtype], onnx_ir.Shape(dims)
    emitter.nodes.append(node)
    return output
