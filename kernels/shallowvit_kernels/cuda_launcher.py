"""Launch a compiled kernel from its PTX and its launch alone, through PyCUDA: no Triton, no torch.

It is the proof that what an engine carries computes what the reference computes. A newcomer's trap: numpy has no bf16, so such
numbers are passed and returned as their bits, ``uint16``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .checking import check_shapes, numbers_of
from .errors import KernelError
from .launches import Launch, launch_from_json
from .records import Dtype
from .targets import choose_launch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .tensors import TensorSpec

__all__ = ["CudaKernel", "LaunchablePtx", "gpu_capability", "load_kernel", "read_kernel"]

_TYPES = {Dtype.FP32: np.dtype(np.float32), Dtype.FP16: np.dtype(np.float16), Dtype.BF16: np.dtype(np.uint16)}
_FREE_SHARED_BYTES = 48 * 1024  # a launch has to ask for more


@dataclass(frozen=True)
class LaunchablePtx:
    """A kernel as files hold it."""

    launch: Launch
    ptx: str


def read_kernel(launch_path: Path, ptx_path: Path) -> LaunchablePtx:
    """Return a kernel from its two files.

    Raises:
        KernelError: one isn't there, or the launch is damaged.
    """
    try:
        return LaunchablePtx(launch_from_json(launch_path.read_text()), ptx_path.read_text())
    except OSError as err:
        raise KernelError(f"launch: {err.filename} can't be read ({err.strerror}); compile the kernel again") from err


def load_kernel(kernels: Sequence[LaunchablePtx]) -> CudaKernel:
    """Load what suits the first GPU best among one variant's kernels.

    Raises:
        KernelError: no PyCUDA, no GPU, none of the kernels is for it, or its driver doesn't compile the PTX.
    """
    place = choose_launch([one.launch for one in kernels], gpu_capability())
    return CudaKernel(_pycuda(), kernels[place])


def gpu_capability() -> int:
    """Return the first GPU's compute capability, as 86 for 8.6.

    Raises:
        KernelError: no PyCUDA, or no GPU.
    """
    major, minor = _pycuda().Context.get_device().compute_capability()
    return 10 * int(major) + int(minor)


class CudaKernel:
    """A kernel in a GPU's memory, for as long as this object lives."""

    def __init__(self, cuda: Any, kernel: LaunchablePtx) -> None:
        self.launch = launch = kernel.launch
        self._cuda = cuda
        try:
            self._module = cuda.module_from_buffer(kernel.ptx.encode() + b"\0")
            self._function = self._module.get_function(launch.kernel)
            if launch.shared_bytes > _FREE_SHARED_BYTES:
                attribute = cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
                self._function.set_attribute(attribute, launch.shared_bytes)
        except cuda.Error as err:
            raise KernelError(
                f"launch: the driver doesn't load {launch.kernel}, PTX ISA {launch.ptx_version / 10:.1f} for compute "
                f"capability {launch.sm / 10:.1f}: {err}; update the driver"
            ) from err

    def run(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Copy the inputs to the GPU, run, and return the outputs.

        Args:
            inputs: In the launch's order, contiguous; bf16 as ``uint16``.

        Raises:
            KernelError: a number, type, shape or layout doesn't fit.
        """
        shapes = [one.shape for one in inputs]
        check_shapes(self.launch, shapes)
        for spec, one in zip(self.launch.inputs, inputs, strict=True):
            _check_array(spec, one)
        given = [self._cuda.to_device(one) for one in inputs]
        outputs = [
            np.empty([size.of(shapes) for size in sizes], _TYPES[spec.dtype])
            for spec, sizes in zip(self.launch.outputs, self.launch.output_shapes, strict=True)
        ]
        written = [self._cuda.mem_alloc(one.nbytes) for one in outputs]
        self.enqueue([int(one) for one in given], shapes, [int(one) for one in written])
        for host, device in zip(outputs, written, strict=True):
            self._cuda.memcpy_dtoh(host, device)
        return tuple(outputs)

    def enqueue(
        self, inputs: Sequence[int], shapes: Sequence[Sequence[int]], outputs: Sequence[int], stream: Any = None
    ) -> None:
        """Launch on tensors that are in the GPU's memory, contiguous; it doesn't wait.

        Args:
            inputs: Addresses in the launch's order.
            shapes: Of the inputs.
            outputs: Addresses of memory for what ``Launch.output_shapes`` says.
            stream: PyCUDA's.

        Raises:
            KernelError: a number of addresses or a shape doesn't fit.
        """
        check_shapes(self.launch, shapes)
        if (len(inputs), len(outputs)) != (len(self.launch.inputs), len(self.launch.outputs)):
            raise KernelError(
                f"launch: {self.launch.kernel} takes {len(self.launch.inputs)} inputs and {len(self.launch.outputs)} outputs, "
                f"found addresses of {len(inputs)} and {len(outputs)}"
            )
        numbers = numbers_of(self.launch, shapes)
        pointers = {"input": inputs, "output": outputs}
        arguments = [
            np.int32(numbers[one.name]) if one.kind == "size" else np.uintp(pointers[one.kind][one.index])
            for one in self.launch.arguments
        ]
        self._function(
            *arguments,
            block=(self.launch.threads, 1, 1),
            grid=(self.launch.grid.of(shapes), 1),
            shared=self.launch.shared_bytes,
            stream=stream,
        )


def _check_array(spec: TensorSpec, array: np.ndarray) -> None:
    wanted = _TYPES[spec.dtype]
    if array.dtype != wanted and not (spec.dtype is Dtype.BF16 and array.dtype.name == "bfloat16"):
        bits = " (the bits of bf16)" if spec.dtype is Dtype.BF16 else ""
        raise KernelError(f"launch: {spec.name} is of {array.dtype}, and {wanted}{bits} is expected; convert it")
    if not array.flags.c_contiguous:
        raise KernelError(
            f"launch: {spec.name} of the shape {list(array.shape)} has the strides {list(array.strides)} in bytes, and "
            "contiguous numbers are expected; pass numpy.ascontiguousarray of it"
        )


def _pycuda() -> Any:
    """Return ``pycuda.driver`` with the first GPU's primary context, which is torch's and TensorRT's too."""
    try:
        driver = importlib.import_module("pycuda.driver")
    except ImportError as err:
        raise KernelError(f"launch: PyCUDA can't be imported ({err}); pip install pycuda, which needs nvcc on PATH") from err
    try:
        importlib.import_module("pycuda.autoprimaryctx")
    except driver.Error as err:
        raise KernelError(f"launch: no GPU answers ({err}); run this where there is one") from err
    return driver
