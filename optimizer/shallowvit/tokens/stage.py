"""The stage *tokens*: a pruned model in, a copy of it that keeps only some tokens behind chosen blocks out.

Which tokens stay depends on the input, how many doesn't, so the exported graph has static shapes (TopK and Gather). After
IA-RED^2 (Pan et al., arXiv 2106.12620) in spirit. A newcomer's trap: a share is of the model's tokens without those in front
(class, distillation, registers), which always stay.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from ..models.blocks import measured_flops
from ..models.skeletons import skeleton
from ..models.token_reducer import TokenReduction, TokenSite, apply_token_reduction
from ..models.weights import hash_state
from .checks import check_reduction, prefix_tokens, state_shapes
from .config import TokenScorer, count_from_share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..models import BlockStack, LoadedModel
    from ..pruning import PrunedModel
    from .config import TokenConfig

__all__ = ["reduce_tokens", "with_reduction"]


def reduce_tokens(pruned: PrunedModel, config: TokenConfig) -> PrunedModel:
    """Return a copy that keeps the share of the tokens that ``config`` says behind each block; ``pruned`` stays as it is.

    The model is run to see that it can do without: with permuted tokens its later blocks must answer permuted and its output
    alike, and with fewer tokens it must run and give outputs of the same shapes.

    Raises:
        ShallowvitError: a block isn't there, a share isn't possible, or the model needs its tokens; the sentence says why.
    """
    model = pruned.model
    if pruned.tokens is not None:
        raise ShallowvitError(
            f"tokens: {model.origin.spec} is reduced already ({pruned.tokens.text}); reduce the model that it was made from"
        )
    paths = _paths(pruned, config)
    shapes = state_shapes(model, list(paths.values()))
    prefix = prefix_tokens(model) if config.prefix is None else config.prefix
    if config.scorer == TokenScorer.CLASS and not prefix:
        raise ShallowvitError(
            f"tokens: the scorer class compares with the class token, and {model.origin.architecture} has none; use mean"
        )
    sites: list[TokenSite] = []
    for block, share in config.shares:
        tokens, width = shapes[paths[block]]
        if prefix >= tokens:
            raise ShallowvitError(
                f"tokens: {prefix} tokens in front always stay, and there are {tokens} behind block {block}; give fewer"
            )
        before = sites[-1].after if sites else tokens
        after = prefix + count_from_share(share, tokens - prefix)
        if after < before:
            sites.append(TokenSite(block, paths[block], before, after, width))
    if not sites:
        return pruned
    reduction = TokenReduction(str(config.scorer), prefix, tuple(sites))
    check_reduction(model, reduction)
    return with_reduction(pruned, reduction)


def with_reduction(pruned: PrunedModel, reduction: TokenReduction) -> PrunedModel:
    """Return a copy with this reduction, its operations counted anew; whether the model can do with it isn't tried."""
    model = pruned.model
    module = copy.deepcopy(model.module)
    apply_token_reduction(module, reduction)
    total, blocks = measured_flops(skeleton(module), model.example, model.blocks)
    operations = {stack.path: sum(block.flops for block in blocks if block.stack == stack.path) for stack in model.stacks}
    reduced: LoadedModel = replace(
        model,
        module=module,
        recipe=copy.deepcopy(model.recipe) | {"stock": False},  # no stock library reduces so
        blocks=blocks,
        stacks=_recounted(model.stacks, operations),
        flops=total,
        sha256=hash_state(module),
    )
    plan = replace(pruned.plan, flops_after=total)
    return replace(pruned, model=reduced, plan=plan, tokens=reduction)


def _recounted(stacks: Sequence[BlockStack], operations: dict[str, int]) -> tuple[BlockStack, ...]:
    """Stacks with what their blocks do now; one whose blocks aren't in use keeps its own count."""
    return tuple(replace(stack, flops=operations[stack.path] or stack.flops) for stack in stacks)


def _paths(pruned: PrunedModel, config: TokenConfig) -> dict[int, str]:
    """The path in the pruned model of each block that is named, by its number in the unpruned one."""
    now = {block: path for path, block in pruned.places.items()}
    known = ", ".join(map(str, now))
    for block, _share in config.shares:
        if block >= len(pruned.plan.paths):
            raise ShallowvitError(
                f"tokens: no block {block}; the model has blocks 0 to {len(pruned.plan.paths) - 1}, of which {known} stay"
            )
        if block not in now:
            raise ShallowvitError(f"tokens: block {block} was removed, so nothing is reduced behind it; {known} stay")
        if block == max(now):
            raise ShallowvitError(
                f"tokens: block {block} is the last, so no block would see fewer tokens; name an earlier one of {known}"
            )
    return {block: now[block] for block, _share in config.shares}
