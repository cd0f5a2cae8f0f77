"""Compute bf16 and fp16 on a CPU as a device would: in fp32, with every result rounded to the type it has.

onnxruntime's CPU provider refuses bf16 Conv and MatMul, and widens most of fp16 to fp32 without rounding in between, so that
``log(exp(6) ** 2)`` is 12 there and infinite on a device. A device multiplies such values exactly and adds in fp32, so fp32
arithmetic on rounded values gives its numbers up to the order of additions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from .graph import EXTERNAL_DATA_ABOVE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["emulated_bf16"]


def emulated_bf16(path: Path) -> bytes:
    """Return the graph at ``path`` with fp32 in place of bf16 and fp16, and a rounding cast behind each node that gave one.

    What is in fp32 stays; the graph is serialised.

    Raises:
        ShallowvitError: the fp32 copy passes protobuf's 2 GB.
    """
    import onnx_ir.passes.common

    fp32 = onnx_ir.DataType.FLOAT
    lower = {onnx_ir.DataType.BFLOAT16, onnx_ir.DataType.FLOAT16}
    model = onnx_ir.load(path)
    if model.functions:  # of attentions of our own, which compute in fp32 and round at their end
        onnx_ir.passes.common.InlinePass()(model)
        onnx_ir.passes.common.ShapeInferencePass()(model)
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype in lower and value.const_value is not None:
            value.const_value = onnx_ir.Tensor(value.const_value.numpy().astype("float32"), name=value.name)
            value.dtype = fp32
    for node in list(graph):
        if node.op_type == "ConstantOfShape" and "value" in node.attributes:
            filling = node.attributes["value"].as_tensor()
            if filling.dtype in lower:
                node.attributes["value"] = onnx_ir.AttrTensor("value", onnx_ir.Tensor(filling.numpy().astype("float32")))
        for output in node.outputs:
            rounded = output.dtype
            if rounded is None or rounded not in lower:
                continue
            widen = onnx_ir.node("Cast", [output], {"to": int(fp32)})
            nodes = [widen]
            if node.op_type not in ("Cast", "Constant"):  # those two give the type themselves
                narrow = onnx_ir.node("Cast", [output], {"to": int(rounded)})
                widen.replace_input_with(0, narrow.outputs[0])
                nodes = [narrow, widen]
                output.dtype = fp32
            widen.outputs[0].dtype = fp32
            for user, index in list(output.uses()):
                if user not in nodes:
                    user.replace_input_with(index, widen.outputs[0])
            graph.insert_after(node, nodes)
    size = sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None)
    if size > EXTERNAL_DATA_ABOVE_BYTES:
        raise ShallowvitError(
            f"export: the fp32 copy that checks the graph would take {size / 1e9:.1f} GB in one message, above "
            "protobuf's 2 GB; use --precision fp16 or fp32 for the whole graph"
        )
    return onnx_ir.to_proto(model).SerializeToString()
