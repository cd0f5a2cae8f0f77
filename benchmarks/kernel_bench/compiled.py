"""What the compiler makes of the kernels for each GPU: rows of facts, and the occupancy that follows from them; no GPU needed.

A newcomer's trap: compiled kernels are kept, so a row's seconds are those of the first time, perhaps on another day.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from shallowvit_kernels.ahead import Request, compile_variants
from shallowvit_kernels.errors import KernelError
from shallowvit_kernels.records import Dtype
from shallowvit_kernels.tiles import TARGETS

from .cases import CASES, variant_of
from .occupancy import LIMITS, occupancy_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shallowvit_kernels.ahead import Compiled

    from .cases import Case

    Row = dict[str, Any]

__all__ = ["Group", "compile_rows", "planned"]

_USUAL_HEAD = 64
_OTHER_HEADS = (16, 32, 80, 128, 256, 512)
_FEWER_TARGETS = (75, 80, 87, 90, 120)  # one a family of tensor cores


@dataclass(frozen=True)
class Group:
    """Kernels that are compiled in one process: one case, type and head size for several compute capabilities."""

    case: Case
    dtype: Dtype
    head_size: int
    sm: tuple[int, ...]


def planned(names: Sequence[str], sm: Sequence[int] = TARGETS) -> tuple[Group, ...]:
    """Return what is compiled by default: every case in fp32 and fp16, plain in bf16 too, and with other heads for fewer GPUs.

    Args:
        names: Of cases.
        sm: Compute capabilities, 86 for 8.6.
    """
    cases = [case for case in CASES if case.name in names]
    usual = [Group(case, dtype, _USUAL_HEAD, tuple(sm)) for case in cases for dtype in (Dtype.FP32, Dtype.FP16)]
    fewer = tuple(one for one in sm if one in _FEWER_TARGETS)
    others = [
        Group(case, dtype, head_size, fewer)
        for case in cases
        if case.name == "plain"
        for head_size in _OTHER_HEADS
        for dtype in (Dtype.FP32, Dtype.FP16)
    ]
    bf16 = [Group(case, Dtype.BF16, _USUAL_HEAD, tuple(sm)) for case in cases if case.name == "plain"]
    return (*usual, *bf16, *others)


def compile_rows(group: Group) -> Iterator[Row]:
    """Yield a row for each compute capability; what can't be compiled is a row with its reason."""
    variant = variant_of(group.case, group.dtype, group.head_size)
    base = {"kind": "compile", "variant": group.case.name, "dtype": str(group.dtype), "head_size": group.head_size}
    base["operator"] = variant.name
    requests = [Request(variant, sm) for sm in group.sm]
    try:
        done: Sequence[Compiled | KernelError] = compile_variants(requests)
    except KernelError:
        done = [_one(request) for request in requests]  # each has a reason of its own
    for sm, one in zip(group.sm, done, strict=True):
        row = base | {"sm": sm}
        yield row | ({"status": "refused", "reason": str(one)} if isinstance(one, KernelError) else _described(one, sm))


def _one(request: Request) -> Compiled | KernelError:
    try:
        return compile_variants([request])[0]
    except KernelError as err:
        return err


def _described(compiled: Compiled, sm: int) -> Row:
    facts, launch = compiled.facts, compiled.launch
    row = {"status": "compiled", "threads": launch.threads, "ptx_version": launch.ptx_version, "exact": launch.exact}
    row |= asdict(facts)
    assert sm in LIMITS  # as many as the compiler's targets, which a test holds them against
    occupancy = occupancy_of(sm, launch.threads, facts.registers, facts.shared_bytes)
    return row | {
        "blocks_per_sm": occupancy.blocks,
        "warps_per_sm": occupancy.warps,
        "occupancy": round(occupancy.share, 3),
        "limited_by": occupancy.limited_by,
    }
