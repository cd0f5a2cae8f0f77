"""Attention as ONNX graphs a few nodes long, in the forms that fuse and in those that don't."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FP16, FP32 = TensorProto.FLOAT16, TensorProto.FLOAT


class Attention:
    """q, k, v [batch, heads, tokens, size] in, one attention, [batch, heads, tokens, size] out."""

    def __init__(self, *, heads=2, size=16, tokens=24, dtype=FP16, opset=18):
        self.shape = ["batch", heads, tokens, size]
        self.dtype, self.opset, self.tokens, self.heads = dtype, opset, tokens, heads
        self.nodes, self.initializers, self.outputs, self.inputs = [], [], [], []
        for name in ("q", "k", "v"):
            self.inputs.append(helper.make_tensor_value_info(name, dtype, self.shape))

    def node(self, kind, inputs, output, name=None, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [output], name or output, **attributes))
        return output

    def constant(self, name, value, dtype=None):
        kind = helper.tensor_dtype_to_np_dtype(dtype or self.dtype)
        self.initializers.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def pattern(self, *, before=None, between=None):
        """MatMul, scale, Softmax, MatMul; ``before`` and ``between`` get a value's name and return another."""
        self.node("Transpose", ["k"], "kt", perm=[0, 1, 3, 2])
        scores = self.node("Mul", [self.node("MatMul", ["q", "kt"], "products"), self.constant("scale", 0.25)], "scores")
        scores = before(scores) if before else scores
        probabilities = self.node("Softmax", [scores], "probabilities", name="softmax", axis=-1)
        probabilities = between(probabilities) if between else probabilities
        self.node("MatMul", [probabilities, "v"], "out")
        return self

    def operator(self, **attributes):
        """One ``Attention`` node."""
        self.opset = 23
        self.node("Attention", ["q", "k", "v"], "out", name="attention", scale=0.25, **attributes)
        return self

    def save(self, path):
        out = [helper.make_tensor_value_info("out", self.dtype, self.shape), *self.outputs]
        graph = helper.make_graph(self.nodes, "attention", self.inputs, out, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        path.write_bytes(model.SerializeToString())
        return path


def gate(graph, dtype=FP16):
    """Multiply the probabilities by a learnt mask."""
    return lambda value: graph.node("Mul", [value, graph.constant("mask", np.full((graph.tokens, graph.tokens), 0.5))], "gated")


def given_away(graph):
    """The probabilities are an output too."""
    shape = ["batch", graph.heads, graph.tokens, graph.tokens]
    graph.outputs.append(helper.make_tensor_value_info("probabilities", graph.dtype, shape))
    return graph


def soft_cap(graph):
    """tanh on the scores."""
    return lambda value: graph.node("Tanh", [value], "capped")


def quantised_queries(graph):
    """q through a QuantizeLinear and a DequantizeLinear, the probabilities not."""
    graph.opset = 19
    graph.constant("step", 0.05)
    graph.constant("zero", 0, TensorProto.INT8)
    for name in ("q", "k", "v"):
        graph.node("QuantizeLinear", [name, "step", "zero"], f"{name}8")
        graph.node("DequantizeLinear", [f"{name}8", "step", "zero"], f"{name}d")
    graph.node("Transpose", ["kd"], "kt", perm=[0, 1, 3, 2])
    scores = graph.node("Mul", [graph.node("MatMul", ["qd", "kt"], "products"), graph.constant("scale", 0.25)], "scores")
    probabilities = graph.node("Softmax", [scores], "probabilities", name="softmax", axis=-1)
    graph.node("MatMul", [probabilities, "vd"], "out")
    return graph
