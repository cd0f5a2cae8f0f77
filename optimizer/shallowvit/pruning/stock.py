"""Find the configuration with which the stock library builds exactly the pruned model.

Not by a table of model classes: each edit that could describe the shorter stack (a count, an entry of a list of depths, lists
with one entry a block) is tried by building the stock class without memory, until one has the pruned model's weights by name
and shape. A newcomer's trap: for a backbone, ``out_indices`` counts blocks too and has to move with them.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

__all__ = ["STOCK_FAMILIES", "mend_recipe"]

STOCK_FAMILIES = ("transformers", "timm")
_COUNT_FIRST = ("num_hidden_layers", "num_layers", "depth")  # tried before other fields that happen to hold the same number


def mend_recipe(
    module: nn.Module, family: str, recipe: dict[str, Any], stack: str, length: int, kept: Sequence[int]
) -> dict[str, Any]:
    """Mend the module's configuration (transformers, in place) or return new building arguments (timm).

    The result's ``"stock"`` is False when no configuration of the library builds the pruned model.
    """
    if family == "transformers":
        found = _mend_transformers(module, length, kept)
    elif family == "timm":
        arguments = _mend_timm(module, recipe, stack, len(kept))
        found = arguments is not None
        recipe = recipe | ({"arguments": arguments} if arguments is not None else {})
    else:
        found = False
    return recipe | {"stock": found and recipe.get("stock", True)}


def _mend_transformers(module: nn.Module, length: int, kept: Sequence[int]) -> bool:
    config: Any = module.config
    shapes = _shapes(module)
    for edited in _edits(config.to_dict(), length, kept):
        try:
            candidate = type(config).from_dict(edited)
            with torch.device("meta"):
                built = type(module)(candidate)
        except (ValueError, TypeError, RuntimeError, IndexError, AssertionError):
            continue  # an edit that the class itself refuses
        if _shapes(built) == shapes:
            _replace_config(module, config, candidate)
            return True
    return False


def _edits(config: dict[str, Any], length: int, kept: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield copies of the configuration with one field changed to the new number, then the same with per-block lists cut."""
    for path in sorted(_fields(config, length), key=lambda path: _rank(path, config)):
        edited = copy.deepcopy(config)
        holder = edited
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = len(kept)
        owner = edited[path[0]] if isinstance(edited[path[0]], dict) else edited
        _mend_taps(owner, length, kept)
        yield edited
        cut = copy.deepcopy(edited)
        if _cut_lists(cut[path[0]] if isinstance(cut[path[0]], dict) else cut, length, kept):
            yield cut


def _fields(config: Any, length: int, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of every whole number in the configuration that equals the stack's length."""
    items = config.items() if isinstance(config, dict) else enumerate(config)
    for key, value in items:
        if key in ("id2label", "label2id"):
            continue
        if type(value) is int and value == length:
            yield (*path, key)
        elif isinstance(value, dict | list):
            yield from _fields(value, length, (*path, key))


def _rank(path: tuple[Any, ...], config: dict[str, Any]) -> tuple[int, int]:
    name = next((key for key in reversed(path) if isinstance(key, str)), "")
    known = _COUNT_FIRST.index(name) if name in _COUNT_FIRST else len(_COUNT_FIRST)
    return (known if known < len(_COUNT_FIRST) else known + ("layer" not in name and "depth" not in name), len(path))


def _mend_taps(config: dict[str, Any], length: int, kept: Sequence[int]) -> None:
    """Move a backbone's taps: stage k is the state after k blocks, so it becomes the number of kept blocks among those."""
    if len(config.get("stage_names") or ()) != length + 1:
        return
    config.pop("stage_names")
    config.pop("out_features", None)
    if config.get("out_indices"):
        moved = [sum(position < tap % (length + 1) for position in kept) for tap in config["out_indices"]]
        config["out_indices"] = sorted(set(moved))


def _cut_lists(config: dict[str, Any], length: int, kept: Sequence[int]) -> bool:
    found = [key for key, value in config.items() if isinstance(value, list) and len(value) == length]
    for key in found:
        config[key] = [config[key][position] for position in kept]
    return bool(found)


def _replace_config(module: nn.Module, old: Any, new: Any) -> None:
    """Put the new configuration where the old one, or one of its parts, is referred to."""
    pairs = {id(old): new}
    for name, value in vars(old).items():
        if hasattr(value, "to_dict") and hasattr(new, name):
            pairs[id(value)] = getattr(new, name)
    new._attn_implementation = old._attn_implementation
    for part in module.modules():
        if id(vars(part).get("config")) in pairs:
            part.config = pairs[id(part.config)]


def _mend_timm(module: nn.Module, recipe: dict[str, Any], stack: str, length: int) -> dict[str, Any] | None:
    import timm

    shapes = _shapes(module)
    stages = _stage_lengths(module, stack)
    candidates: list[dict[str, Any]] = [{"depth": length}, {"num_layers": length}]
    candidates += [{name: stages} for name in ("depths", "layers", "stages") if stages]
    for edit in candidates:
        arguments = recipe["arguments"] | edit
        try:
            with torch.device("meta"):
                built = timm.create_model(recipe["architecture"], pretrained=False, **arguments)
        except (TypeError, ValueError, RuntimeError, AssertionError, IndexError):
            continue  # the entry point doesn't take this argument
        if _shapes(built) == shapes:
            return arguments
    return None


def _stage_lengths(module: nn.Module, stack: str) -> list[int] | None:
    """For ``stages.2.blocks``, the lengths of ``stages.*.blocks``."""
    parts = stack.split(".")
    place = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    if place is None:
        return None
    lengths = []
    for name, _ in module.get_submodule(".".join(parts[:place])).named_children():
        try:
            lengths.append(len(list(module.get_submodule(".".join([*parts[:place], name, *parts[place + 1 :]])).children())))
        except AttributeError:
            return None
    return lengths


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
