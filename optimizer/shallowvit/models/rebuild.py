"""Rebuild a model that was pruned and saved without a stock configuration: build it whole, delete, load the weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..errors import ShallowvitError
from .deletion import delete_blocks
from .weights import load_state, read_state_dict

if TYPE_CHECKING:
    from pathlib import Path

    import torch

__all__ = ["LINEAGE_FILE", "LINEAGE_SCHEMA", "read_lineage", "rebuild_pruned"]

LINEAGE_FILE = "shallowvit.json"
LINEAGE_SCHEMA = 1


def rebuild_pruned(module: torch.nn.Module, folder: Path) -> None:
    """Remove from an unpruned module, in place, what the folder's lineage names, and load the folder's weights.

    Raises:
        ShallowvitError: the lineage doesn't fit the module.
    """
    for stack, kept in read_lineage(folder)["removed"].items():
        try:
            length = len(list(module.get_submodule(stack).children()))
        except AttributeError as err:
            raise ShallowvitError(
                f"load: {folder} was pruned at {stack}, which {type(module).__name__} doesn't have. Check --arch"
            ) from err
        if length != kept["length"]:
            raise ShallowvitError(
                f"load: {folder} was pruned from {kept['length']} blocks at {stack}, {type(module).__name__} has {length}. "
                "Check --arch"
            )
        delete_blocks(module, stack, kept["kept"])
    load_state(module, read_state_dict(folder / "model.safetensors"), str(folder))


def read_lineage(folder: Path) -> dict[str, Any]:
    """Read ``shallowvit.json`` of a pruned folder."""
    try:
        lineage: dict[str, Any] = json.loads((folder / LINEAGE_FILE).read_text())
    except ValueError as err:
        raise ShallowvitError(f"load: {folder / LINEAGE_FILE} is not JSON ({err}). Prune the model again") from err
    if lineage.get("schema_version") != LINEAGE_SCHEMA:
        raise ShallowvitError(
            f"load: {folder / LINEAGE_FILE} has schema {lineage.get('schema_version')}, this version reads {LINEAGE_SCHEMA}. "
            "Update shallowvit"
        )
    return lineage
