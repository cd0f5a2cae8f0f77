from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_bundles import write_graph

from shallowvit_bench.errors import BenchError
from shallowvit_bench.runners import RUNNERS, RunnerOptions
from shallowvit_bench.runners.choosing import choose_provider, fastest, outputs_refusal
from shallowvit_bench.timing import TimingLimits

LIMITS = TimingLimits(max_runs=16, max_warm_up_runs=14)


@pytest.mark.parametrize(
    ("rounds", "chosen"),
    [
        ([[2.0] * 10, [1.0] * 10], 1),
        ([[2.0] * 10, [1.0] * 9 + [3.0]], 1),
        ([[2.0] * 10, [1.0] * 8 + [3.0] * 2], 0),  # a smaller median, but not in nine of ten rounds
        ([[2.0] * 10, [2.0] * 10], 0),
        ([[2.0] * 10, [1.0] * 10, [1.0] * 10, [0.5] * 10], 3),
        ([[1.0] * 10, [2.0] * 10, [0.5] * 10], 2),
    ],
)
def test_fastest_takes_a_less_exact_side_only_when_it_is_surely_faster(rounds, chosen):
    assert fastest(rounds) == chosen


SCORES = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]], np.float32)


def test_outputs_refusal_of_rounding_is_none():
    assert outputs_refusal(SCORES, SCORES * np.float32(1 + 1e-6), "fp32") is None


def test_outputs_refusal_allows_bf16_what_it_refuses_of_fp32():
    off = SCORES * np.float32(1.02)
    assert outputs_refusal(SCORES, off, "bf16") is None
    assert "0.02 off the CPU provider's, above 0.005 for fp32" in outputs_refusal(SCORES, off, "fp32")


def test_outputs_refusal_names_bf16_that_is_too_far_off():
    assert "above 0.05 for bf16" in outputs_refusal(SCORES, SCORES * np.float32(1.2), "bf16")


def test_outputs_refusal_of_another_class_within_the_error_of_the_whole_batch():
    expected = np.vstack([np.full((19, 3), 100.0), [[1.0, 0.0, 0.0]]]).astype(np.float32)
    found = expected.copy()
    found[-1] = [0.0, 1.0, 0.0]  # one item in twenty; the nineteen others are undecided
    assert "same class for 0% of the items" in outputs_refusal(expected, found, "fp32")


def test_outputs_refusal_lets_level_classes_change_places():
    expected = np.array([[1.0, 1.0 + 1e-7]], np.float32)
    assert outputs_refusal(expected, expected[:, ::-1].copy(), "fp32") is None


def test_outputs_refusal_of_another_shape_names_both():
    assert "shape [1, 3], the CPU provider's [2, 3]" in outputs_refusal(SCORES, SCORES[:1], "fp32")


def test_outputs_refusal_of_an_overflow():
    assert "isn't finite" in outputs_refusal(SCORES, np.full_like(SCORES, np.inf), "fp32")


@pytest.fixture
def graph(tmp_path):
    write_graph(tmp_path / "tiny.onnx", (3, 8, 8), 5)
    return tmp_path / "tiny.onnx"


def test_choose_provider_records_every_candidate(graph):
    batch = np.ones((1, 3, 8, 8), np.float32)
    found = choose_provider(graph, batch, RunnerOptions(threads=1), ("cpu", "openvino", "cuda"), limits=LIMITS)
    cpu, openvino, cuda = found.trials
    assert found.key in ("cpu", "openvino")
    assert (openvino["computed_in"], openvino["status"]) in (("fp32", "chosen"), ("fp32", "slower"))
    assert openvino["error"] < 1e-5
    assert openvino["ratio"] == pytest.approx(cpu["median_ms"] / openvino["median_ms"])
    assert (cuda["status"], cuda["median_ms"]) == ("unsupported", None)
    assert [trial["status"] for trial in found.trials].count("chosen") == 1


def test_choose_provider_does_not_time_one_that_answers_wrongly(graph, monkeypatch):
    write_graph(graph.with_name("other.onnx"), (3, 8, 8), 5, seed=1)
    real = RUNNERS["cpu"]
    monkeypatch.setitem(RUNNERS, "openvino", lambda path, options: real(path.with_name("other.onnx"), options))
    found = choose_provider(
        graph, np.ones((1, 3, 8, 8), np.float32), RunnerOptions(threads=1), ("cpu", "openvino"), limits=LIMITS
    )
    assert found.key == "cpu"
    assert (found.trials[1]["status"], found.trials[1]["median_ms"]) == ("inaccurate", None)


def test_choose_provider_tries_engines_behind_the_graph_providers(graph):
    batch = np.ones((1, 3, 8, 8), np.float32)
    options = RunnerOptions(threads=1)
    engines = {"rtx": partial(RUNNERS["cpu"], graph, options), "tensorrt": partial(RUNNERS["tensorrt"], graph, options)}
    found = choose_provider(graph, batch, options, ("cpu",), limits=LIMITS, engines=engines)
    assert [trial["provider"] for trial in found.trials] == ["cpu", "rtx", "tensorrt"]
    assert found.trials[1]["error"] == 0.0
    assert found.trials[1]["status"] in ("chosen", "slower")
    assert found.trials[2]["status"] == "unsupported"


def test_choose_provider_of_one_that_runs_says_so(graph):
    found = choose_provider(graph, np.ones((1, 3, 8, 8), np.float32), RunnerOptions(threads=1), ("cpu", "tensorrt-ep"))
    assert found.trials[0]["reason"] == "the only one that runs here"


def test_choose_provider_rejects_an_unknown_candidate(graph):
    with pytest.raises(BenchError, match=r"unknown provider 'gpu'; this harness has cpu, openvino"):
        choose_provider(graph, np.ones((1, 3, 8, 8), np.float32), RunnerOptions(), ("cpu", "gpu"))


def test_choose_provider_rejects_candidates_without_the_reference(graph):
    with pytest.raises(BenchError, match=r"the first candidate must be cpu"):
        choose_provider(graph, np.ones((1, 3, 8, 8), np.float32), RunnerOptions(), ("openvino",))


def test_choose_provider_rejects_a_graph_that_the_cpu_cannot_run(tmp_path):
    node = helper.make_node("Nothing", ["x"], ["y"], domain="nobody")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in "xy")
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("nobody", 1)]
    onnx.save(helper.make_model(helper.make_graph([node], "n", [x], [y]), opset_imports=imports), tmp_path / "bad.onnx")
    with pytest.raises(BenchError, match=r"could not load .*bad\.onnx"):
        choose_provider(tmp_path / "bad.onnx", np.ones((1, 1), np.float32), RunnerOptions())
