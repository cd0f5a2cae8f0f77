"""Rebuild a model that was pruned and saved without a stock configuration: build it whole, delete, load the weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..errors import ShallowvitError
from .checkpoints import take_out_absent
from .removals import Removal, apply_removal, gone_paths, learn_routes
from .token_reducer import apply_token_reduction, token_reduction_of
from .weights import load_state, read_state_dict
from .zero_branch import HalfRemoval, apply_half_removals, half_removal_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

__all__ = ["LINEAGE_FILE", "LINEAGE_SCHEMA", "read_lineage", "rebuild_pruned", "removals_of", "schema_for"]

LINEAGE_FILE = "shallowvit.json"
LINEAGE_SCHEMA = 3  # 1 knew deleted blocks only, 2 no reduced tokens


def rebuild_pruned(module: torch.nn.Module, example: Mapping[str, Any], folder: Path) -> None:
    """Remove from an unpruned module, in place, what the folder's lineage names, and load the folder's weights.

    Args:
        module: The whole model.
        example: The keyword arguments of one forward, which shows how blocks whose places stay hand their input on.
        folder: What ``prune`` wrote.

    Raises:
        ShallowvitError: the lineage doesn't fit the module.
    """
    lineage = read_lineage(folder)
    for removal in removals_of(lineage):
        if isinstance(removal, HalfRemoval):
            _cut_half(module, removal, folder)
            continue
        try:
            length = len(list(module.get_submodule(removal.path).children()))
        except AttributeError as err:
            raise ShallowvitError(
                f"load: {folder} was pruned at {removal.path}, which {type(module).__name__} doesn't have. Check --arch"
            ) from err
        if length != removal.length:
            raise ShallowvitError(
                f"load: {folder} was pruned from {removal.length} blocks at {removal.path}, {type(module).__name__} has "
                f"{length}. Check --arch"
            )
        routes = {}
        if removal.way == "placeholder" and not removal.modes:
            routes = learn_routes(module, example, gone_paths(module, removal))
        apply_removal(module, removal, routes)
    if lineage.get("tokens"):
        _reduce_tokens(module, lineage["tokens"], folder)
    state = read_state_dict(folder / "model.safetensors")
    take_out_absent(module, state, str(folder))  # as it was when its weights were loaded
    load_state(module, state, str(folder))


def _reduce_tokens(module: torch.nn.Module, record: Mapping[str, Any], folder: Path) -> None:
    try:
        apply_token_reduction(module, token_reduction_of(record))
    except AttributeError as err:
        raise ShallowvitError(
            f"load: {folder} reduces tokens behind a block that {type(module).__name__} doesn't have ({err}). Check --arch"
        ) from err


def _cut_half(module: torch.nn.Module, removal: HalfRemoval, folder: Path) -> None:
    try:
        apply_half_removals(module, [removal])
    except AttributeError as err:
        raise ShallowvitError(
            f"load: {folder} lacks the {removal.part} of {removal.block_path}, which {type(module).__name__} doesn't have "
            f"({err}). Check --arch"
        ) from err


def removals_of(lineage: Mapping[str, Any]) -> tuple[Removal | HalfRemoval, ...]:
    """Return what a lineage says was removed, from the whole model on, in order."""
    if "removals" in lineage:
        return tuple(
            half_removal_of(record)
            if "part" in record
            else Removal(
                **(
                    record
                    | {"gone": tuple(record["gone"]), "modes": tuple((name, mode) for name, mode in record.get("modes", ()))}
                )
            )
            for record in lineage["removals"]
        )
    return tuple(
        Removal(path, one["length"], tuple(sorted(set(range(one["length"])) - set(one["kept"]))), "deleted")
        for path, one in lineage["removed"].items()
    )


def schema_for(*, tokens: bool) -> int:
    """Return the oldest schema that says all: an older reader must refuse a model whose reduction it would leave out."""
    return LINEAGE_SCHEMA if tokens else 2


def read_lineage(folder: Path) -> dict[str, Any]:
    """Read ``shallowvit.json`` of a pruned folder."""
    try:
        lineage: dict[str, Any] = json.loads((folder / LINEAGE_FILE).read_text())
    except ValueError as err:
        raise ShallowvitError(f"load: {folder / LINEAGE_FILE} is not JSON ({err}). Prune the model again") from err
    if lineage.get("schema_version") not in range(1, LINEAGE_SCHEMA + 1):
        raise ShallowvitError(
            f"load: {folder / LINEAGE_FILE} has schema {lineage.get('schema_version')}, this version reads {LINEAGE_SCHEMA}. "
            "Update shallowvit"
        )
    return lineage
