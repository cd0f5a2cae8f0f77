"""Remove blocks from a copy of a model, checked, and describe what is left.

A newcomer's trap: deleting a module is the smaller half. Configurations, per-block indices and lists with one entry a block go
on describing the model as it was, and nothing fails until somebody reloads it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import ShallowvitError
from ..models.removals import Removal
from ..models.token_reducer import TokenReduction, token_reduction_in
from ..models.weights import hash_state
from ..models.windows import window_pairs
from ..models.zero_branch import HalfRemoval
from .removal import paths_after, remove_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..models import Block, BlockStack, LoadedModel
    from .planning import PruningPlan

__all__ = ["PrunedModel", "Removal", "TokenReduction", "prune"]


@dataclass(frozen=True)
class PrunedModel:
    """A model without its plan's blocks. ``model`` describes what is left; its ``origin`` is still the unpruned source.

    ``removals`` say, list by list, whether blocks were deleted or their places kept, and why; ``halves`` which branches were
    cut out of blocks that all stand; ``recovery`` what ``recover`` did to it since, a JSON object a step; ``tokens`` which
    ones stay behind which blocks.
    """

    model: LoadedModel
    plan: PruningPlan
    removals: tuple[Removal, ...] = ()
    halves: tuple[HalfRemoval, ...] = ()
    recovery: tuple[dict[str, Any], ...] = ()
    tokens: TokenReduction | None = None

    @property
    def places(self) -> dict[str, int]:
        """The module path of each block that stands in the pruned model -> its number in the unpruned one."""
        return {block.path: number for block, number in zip(self.model.blocks, self.plan.standing, strict=True)}


def prune(model: LoadedModel, plan: PruningPlan) -> PrunedModel:
    """Return a copy of the model without the plan's blocks; the model itself is untouched.

    What is left is compared with the model whose blocks hand their input on, on random and real inputs. Where deleting gives
    something else, a module without weights keeps the block's place. A deleted block's configuration (transformers) or building
    arguments (timm) are mended so that the stock library builds exactly the copy.

    Raises:
        ShallowvitError: the plan is of other weights, or no form of the pruned model equals the one that skips the blocks.
    """
    if plan.weights_sha256 != model.sha256:
        raise ShallowvitError(
            f"prune: the plan was made for weights {plan.weights_sha256[:12]}, the model has {model.sha256[:12]}; plan again"
        )
    tokens = token_reduction_in(model.module)
    if not plan.removed:
        return PrunedModel(model, plan, tokens=tokens)
    if tokens is not None:
        raise ShallowvitError(
            f"prune: {model.origin.spec} reduces its tokens ({tokens.text}), so its blocks can't be taken out any more; prune "
            "the model that it was made from, with --keep-tokens"
        )
    if plan.granularity != "block":
        return _without_halves(model, plan)
    removed = remove_blocks(model, plan.removed)
    module = copy.deepcopy(removed.module)  # with weights of its own
    blocks = _kept_blocks(model, plan, removed.removals)
    left = replace(
        model,
        module=module,
        recipe=copy.deepcopy(removed.recipe),
        blocks=blocks,
        stacks=_stacks_left(model, blocks, plan.removed),
        flops=plan.flops_after,
        pairs=window_pairs(module, blocks),
        sha256=hash_state(module),
    )
    return PrunedModel(left, plan, removed.removals)


def _without_halves(model: LoadedModel, plan: PruningPlan) -> PrunedModel:
    from .halves import blocks_left, remove_halves

    shared, records = remove_halves(model, plan.removed, plan.granularity)
    module, blocks = copy.deepcopy(shared), blocks_left(model, plan.removed, plan.granularity)
    left = replace(
        model,
        module=module,
        recipe=copy.deepcopy(model.recipe) | {"stock": False},  # no stock library has such a block
        blocks=blocks,
        stacks=_stacks_left(model, blocks, plan.removed),
        flops=plan.flops_after,
        sha256=hash_state(module),
    )
    return PrunedModel(left, plan, halves=records)


def _kept_blocks(model: LoadedModel, plan: PruningPlan, removals: Sequence[Removal]) -> tuple[Block, ...]:
    return tuple(
        replace(model.blocks[number], index=index, position=place, path=path)
        for index, (number, place, path) in enumerate(paths_after(model, plan.removed, removals))
    )


def _stacks_left(model: LoadedModel, blocks: tuple[Block, ...], removed: Sequence[int]) -> tuple[BlockStack, ...]:
    """The stacks, those that lost blocks with their new sizes; a stack keeps its name, by which its blocks know it."""
    changed = {model.blocks[number].stack for number in removed}
    return tuple(_shrunk(stack, blocks) if stack.path in changed else stack for stack in model.stacks)


def _shrunk(stack: BlockStack, blocks: Sequence[Block]) -> BlockStack:
    own = [block for block in blocks if block.stack == stack.path]
    return replace(stack, length=len(own), parameters=sum(b.parameters for b in own), flops=sum(b.flops for b in own))
