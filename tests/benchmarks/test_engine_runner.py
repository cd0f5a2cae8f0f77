import ctypes.util
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shallowvit_bench.errors import BenchError
from shallowvit_bench.runners import RUNNERS, RunnerOptions
from shallowvit_bench.runners.engine_plan import TensorPlan, float_from_host, host_from_batch, profile_holding

HERE = Path(__file__).parent
RANGES = [[(1, 4), (2, 4), (2, 4)], [(4, 4), (8, 4), (8, 4)]]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the runner did over stand-ins of the driver and of TensorRT, in a process of its own."""
    if shutil.which("gcc") is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and gcc to compile the stand-in of the CUDA driver")
    folder = tmp_path_factory.mktemp("engines")
    library = folder / "libcuda.so.1"
    source = HERE / "cuda_stand_in.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source], check=True)
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
    }
    command = [sys.executable, str(HERE / "engine_stand_in.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _doubled(told):
    return (2 * np.array(told["batch"], np.float32)).tolist()


def test_bind_replays_a_captured_run(told):
    assert told["graph"]["output"] == _doubled(told)
    assert told["graph"]["enqueued"] == 0  # the run went through the graph, not through TensorRT
    assert told["graph"]["facts"]["cuda_graph"] is True
    assert told["graph"]["facts"]["remarks"] == []


def test_bind_of_several_inputs_gives_every_output_by_name(told):
    batch = np.array(told["batch"], np.float32)
    assert told["two"]["outputs"] == {"y": (2 * batch).tolist(), "w": (batch + (batch + 1)).tolist()}
    assert told["two"]["infer"] == (2 * (batch + 3)).tolist()
    assert "one array is given, the graph takes x, z" in told["two"]["lacking"]


def test_bind_of_several_inputs_needs_a_profile_that_holds_them_all(told):
    assert "holds x [5, 4], z [2, 4] together" in told["two"]["unlike"]


def test_facts_of_an_engine_say_device_version_and_kernels(told):
    facts = told["graph"]["facts"]
    assert (facts["backend"], facts["device"], facts["version"], facts["copies"]) == ("rtx", "Stand-in GPU", "1.7.1.116", True)
    assert facts["options"] == {"kernel_specialization": "eager", "runtime_cache": "new"}
    assert facts["batches"] == [[1, 2], [4, 8]]
    assert len(facts["engine_sha256"]) == 64
    assert told["graph"]["eager"]


def test_device_ms_of_an_engine_is_from_event_to_event(told):
    assert 0 <= told["graph"]["device_ms"] < 1e3


def test_infer_of_an_engine_takes_new_batches_of_any_profile(told):
    assert told["graph"]["next_output"] == (2 * (np.array(told["batch"], np.float32) + 1)).tolist()
    assert told["graph"]["output_after"] == (2 * (np.array(told["batch"], np.float32) + 2)).tolist()
    assert told["graph"]["five"] == [5, 4]


def test_first_gpu_reads_name_compute_capability_and_bus_id(told):
    assert told["gpu"] == {"name": "Stand-in GPU", "sm": 86, "bus_id": "0000:41:00.0"}


def test_bind_outside_of_every_profile_names_them(told):
    assert "holds a batch [3, 4] (0: [1, 4] to [2, 4]; 1: [4, 4] to [8, 4])" in told["graph"]["too_many"]


def test_bind_without_copies_leaves_the_host_alone_until_the_output_is_asked_for(told):
    assert told["plain"]["host_before_output"] == np.zeros((2, 4)).tolist()
    assert told["plain"]["output"] == _doubled(told)
    assert told["plain"]["facts"]["copies"] is False


def test_bind_without_a_graph_runs_the_engine(told):
    assert (told["plain"]["enqueued"], told["plain"]["facts"]["cuda_graph"]) == (1, False)


def test_engine_of_rtx_finds_the_kernels_of_the_run_before(told):
    assert told["plain"]["facts"]["options"]["runtime_cache"] == "loaded"


def test_bind_of_an_fp16_engine_converts_the_batch(told):
    assert told["HALF"]["dtype"] == "float16"
    np.testing.assert_allclose(told["HALF"]["output"], _doubled(told), rtol=1e-3)


def test_bind_of_a_bf16_engine_rounds_the_batch_and_widens_the_output(told):
    assert told["BF16"]["dtype"] == "float32"
    np.testing.assert_allclose(told["BF16"]["output"], _doubled(told), rtol=2**-8)
    assert told["BF16"]["output"] != _doubled(told)


def test_infer_rejects_a_batch_of_whole_numbers_for_floats(told):
    assert "input x is HALF, the batch is int32" in told["HALF"]["wrong"]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (
            "STAND_IN_NO_CAPTURE",
            "no CUDA graph: CudaGraph: the run can't be captured (cuStreamBeginCapture_v2 gives error 900)",
        ),
        ("STAND_IN_NOT_CAPTURABLE", "no CUDA graph: TensorRT-RTX says that this engine can't be captured"),
    ],
)
def test_bind_runs_without_a_graph_where_none_can_be_captured(told, case, reason):
    assert told[case]["output"] == _doubled(told)
    assert (told[case]["facts"]["cuda_graph"], told[case]["facts"]["remarks"]) == (False, [reason])


def test_open_rtx_of_a_foreign_engine_says_what_tensorrt_says(told):
    assert "TensorRT-RTX 1.7.1.116 can't load" in told["foreign"]
    assert "version tag does not match; build it again here" in told["foreign"]


def test_open_rtx_of_a_type_that_no_host_has_names_it(told):
    assert "has a tensor x of FP8; it must be one of FLOAT, HALF, BF16" in told["FP8"]


def test_open_rtx_rejects_a_missing_file(tmp_path):
    with pytest.raises(BenchError, match=r"open_engine: no file .*gone\.engine"):
        RUNNERS["rtx"](tmp_path / "gone.engine", RunnerOptions())


def test_open_rtx_says_that_there_is_no_gpu(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    if ctypes.util.find_library("cuda"):
        pytest.skip("this machine has a GPU's driver")
    (tmp_path / "some.engine").write_bytes(b"engine")
    with pytest.raises(BenchError, match=r"some\.engine needs an NVIDIA GPU, and there is none here"):
        RUNNERS["rtx"](tmp_path / "some.engine", RunnerOptions())


def test_open_tensorrt_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    (tmp_path / "some.engine").write_bytes(b"engine")
    with pytest.raises(BenchError, match=r"TensorRT can't be imported here .* Run: pip install tensorrt"):
        RUNNERS["tensorrt"](tmp_path / "some.engine", RunnerOptions())


@pytest.mark.parametrize(("items", "wanted", "chosen"), [(1, None, 0), (2, None, 0), (4, None, 1), (8, 1, 1)])
def test_profile_holding_takes_the_first_that_fits(items, wanted, chosen):
    assert profile_holding(RANGES, (items, 4), wanted, "e") == chosen


def test_profile_holding_rejects_the_wanted_one_that_does_not_fit():
    with pytest.raises(BenchError, match=r"holds a batch \[1, 4\] \(1: \[4, 4\] to \[8, 4\]\)"):
        profile_holding(RANGES, (1, 4), 1, "e")


def test_profile_holding_rejects_a_number_that_is_not_there():
    with pytest.raises(BenchError, match=r"e has 2 optimisation profiles, so there is no number 2"):
        profile_holding(RANGES, (1, 4), 2, "e")


def test_profile_holding_rejects_another_rank():
    with pytest.raises(BenchError, match=r"no optimisation profile of e"):
        profile_holding(RANGES, (2, 4, 1), None, "e")


def test_profile_holding_reads_the_shapes_of_the_real_tensorrt():
    trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    profile = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_optimization_profile()
    profile.set_shape("x", (1, 4), (2, 4), (8, 4))
    ranges = [[tuple(map(int, shape)) for shape in profile.get_shape("x")]]
    assert profile_holding(ranges, (8, 4), None, "e") == 0


def test_host_from_batch_rounds_bf16_to_the_nearest_and_ties_to_even():
    import torch

    plan = TensorPlan("x", True, "BF16", np.dtype(np.uint16))
    batch = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    batch[:2] = np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)  # half way
    host = np.zeros(4096, np.uint16)
    host_from_batch(plan, batch, host)
    np.testing.assert_array_equal(float_from_host(plan, host), torch.from_numpy(batch).bfloat16().float().numpy())


@pytest.mark.parametrize(
    ("stand_in", "real"),
    [
        ("Engine", "ICudaEngine"),
        ("Context", "IExecutionContext"),
        ("Config", "IRuntimeConfig"),
        ("Cache", "IRuntimeCache"),
        ("Runtime", "Runtime"),
        ("DataType", "DataType"),
        ("Mode", "TensorIOMode"),
    ],
)
def test_stand_in_has_nothing_that_the_real_tensorrt_has_not(stand_in, real, monkeypatch):
    trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)  # the driver, which isn't called here
    spec = importlib.util.spec_from_file_location("engine_stand_in", HERE / "engine_stand_in.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = {"kind", "enqueued", "compute"}  # the stand-in's own
    used = {name for name in vars(getattr(module, stand_in)) if not name.startswith("_")} - own
    assert used <= set(dir(getattr(trt, real)))


def test_rtx_settings_stand_under_these_names_in_the_real_tensorrt():
    trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    assert trt.DynamicShapesKernelSpecializationStrategy.EAGER is not None
    assert hasattr(trt.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
