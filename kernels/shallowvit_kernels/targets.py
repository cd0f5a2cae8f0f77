"""Which compute capabilities a kernel is compiled for, and which of the compiled ones a GPU runs.

A newcomer's trap: PTX runs on its compute capability and on later ones, unless it is exact (``sm_90a``); machine code doesn't
come into it, since what an engine carries is PTX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import KernelError
from .records import Dtype
from .tiles import check_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .launches import Launch

__all__ = ["choose_launch", "pick_targets"]

# 8.0's runs on everything since; 9.0 and 10.0 have tensor cores of their own, which only their own exact PTX uses. That of 8.6,
# 8.7, 8.9, 12.0 and 12.1 has the same matrix instructions as 8.0's, so it would add size and nothing else.
_PORTABLE = (80, 90, 100)


def pick_targets(sm: int | None) -> tuple[int, ...]:
    """Return the compute capabilities to compile a kernel for.

    Args:
        sm: That of the GPU an engine is for, as 86 for 8.6, or None for an engine that runs on all since 8.0.

    Raises:
        KernelError: it can't be compiled for.
    """
    if sm is None:
        return _PORTABLE
    check_target(sm, Dtype.FP16)
    return (sm,)


def choose_launch(launches: Sequence[Launch], sm: int) -> int:
    """Return the place of the launch that suits a GPU best: its own, else that of the nearest earlier GPU.

    Args:
        launches: Of one variant.
        sm: The GPU's compute capability, as 86 for 8.6.

    Raises:
        KernelError: none of them runs there.
    """
    fitting = [(one.sm, place) for place, one in enumerate(launches) if one.sm == sm or (one.sm < sm and not one.exact)]
    if not fitting:
        found = ", ".join(f"{one.sm / 10:.1f}{' alone' if one.exact else ' and later'}" for one in launches) or "none"
        raise KernelError(
            f"launch: the GPU has compute capability {sm / 10:.1f}, and the kernel was compiled for {found}; compile it for "
            f"{sm / 10:.1f}"
        )
    return max(fitting)[1]
