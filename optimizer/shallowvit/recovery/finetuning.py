"""Finetune a classifier on labelled items, and measure it: from any module that maps a batch of inputs to logits.

Every draw of an epoch comes from the seed and the epoch's number, so the caller's random state changes nothing and a run that
was killed resumes with the same losses. Beside ``training``'s, this loop takes tensors, needs torch alone and stays the same to
the last bit, since the study and the demo model are its results. A newcomer's trap: ``exporting.deployable`` gives such a
module, but it shares its weights with the model it was made from; finetune one of a copy (``pruning.prune`` copies).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..errors import ShallowvitError
from .checkpointing import check_same_run, read_checkpoint, save_atomically

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "Evaluation",
    "FinetuneConfig",
    "cosine_with_warmup",
    "evaluate",
    "finetune",
    "item_results",
    "weight_decay_groups",
]


@dataclass(frozen=True)
class FinetuneConfig:
    """How a classifier is finetuned, by AdamW under a cosine with warm-up.

    Args:
        seed: Of the order of the items and of the model's own draws (dropout, stochastic depth).
        epochs: Times that each item is seen; a last part of a batch is left out, another one each epoch.
        batch: Items a step; all of them where there are fewer.
        learning_rate: At the peak.
        weight_decay: Of matrices; vectors (biases, norms) don't decay.
        warmup_share: The share of the steps in which the learning rate rises.
        label_smoothing: See ``torch.nn.functional.cross_entropy``.
        clip_norm: The most that the norm of a step's gradient may be.
    """

    seed: int = 0
    epochs: int = 3
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    label_smoothing: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ShallowvitError(f"finetune: {name} {getattr(self, name)} is too few; give at least 1")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ShallowvitError(f"finetune: {name} {getattr(self, name)} moves nothing; give more than 0")


class Evaluation(NamedTuple):
    """The mean cross-entropy in nats and the share of items whose highest logit is their label's."""

    loss: float
    top1: float


def finetune(
    module: torch.nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    config: FinetuneConfig | None = None,
    checkpoint: Path | None = None,
) -> list[float]:
    """Train the module in place and return the mean loss of each epoch; it is left in eval mode.

    Args:
        module: From a batch of ``inputs`` to logits [B, classes]. The parameters that ask for gradients are trained, or all
            where none does (a loaded model's); afterwards they ask as before.
        inputs: [N, ...] of any dtype that the module takes: uint8 frames for ``deployable(model, preprocess=True)``, which
            keeps a large set small.
        labels: int64 [N].
        config: How; ``FinetuneConfig()`` by default.
        checkpoint: Written after each epoch, so that a finished one isn't run again after a kill.

    Raises:
        ShallowvitError: inputs and labels don't match, the checkpoint is of another run, or the loss is no longer finite.
    """
    config = config or FinetuneConfig()
    _check_items("finetune", inputs, labels)
    chosen = [parameter for parameter in module.parameters() if parameter.requires_grad]
    frozen = [] if chosen else [parameter for parameter in module.parameters() if parameter.is_floating_point()]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        return _Run(module, inputs, labels, config, checkpoint).losses()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        module.zero_grad(set_to_none=True)
        module.eval()


def evaluate(module: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor, batch: int = 256) -> Evaluation:
    """Return the loss (no smoothing) and the top-1 accuracy of a module in eval mode on labelled inputs.

    Args:
        module: From a batch of ``inputs`` to logits [B, classes]; left as it is.
        inputs: [N, ...], as the module takes them.
        labels: int64 [N].
        batch: Items a forward.

    Raises:
        ShallowvitError: inputs and labels don't match, or the module doesn't give a row of logits an item.
    """
    losses, right = item_results(module, inputs, labels, batch)
    return Evaluation(float(losses.mean()), float(right.double().mean()))


@torch.no_grad()
def item_results(
    module: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor, batch: int = 256
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each item's cross-entropy (float64 [N]) and whether it is classified rightly (bool [N]); see ``evaluate``."""
    _check_items("evaluate", inputs, labels)
    losses, right = [], []
    device = _device(module)
    was_training = module.training
    module.eval()
    try:
        for start in range(0, len(labels), batch):
            target = labels[start : start + batch].to(device)
            logits = _logits("evaluate", module, inputs[start : start + batch].to(device), target).double()
            losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="none").cpu())
            right.append((logits.argmax(-1) == target).cpu())
    finally:
        if was_training:
            module.train()
    return torch.cat(losses), torch.cat(right)


def cosine_with_warmup(step: int, warmup_steps: int, steps: int) -> float:
    """Return the factor of the learning rate at a step: a line up, then half a cosine down to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def weight_decay_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the parameters that ask for gradients into matrices, which decay, and vectors (biases, norms), which do not."""
    matrices = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


class _Run:
    """One finetuning: the optimiser and how far it got, in memory and in the checkpoint."""

    def __init__(
        self,
        module: torch.nn.Module,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        config: FinetuneConfig,
        checkpoint: Path | None,
    ) -> None:
        self._module, self._inputs, self._labels = module, inputs, labels
        self._config, self._checkpoint = config, checkpoint
        self._device = _device(module)
        self._batch = min(config.batch, len(labels))
        self._steps_an_epoch = len(labels) // self._batch
        # one kernel for all parameters: a step of the demo model is 15 % shorter than with a loop over them
        self._optimizer = torch.optim.AdamW(
            weight_decay_groups(module, config.weight_decay), lr=config.learning_rate, fused=True
        )
        self._losses: list[float] = []
        if checkpoint and checkpoint.exists():
            self._resume(checkpoint)

    def losses(self) -> list[float]:
        self._module.train()
        devices = [self._device] if self._device.type == "cuda" else []
        for epoch in range(len(self._losses), self._config.epochs):
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(int(np.random.SeedSequence([self._config.seed, epoch]).generate_state(1)[0]))
                self._losses.append(self._epoch(epoch))
            if self._checkpoint:
                save_atomically(self._state(), self._checkpoint)
        return self._losses

    def _epoch(self, epoch: int) -> float:
        order = torch.from_numpy(np.random.default_rng([self._config.seed, epoch]).permutation(len(self._labels)))
        total = 0.0
        for step in range(self._steps_an_epoch):
            chosen = order[step * self._batch : (step + 1) * self._batch]
            loss = self._step(chosen, epoch * self._steps_an_epoch + step)
            if not math.isfinite(loss):
                raise ShallowvitError(
                    f"finetune: the loss is {loss} in step {step} of epoch {epoch}; lower the learning rate of "
                    f"{self._config.learning_rate:g}"
                )
            total += loss
        return total / self._steps_an_epoch

    def _step(self, chosen: torch.Tensor, step: int) -> float:
        config, steps = self._config, self._steps_an_epoch * self._config.epochs
        target = self._labels[chosen].to(self._device)
        logits = _logits("finetune", self._module, self._inputs[chosen].to(self._device), target)
        loss = torch.nn.functional.cross_entropy(logits, target, label_smoothing=config.label_smoothing)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._module.parameters(), config.clip_norm)
        factor = cosine_with_warmup(step, int(steps * config.warmup_share) or 1, steps)
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()

    def _identity(self) -> dict[str, Any]:
        return {**asdict(self._config), "items": len(self._labels)}

    def _state(self) -> dict[str, Any]:
        states = {"model": self._module.state_dict(), "optimizer": self._optimizer.state_dict()}
        return {**states, "losses": self._losses, "run": self._identity()}

    def _resume(self, checkpoint: Path) -> None:
        state = read_checkpoint("finetune", checkpoint, self._device)
        check_same_run("finetune", checkpoint, state["run"], self._identity())
        try:
            self._module.load_state_dict(state["model"])
        except RuntimeError as err:
            raise ShallowvitError(
                f"finetune: {checkpoint} is of another model than this {type(self._module).__name__}; remove it or give "
                "another checkpoint"
            ) from err
        self._optimizer.load_state_dict(state["optimizer"])
        self._losses = list(state["losses"])


def _device(module: torch.nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _check_items(stage: str, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    if labels.dtype != torch.int64 or labels.ndim != 1 or len(labels) != len(inputs) or not len(labels):
        raise ShallowvitError(
            f"{stage}: labels are {labels.dtype} {list(labels.shape)} for {len(inputs)} inputs; expected torch.int64 "
            f"[{len(inputs) or 'N'}], at least 1"
        )


def _logits(stage: str, module: torch.nn.Module, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    logits = module(inputs)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(target):
        found = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ShallowvitError(
            f"{stage}: {type(module).__name__} gives {found} for {len(target)} items, expected [{len(target)}, classes]; give "
            "a classifier, such as shallowvit.exporting.deployable(model)"
        )
    lowest, highest = int(target.min()), int(target.max())
    if lowest < 0 or highest >= logits.shape[1]:
        raise ShallowvitError(
            f"{stage}: labels run from {lowest} to {highest}, but {type(module).__name__} has {logits.shape[1]} classes; give "
            "labels of its classes"
        )
    return logits
