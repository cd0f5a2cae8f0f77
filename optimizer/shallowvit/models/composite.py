"""Blocks that are lists of parts (``ModuleList([attn, ff])``), walked by the forward around them: how to skip one.

The list has no forward, so each part is told what to do: a part whose output is added to the state gives zeros, a part that
stands in the stream hands its input on. Which is which is tried out: the next block must see the state that this one saw. A
newcomer's trap: a list of like blocks (a stage) has the same form and is no block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .bypass import skipping
from .outputs import tensors_in
from .probes import random_like

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["composite_modes"]

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.RMSNorm)


def composite_modes(
    module: nn.Module, example: Mapping[str, Any], paths: Sequence[str], children: Sequence[nn.Module]
) -> tuple[tuple[str, str], ...] | None:
    """Return ``zero`` or ``pass`` for each part of a block, by the part's name, or None where no choice skips a block.

    Args:
        module: The model in eval mode.
        example: The keyword arguments of one forward.
        paths: The module paths of like blocks of one list, in the order of the list.
        children: The blocks.
    """
    parts = dict(children[0].named_children())
    if len(children) < 2 or len({_signature(part) for part in parts.values()}) < 2:
        return None
    inputs = random_like(example)
    branches = dict.fromkeys(parts, "zero")
    inline = dict.fromkeys(parts, "pass")
    mixed = {name: "pass" if isinstance(part, _NORMS) else "zero" for name, part in parts.items()}
    firsts = [next(child.children()) for child in children[:2]]
    for modes in (branches, inline, mixed):
        before, after = _states_at(module, inputs, firsts, {paths[0]: modes})
        if before is not None and after is not None and torch.equal(before, after):
            return tuple(modes.items())
    return None


def _signature(part: nn.Module) -> tuple[object, ...]:
    return (type(part), *(tuple(parameter.shape) for parameter in part.parameters()))


def _states_at(
    module: nn.Module, inputs: Mapping[str, Any], firsts: Sequence[nn.Module], skipped: dict[str, dict[str, str]]
) -> list[torch.Tensor | None]:
    """The first tensor that each of these modules is given, in its first call."""
    found: list[torch.Tensor | None] = [None] * len(firsts)

    def note(place: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = tensors_in((args, kwargs))
        if found[place] is None and given:
            found[place] = given[0].clone()

    handles = [
        first.register_forward_pre_hook(lambda _module, args, kwargs, place=place: note(place, args, kwargs), with_kwargs=True)
        for place, first in enumerate(firsts)
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), skipping(module, skipped):
            module(**inputs)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return [None] * len(firsts)  # a shape that this choice breaks
    finally:
        for handle in handles:
            handle.remove()
    return found
