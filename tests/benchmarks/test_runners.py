import builtins
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from shallowvit_bench.errors import BenchError
from shallowvit_bench.runners import RUNNERS, RunnerOptions, open_onnxruntime


def test_open_onnxruntime_gives_the_first_output(bundle):
    with open_onnxruntime(bundle / "model.onnx", RunnerOptions(threads=1)) as runner:
        scores = runner.infer(np.ones((2, 8, 3, 16, 16), np.float32))
    assert runner.facts.provider in RUNNERS
    assert scores.shape == (2, 40)
    np.testing.assert_array_equal(scores[0], scores[1])


def test_open_onnxruntime_rejects_a_missing_file(tmp_path):
    with pytest.raises(BenchError, match=r"open_onnxruntime: no file .*gone\.onnx"):
        open_onnxruntime(tmp_path / "gone.onnx", RunnerOptions())


def test_open_onnxruntime_rejects_a_broken_graph(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(BenchError, match=r"could not load"):
        open_onnxruntime(tmp_path / "broken.onnx", RunnerOptions())


def test_infer_rejects_a_wrong_shape(bundle):
    with (
        open_onnxruntime(bundle / "model.onnx", RunnerOptions(threads=1)) as runner,
        pytest.raises(BenchError, match=r"could not run .* float32"),
    ):
        runner.infer(np.ones((1, 2, 3, 16, 16), np.float32))


def test_open_onnxruntime_says_that_the_package_is_missing(bundle, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BenchError, match=r"pip install onnxruntime"):
        open_onnxruntime(bundle / "model.onnx", RunnerOptions(threads=1))


def test_bind_of_onnxruntime_keeps_the_output_where_it_is(bundle):
    batch = np.ones((2, 8, 3, 16, 16), np.float32)
    with open_onnxruntime(bundle / "model.onnx", RunnerOptions(threads=1)) as runner:
        bound = runner.bind(batch)
        places = set()
        for _ in range(5):
            bound()
            places.add(bound.output().ctypes.data)
        np.testing.assert_array_equal(bound.output(), runner.infer(batch))
    assert len(places) == 1


def write_attention(path, **settings):
    """softmax(q k^T) v over one input [batch, 2, 3, 8] -> [batch, 2, 3, 8]; keyword arguments are the node's attributes."""
    node = helper.make_node("Attention", ["x", "x", "x"], ["y"], name="blocks.0/attention", **({"scale": 0.5} | settings))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2, 3, 8]) for name in "xy")
    graph = helper.make_graph([node], "attention", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    return path


@pytest.fixture
def openvino():
    pytest.importorskip("onnxruntime_ep_openvino", reason="needs onnxruntime-ep-openvino")
    return RUNNERS["openvino"]


def test_open_openvino_answers_as_the_cpu_provider_does(bundle, openvino):
    batch = np.random.default_rng(0).standard_normal((2, 8, 3, 16, 16)).astype(np.float32)
    with openvino(bundle / "model.onnx", RunnerOptions(threads=1)) as runner:
        bound, other = runner.bind(batch), runner.infer(batch[:1])
        places = {bound.output().ctypes.data}
        bound()
        places.add(bound.output().ctypes.data)
        found = bound.output().copy()
    with open_onnxruntime(bundle / "model.onnx", RunnerOptions(threads=1)) as runner:
        np.testing.assert_allclose(found, runner.infer(batch), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(other, runner.infer(batch[:1]), rtol=1e-4, atol=1e-3)
    assert len(places) == 1


def test_facts_of_openvino_say_what_it_was_told(bundle, openvino):
    with openvino(bundle / "model.onnx", RunnerOptions(threads=1)) as runner:
        facts = runner.facts
    assert (facts.precision, facts.provider, facts.remarks) == ("fp32", "openvino", ())
    assert facts.options["INFERENCE_NUM_THREADS"] == "1"
    assert facts.options["batch_in_graph"] is True
    assert "onnxruntime-ep-openvino" in facts.version


def test_open_openvino_gets_attention_written_out(tmp_path, openvino):
    path = write_attention(tmp_path / "attention.onnx")
    batch = np.random.default_rng(0).standard_normal((2, 2, 3, 8)).astype(np.float32)
    with openvino(path, RunnerOptions()) as runner, open_onnxruntime(path, RunnerOptions()) as cpu:
        np.testing.assert_allclose(runner.bind(batch).output(), cpu.infer(batch), atol=1e-5)
        assert (runner.facts.options["attention_written_out"], runner.facts.remarks) == (1, ())


def test_open_openvino_that_gets_no_node_is_refused(tmp_path, openvino):
    path = write_attention(tmp_path / "causal.onnx", is_causal=1)  # not written out, since it isn't plain
    with pytest.raises(BenchError, match=r"OpenVINOExecutionProvider took none of the nodes of .*causal\.onnx"):
        openvino(path, RunnerOptions())


def test_facts_of_openvino_name_the_nodes_that_ran_elsewhere(tmp_path, openvino, monkeypatch):
    path = write_attention(tmp_path / "attention.onnx")
    model = onnx.load(path)
    model.graph.node[0].output[0] = "mixed"
    model.graph.node.append(helper.make_node("Mul", ["mixed", "mixed"], ["y"]))
    onnx.save(model, path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with openvino(path, RunnerOptions()) as runner:
        (remark,) = runner.facts.remarks
    assert remark.startswith(
        "1 of 2 nodes ran in onnxruntime's CPU provider, as OpenVINOExecutionProvider doesn't take them (1 Att"
    )
    assert "install onnx here, or export with --opset 18" in remark


def test_facts_of_openvino_say_int8_of_a_quantised_graph(tmp_path, openvino):
    scale, zero = (
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.02]),
        helper.make_tensor("zero", TensorProto.INT8, [], [0]),
    )
    weights = helper.make_tensor(
        "weights", TensorProto.INT8, [8, 4], (np.arange(32) % 7 - 3).astype(np.int8).tobytes(), raw=True
    )
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["whole"]),
        helper.make_node("DequantizeLinear", ["whole", "scale", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["weights", "scale", "zero"], ["factors"]),
        helper.make_node("MatMul", ["rounded", "factors"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in (("x", 8), ("y", 4)))
    graph = helper.make_graph(nodes, "quantised", [x], [y], [scale, zero, weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "int8.onnx")
    with openvino(tmp_path / "int8.onnx", RunnerOptions()) as runner:
        assert runner.facts.precision == "int8 and fp32"


def test_open_openvino_rejects_a_broken_graph(tmp_path, openvino):
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(BenchError, match=r"could not load .*broken\.onnx with OpenVINOExecutionProvider"):
        openvino(tmp_path / "broken.onnx", RunnerOptions())


def test_open_openvino_bf16_needs_a_cpu_that_has_it(bundle, openvino):
    import onnxruntime

    with openvino(bundle / "model.onnx", RunnerOptions(threads=1)):  # registers the provider
        devices = [device for device in onnxruntime.get_ep_devices() if device.ep_metadata.get("ov_device") == "CPU"]
    batch = np.random.default_rng(0).standard_normal((1, 8, 3, 16, 16)).astype(np.float32)
    if "BF16" not in devices[0].ep_metadata["OPTIMIZATION_CAPABILITIES"]:
        with pytest.raises(BenchError, match=r"this CPU has no bf16 .*; run with --provider openvino"):
            RUNNERS["openvino-bf16"](bundle / "model.onnx", RunnerOptions())
        return
    with (
        RUNNERS["openvino-bf16"](bundle / "model.onnx", RunnerOptions()) as runner,
        open_onnxruntime(bundle / "model.onnx", RunnerOptions()) as cpu,
    ):
        assert runner.facts.precision == "bf16"
        error = np.abs(runner.infer(batch) - cpu.infer(batch)).max() / np.abs(cpu.infer(batch)).max()
    assert 1e-5 < error < 0.05  # bf16 was really computed in


def test_open_openvino_names_the_package(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", None)
    with pytest.raises(BenchError, match=r"the provider openvino needs OpenVINO\. Run: pip install onnxruntime-ep-openvino"):
        RUNNERS["openvino"](bundle / "model.onnx", RunnerOptions())


@pytest.mark.parametrize(
    ("key", "package"), [("cuda", r"pip install onnxruntime-gpu "), ("tensorrt-ep", r"pip install onnxruntime-gpu tensorrt ")]
)
def test_open_on_a_gpu_names_what_to_install(bundle, key, package, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BenchError, match=package):
        RUNNERS[key](bundle / "model.onnx", RunnerOptions())
