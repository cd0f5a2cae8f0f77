"""The loop of all trainings: an objective is minimised over items, by accelerate, timm's optimisers and its schedule.

A batch's draws (order, augmentation, mixing, dropout) come from the seed and the batch's number alone, so a run that was killed
goes on with the same losses to the last bit. A newcomer's trap: ``TrainConfig.batch`` is what one process sees at a time; a
step of the optimiser sees ``batch`` x ``accumulate`` x processes.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import asdict
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import MissingDependencyError, ShallowvitError
from ..files import disk_sentences
from ..models.weights import hash_state
from ..workers.cells import write_whole
from .checkpointing import check_same_run, read_checkpoint, save_atomically
from .objectives import Batch
from .records import Epoch, Training
from .schedules import optimizer_from_groups, parameter_groups, schedule_of
from .validating import moved, seeded
from .weights import TrainedWeights, trained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from accelerate import Accelerator

    from ..models import LoadedModel
    from .items import TrainItems
    from .objectives import Objective
    from .records import Workplace
    from .settings import RecoverConfig, TrainConfig

__all__ = ["require_packages", "train"]

CHECKPOINT = "checkpoint.pt"
DIVERGED = "diverged.json"  # beside the checkpoint: what ended the training, until it has got past that
_UNCHANGING = ("workers", "checkpoint_steps", "patience")  # settings that another run of the same losses may have
_GENTLER = ("learning_rate", "precision")  # settings that may change from the checkpoint on where a training diverged


def train(
    objective: Objective,
    items: TrainItems,
    config: RecoverConfig,
    method: str,
    place: Workplace,
    validate: Callable[[], float] | None,
    model: LoadedModel,
) -> Training:
    """Train the objective in place, leave it with its best epoch's weights, in eval mode and on the CPU.

    Args:
        objective: Its parameters that ask for gradients are trained, or all where none does; afterwards they ask as before.
        items: What is seen; a last part of a step is left out, another one each epoch.
        config: ``training`` says how, ``seed`` is that of all draws.
        method: For messages and records.
        place: Where the checkpoint and the logs go, if anywhere; a run that was killed goes on from there.
        validate: Judges the weights as they stand, higher is better, the same in every process; without, the last epoch is
            kept. See ``validation_of``.
        model: The one within the objective; its blocks say how fast what learns (``layer_decay``).

    Raises:
        ShallowvitError: too few items, a checkpoint of another run, a loss that isn't finite, or a full disk.
    """
    with trained(objective):
        run = _Run(objective, items, config, method, place)
        try:
            run.begin(parameter_groups(objective, model, config.training))
            return run.epochs(validate)
        finally:
            run.end()


def require_packages() -> None:
    """Refuse to train without the packages that all trainings need.

    Raises:
        MissingDependencyError: names the first that is missing.
    """
    for package in ("accelerate", "timm", "torchmetrics"):
        try:
            import_module(package)
        except ImportError as err:
            raise MissingDependencyError("recover: training", package, "recover") from err


class _Run:
    """One training: what accelerate wraps, and how far it got, in memory and in the checkpoint."""

    def __init__(self, objective: Objective, items: TrainItems, config: RecoverConfig, method: str, place: Workplace) -> None:
        self._objective, self._items, self._config, self._method, self._place = objective, items, config, method, place
        self._training = config.training
        self._accelerator = _accelerator(self._training)
        world = self._accelerator.num_processes
        self._items_a_step = self._training.batch * self._training.accumulate * world
        self._steps_an_epoch = len(items) // self._items_a_step
        if not self._steps_an_epoch:
            raise ShallowvitError(
                f"{method}: {len(items)} items of {items.name} are left to train on, a step takes {self._items_a_step} "
                f"(--batch {self._training.batch} x --accumulate {self._training.accumulate} x {world} processes); give more "
                "items or lower those"
            )
        self._steps = self._steps_an_epoch * self._training.epochs
        self._step = self._saved_step = 0
        self._logs, self._wrapped = _Logs(None), objective
        self._sums: dict[str, float] = {}
        self._seconds = 0.0  # of this epoch, in earlier runs
        self._epochs: list[Epoch] = []
        self._best: dict[str, torch.Tensor] | None = None
        self._kept = 0
        self._changes: list[str] = []

    @property
    def _checkpoint(self) -> Any:
        return self._place.folder / CHECKPOINT if self._place.folder else None

    def begin(self, groups: list[dict[str, Any]]) -> None:
        self._optimizer = optimizer_from_groups(groups, self._training)
        self._schedule = schedule_of(self._optimizer, self._steps, self._training)
        self._run = {
            "method": self._method,
            "seed": self._config.seed,
            **{name: value for name, value in asdict(self._training).items() if name not in _UNCHANGING},
            "processes": self._accelerator.num_processes,
            "items": self._items.digest(),
            "validation": self._config.validation,
            "weights": hash_state(self._objective),
        }
        self._wrapped, self._stepper = self._accelerator.prepare(self._objective, self._optimizer)
        self._weights = TrainedWeights(self._objective, self._training.ema_decay)
        self._logs = _Logs(self._place.folder if self._accelerator.is_main_process else None)
        if self._checkpoint and self._checkpoint.exists():
            self._resume()

    def epochs(self, validate: Callable[[], float] | None) -> Training:
        """Run what isn't done yet, and leave the best epoch's weights."""
        stopped = self._enough()
        while len(self._epochs) < self._training.epochs and not stopped:
            self._epoch(validate)
            stopped = self._enough()
        if self._best is not None:
            self._weights.load(self._best)
        return Training(
            self._method,
            tuple(self._epochs),
            self._kept,
            len(self._items),
            self._step * self._items_a_step,
            sum(epoch.seconds for epoch in self._epochs),
            stopped,
            tuple(self._changes),
        )

    def end(self) -> None:
        self._logs.close()
        self._accelerator.unwrap_model(self._wrapped, keep_fp32_wrapper=False)  # gives the objective its own forward back
        self._accelerator.free_memory()
        self._objective.to("cpu")

    def _epoch(self, validate: Callable[[], float] | None) -> None:
        started = monotonic() - self._seconds
        self._wrapped.train()
        first = self._step % self._steps_an_epoch
        for micro, batch in enumerate(self._batches(len(self._epochs), first)):
            last = (micro + 1) % self._training.accumulate == 0
            self._forward_backward(batch, self._step * self._training.accumulate + micro % self._training.accumulate)
            if last:
                self._step += 1
                self._tell()
                whole = self._step % self._steps_an_epoch == 0
                if not whole and self._training.checkpoint_steps and self._step % self._training.checkpoint_steps == 0:
                    self._seconds = monotonic() - started
                    self._check_weights()
                    self._save()
        self._finish_epoch(validate, started)

    def _forward_backward(self, batch: Batch, micro: int) -> None:
        """One batch of a step; the optimiser moves behind the step's last."""
        accelerator, device = self._accelerator, self._accelerator.device
        self._schedule.step_update(self._step)
        with accelerator.accumulate(self._wrapped), seeded(device, self._config.seed, micro, accelerator.process_index):
            losses = self._wrapped(moved(batch, device))
            found = {name: float(value) for name, value in self._mean(losses).items()}
            if not math.isfinite(found["loss"]):
                raise self._lost(f"the loss is {found['loss']}", self._step)
            accelerator.backward(losses["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(self._objective.parameters(), self._training.clip_norm)
            self._stepper.step()
            self._stepper.zero_grad()
        for name, value in found.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if accelerator.sync_gradients:
            self._weights.follow(self._step + 1)
            self._logs.write(self._step + 1, {f"train/{name}": value for name, value in found.items()})

    def _lost(self, what: str, step: int) -> ShallowvitError:
        """Say what isn't finite and in which step, counted from 0, and which checkpoint is good; note it beside that."""
        where = f"{what} in step {step % self._steps_an_epoch + 1} of epoch {len(self._epochs) + 1}"
        kept, on = "no checkpoint was kept", ""
        if self._saved_step:
            kept, on = (
                f"the checkpoint of step {self._saved_step} stays in {self._checkpoint}",
                ", to go on from there, or remove it to start again",
            )
            if self._accelerator.is_main_process:
                note = {"step": self._saved_step, "what": where}
                with disk_sentences(self._method, self._checkpoint.parent):
                    write_whole(self._checkpoint.with_name(DIVERGED), json.dumps(note))
        finer = " or train in bf16 or fp32" if self._training.precision == "fp16" else ""
        return ShallowvitError(
            f"{self._method}: {where}; {kept}. Lower --learning-rate from {self._training.learning_rate:g}{finer}{on}"
        )

    def _check_weights(self) -> None:
        """Refuse to keep weights that a finite loss's gradient broke: they would take the good checkpoint's place."""
        if broken := self._weights.broken():
            raise self._lost(f"{broken} is no longer finite", self._step - 1)

    def _mean(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Over all processes, so that all of them stop at a loss that isn't finite."""
        detached = {name: value.detach().float() for name, value in losses.items()}
        if self._accelerator.num_processes == 1:
            return detached
        reduced: dict[str, torch.Tensor] = self._accelerator.reduce(detached, reduction="mean")
        return reduced

    def _finish_epoch(self, validate: Callable[[], float] | None, started: float) -> None:
        self._check_weights()
        number = len(self._epochs)
        with self._weights.averaged():
            validation = None if validate is None else validate()
            best = self._epochs[self._kept].validation if number else None
            if validation is None or best is None or math.isnan(best) or validation > best:
                self._kept, self._best = number, self._weights.copy()
        count = self._steps_an_epoch * self._training.accumulate
        means = {name: value / count for name, value in self._sums.items()}
        rate = max(group["lr"] for group in self._optimizer.param_groups)
        self._epochs.append(Epoch(means.pop("loss"), means, validation, rate, monotonic() - started))
        self._sums, self._seconds = {}, 0.0
        if validation is not None:
            self._logs.write(self._step, {"validation": validation})
        self._save()

    def _enough(self) -> str | None:
        patience, since = self._training.patience, len(self._epochs) - 1 - self._kept
        if not patience or since < patience:
            return None
        return f"no better validation in {since} epochs (patience {patience})"

    def _batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """This process's batches of an epoch from a step on."""
        training, rank, world = self._training, self._accelerator.process_index, self._accelerator.num_processes
        order = np.random.default_rng([self._config.seed, epoch]).permutation(len(self._items))
        micros = range(first_step * training.accumulate, self._steps_an_epoch * training.accumulate)
        wanted = []
        for micro in micros:
            start = (micro * world + rank) * training.batch
            draw = int(np.random.SeedSequence([self._config.seed, epoch, micro, rank]).generate_state(1)[0])
            wanted.append((order[start : start + training.batch].tolist(), draw))
        # a batch a draw: torch's loader does nothing but make them ahead in processes
        loader = torch.utils.data.DataLoader(
            _Batches(self._items),
            sampler=wanted,
            batch_size=None,
            num_workers=training.workers,
        )
        for inputs, targets in loader:
            yield Batch(inputs, targets)

    def _tell(self) -> None:
        if self._accelerator.is_main_process:
            done = (self._step - 1) % self._steps_an_epoch + 1
            mean = self._sums["loss"] / (done * self._training.accumulate)
            line = f"epoch {len(self._epochs) + 1} of {self._training.epochs}, loss {mean:.4f}"
            judged = [epoch.validation for epoch in self._epochs if epoch.validation is not None]
            self._place.progress(self._step, self._steps, line + (f", best validation {max(judged):.4f}" if judged else ""))

    def _save(self) -> None:
        """Write what resumes the run; only the first process does."""
        if not self._checkpoint:
            return
        if self._accelerator.is_main_process:
            scaler = self._accelerator.scaler
            state = {
                "run": self._run,
                "step": self._step,
                "epochs": [asdict(epoch) for epoch in self._epochs],
                "kept": self._kept,
                "sums": self._sums,
                "seconds": self._seconds,
                "weights": self._weights.state(),
                "best": self._best,
                "optimizer": self._optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "changes": self._changes,
            }
            try:
                save_atomically(state, self._checkpoint, self._method)
                self._checkpoint.with_name(DIVERGED).unlink(missing_ok=True)
            except ShallowvitError as err:
                kept = f"the checkpoint of step {self._saved_step} is kept" if self._saved_step else "there is none before it"
                raise ShallowvitError(f"{err}. It was the checkpoint of step {self._step}; {kept}") from err
        self._saved_step = self._step

    def _resume(self) -> None:
        path = self._checkpoint
        state = read_checkpoint(self._method, path, torch.device("cpu"))
        self._changes = [*state.get("changes", ()), *self._gentler(state)]
        settled = {name: self._run[name] for name in _GENTLER} if len(self._changes) > len(state.get("changes", ())) else {}
        check_same_run(self._method, path, state["run"] | settled, self._run)
        self._weights.restore(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self._step = self._saved_step = state["step"]
        self._epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        self._kept, self._best = state["kept"], state["best"]
        self._sums, self._seconds = dict(state["sums"]), state["seconds"]

    def _gentler(self, state: dict[str, Any]) -> list[str]:
        """What is changed from the checkpoint on, a sentence, where the training diverged behind it and is now gentler."""
        path, before = self._checkpoint.with_name(DIVERGED), state["run"]
        if not path.is_file() or not self._run["learning_rate"] <= before["learning_rate"]:
            return []
        note = json.loads(path.read_text())
        changed = [f"{name} {before[name]} to {self._run[name]}" for name in _GENTLER if before[name] != self._run[name]]
        if note["step"] != state["step"] or not changed:
            return []
        return [f"{' and '.join(changed)} from step {state['step']} on, since {note['what']}"]


class _Batches(torch.utils.data.Dataset):
    """A batch by the places of its items and its draw."""

    def __init__(self, items: TrainItems) -> None:
        self._items = items

    def __getitem__(self, wanted: tuple[list[int], int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch = self._items.batch(*wanted)
        return batch.inputs, batch.targets


class _Logs:
    """What TensorBoard shows of a training, beside its checkpoint; nothing without a folder."""

    def __init__(self, folder: Path | None) -> None:
        self._writer = None
        if folder is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as err:
                raise MissingDependencyError("recover", "tensorboard", "recover") from err
            with disk_sentences("recover", folder):
                self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._folder = folder

    def write(self, step: int, figures: dict[str, float]) -> None:
        if self._writer is not None and self._folder is not None:
            with disk_sentences("recover", self._folder):
                for name, value in figures.items():
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):  # the training's outcome is worth more than its last figures
                self._writer.close()


def _accelerator(config: TrainConfig) -> Accelerator:
    require_packages()
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    if config.precision == "fp16" and not torch.cuda.is_available():
        raise ShallowvitError("recover: precision fp16 trains on a GPU alone, and there is none; give bf16 or fp32")
    # the precision is the process's there; a second training may have another
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        gradient_accumulation_steps=config.accumulate,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
