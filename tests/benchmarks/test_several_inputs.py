import hashlib
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from shallowvit_bench.accuracy import measure_accuracy
from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.compare import bench
from shallowvit_bench.config import BenchConfig
from shallowvit_bench.datasets import open_dataset
from shallowvit_bench.errors import BenchError
from shallowvit_bench.feeding import arrays_by_name, batch_size, described, sample_batch
from shallowvit_bench.job import Job, run_job
from shallowvit_bench.measurement import read_rows
from shallowvit_bench.preprocessing import random_input
from shallowvit_bench.runners import RUNNERS, RunnerOptions
from shallowvit_bench.sides import side_from_bundle

from .tiny_bundles import make_manifest

OPTIONS = RunnerOptions(threads=1)
CONFIG = BenchConfig(max_runs=8, threads=1, power=False, batches=(2,))
CLASSES, CAMERAS = 3, 5
ENTRIES = [
    {"name": "x", "dtype": "float32", "layout": "NCHW", "shape": [3, 4, 4], "ranges": {}, "batch": True},
    {"name": "camera", "dtype": "int64", "layout": "N", "shape": [], "ranges": {}, "batch": True},
    {"name": "gain", "dtype": "float32", "layout": "D", "shape": [3], "ranges": {}, "batch": False},
]


def _write_graph(path, batch="batch"):
    """Scores [batch, 3] = gain * (x W + a row of the camera's table), and the states behind them."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((48, CLASSES)).astype(np.float32), "weights"),
        numpy_helper.from_array(10 * rng.standard_normal((CAMERAS, CLASSES)).astype(np.float32), "table"),
    ]
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["product"]),
        helper.make_node("Gather", ["table", "camera"], ["row"]),
        helper.make_node("Add", ["product", "row"], ["states"]),
        helper.make_node("Mul", ["states", "gain"], ["scores"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            info("x", TensorProto.FLOAT, [batch, 3, 4, 4]),
            info("camera", TensorProto.INT64, [batch]),
            info("gain", TensorProto.FLOAT, [3]),
        ],
        [info("scores", TensorProto.FLOAT, [batch, CLASSES]), info("states", TensorProto.FLOAT, [batch, CLASSES])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def _write_bundle(folder, batch="dynamic"):
    folder.mkdir()
    _write_graph(folder / "model.onnx", "batch" if batch == "dynamic" else batch)
    samples = {
        "x": np.ones((4, 3, 4, 4), np.float32),
        "camera": np.array([4, 0, 2, 1]),
        "gain": np.array([1, 2, 3], np.float32),
    }
    np.savez_compressed(folder / "inputs.npz", **samples)
    outputs = [{"name": name, "dtype": "float32", "shape": ["batch", CLASSES], "source": ""} for name in ("scores", "states")]
    graph = {"opset": 18, "precision": "fp32", "attention_nodes": 0, "inputs": ENTRIES, "outputs": outputs}
    manifest = make_manifest(folder.name, schema_version=3, preprocessing=None, labels=["a", "b", "c"])
    manifest["graph"] = graph | {"steps": [], "batch": batch}
    content = (folder / "model.onnx").read_bytes()
    manifest["files"]["model.onnx"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def folder(tmp_path):
    return _write_bundle(tmp_path / "camera")


@pytest.fixture
def info(folder):
    return read_bundle(folder)


def test_read_bundle_of_several_inputs_holds_them_and_their_samples(info):
    assert [(one.name, one.dtype, one.shape, one.batch) for one in info.inputs] == [
        ("x", "float32", (3, 4, 4), True),
        ("camera", "int64", (), True),
        ("gain", "float32", (3,), False),
    ]
    assert (info.input.name, info.batch, set(info.samples)) == ("x", None, {"x", "camera", "gain"})


def test_read_bundle_whose_samples_are_damaged_raises(folder):
    (folder / "inputs.npz").write_bytes(b"no archive")
    with pytest.raises(BenchError, match=r"inputs\.npz can't be read .*copy the whole folder again"):
        read_bundle(folder)


def test_random_input_takes_other_inputs_from_the_samples_again_and_again(info):
    batch = random_input(info, 6)
    assert list(batch) == ["x", "camera", "gain"]
    assert (batch["x"].shape, batch["camera"].tolist(), batch["gain"].tolist()) == (
        (6, 3, 4, 4),
        [4, 0, 2, 1, 4, 0],
        [1, 2, 3],
    )
    assert batch["x"].std() > 0.5  # random, not the samples
    assert (batch_size(batch), described(batch)[:24]) == (6, "x float32 [6, 3, 4, 4], ")


def test_sample_batch_without_a_sample_raises(info):
    with pytest.raises(BenchError, match="the bundle camera has no sample of its input camera"):
        sample_batch(replace(info, samples={}), "camera", 1)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros(2), "infer: one array is given, the graph takes a, b; give a dict of arrays by name"),
        ({"a": np.zeros(2)}, "infer: arrays a are given, the graph takes a, b; give each by name"),
        ({"a": np.zeros(2), "b": np.zeros(2), "c": np.zeros(2)}, "arrays a, b, c are given"),
    ],
)
def test_arrays_by_name_that_do_not_fit_raise(batch, message):
    with pytest.raises(BenchError, match=message):
        arrays_by_name(batch, ["a", "b"], "infer")


@pytest.mark.parametrize("key", ["cpu", "openvino"])
def test_bind_of_several_inputs_gives_every_output(info, key):
    try:
        runner = RUNNERS[key](info.model_path, OPTIONS)
    except BenchError as err:
        pytest.skip(str(err))
    with runner:
        batch = random_input(info, 3)
        bound = runner.bind(batch)
        bound()
        outputs = bound.outputs()
        assert list(outputs) == ["scores", "states"]
        assert np.allclose(outputs["scores"], outputs["states"] * batch["gain"], rtol=1e-4, atol=1e-4)
        assert np.array_equal(bound.output(), outputs["scores"])
        assert np.allclose(runner.infer(batch), outputs["scores"], rtol=1e-4, atol=1e-4)
        with pytest.raises(BenchError, match="one array is given, the graph takes x, camera, gain"):
            runner.infer(batch["x"])


def test_bench_of_several_inputs_measures(info):
    (measured,) = bench([side_from_bundle(info, CONFIG)], CONFIG)
    assert (measured.status, measured.batch, measured.input_shape) == ("ok", 2, (3, 4, 4))


def test_run_job_of_several_inputs_writes_rows(folder, tmp_path):
    job = Job("one", (str(folder),), str(tmp_path / "rows.jsonl"), config=CONFIG)
    assert run_job(job, lambda _event: None) == 0
    assert read_rows(tmp_path / "rows.jsonl")[0]["status"] == "ok"


def _labelled(path, info, **changes):
    rng = np.random.default_rng(1)
    arrays = {"x": rng.standard_normal((11, 3, 4, 4)).astype(np.float32), "camera": rng.integers(0, CAMERAS, 11)}
    with RUNNERS["cpu"](info.model_path, OPTIONS) as runner:
        labels = runner.infer(arrays | {"gain": info.samples["gain"]}).argmax(1)
    arrays |= {"labels": labels} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


def test_measure_accuracy_takes_each_input_by_its_name(info, tmp_path):
    dataset = open_dataset(_labelled(tmp_path / "data.npz", info), info)
    with RUNNERS["cpu"](info.model_path, OPTIONS) as runner:
        found = measure_accuracy(runner, info, dataset, batch=4)
    assert (found.items, found.metrics["top1"].value) == (11, 1.0)
    shuffled = open_dataset(_labelled(tmp_path / "other.npz", info, camera=np.zeros(11, np.int64)), info)
    with RUNNERS["cpu"](info.model_path, OPTIONS) as runner:  # the camera counts
        assert measure_accuracy(runner, info, shuffled, batch=4).metrics["top1"].value < 1
    assert dataset.digest() != shuffled.digest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera": None}, "or inputs and labels, beside camera"),
        ({"camera": np.zeros(3, np.int64)}, "has 3 items of camera, expected 11 as of x"),
        ({"camera": np.zeros((11, 2), np.int64)}, r"are int64 \[2\], the bundle camera takes int64 \[\]"),
    ],
)
def test_open_dataset_lacking_an_input_raises(info, tmp_path, changes, message):
    with pytest.raises(BenchError, match=message):
        open_dataset(_labelled(tmp_path / "data.npz", info, **changes), info)


def test_measure_accuracy_of_frames_alone_raises_where_more_is_needed(info, tmp_path):
    dataset = replace(open_dataset(_labelled(tmp_path / "data.npz", info), info), beside={})
    with (
        RUNNERS["cpu"](info.model_path, OPTIONS) as runner,
        pytest.raises(BenchError, match=r"the data holds no camera, which camera takes beside x; give a \.npz"),
    ):
        measure_accuracy(runner, info, dataset)


def test_side_of_a_fixed_batch_refuses_others_and_accuracy_fills_the_last(tmp_path):
    info = read_bundle(_write_bundle(tmp_path / "fixed", batch=4))
    with pytest.raises(BenchError, match="takes batches of 4 and no others, --batch says 2; measure it with --batch 4"):
        side_from_bundle(info, CONFIG)
    config = replace(CONFIG, batches=(4,))
    (measured,) = bench([side_from_bundle(info, config)], config)
    assert measured.status == "ok"
    free = read_bundle(_write_bundle(tmp_path / "free"))
    dataset = open_dataset(_labelled(tmp_path / "data.npz", free), info)
    with RUNNERS["cpu"](info.model_path, OPTIONS) as runner:
        assert measure_accuracy(runner, info, dataset, batch=8).metrics["top1"].value == 1.0


SOURCE = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x):
        return x + self.inner(self.norm(x))


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(4)), nn.Linear(16, 3)
        self.cameras = nn.Embedding(6, 16)

    def forward(self, x, camera):
        x = x.flatten(2) + self.cameras(camera)[:, None]
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def make():
    torch.manual_seed(0)
    return Tiny(), {"x": torch.zeros(1, 3, 4, 4), "camera": torch.tensor([5])}
"""


def test_bench_against_torch_feeds_every_input_and_gives_the_same_outputs(tmp_path):
    import shallowvit as sv
    from shallowvit.baselines import open_torch, side_from_source

    (tmp_path / "model.py").write_text(SOURCE)
    model = sv.load(f"{tmp_path / 'model.py'}:make")
    pruned = sv.prune(model, sv.plan(model, None, sv.PlanConfig(remove="1,2")))
    config = sv.ExportConfig(outputs=("output", "blocks.0"))
    info = read_bundle(sv.export(pruned, tmp_path / "tiny", config).path)
    ours, torchs = bench([side_from_bundle(info, CONFIG), side_from_source(info, OPTIONS)], CONFIG)
    assert (ours.status, torchs.status) == ("ok", "ok")
    batch = random_input(info, 3)
    with RUNNERS["cpu"](info.model_path, OPTIONS) as runner, open_torch(info, OPTIONS) as source:
        expected, found = source.bind(batch).outputs(), runner.bind(batch).outputs()
    assert list(expected) == list(found) == ["output", "blocks_0"]
    assert np.allclose(expected["blocks_0"], found["blocks_0"], atol=1e-5)  # block 0 comes before what was removed
