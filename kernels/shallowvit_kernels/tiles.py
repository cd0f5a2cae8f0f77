"""How a kernel's work is cut for a GPU: literal tables, chosen by one function, and the shared memory there is.

None of the tiles was timed: no GPU was at hand. They were found by compiling: large ones whose code keeps its numbers in
registers and fits into the 48 KiB of shared memory that a launch gets without asking for more, which is all that TensorRT's
ahead-of-time plugins can be sure of. A newcomer's trap: that holds for the kernels tried, one modifier and a head size that is
a power of two; for others, compiling ahead of time goes on to smaller tiles by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import KernelError
from .records import Dtype, Kernel, Tile

if TYPE_CHECKING:
    from .records import Variant

__all__ = ["SHARED_BYTES", "TARGETS", "check_target", "largest_head", "padded", "precision_for", "tile_for", "tiles_for"]

# Compute capabilities that Triton's compiler finishes; others (101, 88) end its process.
TARGETS = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
SHARED_BYTES = 48 * 1024
_SMALLEST_SIDE = 16  # of a matrix product


def padded(size: int) -> int:
    """Return the power of two, 16 or more, that a head size is padded to."""
    return max(_SMALLEST_SIDE, 1 << (size - 1).bit_length())


def check_target(sm: int, dtype: Dtype) -> None:
    """Refuse a compute capability (86 for 8.6) that the compiler would abort on, or that hasn't the type.

    Raises:
        KernelError: says which there are.
    """
    if sm not in TARGETS:
        known = ", ".join(f"{one / 10:.1f}" for one in TARGETS)
        raise KernelError(f"kernels: compute capability {sm / 10:.1f} can't be compiled for; choose from {known}")
    if dtype is Dtype.BF16 and sm < 80:
        raise KernelError(f"kernels: bf16 needs compute capability 8.0, and this is {sm / 10:.1f}; use fp16 or fp32")


def precision_for(sm: int) -> str:
    """Return how fp32 products are computed: three products in TF32 where there is TF32, which errs as fp32 does."""
    return "tf32x3" if sm >= 80 else "ieee"


def largest_head(variant: Variant, sm: int) -> int:
    """Return the largest head size, padded, whose tiles fit into shared memory for a variant's kernel, type and modifiers."""
    wide = variant.dtype is Dtype.FP32
    if variant.kernel is Kernel.LINEAR:
        return 64 if wide or sm < 80 else 128  # the state is a matrix of this size
    if not wide:
        return 512 if sm >= 80 else 256
    return 128 if variant.gated else 256


def tile_for(variant: Variant, sm: int) -> Tile:
    """Return the tile for a variant on a compute capability.

    Raises:
        KernelError: the head is too large for shared memory.
    """
    given = max(variant.head_size, variant.value_size)
    size, largest = padded(given), largest_head(variant, sm)
    if size > largest:
        raise KernelError(
            f"kernels: a head size of {given} is padded to {size}, whose tiles don't fit into {SHARED_BYTES // 1024} KiB of "
            f"shared memory in {variant.dtype} for the kernel {variant.kernel}; {largest} is the largest"
        )
    wide = variant.dtype is Dtype.FP32
    if variant.kernel is Kernel.LINEAR:
        return Tile(*_LINEAR[wide][size])
    column = 2 if variant.gated else 1 if variant.operands else 0
    return Tile(*_TILES[_FAMILIES[sm], wide][size][column])


def tiles_for(variant: Variant, sm: int) -> tuple[Tile, ...]:
    """Return the tiles to try for a variant, largest first: ``tile_for``'s, then smaller ones."""
    first = tile_for(variant, sm)
    area = first.queries * first.keys
    if variant.kernel is Kernel.LINEAR:
        smaller = [Tile(first.queries, keys, first.warps, 1) for keys in (64, 32, 16) if keys <= first.keys]
    else:
        smaller = [Tile(*one) for one in _SMALLER if one[0] * one[1] <= area]
    return (first, *(one for one in smaller if one != first))


# Compute capabilities whose code has the same matrix instructions.
_FAMILIES = {75: "plain", 80: "mma", 86: "mma", 87: "mma", 89: "mma", 120: "mma", 121: "mma"}
_FAMILIES |= {90: "wgmma", 100: "tcgen05", 103: "tcgen05", 110: "tcgen05"}

# (queries, keys, warps, stages) by family and whether numbers are fp32, then by padded head size: without modifiers, with, and
# with positions, which keep a second sum. Triton multiplies on 7.5 without tensor cores.
_TILES = {
    ("plain", False): {
        16: ((64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 8, 2)),
        32: ((64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 8, 2)),
        64: ((64, 32, 8, 2), (64, 32, 8, 2), (64, 32, 8, 2)),
        128: ((32, 16, 4, 2), (32, 16, 4, 2), (32, 16, 8, 2)),
        256: ((16, 16, 4, 2), (16, 16, 4, 2), (16, 16, 4, 2)),
    },
    ("plain", True): {
        16: ((64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 8, 2)),
        32: ((64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 8, 2)),
        64: ((64, 32, 8, 2), (32, 32, 4, 1), (32, 32, 4, 1)),
        128: ((32, 16, 4, 1), (32, 16, 4, 1), (32, 16, 8, 1)),
        256: ((16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)),
    },
    ("mma", False): {
        16: ((128, 64, 4, 2), (128, 64, 8, 2), (128, 64, 8, 2)),
        32: ((128, 64, 4, 2), (128, 64, 8, 2), (128, 64, 8, 2)),
        64: ((128, 64, 4, 2), (128, 64, 8, 1), (128, 64, 8, 1)),
        128: ((128, 32, 8, 2), (64, 32, 4, 2), (64, 64, 8, 1)),
        256: ((32, 32, 4, 1), (32, 32, 4, 1), (64, 16, 8, 1)),
        512: ((16, 16, 4, 1), (16, 16, 4, 1), (16, 16, 8, 1)),
    },
    ("mma", True): {
        16: ((64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 8, 1)),
        32: ((64, 64, 4, 1), (64, 32, 4, 2), (64, 32, 4, 2)),
        64: ((64, 32, 8, 1), (32, 64, 4, 1), (32, 32, 4, 1)),
        128: ((32, 16, 8, 1), (32, 16, 8, 1), (16, 32, 8, 1)),
        256: ((16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)),
    },
    ("wgmma", False): {
        16: ((128, 64, 4, 2), (128, 64, 8, 2), (128, 64, 8, 2)),
        32: ((128, 64, 4, 2), (128, 32, 4, 2), (128, 64, 8, 1)),
        64: ((128, 64, 4, 2), (128, 64, 8, 1), (128, 32, 8, 2)),
        128: ((128, 32, 4, 1), (64, 64, 8, 1), (64, 64, 8, 1)),
        256: ((32, 32, 4, 1), (32, 32, 4, 1), (64, 16, 8, 1)),
        512: ((16, 16, 8, 1), (16, 16, 4, 1), (16, 16, 4, 1)),
    },
    ("wgmma", True): {
        16: ((64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 8, 1)),
        32: ((64, 64, 4, 1), (64, 32, 4, 2), (64, 32, 4, 2)),
        64: ((64, 32, 8, 1), (32, 64, 4, 1), (32, 32, 4, 1)),
        128: ((32, 16, 8, 1), (32, 16, 8, 1), (16, 32, 8, 1)),
        256: ((16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)),
    },
    ("tcgen05", False): {
        16: ((128, 64, 4, 2), (128, 64, 8, 1), (128, 64, 8, 1)),
        32: ((128, 64, 4, 2), (128, 32, 4, 2), (128, 64, 8, 1)),
        64: ((128, 64, 8, 1), (128, 32, 8, 1), (128, 64, 8, 1)),
        128: ((64, 32, 4, 1), (64, 32, 4, 1), (64, 32, 4, 1)),
        256: ((32, 32, 4, 1), (32, 32, 4, 1), (32, 16, 4, 2)),
        512: ((16, 16, 8, 1), (16, 16, 4, 1), (16, 16, 4, 1)),
    },
    ("tcgen05", True): {
        16: ((64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 8, 1)),
        32: ((64, 64, 4, 1), (64, 32, 4, 2), (64, 32, 4, 2)),
        64: ((64, 32, 8, 1), (32, 64, 4, 1), (64, 16, 8, 2)),
        128: ((32, 16, 8, 1), (32, 16, 8, 1), (16, 32, 8, 1)),
        256: ((16, 16, 8, 1), (16, 16, 8, 1), (16, 16, 8, 1)),
    },
}

# A program's share of the queries, tokens at a time, warps, stages.
_LINEAR = {
    False: {16: (256, 64, 4, 2), 32: (256, 64, 4, 2), 64: (256, 64, 4, 2), 128: (512, 32, 8, 1)},
    True: {16: (256, 64, 4, 2), 32: (256, 64, 4, 2), 64: (256, 32, 4, 1)},
}

# What is tried where those above spill or don't fit, by size; eight warps have twice the registers for a tile.
_SMALLER = (
    (128, 64, 8, 1),
    (128, 32, 8, 2),
    (64, 64, 8, 1),
    (64, 32, 4, 2),
    (64, 32, 8, 1),
    (32, 32, 4, 1),
    (32, 32, 8, 1),
    (32, 16, 4, 1),
    (32, 16, 8, 1),
    (16, 16, 4, 1),
    (16, 16, 8, 1),
)
