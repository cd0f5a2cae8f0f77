"""The proof on a GPU: a variant's PTX, launched as an engine launches it, against the reference in fp32.

A newcomer's trap: this compiles with Triton and computes the reference with torch on the CPU, but what it launches is the PTX
and the launch alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .ahead import compile_variant
from .catalogue import definition_of
from .cuda_launcher import LaunchablePtx, gpu_capability, load_kernel
from .errors import KernelError
from .records import Dtype, Layout, Modifier
from .tiles import TARGETS

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .records import Variant

__all__ = ["GpuCheck", "Sizes", "check_on_gpu"]

# Of the largest number in the reference; products are rounded once to the type, and so is the output.
_LIMITS = {Dtype.FP32: 1e-5, Dtype.FP16: 4e-3, Dtype.BF16: 3e-2}


@dataclass(frozen=True)
class Sizes:
    """Of what is launched; by default with ragged ends."""

    batch: int = 2
    heads: int = 3
    queries: int = 197
    keys: int = 150


@dataclass(frozen=True)
class GpuCheck:
    """What a launch on a GPU gave.

    Args:
        kernel: Its name.
        sm: The compute capability it was compiled for.
        gpu_sm: The GPU's.
        error: The largest difference from the reference, as a part of the largest number there.
        limit: The largest error that is right.
    """

    kernel: str
    sm: int
    gpu_sm: int
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit; a NaN isn't."""
        return self.error <= self.limit


def check_on_gpu(variant: Variant, sizes: Sizes | None = None) -> GpuCheck:
    """Launch a variant on random numbers and compare.

    Raises:
        KernelError: no PyCUDA, no GPU, or nothing can be compiled for it.
    """
    import torch

    sizes = sizes or Sizes()
    gpu_sm = gpu_capability()
    earlier = [one for one in TARGETS if one <= gpu_sm]
    if not earlier:
        raise KernelError(f"check: the GPU has compute capability {gpu_sm / 10:.1f}, and {min(TARGETS) / 10:.1f} is the least")
    compiled = compile_variant(variant, max(earlier))
    kernel = load_kernel([LaunchablePtx(compiled.launch, compiled.ptx)])
    tensors = random_tensors(variant, sizes)
    arrays = laid_out(variant, tensors)
    got = torch.from_numpy(_as_float(kernel.run(*arrays)[0], variant.dtype))
    got = got.permute([str(variant.output_layout).index(letter) for letter in "bhnd"])
    expected = definition_of(variant.kernel).reference(variant, **tensors)
    expected = expected[0] if isinstance(expected, tuple) else expected
    error = float((got - expected).abs().max() / expected.abs().max())
    return GpuCheck(variant.name, compiled.launch.sm, gpu_sm, error, _LIMITS[variant.dtype])


def random_tensors(variant: Variant, sizes: Sizes) -> dict[str, torch.Tensor]:
    """Return what a reference takes, by name: queries, keys and values heads first, and the operands of modifiers."""
    import torch

    dtypes = {Dtype.FP32: torch.float32, Dtype.FP16: torch.float16, Dtype.BF16: torch.bfloat16}
    keys = sizes.queries if variant.layout is Layout.PACKED else sizes.keys
    known = {"b": sizes.batch, "h": sizes.heads, "n": sizes.queries, "m": keys, "d": variant.head_size, "e": variant.value_size}
    shapes = {"q": "bhnd", "k": "bhmd", "v": "bhme"}
    found = {name: torch.randn([known[letter] for letter in axes]).to(dtypes[variant.dtype]) for name, axes in shapes.items()}
    for operand in variant.operands:
        shape = [1 if letter in operand.broadcast else known[letter] for letter in "bhnm"]
        numbers = torch.randn(shape)
        if operand.modifier is Modifier.POSITIONS:
            numbers = torch.softmax(numbers, -1) if "m" not in operand.broadcast else torch.full(shape, 1 / keys)
        elif operand.modifier is not Modifier.BIAS:
            numbers = torch.sigmoid(numbers)
        found[str(operand.modifier)] = numbers.to(dtypes[operand.dtype])
    if variant.gated:
        found["gate"] = torch.rand(sizes.heads)
    return found


def laid_out(variant: Variant, tensors: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """Return the inputs of a launch in their order and layouts."""
    import torch

    if variant.layout is Layout.PACKED:
        packed = torch.stack([tensors[name] for name in "qkv"])  # [3, b, h, n, d]
        main = [packed.permute(["3bhnd".index(letter) for letter in "bn3hd"])]
    else:
        main = [tensors[name].permute(["bhnd".index(letter) for letter in str(variant.layout)]) for name in "qkv"]
    others = [tensors[str(one.modifier)] for one in variant.operands] + ([tensors["gate"]] if variant.gated else [])
    return [_as_array(one.contiguous()) for one in (*main, *others)]


def _as_array(tensor: torch.Tensor) -> np.ndarray:
    import torch

    bits = tensor.dtype is torch.bfloat16
    return tensor.view(torch.int16).numpy().view("uint16") if bits else tensor.numpy()


def _as_float(array: np.ndarray, dtype: Dtype) -> np.ndarray:
    return (array.astype("uint32") << 16).view("float32") if dtype is Dtype.BF16 else array.astype("float32")
