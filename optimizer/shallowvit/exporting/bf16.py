"""Compute a bf16 graph on a CPU that has no bf16 kernels: in fp32, with every result rounded to bf16 as the device would.

onnxruntime's CPU provider refuses bf16 Conv and MatMul. A device multiplies bf16 values exactly and adds in fp32, so fp32
arithmetic on bf16 values with rounded results gives its numbers up to the order of additions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from .graph import EXTERNAL_DATA_ABOVE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["emulated_bf16"]


def emulated_bf16(path: Path) -> bytes:
    """Return the graph at ``path`` with fp32 in place of bf16 and a rounding cast behind every node, serialised."""
    import onnx_ir

    bf16, fp32 = onnx_ir.DataType.BFLOAT16, onnx_ir.DataType.FLOAT
    model = onnx_ir.load(path)
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype == bf16 and value.const_value is not None:
            value.const_value = onnx_ir.Tensor(value.const_value.numpy().astype("float32"), name=value.name)
            value.dtype = fp32
    for node in list(graph):
        for output in node.outputs:
            if output.dtype != bf16:
                continue
            widen = onnx_ir.node("Cast", [output], {"to": int(fp32)})
            nodes = [widen]
            if node.op_type not in ("Cast", "Constant"):  # those two give bf16 themselves
                narrow = onnx_ir.node("Cast", [output], {"to": int(bf16)})
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
            f"export: the fp32 copy that checks a bf16 graph would take {size / 1e9:.1f} GB in one message, above protobuf's "
            "2 GB; use --precision fp16 or fp32"
        )
    return onnx_ir.to_proto(model).SerializeToString()
