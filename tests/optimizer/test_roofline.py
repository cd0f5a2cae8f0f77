import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from shallowvit import ShallowvitError
from shallowvit.engines.roofline import ESTIMATE, count_graph_bytes, estimate
from shallowvit.engines.targets import find_target

ROWS, INNER, COLUMNS = 3, 8, 5


def _tensor(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def _save(path, nodes, weights, *, kind=TensorProto.FLOAT, inputs=None, output=("batch", ROWS, COLUMNS), external=False):
    """Save a graph of an input ``x`` [batch, 3, 8] and an output ``y``."""
    inputs = inputs or [_tensor("x", kind, ["batch", ROWS, INNER])]
    graph = helper.make_graph(nodes, "g", inputs, [_tensor("y", kind, list(output))], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.save_model(model, path, save_as_external_data=external, location="weights.data", size_threshold=0)
    return path


def _weight(name, shape, dtype=np.float32):
    return numpy_helper.from_array(np.ones(shape, dtype), name)


def _packed(name, kind, shape):
    return helper.make_tensor(name, kind, shape, [1] * int(np.prod(shape)))


@pytest.fixture
def product(tmp_path):
    """x [batch, 3, 8] @ w [8, 5], then Relu."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    return _save(tmp_path / "product.onnx", nodes, [_weight("w", (INNER, COLUMNS))])


@pytest.mark.parametrize("batch", [1, 7])
def test_count_graph_bytes_counts_weights_once_and_the_rest_by_batch(product, batch):
    found = count_graph_bytes(product, batch)
    assert found.weight_bytes == INNER * COLUMNS * 4
    assert found.io_bytes == batch * ROWS * (INNER + COLUMNS) * 4
    assert found.activation_bytes == batch * ROWS * COLUMNS * 4  # h; y is an output
    assert found.unsized == ()


def test_count_graph_bytes_of_fp16_are_half(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    weights = [_weight("w", (INNER, COLUMNS), np.float16)]
    found = count_graph_bytes(_save(tmp_path / "half.onnx", nodes, weights, kind=TensorProto.FLOAT16), 1)
    assert (found.weight_bytes, found.io_bytes) == (INNER * COLUMNS * 2, ROWS * (INNER + COLUMNS) * 2)


def test_count_graph_bytes_external_weights_need_no_file(tmp_path, product):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    path = _save(tmp_path / "external.onnx", nodes, [_weight("w", (INNER, COLUMNS))], external=True)
    (tmp_path / "weights.data").unlink()
    assert count_graph_bytes(path, 2) == count_graph_bytes(product, 2)


@pytest.mark.parametrize(
    ("kind", "weight_bytes"), [(TensorProto.INT8, INNER * COLUMNS), (TensorProto.INT4, INNER * COLUMNS // 2)]
)
def test_count_graph_bytes_of_quantised_weights_are_packed(tmp_path, kind, weight_bytes):
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    path = _save(tmp_path / "q.onnx", nodes, [_packed("q", kind, (INNER, COLUMNS)), _weight("s", ())])
    found = count_graph_bytes(path, 1)
    assert found.weight_bytes == weight_bytes + 4  # and the scale
    assert found.activation_bytes == 0  # what comes of weights alone is folded


def test_count_graph_bytes_odd_number_of_int4_takes_a_whole_byte(tmp_path):
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = _save(
        tmp_path / "q.onnx",
        nodes,
        [_packed("q", TensorProto.INT4, (INNER, 1, 1)[:2]), _weight("s", ())],
        output=("batch", ROWS, 1),
    )
    assert count_graph_bytes(path, 1).weight_bytes == INNER // 2 + 4
    odd = [_packed("q", TensorProto.INT4, (1,)), _weight("s", ())]
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"]), helper.make_node("Mul", ["x", "w"], ["y"])]
    path = _save(tmp_path / "odd.onnx", nodes, odd, output=("batch", ROWS, INNER))
    assert count_graph_bytes(path, 1).weight_bytes == 1 + 4


def test_count_graph_bytes_weight_quantised_in_the_graph_counts_as_quantised(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["f", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = [_weight("f", (INNER, COLUMNS)), _weight("s", ()), _weight("z", (), np.int8)]
    assert count_graph_bytes(_save(tmp_path / "q.onnx", nodes, weights), 1).weight_bytes == INNER * COLUMNS + 4 + 1


def test_count_graph_bytes_cast_weight_counts_as_cast(tmp_path):
    nodes = [
        helper.make_node("Cast", ["f"], ["w"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    path = _save(tmp_path / "c.onnx", nodes, [_weight("f", (INNER, COLUMNS))], kind=TensorProto.FLOAT16)
    assert count_graph_bytes(path, 1).weight_bytes == INNER * COLUMNS * 2


def test_count_graph_bytes_unused_weight_counts_nothing(tmp_path, product):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    weights = [_weight("w", (INNER, COLUMNS)), _weight("forgotten", (100,))]
    assert count_graph_bytes(_save(tmp_path / "u.onnx", nodes, weights), 1) == count_graph_bytes(product, 1)


def test_count_graph_bytes_views_move_nothing(tmp_path, product):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Reshape", ["h", "shape"], ["flat"]),
        helper.make_node("Reshape", ["flat", "back"], ["again"]),
        helper.make_node("Relu", ["again"], ["y"]),
    ]
    shapes = [numpy_helper.from_array(np.array(dims), name) for name, dims in (("shape", [-1, 15]), ("back", [-1, 3, 5]))]
    path = _save(tmp_path / "v.onnx", nodes, [_weight("w", (INNER, COLUMNS)), *shapes])
    assert count_graph_bytes(path, 3).activation_bytes == count_graph_bytes(product, 3).activation_bytes


def test_count_graph_bytes_result_of_unknown_shape_leaves_activations_unknown(tmp_path):
    nodes = [helper.make_node("Mystery", ["x"], ["h"], domain="elsewhere"), helper.make_node("MatMul", ["h", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [_tensor("x", TensorProto.FLOAT, ["batch", ROWS, INNER])],
        [_tensor("y", TensorProto.FLOAT, ["batch", ROWS, COLUMNS])],
        [_weight("w", (INNER, COLUMNS))],
    )
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("elsewhere", 1)]
    onnx.save_model(helper.make_model(graph, opset_imports=imports, ir_version=11), tmp_path / "m.onnx")
    found = count_graph_bytes(tmp_path / "m.onnx", 1)
    assert (found.activation_bytes, found.unsized) == (None, ("h",))
    told = estimate(tmp_path / "m.onnx", 1, find_target("h100-sxm"), "fp16")
    assert told.unfused_memory_ms is None
    assert "activations: 1 results of the graph have no known shape, 'h' is the first" in told.unknown


def test_count_graph_bytes_of_an_exported_graph_are_those_of_its_parameters(image_bundle):
    found = count_graph_bytes(image_bundle.path / "model.onnx", 2)
    assert found.unsized == ()
    parameters = image_bundle.manifest.plan.parameters_after
    # fp16; equal biases (of a fresh model, all zero) are stored once, and the constants of the preprocessing come on top
    assert found.weight_bytes == pytest.approx(2 * parameters, rel=0.03)
    assert found.io_bytes == 2 * (48 * 41 * 3 + 5 * 4)  # uint8 frames in, five fp32 scores out
    assert found.activation_bytes > 20 * found.io_bytes


@pytest.mark.parametrize("content", [b"\xff\xff\xff", b"not a graph at all"])
def test_count_graph_bytes_garbage_raises(tmp_path, content):
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(ShallowvitError, match=r"x\.onnx is not an ONNX file .*export the model again"):
        count_graph_bytes(tmp_path / "x.onnx", 1)


def test_count_graph_bytes_empty_file_raises(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"")
    with pytest.raises(ShallowvitError, match="holds no graph with outputs"):
        count_graph_bytes(tmp_path / "x.onnx", 1)


def test_count_graph_bytes_missing_file_raises(tmp_path):
    with pytest.raises(ShallowvitError, match=r"no graph at .*none\.onnx"):
        count_graph_bytes(tmp_path / "none.onnx", 1)


def test_count_graph_bytes_other_dynamic_dimension_raises(tmp_path):
    inputs = [_tensor("x", TensorProto.FLOAT, ["batch", "tokens", INNER])]
    path = _save(
        tmp_path / "d.onnx", [helper.make_node("Relu", ["x"], ["y"])], [], inputs=inputs, output=("batch", "tokens", INNER)
    )
    with pytest.raises(ShallowvitError, match=r"'x' of .* has a dimension other than the batch that isn't fixed"):
        count_graph_bytes(path, 1)


def test_count_graph_bytes_graph_without_opset_raises(product):
    model = onnx.load(product)
    del model.opset_import[:]
    onnx.save(model, product)
    with pytest.raises(ShallowvitError, match=r"no shapes can be inferred in .*product\.onnx: .*; export the model again"):
        count_graph_bytes(product, 1)


def test_estimate_is_the_larger_of_both_sides(product):
    target = find_target("h100-sxm")
    found = estimate(product, 10**12, target, "fp16", batch=2)
    moved = count_graph_bytes(product, 2)
    assert found.compute_ms == pytest.approx(2e12 / 989e12 * 1e3)
    assert found.memory_ms == pytest.approx((moved.weight_bytes + moved.io_bytes) / 3350e9 * 1e3)
    assert (found.limited_by, found.bound_ms) == ("compute", found.compute_ms)
    assert found.ridge == pytest.approx(989e12 / 3350e9)
    assert found.intensity == pytest.approx(2e12 / (moved.weight_bytes + moved.io_bytes))
    assert found.unknown == ()


def test_estimate_of_little_arithmetic_is_limited_by_memory(product):
    found = estimate(product, 240, find_target("h100-sxm"), "int8")
    assert (found.limited_by, found.bound_ms) == ("memory", found.memory_ms)
    assert found.intensity < found.ridge


def test_estimate_unfused_memory_writes_and_reads_each_result(product):
    found = estimate(product, 240, find_target("h100-sxm"), "fp16", batch=3)
    moved = count_graph_bytes(product, 3)
    total = moved.weight_bytes + moved.io_bytes + 2 * moved.activation_bytes
    assert found.unfused_memory_ms == pytest.approx(total / 3350e9 * 1e3)


def test_estimate_unknown_peak_leaves_compute_unknown_and_says_so(product):
    found = estimate(product, 10**12, find_target("jetson-agx-orin-64gb"), "fp16")
    assert (found.compute_ms, found.limited_by, found.ridge) == (None, None, None)
    assert found.bound_ms == found.memory_ms
    assert found.unknown == ("compute: the dense fp16 rate of Jetson AGX Orin 64 GB's GPU was not read",)


def test_estimate_unknown_everything_has_no_bound(product):
    found = estimate(product, 10**12, find_target("jetson-orin-nx-16gb"), "int8")
    assert (found.bound_ms, found.compute_ms, found.memory_ms) == (None, None, None)
    assert "100 sparse in total with the DLA" in found.unknown[0]
    assert found.unknown[1] == "memory: the memory bandwidth of Jetson Orin NX 16 GB was not read"


def test_estimate_int4_computes_at_the_fp16_rate(product):
    target = find_target("h100-sxm")
    assert estimate(product, 10**9, target, "int4").compute_ms == estimate(product, 10**9, target, "fp16").compute_ms


def test_estimate_on_geforce_shows_both_accumulations(product):
    found = estimate(product, 10**12, find_target("rtx-5090"), "fp16")
    assert found.compute_ms == pytest.approx(1e12 / 209.5e12 * 1e3)
    assert "with 419 TFLOPS the compute side is 2.39 ms" in found.cautions[1]


def test_estimate_always_cautions_about_the_cache(product):
    assert "a small model can beat the memory side" in estimate(product, 1, find_target("h100-sxm"), "fp16").cautions[0]


def test_estimate_on_a_jetson_cautions_about_the_power_mode(product):
    assert "lower modes clock lower" in estimate(product, 1, find_target("jetson-thor-t5000"), "fp16").cautions[1]


def test_estimate_calls_itself_an_estimate(product):
    assert estimate(product, 1, find_target("t4"), "fp16").kind == ESTIMATE
    assert ESTIMATE.startswith("estimate, not a measurement")


def test_estimate_refused_precision_raises(product):
    with pytest.raises(ShallowvitError, match=r"T4 has compute capability 7\.5; bf16 needs 8\.0 or later; choose another"):
        estimate(product, 1, find_target("t4"), "bf16")


@pytest.mark.parametrize("batch", [0, -1])
def test_estimate_batch_below_1_raises(product, batch):
    with pytest.raises(ShallowvitError, match=f"a batch of {batch}; give --batch 1 or more"):
        estimate(product, 1, find_target("t4"), "fp16", batch)


def test_estimate_loads_no_torch():
    script = "import sys, shallowvit.engines.roofline, shallowvit.engines.graph_bytes; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "False"
