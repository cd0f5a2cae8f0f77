"""Find blocks that belong together: attention in windows and in windows shifted by half their size, one after the other.

Removing one of a pair is legal, but tokens at the borders of windows then never meet; the published models always have both.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from .records import Block

__all__ = ["window_pairs"]

# What the shift of a block's windows is called; a number or one an axis, 0 where windows aren't shifted.
_SHIFTS = ("shift_size", "target_shift_size", "shift")


def window_pairs(module: nn.Module, blocks: Sequence[Block]) -> tuple[tuple[int, ...], ...]:
    """Return the numbers of each unshifted block with the shifted one after it, in the stacks where the two take turns."""
    pairs: list[tuple[int, ...]] = []
    for stack in dict.fromkeys(block.stack for block in blocks):
        own = [block for block in blocks if block.stack == stack]
        shifted = [_is_shifted(module.get_submodule(block.path)) for block in own]
        if None in shifted or len(set(shifted)) < 2 or any(one == other for one, other in pairwise(shifted)):
            continue
        starts = range(0 if not shifted[0] else 1, len(own) - 1, 2)
        pairs += [(own[start].index, own[start + 1].index) for start in starts]
    return tuple(pairs)


def _is_shifted(block: nn.Module) -> bool | None:
    """Whether the block's windows are shifted; None for a block without windows."""
    for part in block.modules():
        for name in _SHIFTS:
            value = vars(part).get(name)
            if isinstance(value, int | tuple | list) and not isinstance(value, bool):
                return any(value) if isinstance(value, tuple | list) else value > 0
    return None
