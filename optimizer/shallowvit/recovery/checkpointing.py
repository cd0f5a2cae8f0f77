"""Checkpoints of trainings: written whole or not at all, read without running anything in them, and told apart by their run.

A newcomer's trap: a checkpoint is of one run. With other settings, items or weights it is refused, since what it resumed
would be neither the one training nor the other.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError
from ..files import disk_sentences

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_same_run", "read_checkpoint", "save_atomically"]


def save_atomically(state: Any, path: Path, stage: str = "finetune") -> None:
    """Save beside the path, have it on the disk and rename, so that a kill leaves the old checkpoint or the new one.

    Raises:
        ShallowvitError: the disk is full or may not be written; the old checkpoint stays.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with disk_sentences(stage, path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def read_checkpoint(stage: str, path: Path, device: torch.device) -> dict[str, Any]:
    """Return what ``save_atomically`` wrote, a dict with ``run`` in it.

    Raises:
        ShallowvitError: it can't be read.
    """
    try:
        state = torch.load(path, weights_only=True, map_location=device)
        state["run"]
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as err:
        # what torch says of a pickle it doesn't trust is how to run it all the same
        first = "it is damaged or holds other things" if isinstance(err, pickle.UnpicklingError) else str(err).strip()
        first = first.partition("\n")[0] or "it ends too early"
        raise ShallowvitError(f"{stage}: {path} can't be read as a checkpoint ({first}); remove it") from err
    return dict(state)


def check_same_run(stage: str, path: Path, found: dict[str, Any], run: dict[str, Any]) -> None:
    """Refuse the checkpoint of another run.

    Raises:
        ShallowvitError: names the first thing in which they differ.
    """
    other = [name for name, value in run.items() if found.get(name) != value]
    if other:
        raise ShallowvitError(
            f"{stage}: {path} is of a run with {other[0]} {found.get(other[0])}, this one has {run[other[0]]}; remove it or "
            "give another checkpoint"
        )
