"""Launch a kernel of ours through the CUDA driver by ``ctypes``, on the stream and the addresses that TensorRT gives.

Code is loaded once a CUDA context, whatever the number of engines and nodes that use it. A newcomer's trap: while a stream is
captured nothing may be allocated or loaded, so all of that is done before the first launch.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

if __package__:
    from .plugin_kernels import Kernel, PluginError, choose_kernel, numbers_of
else:  # beside TensorRT, in a folder of its own
    from plugin_kernels import (  # type: ignore[import-not-found, no-redef]
        Kernel,
        PluginError,
        choose_kernel,
        numbers_of,
    )

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LoadedKernel", "PreparedLaunch", "load_kernel"]

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_* of cuda.h
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_ERROR_LOG, _ERROR_LOG_BYTES = 5, 6  # CU_JIT_ERROR_LOG_BUFFER*
_FREE_SHARED_BYTES = 48 * 1024  # a function has to ask for more
_LOG_BYTES = 4096


class LoadedKernel:
    """A kernel in a GPU's memory, shared by all who loaded it in the same CUDA context."""

    def __init__(self, driver: _Driver, kernel: Kernel) -> None:
        self.kernel, self.users = kernel, 0
        self._driver = driver
        self._module, self.function = ctypes.c_void_p(), ctypes.c_void_p()
        log = ctypes.create_string_buffer(_LOG_BYTES)
        options = (ctypes.c_int * 2)(_ERROR_LOG, _ERROR_LOG_BYTES)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
        error = driver.cuda.cuModuleLoadDataEx(ctypes.byref(self._module), kernel.ptx.encode() + b"\0", 2, options, values)
        if error:
            said = " ".join(log.value.decode(errors="replace").split()) or driver.text(error)
            raise PluginError(
                f"plugin: the driver doesn't take the PTX (ISA {kernel.ptx_version / 10:.1f}, compute capability "
                f"{kernel.sm / 10:.1f}) of {kernel.operator}: {said}; update the driver"
            )
        try:
            driver.call("cuModuleGetFunction", ctypes.byref(self.function), self._module, kernel.operator.encode())
            if kernel.shared_bytes > _FREE_SHARED_BYTES:
                driver.call("cuFuncSetAttribute", self.function, _MAX_DYNAMIC_SHARED, kernel.shared_bytes)
        except PluginError:
            self.unload()
            raise

    def unload(self) -> None:
        """Free the code; at the end of a process its context may be gone before, and the code with it."""
        if self._module:
            self._driver.cuda.cuModuleUnload(self._module)
            self._module = ctypes.c_void_p()

    def release(self) -> None:
        """Say that one who loaded it needs it no more; with the last one it is unloaded."""
        self.users -= 1
        if self.users == 0:
            self.unload()
            for key in [key for key, loaded in _LOADED.items() if loaded is self]:
                del _LOADED[key]


_LOADED: dict[tuple[int, str], LoadedKernel] = {}  # (CUDA context, launch and PTX) -> its code there


def load_kernel(kernels: Sequence[Kernel]) -> LoadedKernel:
    """Load what suits the current CUDA context's GPU best among one operator's kernels.

    Raises:
        PluginError: there is no driver or no GPU, none of the kernels runs on it, or the driver doesn't take the PTX.
    """
    driver = _Driver()
    context = driver.context()
    kernel = choose_kernel(kernels, driver.capability())
    key = (context, kernel.launch + kernel.ptx)
    loaded = _LOADED.get(key) or LoadedKernel(driver, kernel)
    _LOADED[key] = loaded
    loaded.users += 1
    return loaded


class PreparedLaunch:
    """A launch for one set of shapes; only the addresses change from call to call."""

    def __init__(self, loaded: LoadedKernel, shapes: Sequence[Sequence[int]]) -> None:
        kernel = loaded.kernel
        numbers, self._blocks = numbers_of(kernel, shapes)
        self._loaded, self._driver = loaded, loaded._driver
        self._threads, self._shared_bytes = kernel.threads, kernel.shared_bytes
        self._values: list[Any] = [
            ctypes.c_int32(numbers[one.name]) if one.kind == "size" else ctypes.c_uint64() for one in kernel.arguments
        ]
        self._pointers = [
            (value, one.kind == "input", one.index)
            for value, one in zip(self._values, kernel.arguments, strict=True)
            if one.kind != "size"
        ]
        self._arguments = (ctypes.c_void_p * len(self._values))(*[ctypes.addressof(one) for one in self._values])

    def launch(self, inputs: Sequence[int], outputs: Sequence[int], stream: int) -> None:
        """Put the kernel on a stream.

        Raises:
            PluginError: the driver refuses.
        """
        for value, is_input, index in self._pointers:
            value.value = (inputs if is_input else outputs)[index]
        error = self._driver.cuda.cuLaunchKernel(
            self._loaded.function,
            *(self._blocks, 1, 1),
            *(self._threads, 1, 1),
            self._shared_bytes,
            ctypes.c_void_p(stream),
            self._arguments,
            None,
        )
        if error:
            raise PluginError(
                f"plugin: {self._loaded.kernel.operator} can't be launched with {self._blocks} blocks of {self._threads} "
                f"threads: {self._driver.text(error)}; run with a smaller batch"
            )


class _Driver:
    """The CUDA driver's library."""

    def __init__(self) -> None:
        try:
            self.cuda = ctypes.CDLL("libcuda.so.1")
        except OSError as err:
            raise PluginError(f"plugin: there is no CUDA driver here ({err}); run on a machine with an NVIDIA GPU") from err
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        if error := getattr(self.cuda, name)(*arguments):
            raise PluginError(f"plugin: {name} of the CUDA driver gives {self.text(error)}; look at what nvidia-smi says")

    def text(self, error: int) -> str:
        said = ctypes.c_char_p()
        known = self.cuda.cuGetErrorString(error, ctypes.byref(said)) == 0 and said.value
        return f"error {error} ({said.value.decode(errors='replace')})" if known and said.value else f"error {error}"

    def context(self) -> int:
        """The current context; where this thread has none yet, the first GPU's primary one, which TensorRT uses."""
        current = ctypes.c_void_p()
        self.call("cuCtxGetCurrent", ctypes.byref(current))
        if not current:
            device = ctypes.c_int()
            self.call("cuDeviceGet", ctypes.byref(device), 0)
            self.call("cuDevicePrimaryCtxRetain", ctypes.byref(current), device)
            self.call("cuCtxSetCurrent", current)
        return current.value or 0

    def capability(self) -> int:
        """The current context's GPU's, as 86 for 8.6."""
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self.call("cuCtxGetDevice", ctypes.byref(device))
        self.call("cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device)
        self.call("cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, device)
        return 10 * major.value + minor.value
