"""Cut the attention or the MLP out of blocks of a copy, checked against the model in which the branch answers with zeros.

A newcomer's trap: every block stays in its place, so the configuration stays too, and no stock library builds the result; it is
saved in our own form and loaded with ``arch``.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError
from ..models.halves import find_halves
from ..models.outputs import tensors_in, with_tensors
from ..models.probes import probe_inputs, random_like
from ..models.removals import skeleton
from ..models.zero_branch import HalfRemoval, apply_half_removals
from .removal import RUN_ERRORS, Seen, difference, woken

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from ..models import Block, LoadedModel

__all__ = ["blocks_left", "remove_halves"]


def remove_halves(model: LoadedModel, removed: Sequence[int], part: str) -> tuple[nn.Module, tuple[HalfRemoval, ...]]:
    """Return a copy that shares the model's weights, without the ``part`` of these blocks, and the record of each cut.

    Raises:
        ShallowvitError: a block has no such half, or the copy doesn't answer as the model with zeros there.
    """
    records = tuple(half.removal for half in find_halves(model, part, removed).values())
    awake = woken(model.module)
    cut = skeleton(awake)
    apply_half_removals(cut, records)
    inputs: Mapping[str, Any] = probe_inputs(model.input_spec, model.example)
    try:
        expected = _run(awake, inputs, records)
    except RUN_ERRORS:
        inputs = random_like(model.example, 1)  # it takes one item only
        expected = _run(awake, inputs, records)
    try:
        different = difference(_run(cut, inputs, ()), expected)
    except RUN_ERRORS as err:
        different = f"it doesn't run ({type(err).__name__}: {str(err).strip().partition(chr(10))[0]})"
    if different:
        blocks = ", ".join(model.blocks[number].path for number in removed)
        raise ShallowvitError(
            f"prune: {model.origin.architecture} without the {part} of {blocks} isn't the model in which that adds zeros: "
            f"{different}. Remove whole blocks, with --granularity block"
        )
    module = skeleton(model.module)
    apply_half_removals(module, records)
    return module, records


def blocks_left(model: LoadedModel, removed: Sequence[int], part: str) -> tuple[Block, ...]:
    """Return all blocks, those that lost a half with what is left of them."""
    halves = find_halves(model, part, removed)
    return tuple(
        replace(
            block,
            parameters=block.parameters - halves[block.index].parameters,
            flops=block.flops - halves[block.index].flops,
        )
        if block.index in removed
        else block
        for block in model.blocks
    )


def _run(module: nn.Module, inputs: Mapping[str, Any], silenced: Sequence[HalfRemoval]) -> Seen:
    """One forward with zeros put in the place of what the branches answer."""
    with ExitStack() as stack, torch.no_grad(), torch.random.fork_rng(devices=[]):
        for record in silenced:
            block = module.get_submodule(record.block_path)
            for site in record.sites:
                handle = block.get_submodule(site.path).register_forward_hook(lambda _m, _args, output: _silent(output))
                stack.callback(handle.remove)
        torch.manual_seed(0)  # what is drawn at random is drawn the same
        return Seen(tensors_in(module(**inputs)))


def _silent(output: object) -> object:
    first, *rest = tensors_in(output)
    return with_tensors(output, [torch.zeros_like(first), *rest])
