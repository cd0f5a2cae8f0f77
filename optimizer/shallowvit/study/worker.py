"""What a worker does: load the models once, then score, measure without retraining, or finetune and measure, a task at a time.

A newcomer's trap: a worker computes with one thread, whatever the machine has, because sums in another order round differently
and the same study would give other digits on another machine.
"""

from __future__ import annotations

import base64
import copy
import time
import warnings
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shallowvit_bench.conditions import read_conditions
from shallowvit_bench.errors import BenchError

from ..errors import ShallowvitError
from ..exporting import deployable
from ..exporting.frames import FramesToInput
from ..models import load
from ..pruning import PlanConfig, plan, prune
from ..recovery import FinetuneConfig, finetune
from ..recovery.finetuning import item_results
from ..scoring import Calibration, ScoreConfig, score
from ..scoring.criteria import CRITERIA, Needs
from ..workers.cells import Failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..models import LoadedModel
    from ..workers.cells import Task
    from .materials import Items, Materials

__all__ = ["Workbench", "packed_bits", "unpacked_bits"]

# what a task can fail with by its own fault; anything else is a bug, ends the worker and is reported as that
_FAILURES = (ShallowvitError, BenchError, RuntimeError, MemoryError, OSError)


class Workbench:
    """A worker's loaded models and data."""

    def __init__(self, materials: Materials) -> None:
        torch.set_num_threads(1)
        self._materials = materials.opened()
        self._conditions = asdict(read_conditions(threads=torch.get_num_threads()))
        self._models: dict[int, LoadedModel] = {}
        self._kinds: dict[str, Callable[[Task, Path | None], dict[str, Any]]] = {
            "scores": self._scores,
            "zero-shot": self._zero_shot,
            "finetuned": self._finetuned,
        }

    def ready(self) -> None:
        """Answer once the workbench is made, for those that make it elsewhere."""

    def outcome(self, task: Task, checkpoint: Path | None = None) -> dict[str, Any] | Failure:
        """Do a task; a failure is an answer too.

        Returns:
            ``result`` and ``conditions``, or why there is none.
        """
        started = time.monotonic()
        try:
            result = self._kinds[task.kind](task, checkpoint)
        except _FAILURES as err:
            ours = isinstance(err, ShallowvitError | BenchError)
            return Failure(str(err) if ours else f"{type(err).__name__}: {err}")
        when = {"time_utc": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(time.monotonic() - started, 3)}
        return {"result": result, "conditions": {**self._conditions, **when}}

    def _model(self, number: int) -> LoadedModel:
        if number not in self._models:
            wanted = self._materials.models[number]
            model = load(wanted.source, arch=wanted.arch, blocks=wanted.blocks)
            if model.sha256 != wanted.sha256:
                raise ShallowvitError(
                    f"study: {wanted.source} has weights {model.sha256[:12]} here, {wanted.sha256[:12]} where the study was "
                    "started; give every worker the same files and leave them as they are"
                )
            self._models[number] = model
        return self._models[number]

    def _scores(self, task: Task, _checkpoint: Path | None) -> dict[str, Any]:
        model = self._model(task.model)
        config = ScoreConfig(**task.arguments["config"])
        needs_data = CRITERIA[config.criterion].needs is not Needs.NOTHING or config.criterion == "mix"
        data = self._calibration(config.samples) if needs_data else None
        scores = score(model, config, data)
        return {
            "scores": [row.score for row in scores.blocks],
            "noise": [row.noise for row in scores.blocks],
            "removal_order": list(scores.ascending),
            "unit": scores.unit,
        }

    def _zero_shot(self, task: Task, _checkpoint: Path | None) -> dict[str, Any]:
        module = self._without(task)
        frames, labels = _tensors(self._materials.test)
        losses, right = item_results(module, frames, labels, self._materials.batch)
        return {
            **_means(losses, right),
            "losses": base64.b64encode(losses.numpy().astype("<f4").tobytes()).decode(),
        }

    def _finetuned(self, task: Task, checkpoint: Path | None) -> dict[str, Any]:
        module = self._without(task)
        frames, labels = _tensors(self._materials.train)
        losses = finetune(module, frames, labels, FinetuneConfig(**task.key["finetune"]), checkpoint)
        test, test_labels = _tensors(self._materials.test)
        test_losses, right = item_results(module, test, test_labels, self._materials.batch)
        return {**_means(test_losses, right), "train_losses": losses}

    def _without(self, task: Task) -> torch.nn.Module:
        """A copy of the model without the task's blocks, from uint8 frames to logits."""
        model = self._model(task.model)
        removed = ",".join(map(str, task.key["removed"]))
        if not removed:
            # an empty plan would give the model itself, which other tasks still need
            return deployable(replace(model, module=copy.deepcopy(model.module)), preprocess=True)
        return deployable(prune(model, plan(model, None, PlanConfig(remove=removed))).model, preprocess=True)

    def _calibration(self, samples: int) -> Calibration:
        """The first of the training items, as the studied models take them (a pretraining checkpoint takes the same)."""
        train = self._materials.train
        frames, labels = _tensors(train)
        spec = self._model(0).input_spec
        assert spec.preprocessing is not None  # else no items could have been read
        prepare = FramesToInput(spec, spec.preprocessing)
        with torch.no_grad():
            return Calibration(train.name, prepare(frames[:samples]), labels[:samples])


def _means(losses: torch.Tensor, right: torch.Tensor) -> dict[str, Any]:
    means = {"loss": float(losses.mean()), "top1": float(right.double().mean())}
    return {**means, "items": len(right), "right": packed_bits(right.numpy())}


def packed_bits(right: np.ndarray[Any, Any]) -> str:
    """Return booleans as hex digits, eight in two."""
    return np.packbits(right).tobytes().hex()


def unpacked_bits(text: str, count: int) -> np.ndarray[Any, Any]:
    """Return the booleans that ``packed_bits`` packed."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)


def _tensors(items: Items) -> tuple[torch.Tensor, torch.Tensor]:
    with warnings.catch_warnings():
        # arrays that Ray shares between its workers can't be written to, and nothing here does
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(items.frames), torch.from_numpy(items.labels)
