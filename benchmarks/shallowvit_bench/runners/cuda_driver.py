"""What PyCUDA hasn't: the first GPU without making a context, and CUDA graphs, from the driver's library by ``ctypes``.

A newcomer's trap: while a stream is captured nothing runs, so a run that was captured has no output until it is launched.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CudaGraph", "Gpu", "first_gpu"]

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_* of cuda.h
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_*: other threads may go on using CUDA


@dataclass(frozen=True)
class Gpu:
    """A GPU's name, compute capability, as 86 for 8.6, and PCI bus id, by which other tools find the same one."""

    name: str
    sm: int
    bus_id: str | None = None


@lru_cache(maxsize=1)
def first_gpu() -> Gpu | None:
    """Return the first GPU as the driver tells it, or None without a driver or a GPU."""
    try:
        driver = _library()
    except OSError:
        return None
    device, major, minor = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    name = ctypes.create_string_buffer(256)
    calls: tuple[Callable[[], int], ...] = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetName(name, len(name), device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
    )
    if any(call() != 0 for call in calls):
        return None
    bus_id = ctypes.create_string_buffer(32)
    known = driver.cuDeviceGetPCIBusId(bus_id, len(bus_id), device) == 0
    return Gpu(name.value.decode(errors="replace"), major.value * 10 + minor.value, bus_id.value.decode() if known else None)


class CudaGraph:
    """What a function puts on a stream, captured once, to be launched any number of times."""

    def __init__(self, stream: int, enqueue: Callable[[], None]) -> None:
        """Capture ``enqueue``, which must only put work on ``stream`` (a CUstream as a number).

        Raises:
            BenchError: the driver refuses the capture, which leaves the stream usable.
        """
        self._driver, self._stream = _library(), ctypes.c_void_p(stream)
        self._graph, self._executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, _THREAD_LOCAL)
        try:
            enqueue()
        finally:  # also after a failure, or the stream stays captured
            ended = self._driver.cuStreamEndCapture(self._stream, ctypes.byref(self._graph))
        if ended:
            raise BenchError(f"CudaGraph: the run can't be captured (cuStreamEndCapture gives error {ended})")
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), self._graph, ctypes.c_ulonglong(0))
        except BenchError:
            self.close()
            raise

    def launch(self) -> None:
        """Put the captured work on the stream."""
        if error := self._driver.cuGraphLaunch(self._executable, self._stream):
            raise BenchError(f"CudaGraph: the captured run can't be launched (cuGraphLaunch gives error {error})")

    def close(self) -> None:
        """Free the graph."""
        if self._executable:
            self._driver.cuGraphExecDestroy(self._executable)
            self._executable = ctypes.c_void_p()
        if self._graph:
            self._driver.cuGraphDestroy(self._graph)
            self._graph = ctypes.c_void_p()

    def _call(self, name: str, *arguments: Any) -> None:
        if error := getattr(self._driver, name)(*arguments):
            raise BenchError(f"CudaGraph: the run can't be captured ({name} gives error {error})")


def _library() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
