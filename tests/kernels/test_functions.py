"""The ONNX function of each kind of variant, in onnxruntime, against the kernel's reference; and its form for TensorRT."""

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch

from shallowvit_kernels.catalogue import definition_of
from shallowvit_kernels.functions import ATTRIBUTES, DOMAIN, TYPES, function_of, nodes_of
from shallowvit_kernels.records import Dtype, FeatureMap, Kernel, Layout, Modifier, Operand, Variant
from shallowvit_kernels.tensors import inputs_of, outputs_of

SIZES = {"b": 2, "h": 3, "n": 5, "m": 7, "d": 8, "e": 8, "3": 3}
LIMITS = {Dtype.FP32: 2e-6, Dtype.FP16: 1e-3, Dtype.BF16: 8e-3}
SCORE, BIAS, MASK, POSITIONS = (Operand(one) for one in Modifier)
PLAIN = {"kernel": Kernel.ATTENTION, "dtype": Dtype.FP32, "head_size": 8, "scale": 0.3}
VARIANTS = {
    "plain": {},
    "fp16": {"dtype": Dtype.FP16},
    "bf16": {"dtype": Dtype.BF16},
    "score_mask": {"operands": (Operand(Modifier.SCORE_MASK, "bnm"),)},
    "bias": {"operands": (Operand(Modifier.BIAS, "bh"),)},
    "bias_fp16": {"dtype": Dtype.FP16, "operands": (Operand(Modifier.BIAS, "n", Dtype.FP16),)},
    "mask": {"operands": (MASK,)},
    "renormalised": {"operands": (MASK,), "renormalise": True},
    "epsilon": {"operands": (MASK,), "renormalise": True, "epsilon": 0.3},
    "gated": {"operands": (Operand(Modifier.POSITIONS, "b"),)},
    "all": {"operands": (SCORE, BIAS, MASK, POSITIONS), "soft_cap": 2.5},
    "soft_cap": {"soft_cap": 0.7},
    "log_sum_exp": {"log_sum_exp": True, "operands": (BIAS,)},
    "tokens_first": {"layout": Layout.TOKENS_FIRST, "output_layout": Layout.TOKENS_FIRST, "value_size": 4},
    "packed": {"layout": Layout.PACKED, "output_layout": Layout.TOKENS_FIRST, "dtype": Dtype.FP16},
    "packed_masked": {"layout": Layout.PACKED, "operands": (MASK, POSITIONS)},
    "gaussian": {"kernel": Kernel.GAUSSIAN},
    "gaussian_bf16": {"kernel": Kernel.GAUSSIAN, "dtype": Dtype.BF16, "layout": Layout.PACKED},
    "relu": {"kernel": Kernel.LINEAR, "feature_map": FeatureMap.RELU, "epsilon": 1e-5, "scale": 1.0},
    "elu": {"kernel": Kernel.LINEAR, "feature_map": FeatureMap.ELU_PLUS_ONE, "scale": 1.0, "layout": Layout.TOKENS_FIRST},
}


def _variant(name):
    return Variant(**PLAIN | VARIANTS[name])


def _model(variant, opset=18):
    """One node of the variant, every size of its inputs dynamic but the head's."""
    inputs = []
    for one in inputs_of(variant):
        axes = [1 if letter in one.broadcast else _size(letter, variant) if letter in "d3e" else letter for letter in one.axes]
        value = onnx_ir.Value(name=one.name, type=onnx_ir.TensorType(TYPES[one.dtype]), shape=onnx_ir.Shape(axes))
        inputs.append(value)
    attributes = {"variant": variant.to_json(), "plugin_namespace": DOMAIN, "plugin_version": "1"}
    outputs = outputs_of(variant)
    node = onnx_ir.node(variant.name, inputs, attributes, domain=DOMAIN, num_outputs=len(outputs))
    for one, value in zip(outputs, node.outputs, strict=True):
        value.name, value.dtype = one.name, TYPES[one.dtype]
        value.shape = onnx_ir.Shape([_size(letter, variant) if letter == "e" else letter for letter in one.axes])
    graph = onnx_ir.Graph(inputs, node.outputs, nodes=[node], name="one", opset_imports={"": opset, DOMAIN: 1})
    function = function_of(variant, opset)
    return onnx_ir.Model(graph, ir_version=10, functions=[function])


def _size(letter, variant):
    known = {"d": variant.head_size, "e": variant.value_size, "m": SIZES["n"] if variant.layout is Layout.PACKED else 7}
    return known.get(letter, SIZES.get(letter))


def _feeds(variant):
    draw = torch.Generator().manual_seed(int(np.random.default_rng().integers(2**31)))
    feeds = {}
    for one in inputs_of(variant):
        shape = [1 if letter in one.broadcast else _size(letter, variant) for letter in one.axes]
        drawn = torch.randn(shape, generator=draw) if one.name in ("q", "k", "v", "bias") else torch.rand(shape, generator=draw)
        feeds[one.name] = drawn.to({"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[one.dtype])
    return feeds


def _in_onnxruntime(model, feeds):
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    values, bf16 = {}, onnx.TensorProto.BFLOAT16
    for name, tensor in feeds.items():
        if tensor.dtype is torch.bfloat16:
            array = tensor.view(torch.int16).numpy()
            values[name] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, bf16)
        else:
            values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(tensor.numpy())
    return [
        torch.from_dlpack(one._get_c_value().to_dlpack()).float()
        if one.element_type() == bf16
        else torch.from_numpy(one.numpy()).float()
        for one in session.run_with_ort_values(None, values)
    ]


def _expected(variant, feeds):
    feeds = dict(feeds)
    if variant.layout is Layout.PACKED:
        q, k, v = feeds.pop("q").unbind(2)
    else:
        q, k, v = (feeds.pop(name) for name in ("q", "k", "v"))
    if variant.layout is not Layout.HEADS_FIRST:
        q, k, v = (one.transpose(1, 2) for one in (q, k, v))
    found = definition_of(variant.kernel).reference(variant, q, k, v, **feeds)
    out, *rest = found if isinstance(found, tuple) else (found,)
    out = out.transpose(1, 2) if variant.output_layout is Layout.TOKENS_FIRST else out
    return [out, *rest][: len(outputs_of(variant))]


@pytest.mark.parametrize("name", VARIANTS)
def test_function_of_a_variant_in_onnxruntime_gives_what_the_reference_gives(name):
    variant = _variant(name)
    feeds = _feeds(variant)
    found, expected = _in_onnxruntime(_model(variant), feeds), _expected(variant, feeds)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max()) <= LIMITS[variant.dtype] * float(other.abs().max())


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("name", VARIANTS)
def test_function_of_a_variant_passes_the_full_check(name, opset):
    onnx.checker.check_model(onnx_ir.to_proto(_model(_variant(name), opset)), full_check=True)


def test_function_of_declares_the_attributes_of_a_node():
    function = function_of(_variant("plain"))
    assert function.identifier() == (DOMAIN, _variant("plain").name, "")
    assert tuple(sorted(function.attributes)) == ATTRIBUTES


def test_function_of_a_query_that_sees_no_key_gives_zeros():
    variant = _variant("log_sum_exp")
    feeds = _feeds(variant)
    feeds["bias"][0, 1, 2] = float("-inf")
    out, lse = _in_onnxruntime(_model(variant), feeds)
    assert bool((out[0, 1, 2] == 0).all())
    assert float(lse[0, 1, 2]) == float("-inf")
    assert int(torch.isinf(lse).sum()) == 1
    assert not bool(torch.isnan(out).any())


def test_function_of_renormalise_without_a_probability_left_gives_zeros():
    variant = _variant("renormalised")
    feeds = _feeds(variant)
    feeds["probability_mask"][1, 0, 3] = 0
    (out,) = _in_onnxruntime(_model(variant), feeds)
    assert bool((out[1, 0, 3] == 0).all())
    assert not bool(torch.isnan(out).any())


@pytest.mark.parametrize(
    ("name", "opset", "kinds"),
    [
        ("plain", 23, ["Attention"]),
        ("bias_fp16", 23, ["Attention"]),
        ("plain", 18, ["MatMul", "Softmax", "MatMul"]),
        ("mask", 23, ["MatMul", "Softmax", "MatMul"]),
        ("packed", 18, ["MatMul", "Softmax", "MatMul"]),
    ],
)
def test_nodes_of_not_widened_are_what_tensorrt_has_kernels_for(name, opset, kinds):
    variant = _variant(name)
    model = _model(variant, opset)
    (node,) = model.graph
    nodes, results = nodes_of(variant, node.inputs, opset, widened=False, metadata={"scope": "block"}, anchor="softmax")
    assert [one.op_type for one in nodes if one.op_type in ("Attention", "MatMul", "Softmax")] == kinds
    assert [one.op_type for one in nodes if one.name == "softmax"] == [kind for kind in kinds if kind != "MatMul"]
    assert all(one.metadata_props["scope"] == "block" for one in nodes)
    graph = model.graph
    graph.extend(nodes)
    for number, value in enumerate(results):
        value.name, value.dtype, value.shape = f"plain_{number}", TYPES[variant.dtype], node.outputs[number].shape
    graph.outputs[:] = results
    graph.remove(node)
    model.ir_version = 11
    feeds = _feeds(variant)
    (found,), (expected,) = _in_onnxruntime(model, feeds), _expected(variant, feeds)
    assert float((found - expected).abs().max()) <= 3 * LIMITS[variant.dtype] * float(expected.abs().max())
