import builtins

import numpy as np
import pytest

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
