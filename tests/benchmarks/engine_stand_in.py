"""Runs the engine runner on a machine without a GPU: ``python engine_stand_in.py FOLDER`` prints what happened as JSON.

TensorRT is a stand-in whose engine doubles its input in "device" memory, which is the host's (``cuda_stand_in.c``, preloaded).
PyCUDA is the real one where it is installed, else a stand-in of the few calls that the runner makes.
"""

import ctypes
import json
import os
import sys
import types
from enum import Enum
from pathlib import Path

import numpy as np

DRIVER = ctypes.CDLL("libcuda.so.1")


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    BF16 = 2
    FP8 = 3


class Mode(Enum):
    INPUT = 0
    OUTPUT = 1


class Logger:
    Severity = Enum("Severity", ["INTERNAL_ERROR", "ERROR", "INFO"])


class Engine:
    """x [-1, 4] -> y [-1, 4], with profiles for 1 to 2 and for 4 to 8 items."""

    num_io_tensors = 2
    num_optimization_profiles = 2

    def __init__(self, kind):
        self.kind = kind

    def get_tensor_name(self, index):
        return "xy"[index]

    def get_tensor_dtype(self, name):
        return self.kind

    def get_tensor_mode(self, name):
        return Mode.INPUT if name == "x" else Mode.OUTPUT

    def get_tensor_profile_shape(self, name, index):
        low, high = ((1, 2), (4, 8))[index]
        return [(low, 4), (high, 4), (high, 4)]

    def create_runtime_config(self):
        return Config()

    def create_execution_context(self, config):
        return Context(self, config)


class TwoInputs(Engine):
    """x, z [-1, 4] -> y = 2 x, w = x + z."""

    num_io_tensors = 4

    def get_tensor_name(self, index):
        return "xzyw"[index]

    def get_tensor_mode(self, name):
        return Mode.INPUT if name in "xz" else Mode.OUTPUT


class Config:
    def create_runtime_cache(self):
        return Cache()

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class Cache:
    def deserialize(self, blob):
        return blob == b"kernels"

    def serialize(self):
        return b"kernels"


class Context:
    enqueued = 0

    def __init__(self, engine, config):
        self.engine, self.addresses, self.shape = engine, {}, None
        self.eager = config.dynamic_shapes_kernel_specialization_strategy == "eager"

    def set_optimization_profile_async(self, profile, stream):
        self.profile = profile
        return True

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shape = shape
        return low[0] <= shape[0] <= high[0]

    def get_tensor_shape(self, name):
        return self.shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, stream):
        return not os.environ.get("STAND_IN_NOT_CAPTURABLE")

    def execute_async_v3(self, stream):
        Context.enqueued += 1
        if DRIVER.stand_in_capturing():
            callback = ctypes.CFUNCTYPE(None)(self.compute)
            DRIVER.stand_in_captures(callback)
            self.kept = callback
        else:
            self.compute()
        return True

    def compute(self):
        size = int(np.prod(self.shape))
        dtype = {"FLOAT": np.float32, "HALF": np.float16, "BF16": np.uint16}[self.engine.kind.name]
        arrays = {
            name: np.frombuffer((ctypes.c_char * (size * np.dtype(dtype).itemsize)).from_address(address), dtype)
            for name, address in self.addresses.items()
        }
        x, y = arrays["x"], arrays["y"]
        if "w" in arrays:
            arrays["w"][:] = x + arrays["z"]
        if dtype is np.uint16:
            doubled = 2 * (x.astype(np.uint32) << 16).view(np.float32)
            y[:] = (doubled.view(np.uint32) >> 16).astype(np.uint16)
        else:
            y[:] = 2 * x


class Runtime:
    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, content):
        if content == b"foreign":
            self.logger.log(Logger.Severity.INFO, "reading")
            self.logger.log(
                Logger.Severity.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: version tag does not match\nmore"
            )
            return None
        return TwoInputs(DataType.FLOAT) if content == b"TWO" else Engine(DataType[content.decode()])


def install_stand_ins():
    trt = types.ModuleType("tensorrt_rtx")
    trt.ILogger, trt.Runtime, trt.__version__ = Logger, Runtime, "1.7.1.116"
    trt.DynamicShapesKernelSpecializationStrategy = types.SimpleNamespace(EAGER="eager")
    sys.modules["tensorrt_rtx"] = trt
    try:
        import pycuda.driver  # noqa: F401
    except ImportError:
        package, driver = types.ModuleType("pycuda"), types.ModuleType("pycuda.driver")
        for name in ("Stream", "Event", "Error", "pagelocked_empty", "mem_alloc", "memcpy_htod_async", "memcpy_dtoh_async"):
            setattr(driver, name, globals()[name])
        sys.modules |= {"pycuda": package, "pycuda.driver": driver, "pycuda.autoprimaryctx": types.ModuleType("auto")}


class Error(Exception):
    """PyCUDA's."""


class Stream:
    handle = 7

    def synchronize(self):
        DRIVER.cuStreamSynchronize(None)


class Event:
    def __init__(self):
        self.event = ctypes.c_void_p()
        DRIVER.cuEventCreate(ctypes.byref(self.event), 0)

    def record(self, stream):
        DRIVER.cuEventRecord(self.event, None)

    def time_since(self, start):
        found = ctypes.c_float()
        DRIVER.cuEventElapsedTime_v2(ctypes.byref(found), start.event, self.event)
        return found.value


class Memory:
    def __init__(self, size):
        self.address = ctypes.c_void_p()
        DRIVER.cuMemAlloc_v2(ctypes.byref(self.address), ctypes.c_size_t(size))

    def __int__(self):
        return self.address.value

    def free(self):
        DRIVER.cuMemFree_v2(self.address)


def pagelocked_empty(shape, dtype):
    return np.empty(shape, dtype)


def mem_alloc(size):
    return Memory(size)


def memcpy_htod_async(to, source, stream):
    ctypes.memmove(int(to), source.ctypes.data, source.nbytes)


def memcpy_dtoh_async(to, source, stream):
    ctypes.memmove(to.ctypes.data, int(source), to.nbytes)


def refusal(action):
    from shallowvit_bench.errors import BenchError

    try:
        action()
    except BenchError as err:
        return str(err)
    return None


def main(folder):
    install_stand_ins()
    from shallowvit_bench.runners import RUNNERS, RunnerOptions
    from shallowvit_bench.runners.cuda_driver import first_gpu

    opener = RUNNERS["rtx"]
    for kind in ("FLOAT", "HALF", "BF16", "FP8", "foreign", "TWO"):
        (folder / f"{kind}.engine").write_bytes(kind.encode())
    batch = np.arange(8, dtype=np.float32).reshape(2, 4) + np.float32(1 / 3)
    told = {"batch": batch.tolist(), "gpu": vars(first_gpu())}
    with opener(folder / "FLOAT.engine", RunnerOptions()) as runner:
        bound = runner.bind(batch)
        Context.enqueued = 0
        bound()
        told["graph"] = {
            "output": bound.output().tolist(),
            "enqueued": Context.enqueued,
            "device_ms": bound.device_ms,
            "facts": vars(runner.facts),
            "next_output": runner.infer(batch + 1).tolist(),
            "output_after": runner.infer(batch + 2).tolist(),
            "five": runner.infer(np.ones((5, 4), np.float32)).shape,
            "too_many": refusal(lambda: runner.bind(np.ones((3, 4), np.float32))),
            "eager": bound._context.eager,
        }
    with opener(folder / "TWO.engine", RunnerOptions()) as runner:
        bound = runner.bind({"x": batch, "z": batch + 1})
        bound()
        five = np.ones((5, 4), np.float32)
        told["two"] = {
            "outputs": {name: array.tolist() for name, array in bound.outputs().items()},
            "infer": runner.infer({"z": batch, "x": batch + 3}).tolist(),
            "lacking": refusal(lambda: runner.bind(batch)),
            "unlike": refusal(lambda: runner.bind({"x": five, "z": five[:2]})),
        }
    with opener(folder / "FLOAT.engine", RunnerOptions(cuda_graph=False, copies=False)) as runner:
        bound = runner.bind(batch)
        Context.enqueued = 0
        bound._host["x"][...] = 0  # what isn't copied isn't seen
        bound._host["y"][...] = 0
        bound()
        stale = bound._host["y"].tolist()
        told["plain"] = {
            "host_before_output": stale,
            "output": bound.output().tolist(),
            "enqueued": Context.enqueued,
            "facts": vars(runner.facts),
        }
    for kind in ("HALF", "BF16"):
        with opener(folder / f"{kind}.engine", RunnerOptions()) as runner:
            found = runner.bind(batch).output()
            told[kind] = {"output": found.astype(np.float64).tolist(), "dtype": str(found.dtype)}
            told[kind]["wrong"] = refusal(lambda: runner.infer(batch.astype(np.int32)))
    for name in ("STAND_IN_NO_CAPTURE", "STAND_IN_NOT_CAPTURABLE"):
        os.environ[name] = "1"
        with opener(folder / "FLOAT.engine", RunnerOptions()) as runner:
            bound = runner.bind(batch)
            bound()
            told[name] = {"output": bound.output().tolist(), "facts": vars(runner.facts)}
        del os.environ[name]
    for kind in ("foreign", "FP8"):
        told[kind] = refusal(lambda: opener(folder / f"{kind}.engine", RunnerOptions()))  # noqa: B023 - called at once
    sys.stdout.write(json.dumps(told, default=list))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
