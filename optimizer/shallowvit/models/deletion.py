"""Delete blocks from a list in place, with the indices and the per-block lists that the modules around it keep.

A newcomer's trap: this leaves configurations alone; ``pruning.prune`` mends those, on a copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

__all__ = ["delete_blocks"]

# What a block may call its own place, and what its parents may call the number of blocks or a list with one entry a block.
_OWN_INDEX = ("layer_idx", "layer_id", "layer_index", "block_idx", "block_index", "block_id")
_COUNTS = ("depth", "num_layers", "n_layers", "num_hidden_layers", "num_blocks", "n_blocks")
_PER_BLOCK = ("dpr", "drop_path_rates", "drop_path_rate", "layer_types", "layer_scales")
_PER_BLOCK_NAMED = ("feature_info",)  # entries name the block's new place, so the first ones stay


def delete_blocks(module: nn.Module, stack: str, kept: Sequence[int]) -> None:
    """Delete all but the blocks at positions ``kept`` of the list at path ``stack``, in place, with their indices and lists.

    The kept blocks take the first names of the list (``encoder_layer_0`` ...), so a list built shorter has the same names.
    """
    blocks = module.get_submodule(stack)
    names, children = list(blocks._modules), list(blocks._modules.values())
    length = len(children)
    blocks._modules.clear()
    for name, position in zip(names, kept, strict=False):
        blocks._modules[name] = children[position]
    for new, old in enumerate(kept):
        for part in children[old].modules():  # type: ignore[union-attr]
            for attribute in _OWN_INDEX:
                if vars(part).get(attribute) == old:
                    setattr(part, attribute, new)
    parts = stack.split(".")
    # what stands above a list of stages (stages.2.blocks) counts stages, not blocks
    inside = max((place + 1 for place, part in enumerate(parts) if part.isdecimal()), default=0)
    for depth in range(inside, len(parts)):
        _mend_parent(module.get_submodule(".".join(parts[:depth])), length, kept)


def _mend_parent(parent: nn.Module, length: int, kept: Sequence[int]) -> None:
    for attribute, value in list(vars(parent).items()):
        if attribute in _COUNTS and value == length and type(value) is int:
            setattr(parent, attribute, len(kept))
        elif attribute in _PER_BLOCK and isinstance(value, list | tuple) and len(value) == length:
            setattr(parent, attribute, type(value)(value[position] for position in kept))
        elif attribute in _PER_BLOCK_NAMED and isinstance(value, list) and len(value) == length:
            setattr(parent, attribute, value[: len(kept)])
