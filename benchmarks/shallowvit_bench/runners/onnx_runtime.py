"""Graphs in onnxruntime's providers. numpy arrays go in and come out without a copy of ours."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import BenchError
from .protocol import Bound, Runner, RunnerFacts, RunnerOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    import numpy as np

__all__ = ["open_onnxruntime"]


class _BoundSession:
    """A batch and the outputs in memory of the session's own."""

    device_ms = None

    def __init__(self, session: Any, binding: Any) -> None:
        self._run, self._binding, self._session = session.run_with_iobinding, binding, session

    def __call__(self) -> None:
        self._run(self._binding)

    def output(self) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self._binding.get_outputs()[0].numpy()
        return found


class _OnnxRuntimeRunner:
    """A session with one provider."""

    def __init__(self, session: Any, where: str, facts: RunnerFacts) -> None:
        self.facts = facts
        self._session = session
        self._where = where
        self._input: str = session.get_inputs()[0].name
        self._output: str = session.get_outputs()[0].name

    def bind(self, batch: np.ndarray[Any, Any]) -> Bound:
        with self._refusals(batch):
            binding = self._session.io_binding()
            binding.bind_cpu_input(self._input, batch)
            binding.bind_output(self._output)
            self._session.run_with_iobinding(binding)
        return _BoundSession(self._session, binding)

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with self._refusals(batch):
            output: np.ndarray[Any, Any] = self._session.run([self._output], {self._input: batch})[0]
        return output

    def _refusals(self, batch: np.ndarray[Any, Any]) -> Any:
        return _refusals(f"infer: onnxruntime could not run {self._where} on a batch {batch.dtype} {list(batch.shape)}")

    def close(self) -> None:
        self._session = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_onnxruntime(model_path: Path, options: RunnerOptions) -> Runner:
    """Load an ONNX graph into onnxruntime's CPU provider.

    Raises:
        BenchError: the file is missing or onnxruntime can't load it.
    """
    if not model_path.is_file():
        raise BenchError(f"open_onnxruntime: no file {model_path}")
    try:
        import onnxruntime
    except ImportError as err:
        raise BenchError("open_onnxruntime: onnxruntime is not installed here. Run: pip install onnxruntime") from err
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors; warnings would land in the middle of the table
    # Idle workers of a session spin on a core for milliseconds after a run, which the other side then lacks: on 2 cores the
    # demo's p99 rose from 1.4 to 5.5 ms and its speed-up fell from 1.94x to 1.64x. Stopping costs a side alone 2 %.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
    with _refusals(f"open_onnxruntime: onnxruntime {onnxruntime.__version__} could not load {model_path}"):
        session = onnxruntime.InferenceSession(str(model_path), settings, providers=["CPUExecutionProvider"])
    facts = RunnerFacts("onnxruntime", "cpu", "as the graph", version=onnxruntime.__version__)
    return _OnnxRuntimeRunner(session, str(model_path), facts)


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Turn onnxruntime's own exceptions, which share no base but ``Exception``, into a ``BenchError``."""
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented", "RuntimeException")
    try:
        yield
    except tuple(getattr(states, name) for name in names) as err:
        raise BenchError(f"{what}: {str(err).strip().splitlines()[0]}") from err
