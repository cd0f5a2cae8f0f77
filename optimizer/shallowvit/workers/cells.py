"""The cells of long work and their cache: a task, a JSON file named by the hash of all that its result depends on.

Files appear under their name only when whole (written beside, fsync, rename), so what was killed goes on where it was. A
newcomer's trap: the key holds contents (hashes of weights and items, the finetuning's settings), never names or paths, so
a model that moved is not measured again and one that changed is.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PROTOCOL", "CellStore", "Failure", "Task", "hash_of", "write_whole"]

PROTOCOL = 1  # raise it when a cell's result means something else than before


@dataclass(frozen=True)
class Task:
    """One thing to compute.

    Args:
        kind: What the workbench calls it: ``scores``, ``zero-shot``, ``finetuned``.
        model: Which of the checkpoints.
        key: All that the result depends on, as JSON values.
        arguments: What the worker needs to do it.
        cost: Expected work, in forwards of an item through the whole model.
    """

    kind: str
    model: int
    key: dict[str, Any] = field(hash=False)
    arguments: dict[str, Any] = field(hash=False, compare=False)
    cost: float = field(hash=False, compare=False, default=1.0)

    @cached_property
    def name(self) -> str:
        """The hash that names the cell."""
        return hash_of({"protocol": PROTOCOL, "kind": self.kind, **self.key})


@dataclass(frozen=True)
class Failure:
    """Why a task has no result."""

    reason: str


class CellStore:
    """The folder of finished cells."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, task: Task) -> dict[str, Any] | None:
        """Return the cell of a task, or None when it isn't there or can't be read, which only computes it again."""
        try:
            cell = json.loads((self.folder / f"{task.name}.json").read_text())
        except (OSError, ValueError):
            return None
        whole = isinstance(cell, dict) and {"key", "result", "conditions"} <= cell.keys()
        return cell if whole and hash_of(cell["key"]) == task.name else None

    def write(self, task: Task, result: dict[str, Any], conditions: dict[str, Any]) -> dict[str, Any]:
        """Keep a finished cell and return it."""
        key = {"protocol": PROTOCOL, "kind": task.kind, **task.key}
        text = json.dumps({"key": key, "result": result, "conditions": conditions}, indent=1, sort_keys=True)
        write_whole(self.folder / f"{task.name}.json", text + "\n")
        self.checkpoint(task).unlink(missing_ok=True)  # not before the cell is there
        cell: dict[str, Any] = json.loads(text)  # what a later run will read
        return cell

    def checkpoint(self, task: Task) -> Path:
        """Where an unfinished finetuning of several epochs is kept."""
        return self.folder / f"{task.name}.pt"


def hash_of(record: object) -> str:
    """Return the sha256 of a record of JSON values, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it never stands half-written under its name."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with beside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()
