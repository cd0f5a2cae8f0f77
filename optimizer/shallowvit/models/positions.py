"""Resample tables of positions from one grid of patches to another: absolute ones over time, height and width, relative ones
over offsets, and the rest of a model's weights as they are.

A newcomer's trap: a table is told by its shape (a prefix of class tokens, then one row a patch), and a table can keep its
length while its grid turns from 2 x 4 into 4 x 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["Grid", "fill_resampled", "grid_of", "resampled"]

_MOST_PREFIX = 8  # class, distillation and register tokens that may have a position of their own


@dataclass(frozen=True)
class Grid:
    """Patches over time, height and width."""

    frames: int
    rows: int
    columns: int

    @property
    def absolute(self) -> tuple[tuple[int, ...], ...]:
        """The grids that an absolute table may be of."""
        return (self.frames, self.rows, self.columns), (self.rows, self.columns), (self.frames,)

    @property
    def relative(self) -> tuple[int, int]:
        """How many offsets there are over height and width."""
        return 2 * self.rows - 1, 2 * self.columns - 1


def grid_of(module: nn.Module, layout: str, shape: tuple[int, ...]) -> tuple[Grid, tuple[int, ...], bool] | None:
    """Return the grid of patches for an input, the patch's sides and whether patches are whole; None without one.

    The first convolution that takes the input's channels cuts it into patches; where patches overlap they need not be whole.
    """
    if layout not in ("NCHW", "NTCHW"):
        return None
    channels, height, width = shape[-3:]
    frames = shape[0] if layout == "NTCHW" else 1
    convolutions = (part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Conv3d))
    first = next((part for part in convolutions if part.in_channels == channels), None)
    if first is None or first.padding == "same":
        return None
    padding = (0,) * len(first.kernel_size) if isinstance(first.padding, str) else first.padding
    sizes = (height, width) if isinstance(first, nn.Conv2d) else (frames, height, width)
    counts = [
        (size + 2 * pad - kernel) // stride + 1
        for size, kernel, stride, pad in zip(sizes, first.kernel_size, first.stride, padding, strict=True)
    ]
    grid = Grid(*counts) if len(counts) == 3 else Grid(frames, *counts)
    return grid, tuple(first.stride), first.kernel_size == first.stride


def fill_resampled(
    built: nn.Module, state: Mapping[str, torch.Tensor], before: Grid, after: Grid, sized: Collection[str] = ()
) -> None:
    """Load the weights into ``built`` in place; what has another shape there, or is in ``sized``, is resampled.

    Raises:
        ShallowvitError: a weight has another shape that no grid explains, or is missing.
    """
    filled = {}
    for name, new in built.state_dict().items():
        old = state.get(name)
        if old is None:
            raise ShallowvitError(f"load: --image-size: at that size the model has a weight {name} that it lacks now")
        if old.shape == new.shape and name not in sized:
            filled[name] = old
        elif old.is_floating_point():
            filled[name] = resampled(name, old, tuple(new.shape), before, after)
        # an index of whole numbers follows from the size
    built.load_state_dict(filled, strict=False)


def resampled(name: str, table: torch.Tensor, shape: tuple[int, ...], before: Grid, after: Grid) -> torch.Tensor:
    """Return a table of positions for another grid: bicubic over height and width, linear over time, prefix rows as they are.

    Raises:
        ShallowvitError: the shapes are not those of a table of these grids.
    """
    if table.ndim == len(shape) >= 2:
        for dim in range(table.ndim):
            others = table.shape[:dim] + table.shape[dim + 1 :]
            if others != shape[:dim] + shape[dim + 1 :]:
                continue
            rows = table.movedim(dim, 0).flatten(1)  # [positions, everything else]
            found = _resampled_rows(rows, shape[dim], before, after)
            if found is not None:
                return found.unflatten(1, others).movedim(0, dim)
        for dim in range(table.ndim - 1):  # [.., rows, columns, ..]
            old, new = (before.rows, before.columns), (after.rows, after.columns)
            rest = shape[:dim] + shape[dim + 2 :]
            if (tuple(table.shape[dim : dim + 2]), shape[dim : dim + 2]) == (old, new):
                rows = table.movedim((dim, dim + 1), (0, 1)).reshape(prod(old), -1)
                return _interpolated(rows, old, new, "bicubic").reshape(*new, *rest).movedim((0, 1), (dim, dim + 1))
    raise ShallowvitError(
        f"load: --image-size: {name} has shape {tuple(table.shape)} and would need {shape}, which no resampling "
        f"from {before.frames}x{before.rows}x{before.columns} to {after.frames}x{after.rows}x{after.columns} patches gives. "
        "Build the model for that size in a file.py:function"
    )


def _resampled_rows(rows: torch.Tensor, length: int, before: Grid, after: Grid) -> torch.Tensor | None:
    """Resample a table with one row a position, behind a prefix (before one, of relative tables) that stays."""
    for old, new in zip(before.absolute, after.absolute, strict=True):
        prefix = len(rows) - prod(old)
        if 0 <= prefix <= _MOST_PREFIX and prefix == length - prod(new):
            return torch.cat([rows[:prefix], _interpolated(rows[prefix:], old, new, "bicubic")])
    extra = len(rows) - prod(before.relative)
    if 0 <= extra <= _MOST_PREFIX and extra == length - prod(after.relative):
        offsets = _interpolated(rows[: len(rows) - extra], before.relative, after.relative, "bilinear")
        return torch.cat([offsets, rows[len(rows) - extra :]])
    return None


def _interpolated(rows: torch.Tensor, old: tuple[int, ...], new: tuple[int, ...], mode: str) -> torch.Tensor:
    """From one row a cell of the grid ``old`` to one a cell of ``new``; both are (time, rows, columns), its end or time."""
    dtype, width = rows.dtype, rows.shape[1]
    times, sides = ((old[0], new[0]) if len(old) != 2 else (1, 1)), (old[-2:], new[-2:])
    if len(old) == 1:
        sides = ((1, 1), (1, 1))
    cells = rows.float().reshape(times[0], *sides[0], width).permute(0, 3, 1, 2)  # [time, D, rows, columns]
    if sides[0] != sides[1]:
        cells = nn.functional.interpolate(cells, size=sides[1], mode=mode, align_corners=False)
    if times[0] != times[1]:
        flat = cells.flatten(1).T.unsqueeze(0)  # [1, everything else, time]
        flat = nn.functional.interpolate(flat, size=times[1], mode="linear", align_corners=False)
        cells = flat[0].T.unflatten(1, cells.shape[1:])
    return cells.permute(0, 2, 3, 1).reshape(-1, width).to(dtype)
