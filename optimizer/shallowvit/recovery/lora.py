"""Train matrices of a low rank beside frozen weights (LoRA, Hu et al., arXiv 2106.09685) by peft, and fold them in behind.

A newcomer's trap: some models multiply by a layer's weight without calling the layer, where nothing beside it would be seen; so
layers are chosen by whether a forward calls them.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ..errors import MissingDependencyError, ShallowvitError
from .validating import seeded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..models import LoadedModel

__all__ = ["low_rank"]


@contextmanager
def low_rank(model: LoadedModel, rank: int, seed: int) -> Iterator[None]:
    """Within the block train, of the blocks, matrices of this rank alone, and what stands behind the last in full; 0: all.

    Behind it the module is of its own classes again, the matrices folded into its weights.

    Raises:
        ShallowvitError: no layer of the blocks takes such a matrix.
    """
    if not rank:
        yield
        return
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError as err:
        raise MissingDependencyError("recover: --lora-rank", "peft", "recover") from err
    names = _called_linears(model)
    if not names:
        raise ShallowvitError(
            f"recover: --lora-rank {rank}: no block of {model.origin.spec} calls a torch.nn.Linear; train it whole, by rank 0"
        )
    behind = _behind_blocks(model)
    with seeded(torch.device("cpu"), seed):
        tuner = LoraModel(model.module, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), "default")
    for parameter in behind:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        tuner.merge_and_unload()
        model.module.requires_grad_(False)


def _called_linears(model: LoadedModel) -> list[str]:
    """The paths of the linear layers within blocks that a forward calls."""
    called: list[str] = []
    hooks = [
        # subclasses have their weight used by others, as attention's own output layer in torch
        module.register_forward_hook(lambda *_given, path=path: called.append(path))
        for path, module in model.module.named_modules()
        if type(module) is torch.nn.Linear and any(path.startswith(f"{block.path}.") for block in model.blocks)
    ]
    try:
        with torch.no_grad():
            model.module(**model.example)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(called))


def _behind_blocks(model: LoadedModel) -> list[torch.nn.Parameter]:
    """The parameters that the module defines behind those of its last block: the final norm and the head."""
    named = list(model.module.named_parameters())
    inside = [
        place for place, (name, _value) in enumerate(named) if any(name.startswith(f"{block.path}.") for block in model.blocks)
    ]
    return [parameter for _name, parameter in named[max(inside, default=-1) + 1 :]]
