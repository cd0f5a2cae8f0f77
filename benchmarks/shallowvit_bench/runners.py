"""Load a graph into a runtime behind one interface: ``infer`` a batch, ``close``.

``RUNNERS`` is the whole list of backends of this package; torch's side is ``shallowvit.baselines``, outside it.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, Self

from .errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

    import numpy as np

__all__ = ["RUNNERS", "Runner", "open_onnxruntime"]


class Runner(Protocol):
    """A loaded model. ``infer`` takes a batch as the graph's input says and returns the first output."""

    name: str

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Run one batch and return the first output, complete: nothing may still be running on a device."""

    def close(self) -> None:
        """Free the model and its threads."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class _OnnxRuntimeRunner:
    """onnxruntime's CPU provider. numpy arrays go in and come out without a copy of ours."""

    name = "onnxruntime"

    def __init__(self, session: Any, where: str) -> None:
        self._session = session
        self._where = where
        self._input: str = session.get_inputs()[0].name
        self._outputs: list[str] = [session.get_outputs()[0].name]

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with _refusals(f"infer: onnxruntime could not run {self._where} on a batch {batch.dtype} {list(batch.shape)}"):
            output: np.ndarray[Any, Any] = self._session.run(self._outputs, {self._input: batch})[0]
        return output

    def close(self) -> None:
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_onnxruntime(model_path: Path, threads: int | None) -> Runner:
    """Load an ONNX graph into onnxruntime's CPU provider with ``threads`` threads (None: the runtime chooses).

    Raises:
        BenchError: the file is missing or onnxruntime can't load it.
    """
    if not model_path.is_file():
        raise BenchError(f"open_onnxruntime: no file {model_path}")
    try:
        import onnxruntime
    except ImportError as err:
        raise BenchError("open_onnxruntime: onnxruntime is not installed here. Run: pip install onnxruntime") from err
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; warnings would land in the middle of the table
    # Idle workers of a session spin on a core for milliseconds after a run, which the other side then lacks: on 2 cores the
    # demo's p99 rose from 1.4 to 5.5 ms and its speed-up fell from 1.94x to 1.64x. Stopping costs a side alone 2 %.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    with _refusals(f"open_onnxruntime: onnxruntime {onnxruntime.__version__} could not load {model_path}"):
        session = onnxruntime.InferenceSession(str(model_path), options, providers=["CPUExecutionProvider"])
    return _OnnxRuntimeRunner(session, str(model_path))


RUNNERS: dict[str, Callable[[Path, int | None], Runner]] = {"onnxruntime": open_onnxruntime}


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Turn onnxruntime's own exceptions, which share no base but ``Exception``, into a ``BenchError``."""
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented", "RuntimeException")
    try:
        yield
    except tuple(getattr(states, name) for name in names) as err:
        raise BenchError(f"{what}: {str(err).strip().splitlines()[0]}") from err
