"""The record that the stages *export*, *build* and *verify* return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from .manifest import Manifest

__all__ = ["Bundle"]


@dataclass(frozen=True)
class Bundle:
    """A folder that an edge team can check, load and benchmark without this project: where it is and what is in it."""

    path: Path
    manifest: Manifest
