"""How blocks were taken out of a model, as records that a saved folder keeps, and how to do it again to a whole model.

A newcomer's trap: removals are applied one after the other, and each counts places in the list as the one before left it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .bypass import Route, skipping
from .deletion import delete_blocks
from .placeholder import put_placeholder
from .probes import random_like
from .skeletons import skeleton

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

__all__ = ["Removal", "apply_removal", "gone_paths", "learn_routes", "skeleton"]


@dataclass(frozen=True)
class Removal:
    """What became of the removed blocks of one module list.

    Args:
        path: The list's module path.
        length: How many children it had.
        gone: The places that were removed.
        way: ``deleted``, or ``placeholder``: a module without weights stands in the place and hands the state on.
        reason: Why a block wasn't deleted, or what else was mended; empty otherwise.
        taps: How taps by block number were read and moved, one of ``TAP_MEANINGS``; empty where there are none.
        modes: What the parts of a composite block's placeholder do.
    """

    path: str
    length: int
    gone: tuple[int, ...]
    way: str
    reason: str = ""
    taps: str = ""
    modes: tuple[tuple[str, str], ...] = ()

    @property
    def kept(self) -> tuple[int, ...]:
        """The places that stay."""
        return tuple(place for place in range(self.length) if place not in self.gone)


def apply_removal(module: nn.Module, removal: Removal, routes: Mapping[str, Route]) -> None:
    """Take the blocks out, in place; ``routes`` are needed for placeholders, by the block's module path."""
    if removal.way == "deleted":
        delete_blocks(module, removal.path, removal.kept, removal.taps)
        return
    for path in gone_paths(module, removal):
        put_placeholder(module, path, routes.get(path), dict(removal.modes))


def gone_paths(module: nn.Module, removal: Removal) -> list[str]:
    """Return the module paths of the removed blocks, before the removal."""
    names = [name for name, _ in module.get_submodule(removal.path).named_children()]
    return [f"{removal.path}.{names[place]}" if removal.path else names[place] for place in removal.gone]


def learn_routes(module: nn.Module, example: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Route]:
    """Run one forward of a copy on random inputs and return how each of these blocks would hand its state on."""
    copied = skeleton(module)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), skipping(copied, {path: {} for path in paths}) as routes:
        copied(**random_like(example))
    return dict(routes)
