"""Remove blocks from a copy of a model, and mend what the rest of the model knows about their number and order.

A newcomer's trap: deleting a module is the smaller half. Configurations, per-block indices and lists with one entry a block go
on describing the model as it was, and nothing fails until somebody reloads it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..errors import ShallowvitError
from ..models import Block, BlockStack
from ..models.deletion import delete_blocks
from ..models.outputs import shapes_in
from ..models.weights import hash_state
from .stock import mend_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..models import LoadedModel
    from .planning import PruningPlan

__all__ = ["PrunedModel", "prune"]


@dataclass(frozen=True)
class PrunedModel:
    """A model without its plan's blocks. ``model`` describes what is left; its ``origin`` is still the unpruned source."""

    model: LoadedModel
    plan: PruningPlan


def prune(model: LoadedModel, plan: PruningPlan) -> PrunedModel:
    """Return a copy of the model without the plan's blocks; the model itself is untouched.

    The copy's configuration (transformers) or building arguments (timm) are mended so that the stock library builds exactly it.

    Raises:
        ShallowvitError: the plan is of other weights, or the pruned model doesn't run or changes its output's shape.
    """
    if plan.weights_sha256 != model.sha256:
        raise ShallowvitError(
            f"prune: the plan was made for weights {plan.weights_sha256[:12]}, the model has {model.sha256[:12]}; plan again"
        )
    if not plan.removed:
        return PrunedModel(model, plan)
    module = copy.deepcopy(model.module)
    recipe = copy.deepcopy(model.recipe)
    for stack in dict.fromkeys(block.stack for block in model.blocks):
        kept = [block.position for block in model.blocks if block.stack == stack and block.index in plan.kept]
        length = sum(block.stack == stack for block in model.blocks)
        if len(kept) < length:
            delete_blocks(module, stack, kept)
            recipe = mend_recipe(module, model.origin.family, recipe, stack, length, kept)
    _check_runs(model, module)
    blocks = _kept_blocks(model, plan)
    stacks = tuple(_shrunk(stack, blocks) if any(b.stack == stack.path for b in blocks) else stack for stack in model.stacks)
    left = replace(
        model, module=module, recipe=recipe, blocks=blocks, stacks=stacks, flops=plan.flops_after, sha256=hash_state(module)
    )
    return PrunedModel(left, plan)


def _check_runs(model: LoadedModel, module: torch.nn.Module) -> None:
    """One forward: it runs, and gives outputs of the same shapes."""
    with torch.no_grad():
        try:
            after = shapes_in(module(**model.example))
        except (RuntimeError, IndexError, ValueError, TypeError) as err:
            raise ShallowvitError(
                f"prune: {model.origin.architecture} doesn't run without these blocks: {err}. Its forward relies on their "
                "places; remove others"
            ) from err
    if after != model.output_shapes:
        raise ShallowvitError(
            f"prune: without these blocks the outputs of {model.origin.architecture} have shapes {after}, before "
            f"{model.output_shapes}; remove others"
        )


def _kept_blocks(model: LoadedModel, plan: PruningPlan) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for stack in dict.fromkeys(block.stack for block in model.blocks):
        own = [block for block in model.blocks if block.stack == stack]
        for position, block in enumerate(b for b in own if b.index in plan.kept):
            blocks.append(replace(block, index=len(blocks), position=position, path=own[position].path))
    return tuple(blocks)


def _shrunk(stack: BlockStack, blocks: Sequence[Block]) -> BlockStack:
    own = [block for block in blocks if block.stack == stack.path]
    return replace(stack, length=len(own), parameters=sum(b.parameters for b in own), flops=sum(b.flops for b in own))
