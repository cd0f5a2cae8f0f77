"""Graphs of one attention as text, run in onnxruntime, for the tests of its rewriting into nodes of our own."""

import numpy as np
import onnx
import onnx_ir
import onnxruntime

from shallowvit.plugins.rewriting import rewrite_attention

HEADER = (
    '<ir_version: 10, opset_import: ["": {opset}]>\nagraph ({kind}[B,2,5,20] q, {kind}[B,2,7,20] k, {kind}[B,2,7,12] v{more})'
)
PLAIN = {
    "k": "kt = Transpose<perm=[0,1,3,2]>(k)",
    "s": "s = MatMul(q, kt)",
    "p": "p = Softmax<axis=-1>(s)",
    "y": "y = MatMul(p, v)",
}


def pattern(steps, more="", *, opset=18, kind="float", outputs=("y",), extra=""):
    """The plain attention of 5 queries and 7 keys with some of its lines replaced."""
    types = {"y": f"{kind}[B,H,N,W]", "p": f"{kind}[B,2,5,7]", "s": f"{kind}[B,2,5,7]"}
    head = HEADER.format(opset=opset, kind=kind, more=more)
    result = ", ".join(f"{types[name]} {name}" for name in outputs)
    return parsed(f"{head} => ({result}) {extra} {{\n" + "\n".join((PLAIN | steps).values()) + "\n}")


def parsed(text):
    """A model with the shapes of all its values."""
    proto = onnx.parser.parse_model(text)
    onnx.checker.check_model(proto, full_check=True)
    return onnx_ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def feeds_of(model, batch=3, size=6):
    """Normal numbers; of boolean masks every second key is True, so that each query sees some."""
    generator = np.random.default_rng(1)
    feeds = {}
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else batch if dim.value in ("B", "X") else size for dim in value.shape]
        numbers = generator.standard_normal(shape, dtype=np.float32)
        seen = np.broadcast_to(np.arange(numbers.shape[-1]) % 2 == 0, numbers.shape)
        feeds[value.name] = numbers.astype(value.dtype.numpy()) if value.dtype.is_floating_point() else seen
    return feeds


def answers(model, feeds):
    """The first output, of a graph that the checker passes."""
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0].astype(np.float32)


def relative(found, expected):
    """Largest difference over largest number."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def kinds(model):
    """Operators in their order, those of our own by their domain."""
    return [node.domain or node.op_type for node in model.graph]


def rewritten(model, *, within=2e-6, which="plugin", feeds=None):
    """Rewrite a graph of one attention, hold its answers against those before, and return what the node computes."""
    feeds = feeds or feeds_of(model)
    expected = answers(model, feeds)
    outputs = [value.name for value in model.graph.outputs]
    result = rewrite_attention(model, which)
    assert result.left == ()
    assert (result.found, len(result.replaced), kinds(model).count("shallowvit")) == (1, 1, 1)
    assert [value.name for value in model.graph.outputs] == outputs
    assert relative(answers(model, feeds), expected) < within
    return result.replaced[0][1]


def left(model):
    """Rewrite a graph of one attention that isn't understood; return the reason."""
    before = onnx_ir.to_proto(model).SerializeToString()
    kinds_before = kinds(model)
    result = rewrite_attention(model, "plugin")
    assert (result.found, result.replaced) == (1, ())
    assert kinds(model) == kinds_before
    feeds = feeds_of(model)
    original = onnx_ir.from_proto(onnx.load_model_from_string(before))
    np.testing.assert_array_equal(answers(model, feeds), answers(original, feeds))
    return result.left[0][1]
