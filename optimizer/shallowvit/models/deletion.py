"""Take blocks out of a list in place, with the indices and the per-block lists that the modules around it keep.

A newcomer's trap: this leaves configurations alone; ``pruning.prune`` mends those, on a copy. What is known here of how models
count their blocks is data, and a guess: ``prune`` compares the result with the model whose blocks are skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

__all__ = ["TAP_MEANINGS", "delete_blocks", "has_taps"]

# What a block may call its own place, and what its parents may call the number of blocks or a list with one entry a block.
_OWN_INDEX = ("layer_idx", "layer_id", "layer_index", "block_idx", "block_index", "block_id")
_COUNTS = ("depth", "num_layers", "n_layers", "num_hidden_layers", "num_blocks", "n_blocks")
_PER_BLOCK = ("dpr", "drop_path_rates", "drop_path_rate", "layer_types", "layer_scales")
_PER_BLOCK_NAMED = ("feature_info",)  # entries name the block's new place, so the first ones stay

# What any module may call the blocks whose states it takes, and the block before which something is put into the state.
_TAPS = (
    "out_indices",
    "out_index",
    "out_layers",
    "take_indices",
    "taps",
    "hooks",
    "hooks_idx",
    "hook_indices",
    "fetch_idx",
    "fetch_layers",
    "feature_layers",
    "extract_layers",
    "intermediate_layers",
    "return_layers",
    "interaction_indexes",
)
_INSERTS = ("local_up_to_layer", "cls_token_layer", "cls_insert_layer", "token_layer", "insert_layer", "insert_at")
TAP_MEANINGS = ("after", "states")  # tap k is the state after block k, or after k blocks


def delete_blocks(module: nn.Module, path: str, kept: Sequence[int], taps: str = "") -> None:
    """Delete all but the children at places ``kept`` of the list at ``path``, in place, with their indices and lists.

    The kept children take the first names of the list (``encoder_layer_0`` ...), so a list built shorter has the same names.

    Args:
        module: The model.
        path: The list's module path.
        kept: The places that stay, in order.
        taps: Move taps by block number too, read as one of ``TAP_MEANINGS``; two that would fall together stay as they are.
    """
    blocks = module.get_submodule(path)
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
    parts = path.split(".")
    # what stands above a list of stages (stages.2.blocks) counts stages, not blocks
    inside = max((place + 1 for place, part in enumerate(parts) if part.isdecimal()), default=0)
    for depth in range(inside, len(parts)):
        _mend_parent(module.get_submodule(".".join(parts[:depth])), length, kept)
    if taps:
        for part in module.modules():
            _move_taps(part, length, kept, taps)


def has_taps(module: nn.Module, length: int) -> bool:
    """Whether any module taps or inserts at a place in a list of this length."""
    return any(_are_places(vars(part).get(name), length) for part in module.modules() for name in (*_TAPS, *_INSERTS))


def _are_places(value: Any, length: int) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return bool(values) and all(type(one) is int and 0 <= one <= length for one in values)


def _move_taps(part: nn.Module, length: int, kept: Sequence[int], meaning: str) -> None:
    for name in (*_TAPS, *_INSERTS):
        value: Any = vars(part).get(name)
        if not _are_places(value, length):
            continue
        values: list[int] = list(value) if isinstance(value, list | tuple) else [value]
        if meaning == "after" and name in _TAPS:
            moved = [sum(place <= one for place in kept) - 1 for one in values]
        else:
            moved = [sum(place < one for place in kept) for one in values]
        if min(moved) >= 0 and len(set(moved)) == len(set(values)):
            setattr(part, name, type(value)(moved) if isinstance(value, list | tuple) else moved[0])


def _mend_parent(parent: nn.Module, length: int, kept: Sequence[int]) -> None:
    for attribute, value in list(vars(parent).items()):
        if attribute in _COUNTS and value == length and type(value) is int:
            setattr(parent, attribute, len(kept))
        elif attribute in _PER_BLOCK and isinstance(value, list | tuple) and len(value) == length:
            setattr(parent, attribute, type(value)(value[position] for position in kept))
        elif attribute in _PER_BLOCK_NAMED and isinstance(value, list) and len(value) == length:
            setattr(parent, attribute, value[: len(kept)])
