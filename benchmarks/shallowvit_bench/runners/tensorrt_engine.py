"""Engines of TensorRT and TensorRT-RTX through PyCUDA: pinned buffers, a stream of our own, events, a CUDA graph.

A newcomer's trap: TensorRT answers a refusal with None and puts the reason into its log, so the log is kept for the sentence.
"""

from __future__ import annotations

import hashlib
import importlib
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..engines import TITLES, engine_refusal
from ..errors import BenchError
from ..feeding import arrays_by_name, described
from .attention_plugin import register_for_engine
from .cuda_driver import CudaGraph, first_gpu
from .engine_plan import TensorPlan, bytes_of, choose_profile, float_from_host, host_from_batch, profile_ranges, tensor_plans
from .plugin_kernels import PluginError
from .protocol import Bound, Runner, RunnerFacts, RunnerOptions
from .rtx_runtime import RtxRuntime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    import numpy as np

    from ..feeding import Batch

    Arrays = dict[str, np.ndarray[Any, Any]]
    Shapes = dict[str, tuple[int, ...]]

__all__ = ["installed_version", "open_bundle_engine", "open_rtx", "open_tensorrt"]

_MODULES = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
_INSTALL = {
    "rtx": "pip install tensorrt-rtx-cu13",
    "tensorrt": "pip install tensorrt (on a Jetson: sudo apt install nvidia-jetpack)",
}


def open_rtx(engine_path: Path, options: RunnerOptions) -> Runner:
    """Load an engine of TensorRT-RTX.

    Raises:
        BenchError: a package or the GPU is missing, or the engine can't be loaded here.
    """
    return _open("rtx", engine_path, options)


def open_tensorrt(engine_path: Path, options: RunnerOptions) -> Runner:
    """Load an engine of TensorRT.

    Raises:
        BenchError: a package or the GPU is missing, or the engine can't be loaded here.
    """
    return _open("tensorrt", engine_path, options)


def open_bundle_engine(engine_path: Path, options: RunnerOptions, entry: Mapping[str, Any], bundle: str) -> Runner:
    """Load an engine of a bundle, unless the manifest tells that it can't run here.

    Args:
        engine_path: The engine's file.
        options: How to load it.
        entry: Its entry of ``engines`` in the manifest.
        bundle: The bundle's path, for the command that builds it anew.

    Raises:
        BenchError: as ``engine_refusal`` and ``open_tensorrt`` say.
    """
    gpu = first_gpu()
    refusal = engine_refusal(entry, bundle, installed_version(entry["flavour"]), gpu.sm if gpu else None)
    if refusal is not None:
        raise BenchError(f"open_engine: {refusal}")
    return _open(entry["flavour"], engine_path, options)


def installed_version(flavour: str) -> str | None:
    """Return the version of a flavour of TensorRT that can be imported here, or None."""
    try:
        found = importlib.import_module(_MODULES[flavour])
    except (ImportError, OSError):  # OSError: the module is there and a library it loads is not
        return None
    return str(found.__version__)


def _open(flavour: str, engine_path: Path, options: RunnerOptions) -> Runner:
    if not engine_path.is_file():
        raise BenchError(f"open_engine: no file {engine_path}")
    try:
        trt = importlib.import_module(_MODULES[flavour])
    except (ImportError, OSError) as err:
        raise BenchError(
            f"open_engine: {TITLES[flavour]} can't be imported here ({str(err).splitlines()[0]}). Run: {_INSTALL[flavour]}"
        ) from err
    gpu = first_gpu()
    if gpu is None:
        raise BenchError(
            f"open_engine: {engine_path} needs an NVIDIA GPU, and there is none here; "
            "run with --provider cpu, or on the device with --device user@host"
        )
    cuda = _pycuda()
    facts = RunnerFacts(
        flavour,
        flavour,
        "as the graph",
        device=gpu.name,
        copies=options.copies,
        cuda_graph=options.cuda_graph,
        version=str(trt.__version__),
    )
    return _EngineRunner(trt, cuda, engine_path, options, facts)


def _pycuda() -> Any:
    """Return ``pycuda.driver`` with the primary context of the first GPU, which is the one that TensorRT uses."""
    try:
        importlib.import_module("pycuda.autoprimaryctx")  # makes it current for this thread until the process ends
        return importlib.import_module("pycuda.driver")
    except ImportError as err:
        raise BenchError(
            f"open_engine: PyCUDA can't be imported here ({err}). Run: pip install pycuda, which needs nvcc on PATH "
            "(on a Jetson: /usr/local/cuda/bin)"
        ) from err


class _EngineRunner:
    """A deserialised engine; each bound batch has an execution context of its own."""

    def __init__(self, trt: Any, cuda: Any, engine_path: Path, options: RunnerOptions, facts: RunnerFacts) -> None:
        self.facts = facts
        self.errors: tuple[type[Exception], ...] = (cuda.Error,)
        self._cuda, self._options, self._where = cuda, options, str(engine_path)
        self._log = _logger(trt)
        content = engine_path.read_bytes()
        try:
            self._log.plugins = register_for_engine(trt, content)
        except PluginError as err:
            raise BenchError(f"open_engine: {engine_path} has kernels of ours: {err}") from err
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise BenchError(
                f"open_engine: {TITLES[facts.backend]} {facts.version} can't load {engine_path}: {self._log.last_error()}; "
                "build it again here"
            )
        self._plans = tensor_plans(self._engine, self._where)
        self.facts = facts = replace(
            facts, engine_sha256=hashlib.sha256(content).hexdigest(), batches=self._batches(options.profile)
        )
        self._rtx = RtxRuntime(trt, self._engine, content) if hasattr(self._engine, "create_runtime_config") else None
        if self._rtx is not None:
            self.facts = replace(facts, options=facts.options | self._rtx.options)
        self._bound: list[_BoundEngine] = []
        self._inferring: tuple[Shapes, _BoundEngine] | None = None

    def _batches(self, wanted: int | None) -> tuple[tuple[int, int], ...]:
        given = next(plan for plan in self._plans if plan.is_input)
        ranges = [(low[0], high[0]) for low, _, high in profile_ranges(self._engine, given.name)]
        return tuple(ranges if wanted is None else ranges[wanted : wanted + 1])

    def bind(self, batch: Batch) -> Bound:
        bound = self._new_bound(self._arrays(batch), graph=self._options.cuda_graph)
        self._bound.append(bound)
        if self._options.cuda_graph and bound.not_captured:
            remark = f"no CUDA graph: {bound.not_captured}"
            self.facts = replace(self.facts, cuda_graph=False, remarks=(*self.facts.remarks, remark))
        return bound

    def infer(self, batch: Batch) -> np.ndarray[Any, Any]:
        arrays = self._arrays(batch)
        shapes = _shapes(arrays)
        if self._inferring is None or self._inferring[0] != shapes:
            if self._inferring is not None:
                self._inferring[1].close()
            self._inferring = (shapes, self._new_bound(arrays, graph=False, copies=True))
        bound = self._inferring[1]
        bound.fill(arrays)
        with self._refusals(batch):
            bound()
        return bound.output()

    def _arrays(self, batch: Batch) -> Arrays:
        return arrays_by_name(batch, [plan.name for plan in self._plans if plan.is_input], "infer")

    def _new_bound(self, arrays: Arrays, graph: bool, copies: bool | None = None) -> _BoundEngine:
        profile = choose_profile(self._engine, _shapes(arrays), self._options.profile, self._where)
        context = self._rtx.create_context() if self._rtx is not None else self._engine.create_execution_context()
        if context is None:
            raise BenchError(
                f"open_engine: no execution context for {self._where}: {self._log.last_error()}; is the GPU's memory full?"
            )
        with self._refusals(arrays):
            bound = _BoundEngine(self._cuda, context, self._plans, profile, self._log.last_error)
            bound.prepare(arrays, self._options.copies if copies is None else copies)
            if graph:
                bound.capture()
        return bound

    @contextmanager
    def _refusals(self, batch: Batch) -> Iterator[None]:
        try:
            yield
        except self._cuda.Error as err:
            raise BenchError(f"infer: {self._where} can't run a batch {_text(batch)}: {err}") from err

    def close(self) -> None:
        for bound in [*self._bound, *([self._inferring[1]] if self._inferring else [])]:
            bound.close()
        self._bound, self._inferring = [], None
        if self._rtx is not None:
            self._rtx.close()
        self._rtx = self._engine = self._runtime = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _BoundEngine:
    """A batch in a pinned buffer and in the GPU's memory, and the outputs in both."""

    def __init__(
        self, cuda: Any, context: Any, plans: tuple[TensorPlan, ...], profile: int, last_error: Callable[[], str]
    ) -> None:
        self._cuda, self._context, self._plans, self._last_error = cuda, context, plans, last_error
        self._profile = profile
        self._stream, self._start, self._end = cuda.Stream(), cuda.Event(), cuda.Event()
        self._host: dict[str, np.ndarray[Any, Any]] = {}
        self._device: dict[str, Any] = {}
        self._to_device: list[Callable[[], None]] = []
        self._from_device: list[Callable[[], None]] = []
        self._graph: CudaGraph | None = None
        self._launch: Callable[[], None] = self._enqueue
        self._copies = True
        self.not_captured = ""

    def prepare(self, arrays: Arrays, copies: bool) -> None:
        """Choose shapes, make the buffers, put the batch in, and run once."""
        self._check(self._context.set_optimization_profile_async(self._profile, self._stream.handle), "choose the profile")
        self._stream.synchronize()
        for name, array in arrays.items():
            self._check(self._context.set_input_shape(name, tuple(array.shape)), f"take the shape {list(array.shape)}")
        for plan in self._plans:
            self._make_buffers(plan, tuple(self._context.get_tensor_shape(plan.name)))
        self.fill(arrays)
        for copy in self._to_device:
            copy()
        self._copies = copies
        self()

    def _make_buffers(self, plan: TensorPlan, shape: tuple[int, ...]) -> None:
        size = bytes_of(plan, shape)
        host = self._cuda.pagelocked_empty(shape, plan.dtype)
        device = self._cuda.mem_alloc(size)
        self._check(self._context.set_tensor_address(plan.name, int(device)), f"take an address for {plan.name}")
        self._host[plan.name], self._device[plan.name] = host, device
        if plan.is_input:
            self._to_device.append(partial(self._cuda.memcpy_htod_async, device, host, self._stream))
        else:
            self._from_device.append(partial(self._cuda.memcpy_dtoh_async, host, device, self._stream))

    def fill(self, arrays: Arrays) -> None:
        """Put a batch of the same shapes into the pinned buffers, in the engine's own types."""
        for plan in self._plans:
            if plan.is_input:
                host_from_batch(plan, arrays[plan.name], self._host[plan.name])

    def capture(self) -> None:
        """Capture the run, without the copies, so that the events around it leave them out; or remember why not."""
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._stream.handle):
            self.not_captured = "TensorRT-RTX says that this engine can't be captured"
            return
        try:
            self._graph = CudaGraph(self._stream.handle, self._enqueue)
        except BenchError as err:
            self.not_captured = str(err)
            return
        self._launch = self._graph.launch
        self()

    def __call__(self) -> None:
        if self._copies:
            for copy in self._to_device:
                copy()
        self._start.record(self._stream)
        self._launch()
        self._end.record(self._stream)
        if self._copies:
            for copy in self._from_device:
                copy()
        self._stream.synchronize()

    @property
    def device_ms(self) -> float | None:
        """From event to event, so without the copies."""
        return float(self._end.time_since(self._start))

    def output(self) -> np.ndarray[Any, Any]:
        return next(iter(self.outputs().values()))

    def outputs(self) -> Arrays:
        if not self._copies:
            for copy in self._from_device:
                copy()
            self._stream.synchronize()
        return {plan.name: float_from_host(plan, self._host[plan.name]) for plan in self._plans if not plan.is_input}

    def close(self) -> None:
        """Free the graph before the context whose work it holds, and both before the memory."""
        if self._graph is not None:
            self._graph.close()
        self._launch, self._graph, self._context = self._enqueue, None, None
        for memory in self._device.values():
            memory.free()
        self._device, self._host, self._to_device, self._from_device = {}, {}, [], []

    def _enqueue(self) -> None:
        self._check(self._context.execute_async_v3(self._stream.handle), "run")

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise BenchError(f"infer: the engine can't {what}: {self._last_error()}")


def _shapes(arrays: Arrays) -> Shapes:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def _text(batch: Batch) -> str:
    """What a batch looks like; of a single array its shape alone, whatever the engine calls its input."""
    return described(next(iter(batch.values())) if isinstance(batch, dict) and len(batch) == 1 else batch)


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.plugins: Any = None  # those of ours that the engine has; TensorRT loses their sentences

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

        def last_error(self) -> str:
            problem = self.plugins.problem() if self.plugins is not None else None
            if problem:
                return str(problem)
            return self.errors[-1].strip().splitlines()[0] if self.errors else "it gives no reason"

    return Logger()
