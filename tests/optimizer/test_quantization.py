"""Quantised graphs: their form, their bytes, their answers, and that TensorRT keeps attention fused in them."""

import collections

import numpy as np
import onnx
import onnxruntime
import pytest
from scipy.stats import binomtest

import shallowvit
from shallowvit import ExportConfig, ShallowvitError
from shallowvit.errors import ParityError
from shallowvit.exporting import Precision, export_onnx
from shallowvit.exporting.calibration_inputs import info_of_graph, read_calibration_inputs
from shallowvit.exporting.evaluation import (
    EvaluationItems,
    check_outputs,
    items_from_inputs,
    outputs_of,
    read_evaluation,
)
from shallowvit.exporting.quantization import quantize_graph
from shallowvit.exporting.quantize_records import AccuracyError, CalibrationMethod, QuantizeConfig

TYPES = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN, "int4": onnx.TensorProto.INT4}
FLOATS = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
GEMMS = 2 * 6 + 1  # six products a block and the head; the patches' convolution is one node more
BLOCK = "videomae.encoder.layer.1"


@pytest.fixture(scope="module")
def graph_of(pruned_video, tmp_path_factory):
    """Export the pruned video model once per setting."""
    made = {}

    def exported(precision="fp16", opset=23):
        if (precision, opset) not in made:
            out = tmp_path_factory.mktemp("graphs") / "model.onnx"
            made[precision, opset] = export_onnx(pruned_video, out, ExportConfig(Precision(precision), opset))
        return made[precision, opset]

    return exported


@pytest.fixture(scope="module")
def info(pruned_video, graph_of):
    exported = graph_of("fp32")
    return info_of_graph(pruned_video.model, exported.input, exported.path, "fp32")


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(0).standard_normal((24, 4, 3, 16, 16), dtype=np.float32)


@pytest.fixture(scope="module")
def quantized(graph_of, inputs, tmp_path_factory):
    """Quantise a graph once per setting and name."""
    made = {}

    def quantize(base="fp16", opset=23, name="model.onnx", **settings):
        key = (base, opset, name, *sorted(settings.items()))
        if key not in made:
            config = QuantizeConfig(block_size=32, **settings)  # the tiny model's products have 32 inputs
            out = tmp_path_factory.mktemp("quantized") / name
            made[key] = quantize_graph(graph_of(base, opset).path, out, config, inputs if config.method else None)
        return made[key]

    return quantize


def _save_items(path, count, seed=0, labels=True):
    rng = np.random.default_rng(seed)
    arrays = {"frames": rng.integers(0, 256, (count, 4, 16, 16, 3), np.uint8)}
    np.savez(path, **arrays | ({"labels": rng.integers(0, 5, count)} if labels else {}))
    return str(path)


def _run(path, inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


@pytest.mark.parametrize("base", ["fp16", "bf16"])
@pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
def test_quantize_graph_stores_weights_in_the_type_and_scales_in_the_base(quantized, precision, base):
    done = quantized(base, precision=precision)
    graph = onnx.load(done.path).graph
    onnx.checker.check_model(str(done.path), full_check=True)
    kinds = {value.name: value.data_type for value in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {kinds[node.input[1]] for node in pairs} == {FLOATS[base]}
    weights = [node for node in pairs if node.op_type == "DequantizeLinear" and node.input[0] in kinds]
    assert {kinds[node.input[0]] for node in weights} == {TYPES[precision]}
    assert len(weights) == done.quantized == GEMMS + (precision == "int8")
    zeros = [onnx.numpy_helper.to_array(value) for value in graph.initializer if value.name.endswith("zero_point")]
    assert all(float(zero.astype(np.float32)) == 0 for zero in zeros)
    assert (len(zeros) == 0) == (precision == "int4")


@pytest.mark.parametrize(("precision", "opset"), [("int8", 19), ("fp8", 19), ("int4", 21)])
def test_quantize_graph_raises_the_opset_no_further_than_needed(quantized, precision, opset):
    done = quantized(opset=18, precision=precision)
    assert done.opset == onnx.load(done.path).opset_import[0].version == opset
    assert done.attention_nodes == 2


def test_quantize_graph_quantizes_no_product_of_two_activations(quantized):
    graph = onnx.load(quantized("fp32", 18, precision="int8").path).graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    products = [[made.get(name) for name in node.input] for node in graph.node if node.op_type == "MatMul"]
    of_attention = [kinds for kinds in products if "DequantizeLinear" not in kinds]
    assert (len(products) - len(of_attention), len(of_attention)) == (GEMMS - 1, 2 * 2)
    softmaxes = {name for node in graph.node if node.op_type == "Softmax" for name in node.output}
    assert not any(set(node.input) & softmaxes for node in graph.node if node.op_type == "QuantizeLinear")


@pytest.mark.parametrize(
    ("base", "settings", "bound"),
    [
        ("fp32", {"precision": "int8"}, 0.05),
        ("fp16", {"precision": "int8"}, 0.05),
        ("fp16", {"precision": "int8", "calibration": "percentile"}, 0.05),
        ("fp16", {"precision": "int8", "calibration": "entropy"}, 0.3),
        ("fp16", {"precision": "fp8"}, 0.15),
        ("fp32", {"precision": "int4"}, 0.4),
        ("fp16", {"precision": "int4"}, 0.4),
    ],
)
def test_quantize_graph_answers_nearly_as_fp32(quantized, graph_of, inputs, base, settings, bound):
    expected = _run(graph_of("fp32").path, inputs)
    found = _run(quantized(base, **settings).path, inputs)
    assert 0 < np.abs(found - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
def test_quantize_graph_twice_gives_the_same_bytes_without_paths(quantized, precision):
    first, second = (quantized(precision=precision, name=name) for name in ("model.onnx", "again.onnx"))
    content = first.path.read_bytes()
    assert content == second.path.read_bytes()
    for trace in (str(first.path.parent), "site-packages", ".py", "/tmp/"):
        assert trace.encode() not in content


def test_quantize_graph_keeps_names_and_says_which_block_a_pair_is_of(quantized, graph_of):
    before = {
        node.name: [(row.key, row.value) for row in node.metadata_props] for node in onnx.load(graph_of().path).graph.node
    }
    done = quantized(precision="int8")
    after = onnx.load(done.path)
    kept = {node.name: [(row.key, row.value) for row in node.metadata_props] for node in after.graph.node}
    assert {name: kept[name] for name in before} == before
    pairs = [node for node in after.graph.node if node.op_type == "DequantizeLinear"]
    scopes = collections.Counter(f"{BLOCK}'" in row.value for node in pairs for row in node.metadata_props)
    assert scopes[True] == 6 + 4  # of block 1: the weights, and four activations, since one feeds queries, keys and values
    found = {row.key: row.value for row in after.metadata_props}
    assert (found["shallowvit.precision"], found["shallowvit.base_precision"]) == ("int8", "fp16")
    assert found["shallowvit.criterion"] == "entropy"


def test_quantize_graph_records_a_range_for_each_activation(quantized, graph_of, inputs):
    done = quantized("fp32", precision="int8")
    names = [row.tensor for row in done.ranges]
    model = onnx.load(graph_of("fp32").path)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(names, {"pixel_values": inputs})
    assert len(names) == 2 * 4 + 2
    for row, value in zip(done.ranges, values, strict=True):
        np.testing.assert_allclose((row.low, row.high), (value.min(), value.max()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{"calibration": "percentile", "percentile": 99.0}, {"calibration": "entropy"}])
def test_quantize_graph_clips_outliers_where_the_calibration_says(quantized, settings):
    whole = quantized(precision="int8")
    clipped = quantized(precision="int8", **settings)
    pairs = list(zip(whole.ranges, clipped.ranges, strict=True))
    assert all(narrow.high <= wide.high and narrow.low >= wide.low for wide, narrow in pairs)
    assert sum(narrow.high < wide.high for wide, narrow in pairs) >= len(pairs) // 2
    assert clipped.percentile == settings.get("percentile")


@pytest.mark.parametrize("keep", [BLOCK, "node_linear"])
def test_quantize_graph_keeps_a_block_or_a_node_in_float(quantized, graph_of, keep):
    done = quantized(precision="int8", keep=(keep,))
    graph = onnx.load(done.path).graph
    kept = [row.node for row in done.kept]
    assert len(kept) == (6 if keep == BLOCK else 1) == GEMMS + 1 - done.quantized
    assert all(row.reason == f"kept: {keep}" for row in done.kept)
    before = {node.name: list(node.input) for node in onnx.load(graph_of().path).graph.node}
    assert all(list(node.input) == before[node.name] for node in graph.node if node.name in kept)


@pytest.mark.parametrize("name", ["videomae.encoder.layer.7", "node_linaer"])
def test_quantize_graph_unknown_name_to_keep_lists_near_ones(quantized, name):
    near = BLOCK if "layer" in name else "node_linear"
    with pytest.raises(ShallowvitError, match=f"--keep-precise {name}: no module or node .* near ones are .*{near}"):
        quantized(precision="int8", keep=(name,))


def test_quantize_graph_nothing_left_is_an_error(quantized):
    with pytest.raises(ShallowvitError, match=r"none of the 14 .* is left to turn into int8"):
        quantized(precision="int8", keep=("videomae", "classifier"))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantize_graph_without_inputs_says_which_option_to_give(graph_of, tmp_path, precision):
    with pytest.raises(ShallowvitError, match=f"{precision} needs real inputs .* with --calibration"):
        quantize_graph(graph_of().path, tmp_path / "out.onnx", QuantizeConfig(Precision(precision)))
    assert not (tmp_path / "out.onnx").exists()


def test_quantize_graph_inputs_of_another_shape_are_refused(graph_of, tmp_path):
    wrong = np.zeros((2, 4, 3, 8, 8), np.float32)
    with pytest.raises(
        ShallowvitError, match=r"inputs are float32 \[2, 4, 3, 8, 8\], the graph takes float32 \[N, 4, 3, 16, 16\]"
    ):
        quantize_graph(graph_of().path, tmp_path / "out.onnx", QuantizeConfig(), wrong)


def test_quantize_graph_inputs_that_make_nan_are_refused(graph_of, tmp_path, inputs):
    wrong = np.where(np.arange(24).reshape(-1, 1, 1, 1, 1) == 3, np.nan, inputs).astype(np.float32)
    with pytest.raises(ShallowvitError, match="takes NaN or Inf on the calibration inputs"):
        quantize_graph(graph_of().path, tmp_path / "out.onnx", QuantizeConfig(), wrong)


def test_quantize_graph_of_a_quantized_graph_is_refused(quantized, tmp_path, inputs):
    done = quantized(precision="int8")
    with pytest.raises(ShallowvitError, match="is quantised already"):
        quantize_graph(done.path, tmp_path / "again.onnx", QuantizeConfig(), inputs)
    with pytest.raises(ShallowvitError, match="is the graph to quantise"):
        quantize_graph(done.path, done.path, QuantizeConfig(), inputs)


def test_quantize_graph_int4_leaves_what_blocks_do_not_divide(graph_of, tmp_path):
    done = quantize_graph(graph_of().path, tmp_path / "out.onnx", QuantizeConfig(Precision.INT4))
    assert (done.quantized, done.block_sizes) == (2, (64,))  # 128 doesn't divide the 64 inputs of a block's last product
    reasons = collections.Counter(row.reason for row in done.kept)
    assert reasons == {
        "its 32 inputs can't be cut into blocks of 64": GEMMS - 2,
        "a convolution stays float in int4, as NVIDIA Model Optimizer leaves it": 1,
    }


def _small_graph(path, nodes, weights, shape):
    """A float graph x -> y of a few nodes."""
    kind = onnx.TensorProto.FLOAT
    ends = [
        onnx.helper.make_tensor_value_info("x", kind, ["batch", *shape]),
        onnx.helper.make_tensor_value_info("y", kind, ["batch", *([None] * len(shape))]),
    ]
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = onnx.helper.make_graph(nodes, "small", ends[:1], ends[1:], tensors)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10), path)
    return path


@pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
def test_quantize_graph_weights_come_back_within_half_a_step_per_output(tmp_path, precision):
    rng = np.random.default_rng(0)
    # outputs of very different sizes, one of zeros: a scale for all of them would lose the small ones
    weights = rng.standard_normal((64, 5), dtype=np.float32) * np.float32([1e-6, 0.01, 1, 100, 0])
    gemm = onnx.helper.make_node("Gemm", ["x", "w"], ["y"], name="gemm", transB=1)
    source = _small_graph(tmp_path / "small.onnx", [gemm], {"w": weights.T.copy()}, [64])
    config = QuantizeConfig(precision, block_size=64)
    done = quantize_graph(source, tmp_path / "out.onnx", config, rng.standard_normal((8, 64), dtype=np.float32))
    model = onnx.load(done.path)
    restored = next(node.output[0] for node in model.graph.node if node.name == "w_DequantizeLinear")
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(restored))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run([restored], {"x": np.zeros((1, 64), np.float32)})[0].T  # [64, 5]
    step = {"int8": 1 / 127, "fp8": 2 / 16, "int4": 1 / 7}[precision]  # of fp8: of the largest binade, 4 bits each
    assert np.all(np.abs(found - weights) <= 0.501 * step * np.abs(weights).max(axis=0))
    assert np.all(found[:, 4] == 0)


def test_quantize_graph_tied_weights_are_stored_once_per_axis(tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((64, 64), dtype=np.float32)
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        onnx.helper.make_node("MatMul", ["a", "w"], ["b"], name="two"),
        onnx.helper.make_node("Gemm", ["b", "w"], ["y"], name="three", transB=1),
    ]
    source = _small_graph(tmp_path / "small.onnx", nodes, {"w": weights}, [64])
    inputs = rng.standard_normal((16, 64), dtype=np.float32)
    done = quantize_graph(source, tmp_path / "out.onnx", QuantizeConfig(), inputs)
    stored = [value.name for value in onnx.load(done.path).graph.initializer if value.data_type == onnx.TensorProto.INT8]
    assert sorted(name for name in stored if name.endswith("_quantized")) == ["w_axis0_quantized", "w_quantized"]
    expected, found = _run(source, inputs), _run(done.path, inputs)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_quantize_graph_constants_that_are_no_weights_stay(tmp_path):
    rng = np.random.default_rng(0)
    nodes = [
        onnx.helper.make_node("MatMul", ["left", "x"], ["a"], name="left_constant"),
        onnx.helper.make_node("MatMul", ["a", "stacked"], ["b"], name="stacked_weights"),
        onnx.helper.make_node("MatMul", ["b", "w"], ["y"], name="fit"),
    ]
    shapes = {"left": (4, 4), "stacked": (1, 16, 16), "w": (16, 16)}
    weights = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    source = _small_graph(tmp_path / "small.onnx", nodes, weights, [4, 16])
    done = quantize_graph(source, tmp_path / "out.onnx", QuantizeConfig(), rng.standard_normal((8, 4, 16), dtype=np.float32))
    assert done.quantized == 1
    assert {row.node: row.reason for row in done.kept} == {
        "left_constant": "its constant is the first input, not the weights",
        "stacked_weights": "its weights have 3 dimensions, not 2",
    }


def test_quantize_graph_large_weights_stand_beside_it(graph_of, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("shallowvit.exporting.graph.EXTERNAL_DATA_ABOVE_BYTES", 1000)
    monkeypatch.setattr("shallowvit.exporting.activation_ranges.EXTERNAL_DATA_ABOVE_BYTES", 1000)
    done = quantize_graph(graph_of("fp32").path, tmp_path / "out.onnx", QuantizeConfig(), inputs)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    assert done.bytes_after == sum(file.stat().st_size for file in tmp_path.iterdir())
    again = quantize_graph(graph_of("fp32").path, tmp_path / "two.onnx", QuantizeConfig(), inputs)
    np.testing.assert_array_equal(_run(done.path, inputs), _run(again.path, inputs))


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("precision", ["int8", "fp8", "int4"])
def test_quantize_graph_builds_in_tensorrt_with_attention_fused(quantized, tmp_path, precision, opset):
    pytest.importorskip("tensorrt_rtx", reason="builds engines; pip install 'shallowvit[tensorrt]'")
    from shallowvit.engines.build import build_engine

    built = build_engine(quantized(opset=opset, precision=precision).path, tmp_path)
    assert (built.fusion.fused, built.fusion.expected) == (2, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp16"}, "'fp16' isn't quantised; choose from int8, fp8, int4"),
        ({"calibration": "max"}, "unknown calibration 'max'; choose from minmax, percentile, entropy"),
        ({"precision": "fp8", "calibration": "entropy"}, "which int8 has and fp8 hasn't; use minmax or percentile"),
        ({"percentile": 50}, "a percentile of 50 is outside 90 to 100"),
        ({"samples": 0}, "0 calibration samples; give 1 or more"),
        ({"block_size": 48}, "a block size of 48 isn't a power of two from 16"),
    ],
)
def test_quantize_config_refuses_what_makes_no_sense(settings, message):
    with pytest.raises(ShallowvitError, match=message):
        QuantizeConfig(**settings)


def test_quantize_config_takes_plain_text():
    config = QuantizeConfig("fp8", "percentile", keep=["classifier"])
    assert (config.precision, config.method, config.keep) == (Precision.FP8, CalibrationMethod.PERCENTILE, ("classifier",))


def test_read_calibration_inputs_are_the_models_own_inputs(info, pruned_video, tmp_path):
    data = _save_items(tmp_path / "items.npz", 40)
    config = QuantizeConfig(data=data, samples=12)
    calibration = read_calibration_inputs(info, config)
    found = np.concatenate(list(calibration.batches(5)))
    chosen = np.random.default_rng(0).permutation(40)[:12]
    settings = pruned_video.model.input_spec.preprocessing
    frames = np.load(data)["frames"][chosen].astype(np.float64)
    expected = (frames * settings.rescale - np.array(settings.mean)) / np.array(settings.std)
    np.testing.assert_allclose(found, np.moveaxis(expected, -1, -3), atol=1e-5)
    assert (len(calibration), len(set(calibration.item_sha256))) == (12, 12)


def test_read_calibration_inputs_of_a_graph_with_preprocessing_are_frames(pruned_video, tmp_path):
    config = ExportConfig(Precision.FP16, embed_preprocessing=True, frame_size=(20, 24))
    exported = export_onnx(pruned_video, tmp_path / "frames.onnx", config)
    info = info_of_graph(pruned_video.model, exported.input, exported.path, "fp16")
    frames = np.random.default_rng(0).integers(0, 256, (10, 4, 20, 24, 3), np.uint8)
    np.savez(tmp_path / "items.npz", frames=frames)
    calibration = read_calibration_inputs(info, QuantizeConfig(data=str(tmp_path / "items.npz"), samples=6))
    assert {batch.dtype for batch in calibration.batches()} == {np.dtype(np.uint8)}
    done = quantize_graph(exported.path, tmp_path / "out.onnx", QuantizeConfig(), calibration.batches())
    expected, found = _run(exported.path, frames), _run(done.path, frames)
    assert done.samples == 6
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_read_calibration_inputs_without_data_says_which_option_to_give(info):
    with pytest.raises(ShallowvitError, match="no data is named; give a data set with --calibration"):
        read_calibration_inputs(info, QuantizeConfig())
    with pytest.raises(ShallowvitError, match="quantize: open_dataset: no data at nowhere"):
        read_calibration_inputs(info, QuantizeConfig(data="nowhere"))


def test_read_evaluation_holds_calibration_items_out_by_content(info, tmp_path):
    data = _save_items(tmp_path / "items.npz", 40)
    calibration = read_calibration_inputs(info, QuantizeConfig(data=data, samples=12))
    arrays = dict(np.load(data))
    order = np.random.default_rng(5).permutation(40)
    np.savez(tmp_path / "renamed.npz", frames=arrays["frames"][order], labels=arrays["labels"][order])
    items = read_evaluation(info, str(tmp_path / "renamed.npz"), calibration)
    assert (items.count, items.held_out) == (28, 12)
    used = np.random.default_rng(0).permutation(40)[:12]
    assert sorted(items.labels.tolist()) == sorted(np.delete(arrays["labels"], used).tolist())
    seen = {batch.tobytes() for batch in calibration.batches(1)}
    assert not any(item.tobytes() in seen for batch in items.batches() for item in batch)
    assert read_evaluation(info, data).held_out == 0


def test_read_evaluation_of_nothing_but_calibration_items_is_an_error(info, tmp_path):
    data = _save_items(tmp_path / "items.npz", 8)
    calibration = read_calibration_inputs(info, QuantizeConfig(data=data))
    with pytest.raises(ShallowvitError, match=r"all 8 items of .* were calibrated on"):
        read_evaluation(info, data, calibration)


def test_check_outputs_measures_both_sides_on_the_same_items(info, quantized, graph_of, tmp_path):
    data = _save_items(tmp_path / "items.npz", 60)
    items = read_evaluation(info, data)
    done = quantized(precision="int4")
    expected, _ = outputs_of(graph_of("fp32").path, "fp32", items)
    found, computed_by = outputs_of(done.path, done.base, items)
    check = check_outputs(expected, found, items, (done.precision, done.base, computed_by), 0.9)
    inputs = np.concatenate(list(items.batches()))
    expected, found = (_run(path, inputs) for path in (graph_of("fp32").path, done.path))
    labels = np.load(data)["labels"]
    right, right_here = expected.argmax(1) == labels, found.argmax(1) == labels
    assert (check.precision, check.base, check.items, check.held_out) == ("int4", "fp16", 60, 0)
    assert check.top1_agreement == (expected.argmax(1) == found.argmax(1)).mean()
    assert (check.top1_reference, check.top1) == (right.mean(), right_here.mean())
    assert check.drop == pytest.approx(right.mean() - right_here.mean())
    assert check.relative_error == pytest.approx(np.abs(found - expected).max() / np.abs(expected).max(), rel=0.05)


def test_outputs_of_a_bf16_graph_are_emulated(quantized, graph_of, inputs):
    exported = graph_of("fp32")
    items = items_from_inputs({exported.input.name: inputs}, exported.inputs, "noise")
    done = quantized("bf16", precision="int8")
    found, computed_by = outputs_of(done.path, "bf16", items)
    expected, _ = outputs_of(graph_of("fp32").path, "fp32", items)
    assert "bf16 emulated" in computed_by
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def _outputs(predictions, classes=4):
    return np.eye(classes, dtype=np.float32)[predictions]


def _items(count, labels=None):
    return EvaluationItems("made up", count, 0, labels, lambda: iter(()))


def test_check_outputs_refuses_a_drop_above_the_floor_and_names_both_figures():
    labels = np.zeros(1000, np.int64)
    fp32 = np.where(np.arange(1000) < 900, 0, 1)
    worse = np.where(np.arange(1000) < 880, 0, 1)
    check = check_outputs(_outputs(fp32), _outputs(worse), _items(1000, labels), ("int8", "fp16", "here"), 0.02)
    assert (check.drop, check.lost, check.gained) == (pytest.approx(0.02), 20, 0)  # the floor itself is allowed
    message = (
        r"int8 on fp16 has 88.00 % top-1 on 1,000 items of made up, fp32 has 90.00 %: a drop of 2.00 points, above the 1.00 .*"
        r"--keep-precise, calibrate otherwise, or use fp16"
    )
    with pytest.raises(AccuracyError, match=message):
        check_outputs(_outputs(fp32), _outputs(worse), _items(1000, labels), ("int8", "fp16", "here"), 0.01)


@pytest.mark.parametrize(("lost", "gained", "noise"), [(20, 0, False), (12, 8, True), (0, 0, True)])
def test_check_outputs_says_whether_a_drop_is_within_noise(lost, gained, noise):
    labels = np.zeros(2000, np.int64)
    fp32, here = np.zeros(2000, np.int64), np.zeros(2000, np.int64)
    here[:lost] = 1
    fp32[lost : lost + gained] = 1
    check = check_outputs(_outputs(fp32), _outputs(here), _items(2000, labels), ("int8", "fp16", "here"), 0.5)
    assert (check.lost, check.gained, check.within_noise) == (lost, gained, noise)
    assert check.p_value == (pytest.approx(binomtest(lost, lost + gained).pvalue) if lost + gained else 1)
    low, high = check.drop_interval
    assert low <= check.drop <= high
    assert (low <= 0) == noise


def test_check_outputs_without_labels_has_agreement_and_no_accuracy():
    fp32, here = np.zeros(100, np.int64), np.arange(100) < 3
    check = check_outputs(_outputs(fp32), _outputs(here.astype(int)), _items(100), ("fp8", "fp16", "here"), 0.01)
    assert check.top1_agreement == pytest.approx(0.97)
    assert check.top1 is check.drop is check.p_value is None


def test_check_outputs_of_features_has_errors_alone():
    fp32 = np.random.default_rng(0).standard_normal((6, 8, 4), dtype=np.float32)
    check = check_outputs(fp32, fp32 + np.float32(0.5), _items(6), ("fp8", "fp16", "here"), 0.01)
    assert check.top1_agreement is None
    assert check.max_abs_error == pytest.approx(0.5)


def test_check_outputs_refuses_nan_and_a_dead_reference():
    good = _outputs(np.arange(4))
    with pytest.raises(ParityError, match="int8 on fp16 the graph answers with NaN or Inf"):
        check_outputs(good, good * np.nan, _items(4), ("int8", "fp16", "here"), 0.01)
    with pytest.raises(ParityError, match="outputs are all zero on 4 items"):
        check_outputs(good * 0, good, _items(4), ("int8", "fp16", "here"), 0.01)


def test_quantize_graph_of_an_image_model_whose_input_feeds_the_convolution(tmp_path):
    model = shallowvit.load("timm:vit_tiny_patch16_224?img_size=32&depth=2&embed_dim=48&num_heads=3&num_classes=5")
    exported = export_onnx(shallowvit.prune(model, shallowvit.plan(model)), tmp_path / "image.onnx", ExportConfig())
    inputs = np.random.default_rng(0).standard_normal((8, 3, 32, 32), dtype=np.float32)
    done = quantize_graph(exported.path, tmp_path / "out.onnx", QuantizeConfig(), inputs)
    assert exported.input.name in [row.tensor for row in done.ranges]
    expected, found = _run(exported.path, inputs), _run(done.path, inputs)
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
