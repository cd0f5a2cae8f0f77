"""Find the nodes of a graph that can be quantised, and which of them stay float and why.

A newcomer's trap: MatMul is also what attention is made of at opset 18. Quantising a MatMul of two activations breaks the
pattern that TensorRT fuses, so only nodes with constant weights are taken.
"""

from __future__ import annotations

import ast
import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from .quantize_records import KeptNode
from .records import Precision

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir

    from .quantize_records import QuantizeConfig

__all__ = ["SCOPES", "Quantizable", "choose_nodes", "module_of"]

SCOPES = "pkg.torch.onnx.name_scopes"  # metadata of a node: the modules around it, outermost first
_WRAPPER = "model."  # what is deployed holds the model under this name
# TensorRT-RTX 1.7 builds int4 engines of the demo model in 4.4 MB at blocks of 64 and 128 (fp16: 4.6 MB), but in 7.8 MB at 32
# and 16. So a block that doesn't divide a matrix shrinks to 64 and no further.
_SMALLEST_BLOCK = 64


@dataclass(frozen=True)
class Quantizable:
    """A node, its constant weights, the axis of its outputs in them, that of its inputs (int4), and int4's block size."""

    node: onnx_ir.Node
    weight: onnx_ir.Value
    output_axis: int
    input_axis: int
    block_size: int


def choose_nodes(graph: onnx_ir.Graph, config: QuantizeConfig) -> tuple[list[Quantizable], list[KeptNode]]:
    """Return the nodes to quantise, in the graph's order, and the nodes with constant weights that stay float.

    Raises:
        ShallowvitError: a name of ``config.keep`` is no module or node with constant weights, or nothing is left to quantise.
    """
    candidates = [node for node in graph if node.op_type in ("MatMul", "Gemm", "Conv") and _has_constant(node)]
    asked = _asked_for(candidates, config.keep)
    chosen, kept = [], []
    for node in candidates:
        name = asked.get(node.name or "")
        reason = f"kept: {name}" if name else _unfit(node, config)
        if reason:
            kept.append(KeptNode(node.name or "", module_of(node), reason))
        else:
            chosen.append(_quantizable(node, config.block_size))
    if not chosen:
        raise ShallowvitError(
            f"quantize: none of the {len(candidates)} MatMul, Gemm and Conv nodes with constant weights is left to turn into "
            f"{config.precision}; keep less, or use --precision fp16"
        )
    return chosen, kept


def module_of(node: onnx_ir.Node) -> str:
    """Return the path of the module that a node was traced from, ``""`` where the graph doesn't say."""
    scopes = _scopes(node)
    return scopes[-2].removeprefix(_WRAPPER) if len(scopes) > 1 else ""


def _scopes(node: onnx_ir.Node) -> list[str]:
    text = node.metadata_props.get(SCOPES)
    return list(ast.literal_eval(text)) if text else []


def _has_constant(node: onnx_ir.Node) -> bool:
    return any(value is not None and value.const_value is not None and value.is_initializer() for value in node.inputs[:2])


def _asked_for(candidates: Sequence[onnx_ir.Node], keep: Sequence[str]) -> dict[str, str]:
    """Map the names of nodes that stay to the name in ``keep`` that asked for it."""
    modules = [[scope.removeprefix(_WRAPPER) for scope in _scopes(node)[:-1]] for node in candidates]
    found: dict[str, str] = {}
    for name in keep:
        own = [node.name or "" for node, scopes in zip(candidates, modules, strict=True) if name in (node.name, *scopes)]
        if not own:
            known = {scope for scopes in modules for scope in scopes} | {node.name or "" for node in candidates}
            near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.3)
            raise ShallowvitError(
                f"quantize: --keep-precise {name}: no module or node of that name has constant weights; near ones are "
                f"{', '.join(near) or 'none'}"
            )
        found |= {node: found.get(node, name) for node in own}
    return found


def _unfit(node: onnx_ir.Node, config: QuantizeConfig) -> str | None:
    """Why a node with constant weights can't be quantised, or None."""
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or not weight.is_initializer():
        return "its constant is the first input, not the weights"
    rank = len(weight.const_value.shape)
    if node.op_type == "MatMul" and rank != 2:
        return f"its weights have {rank} dimensions, not 2"
    if config.precision is Precision.INT8:
        return None
    if node.op_type == "Conv":
        return f"a convolution stays float in {config.precision}, as NVIDIA Model Optimizer leaves it"
    if config.precision is Precision.INT4:
        inputs, least = weight.const_value.shape.numpy()[_input_axis(node)], min(_SMALLEST_BLOCK, config.block_size)
        if inputs % least:
            return f"its {inputs} inputs can't be cut into blocks of {least}"
    return None


def _input_axis(node: onnx_ir.Node) -> int:
    return 1 if node.op_type == "Gemm" and _int_attribute(node, "transB") else 0


def _int_attribute(node: onnx_ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return int(attribute.value) if attribute is not None else 0


def _quantizable(node: onnx_ir.Node, block_size: int) -> Quantizable:
    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None
    if node.op_type == "Conv":
        return Quantizable(node, weight, 0, 1, block_size)
    axis = _input_axis(node)
    while block_size > _SMALLEST_BLOCK and weight.const_value.shape.numpy()[axis] % block_size:
        block_size //= 2
    return Quantizable(node, weight, 1 - axis, axis, block_size)
