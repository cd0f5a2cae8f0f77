"""What each family's loader hands to ``load``: the built module and what only that family knows about its input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from .records import InputSpec

__all__ = ["RawModel"]


@dataclass(frozen=True)
class RawModel:
    """A built module before its blocks are looked for; see ``LoadedModel`` for the fields."""

    module: torch.nn.Module
    family: str
    input_spec: InputSpec
    example: dict[str, Any]
    labels: tuple[str, ...] | None = None
    folder: Path | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
