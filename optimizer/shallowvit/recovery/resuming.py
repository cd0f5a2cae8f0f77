"""What a killed recovery goes on from beside its trainings' checkpoints: what the closed form in front of them fitted.

A newcomer's trap: least squares on another number of threads rounds otherwise, so fitting again would give weights that the
checkpoint isn't of; they are kept and read.
"""

from __future__ import annotations

import copy
import os
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch

from ..files import only_one
from ..models.weights import hash_state
from .checkpointing import check_same_run, read_checkpoint, save_atomically
from .closed_form import Repair, RepairedGap

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from ..pruning import PrunedModel
    from .settings import RecoverConfig

__all__ = ["alone_in", "repaired_once"]


def alone_in(folder: Path | None) -> AbstractContextManager[None]:
    """Let no other command work in a folder while the block runs; no folder is nobody's.

    Raises:
        ShallowvitError: another process works there.
    """
    return only_one(folder, "recover") if folder is not None and _writes() else nullcontext()


def repaired_once(
    folder: Path | None, pruned: PrunedModel, config: RecoverConfig, method: str, fit: Callable[[], Repair]
) -> Repair:
    """Return the repair that an earlier run kept in a folder, or what ``fit`` gives, and keep it there if there is one.

    Raises:
        ShallowvitError: what is kept there is of another run or damaged, or the disk is full.
    """
    if folder is None:
        return fit()
    path = folder / "repaired.pt"
    chosen = {"samples": config.samples, "batch": config.batch, "seed": config.seed, "data": config.data}
    run = {"method": method, **chosen, "weights": hash_state(pruned.model.module)}
    if path.exists():
        state = read_checkpoint("recover", path, torch.device("cpu"))
        check_same_run("recover", path, state["run"], run)
        module = copy.deepcopy(pruned.model.module)
        module.load_state_dict(state["weights"])
        repaired = replace(pruned, model=replace(pruned.model, module=module, sha256=hash_state(module)))
        return Repair(repaired, tuple(RepairedGap(**gap) for gap in state["gaps"]), state["inputs"], state["seconds"])
    repair = fit()
    if _writes():
        told = {"gaps": [asdict(gap) for gap in repair.gaps], "inputs": repair.inputs, "seconds": repair.seconds}
        save_atomically({"run": run, "weights": repair.pruned.model.module.state_dict(), **told}, path, "recover")
    return repair


def _writes() -> bool:
    """Whether this is the process that writes, of those that accelerate launched."""
    return os.environ.get("RANK", "0") == "0"
