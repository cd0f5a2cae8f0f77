"""Recover in a folder that a killed run goes on in: its trainings' checkpoints, and what the closed form in front fitted.

A newcomer's trap: least squares on another number of threads rounds otherwise, so fitting again would give weights that the
checkpoint isn't of; they are kept and read.
"""

from __future__ import annotations

import copy
import os
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from ..files import only_one
from ..models.weights import hash_state
from .checkpointing import check_same_run, read_checkpoint, save_atomically
from .closed_form import Repair, RepairedGap
from .records import Recovered, line_of
from .settings import CLOSED_FORM
from .stage import recover

if TYPE_CHECKING:
    from pathlib import Path

    from ..models import LoadedModel
    from ..pruning import PrunedModel
    from .records import Workplace
    from .settings import RecoverConfig

__all__ = ["recover_or_go_on"]


def recover_or_go_on(teacher: LoadedModel, pruned: PrunedModel, config: RecoverConfig, place: Workplace) -> Recovered:
    """Do what ``recover`` does, alone in the place's folder, and fit a closed form in front of trainings once.

    Raises:
        ShallowvitError: as ``recover``; another process works in the folder; or what was fitted there is of another run.
    """
    closed, trained = ([one for one in config.methods if (one in CLOSED_FORM) is wanted] for wanted in (True, False))
    if place.folder is None or not trained:
        return recover(teacher, pruned, config, place)
    with only_one(place.folder, "recover") if _writes() else nullcontext():
        if not closed:
            return recover(teacher, pruned, config, place)
        first = _fitted(teacher, pruned, replace(config, method=closed[0].value), place.folder / "repaired.pt")
        rest = recover(teacher, first.pruned, replace(config, method=",".join(trained)), place)
    return Recovered(rest.pruned, (*first.steps, *rest.steps))


def _fitted(teacher: LoadedModel, pruned: PrunedModel, config: RecoverConfig, path: Path) -> Recovered:
    """What an earlier run kept at the path, or what is fitted now and kept there."""
    chosen = {"samples": config.samples, "batch": config.batch, "seed": config.seed, "data": config.data}
    run = {"method": config.method, **chosen, "weights": hash_state(pruned.model.module)}
    if path.exists():
        state = read_checkpoint("recover", path, torch.device("cpu"))
        check_same_run("recover", path, state["run"], run)
        return _read(pruned, config, state)
    fitted = recover(teacher, pruned, config)
    (step,) = fitted.steps
    if _writes() and isinstance(step, Repair):
        told = {"gaps": [asdict(gap) for gap in step.gaps], "inputs": step.inputs, "seconds": step.seconds}
        save_atomically({"run": run, "weights": fitted.pruned.model.module.state_dict(), **told}, path, "recover")
    return fitted


def _read(pruned: PrunedModel, config: RecoverConfig, state: dict[str, Any]) -> Recovered:
    module = copy.deepcopy(pruned.model.module)
    module.load_state_dict(state["weights"])
    repaired = replace(pruned, model=replace(pruned.model, module=module, sha256=hash_state(module)))
    step = Repair(repaired, tuple(RepairedGap(**gap) for gap in state["gaps"]), state["inputs"], state["seconds"])
    noted = replace(repaired, recovery=(*pruned.recovery, line_of(step, config.method, config)))
    return Recovered(noted, (step,))


def _writes() -> bool:
    """Whether this is the process that writes, of those that accelerate launched."""
    return os.environ.get("RANK", "0") == "0"
