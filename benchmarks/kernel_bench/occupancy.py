"""How many blocks of a compiled kernel a multiprocessor holds at once, worked out from what the code takes.

A newcomer's trap: more isn't faster. A kernel on tensor cores can be at its best with one block; occupancy says what hides
latency when the block itself doesn't. The tensor memory of 10.0 to 11.0 isn't counted, since no tool says how much code takes.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIMITS", "Limits", "Occupancy", "occupancy_of"]


@dataclass(frozen=True)
class Limits:
    """Of one multiprocessor of a compute capability."""

    threads: int
    blocks: int
    shared_kib: int
    reserved_bytes: int  # of shared memory, kept by the system in each block


@dataclass(frozen=True)
class Occupancy:
    """What fits on one multiprocessor at once.

    Args:
        blocks: Of the kernel.
        warps: Of these blocks.
        share: Of the warps that there may be.
        limited_by: What a further block would be too much for: ``registers``, ``shared memory``, ``warps`` or ``blocks``.
    """

    blocks: int
    warps: int
    share: float
    limited_by: str


# "Technical Specifications per Compute Capability" in NVIDIA's CUDA programming guide, and the same as constants in its CCCL,
# libcudacxx/include/cuda/__device/arch_traits.h. The Blackwell tuning guide has 32 blocks for 12.0; devices report 24.
LIMITS = {
    75: Limits(1024, 16, 64, 0),
    80: Limits(2048, 32, 164, 1024),
    86: Limits(1536, 16, 100, 1024),
    87: Limits(1536, 16, 164, 1024),
    89: Limits(1536, 24, 100, 1024),
    90: Limits(2048, 32, 228, 1024),
    100: Limits(2048, 32, 228, 1024),
    103: Limits(2048, 32, 228, 1024),
    110: Limits(1536, 24, 228, 1024),
    120: Limits(1536, 24, 100, 1024),
    121: Limits(1536, 24, 100, 1024),
}
# The same everywhere from 7.5 to 12.1: of the CUDA toolkit's cuda_occupancy.h, which our figures are tested against.
_REGISTERS = 65536
_WARP = 32
_REGISTERS_AT_A_TIME = 256  # of a warp
_PARTS = 4  # a multiprocessor has four parts with a quarter of the registers each
_SHARED_AT_A_TIME = {75: 256}  # bytes of a block; 128 elsewhere


def occupancy_of(sm: int, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Return what a multiprocessor holds.

    Args:
        sm: Compute capability, 86 for 8.6.
        threads: Of a block.
        registers: Of a thread.
        shared_bytes: Of a block, without what the system keeps there.
    """
    limits = LIMITS[sm]
    warps = _rounded(threads, _WARP) // _WARP
    of_warp = _rounded(registers * _WARP, _REGISTERS_AT_A_TIME)
    at_once = _REGISTERS // _PARTS // of_warp * _PARTS  # warps whose registers there are
    shared = _rounded(shared_bytes + limits.reserved_bytes, _SHARED_AT_A_TIME.get(sm, 128))
    fit = {
        "registers": at_once // warps,
        "shared memory": limits.shared_kib * 1024 // shared if shared else limits.blocks,
        "warps": limits.threads // _WARP // warps,
        "blocks": limits.blocks,
    }
    limited_by = min(fit, key=lambda name: fit[name])
    blocks = fit[limited_by]
    return Occupancy(blocks, blocks * warps, blocks * warps * _WARP / limits.threads, limited_by)


def _rounded(number: int, step: int) -> int:
    return -(-number // step) * step
