"""Write opset 23's ``Attention`` out as MatMul and Softmax, for a runtime that takes those and not the node.

A newcomer's trap: only plain attention is written out (four dimensions, no mask, a scale); any other stays a node, and the
runtime's own remark says where it ran.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["attention_written_out"]

_LARGEST_BYTES = 1_800_000_000  # protobuf's limit is 2 GiB
_INPUTS = 3  # q, k, v; a fourth is a mask


def attention_written_out(path: Path) -> tuple[bytes, int] | None:
    """Return a graph with its plain ``Attention`` nodes written out, and how many they were.

    None: there are none, or ``onnx`` isn't installed, or the graph is too large for one message.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError  # onnx depends on it
    except ImportError:
        return None
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:  # the runtime's own sentence on the file is the better one
        return None
    plain = [node for node in model.graph.node if _is_plain(node)]
    if not plain:
        return None
    onnx.load_external_data_for_model(model, str(path.parent))
    if model.ByteSize() > _LARGEST_BYTES:
        return None
    nodes: list[Any] = []
    for node in model.graph.node:
        nodes += _attention(onnx, node) if _is_plain(node) else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model.SerializeToString(), len(plain)


def _is_plain(node: Any) -> bool:
    if node.op_type != "Attention" or node.domain not in ("", "ai.onnx"):
        return False
    settings = {attribute.name: attribute for attribute in node.attribute}
    return (
        "scale" in settings
        and not {"q_num_heads", "kv_num_heads", "softmax_precision"} & set(settings)
        and not any(settings[name].i for name in ("is_causal",) if name in settings)
        and not any(settings[name].f for name in ("softcap",) if name in settings)
        and sum(map(bool, node.input)) == _INPUTS
        and sum(map(bool, node.output)) == 1
    )


def _attention(onnx: Any, node: Any) -> list[Any]:
    """softmax(scale q k^T) v; the scale stands on q, where it is [B, heads, N, head_dim] and not [B, heads, N, N]."""
    query, key, value = node.input[:_INPUTS]
    name = node.name or node.output[0]
    scale = next(attribute.f for attribute in node.attribute if attribute.name == "scale")
    make = onnx.helper.make_node

    def step(kind: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        return make(kind, inputs, [output], name=f"{name}/{kind}_{output.rpartition('/')[2]}", **attributes)

    constant = onnx.numpy_helper.from_array(np.array(scale, np.float32))
    return [
        step("Constant", [], f"{name}/scale32", value=constant),
        step("CastLike", [f"{name}/scale32", query], f"{name}/scale"),
        step("Mul", [query, f"{name}/scale"], f"{name}/scaled"),
        step("Transpose", [key], f"{name}/transposed", perm=[0, 1, 3, 2]),
        step("MatMul", [f"{name}/scaled", f"{name}/transposed"], f"{name}/scores"),
        step("Softmax", [f"{name}/scores"], f"{name}/shares", axis=-1),
        step("MatMul", [f"{name}/shares", value], node.output[0]),
    ]
