"""Cut a branch out of a block: modules of it are replaced by ones without weights that answer with zeros.

The block keeps its place and its other branch; what stands here is a record of the cut, and how to make it again in a model
that was built whole. A newcomer's trap: the modules *before* the cut (a norm, the queries' layer) are replaced too, since
nothing but the cut branch hangs on them and their weights would be saved for nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .outputs import tensors_in
from .placeholder import is_placeholder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "HalfRemoval",
    "ZeroBranch",
    "Zeroed",
    "apply_half_removals",
    "half_removal_of",
    "has_zero_branches",
    "zeroed_like",
    "zeros_in_place",
]


@dataclass(frozen=True)
class Zeroed:
    """A module that gives zeros instead, and what its answer looks like.

    Args:
        path: The module's path within its block.
        axis: The one axis, counted from the last (-1), whose size isn't that of the first tensor it is given; 0 for none.
        size: That axis's size.
        length: The length of the tuple it answers with, 0 for a tensor alone.
        place: Where in that tuple the tensor stands; the rest is None.
    """

    path: str
    axis: int = 0
    size: int = 0
    length: int = 0
    place: int = 0


@dataclass(frozen=True)
class HalfRemoval:
    """A branch that was cut out of a block.

    Args:
        part: ``attention`` or ``mlp``.
        block_path: The block's module path.
        sites: Where what the branch adds leaves it.
        emptied: What fed nothing but these.
    """

    part: str
    block_path: str
    sites: tuple[Zeroed, ...]
    emptied: tuple[Zeroed, ...] = ()

    @property
    def zeroed(self) -> tuple[Zeroed, ...]:
        """Every module that is replaced."""
        return (*self.sites, *self.emptied)


class ZeroBranch(nn.Module):
    """Answers with zeros; in an exported graph nothing is left of it."""

    def __init__(self, zeroed: Zeroed, replaced: nn.Module) -> None:
        super().__init__()
        # the code around a module may read its settings (nn.TransformerEncoderLayer asks for batch_first)
        plain = {name: value for name, value in vars(replaced).items() if isinstance(value, bool | int | float | str)}
        vars(self).update({name: value for name, value in plain.items() if name not in vars(self)})
        for name in replaced._parameters:
            self.register_parameter(name, None)
        self.training = replaced.training
        self._zeroed = zeroed

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros of the shape that the replaced module's answer has for this input."""
        given, zeroed = tensors_in((args, kwargs))[0], self._zeroed
        shape = list(given.shape)
        if zeroed.axis:
            shape[zeroed.axis] = zeroed.size
        zeros = given.new_zeros(shape)
        if not zeroed.length:
            return zeros
        return tuple(zeros if place == zeroed.place else None for place in range(zeroed.length))

    def extra_repr(self) -> str:
        """Say what stood here."""
        return f"in the place of {self._zeroed.path}"


def apply_half_removals(module: nn.Module, records: Sequence[HalfRemoval]) -> None:
    """Cut these branches out of a module, in place.

    Raises:
        AttributeError: the module has no such block or no such module in it.
    """
    for record in records:
        _put_zeros(module.get_submodule(record.block_path), record.zeroed)


def half_removal_of(record: Mapping[str, Any]) -> HalfRemoval:
    """Return the record that ``dataclasses.asdict`` and a JSON file turned into plain types."""
    sites, emptied = (tuple(Zeroed(**one) for one in record[name]) for name in ("sites", "emptied"))
    return HalfRemoval(record["part"], record["block_path"], sites, emptied)


@contextmanager
def zeros_in_place(block: nn.Module, zeroed: Sequence[Zeroed]) -> Iterator[None]:
    """Cut branches out of a block for a while; the modules are put back at the end, also after an error."""
    before = _put_zeros(block, zeroed)
    try:
        yield
    finally:
        for parent, name, module in reversed(before):
            parent._modules[name] = module


def _put_zeros(block: nn.Module, zeroed: Sequence[Zeroed]) -> list[tuple[nn.Module, str, nn.Module]]:
    """Replace the modules and return what stood where."""
    before = []
    for one in zeroed:
        holder, _, name = one.path.rpartition(".")
        parent = block.get_submodule(holder)
        before.append((parent, name, block.get_submodule(one.path)))
    for (parent, name, module), one in zip(before, zeroed, strict=True):
        parent._modules[name] = ZeroBranch(one, module)
    return before


def has_zero_branches(module: nn.Module) -> bool:
    """Whether anything in a model adds zeros in the place of a branch, or of a block that is a list of branches."""
    return any(isinstance(part, ZeroBranch) or is_placeholder(part) for part in module.modules())


def zeroed_like(path: str, given: torch.Tensor, answer: object) -> Zeroed | None:
    """Return how zeros can stand for this answer to this input; None where a rule as simple as that doesn't exist."""
    length, place = 0, 0
    if type(answer) is tuple:
        places = [n for n, value in enumerate(answer) if isinstance(value, torch.Tensor)]
        if not places or any(value is not None and not isinstance(value, torch.Tensor) for value in answer):
            return None  # sizes that the next step needs
        length, place = len(answer), places[0]
        answer = answer[place]
    if not isinstance(answer, torch.Tensor) or answer.ndim != given.ndim or answer.dtype != given.dtype:
        return None
    changed = [axis for axis in range(-answer.ndim, 0) if answer.shape[axis] != given.shape[axis]]
    if len(changed) > 1 or -answer.ndim in changed:
        return None  # another number of items
    return Zeroed(path, changed[0], answer.shape[changed[0]], length, place) if changed else Zeroed(path, 0, 0, length, place)
