"""What a worker does: prune, repair, train, and measure top-1 on the items held out, a candidate at a time.

A newcomer's trap: a worker computes with one thread, whatever the machine has, because sums in another order round differently
and the same search would take other turns on another machine.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from shallowvit_bench.conditions import read_conditions
from shallowvit_bench.errors import BenchError

from ..errors import ShallowvitError
from ..exporting import deployable
from ..models import load
from ..recovery import RecoverConfig, TrainConfig, recover
from ..recovery.finetuning import item_results
from ..recovery.records import Workplace
from ..recovery.settings import CLOSED_FORM, RecoverMethod
from ..workers.cells import Failure
from .candidates import fewer_tokens, shallow

if TYPE_CHECKING:
    from pathlib import Path

    from ..models import LoadedModel
    from ..pruning import PrunedModel
    from ..workers.cells import Task
    from .subject import Materials

__all__ = ["Tuner"]

# what a candidate can fail with by its own fault; anything else is a bug, ends the worker and is reported as that
_FAILURES = (ShallowvitError, BenchError, RuntimeError, MemoryError, OSError)
_BATCH = 100


class Tuner:
    """A worker's loaded model and data."""

    def __init__(self, materials: Materials) -> None:
        torch.set_num_threads(1)
        self._materials = materials.opened()
        self._conditions = asdict(read_conditions(threads=torch.get_num_threads()))
        self._loaded: LoadedModel | None = None

    def ready(self) -> None:
        """Answer once the workbench is made, for those that make it elsewhere."""

    def outcome(self, task: Task, checkpoint: Path | None = None) -> dict[str, Any] | Failure:
        """Do a task; a failure is an answer too.

        Returns:
            ``result``, ``conditions`` and, where the key asks for them, ``weights`` as safetensors; or why there is none.
        """
        started = time.monotonic()
        try:
            found = self._candidate(task.key, checkpoint)
        except _FAILURES as err:
            ours = isinstance(err, ShallowvitError | BenchError)
            return Failure(str(err) if ours else f"{type(err).__name__}: {err}")
        when = {"time_utc": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.monotonic() - started, 3)}
        return {**found, "conditions": {**self._conditions, **when}}

    def _candidate(self, key: dict[str, Any], checkpoint: Path | None) -> dict[str, Any]:
        model = self._model()
        pruned = shallow(model, None, key["removed"], key["keep_tokens"])
        pruned, steps = self._recovered(model, pruned, key, checkpoint)
        heldout = self._materials.heldout
        frames, labels = torch.from_numpy(heldout.frames), torch.from_numpy(heldout.labels)
        losses, right = item_results(deployable(pruned.model, preprocess=True), frames, labels, _BATCH)
        found: dict[str, Any] = {"result": {"top1": float(right.double().mean()), "loss": float(losses.mean()), "steps": steps}}
        if key["weights"]:
            from safetensors.torch import save

            state = {name: value.contiguous().clone() for name, value in pruned.model.module.state_dict().items()}
            found["weights"] = save(state)
        return found

    def _recovered(
        self, model: LoadedModel, pruned: PrunedModel, key: dict[str, Any], checkpoint: Path | None
    ) -> tuple[PrunedModel, list[dict[str, Any]]]:
        """The steps in order; tokens go behind the closed form, which compares states of all tokens."""
        methods = [RecoverMethod(name) for name in key["method"].split(",")]
        closed = [method for method in methods if method in CLOSED_FORM and pruned.plan.removed]
        trained = [method for method in methods if method not in CLOSED_FORM]
        steps: list[dict[str, Any]] = []
        for part in (closed, trained):
            if part:
                config = self._config(",".join(part), key)
                recovered = recover(model, pruned, config, Workplace(folder=checkpoint) if part is trained else None)
                pruned = recovered.pruned
                steps += recovered.lines
            if part is closed:
                pruned = fewer_tokens(pruned, key["keep_tokens"])
        return pruned, steps

    def _config(self, method: str, key: dict[str, Any]) -> RecoverConfig:
        training = TrainConfig(**key["training"]) if key["training"] else TrainConfig()
        data = str(self._materials.trained_on)
        return RecoverConfig(data, method, key["samples"], seed=key["seed"], training=training)

    def _model(self) -> LoadedModel:
        if self._loaded is None:
            wanted = self._materials.model
            model = load(wanted.source, arch=wanted.arch, blocks=wanted.blocks)
            if model.sha256 != wanted.sha256:
                raise ShallowvitError(
                    f"tune: {wanted.source} has weights {model.sha256[:12]} here, {wanted.sha256[:12]} where the search was "
                    "started; give every worker the same files and leave them as they are"
                )
            self._loaded = replace(model)
        return self._loaded
