"""How a kernel's work is cut for a GPU: literal tables, chosen by one function, and the shared memory there is.

None of the tiles was timed: no GPU was at hand. They are the largest whose compiled code keeps its numbers in registers (no
spills on any target, see docs/kernels.md) within the 48 KiB of shared memory that a launch gets without asking for more, which
is all that TensorRT's ahead-of-time plugins can be sure of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import KernelError
from .records import Dtype, Tile

if TYPE_CHECKING:
    from .records import Variant

__all__ = ["LARGEST_HEAD", "SHARED_BYTES", "TARGETS", "check_target", "padded", "precision_for", "tile_for", "tiles_for"]

# Compute capabilities that Triton's compiler finishes; others (101, 88) end its process.
TARGETS = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
SHARED_BYTES = 48 * 1024
LARGEST_HEAD = 512
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


def tile_for(variant: Variant, sm: int) -> Tile:
    """Return the tile for a variant on a compute capability.

    Raises:
        KernelError: the head is too large for shared memory.
    """
    size = padded(max(variant.head_size, variant.value_size))
    if size > LARGEST_HEAD:
        raise KernelError(
            f"kernels: a head size of {max(variant.head_size, variant.value_size)} is padded to {size}, whose tiles don't fit "
            f"into {SHARED_BYTES // 1024} KiB of shared memory; {LARGEST_HEAD} is the largest"
        )
    tile = _TILES[variant.dtype is Dtype.FP32][size]
    return Tile(tile.queries, tile.keys, tile.warps, 1) if 90 <= sm < 120 else tile


def tiles_for(variant: Variant, sm: int) -> tuple[Tile, ...]:
    """Return the tiles to try for a variant, largest first: ``tile_for``'s, then smaller ones."""
    first = tile_for(variant, sm)
    area = first.queries * first.keys
    smaller = [one for one in _SMALLER if one.queries * one.keys <= area and one != first]
    return (first, *smaller)


_SMALLER = (Tile(16, 16, 4, 1),)
_TILES = {
    False: {
        16: Tile(64, 64, 4, 2),
        32: Tile(64, 64, 4, 2),
        64: Tile(64, 64, 4, 2),
        128: Tile(64, 32, 4, 2),
        256: Tile(32, 16, 4, 2),
        512: Tile(16, 16, 4, 1),
    },
    True: {
        16: Tile(64, 32, 4, 2),
        32: Tile(64, 32, 4, 2),
        64: Tile(64, 32, 4, 2),
        128: Tile(32, 16, 4, 2),
        256: Tile(16, 16, 4, 1),
        512: Tile(16, 16, 8, 1),
    },
}
