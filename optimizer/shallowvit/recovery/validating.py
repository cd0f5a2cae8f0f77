"""Judge a training's weights as they stand, on the items held out: by top-1 where there are labels, else by the loss.

A newcomer's trap: each process judges its share and all get the figure of the whole, so that all of them keep the same epoch.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from .objectives import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .items import TrainItems
    from .objectives import Objective
    from .settings import RecoverConfig

    Answer = Callable[[torch.Tensor], torch.Tensor]

__all__ = ["moved", "seeded", "validation_of"]


def validation_of(
    objective: Objective, held_out: TrainItems, config: RecoverConfig, answer: Answer | None = None
) -> Callable[[], float] | None:
    """Return what judges the objective's weights, higher is better; None where nothing is held out.

    Args:
        objective: Put in eval mode while it is judged.
        held_out: Labelled ones are judged by top-1, others by minus the objective's mean loss, with the same draws each time.
        config: Of the batches.
        answer: From inputs to logits, by the objective's weights; without, the loss judges labelled items, too.
    """
    if not len(held_out):
        return None

    def validate() -> float:
        device = next(objective.parameters()).device
        was_training = objective.training
        objective.eval()
        try:
            with torch.inference_mode(), seeded(device, config.seed, len(held_out)):
                if held_out.labelled and answer is not None:
                    return _top1(answer, held_out, config, device)
                return -_loss(objective, held_out, config, device)
        finally:
            objective.train(was_training)

    return validate


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on a device."""
    return Batch(batch.inputs.to(device), None if batch.targets is None else batch.targets.to(device))


@contextmanager
def seeded(device: torch.device, *numbers: int) -> Iterator[None]:
    """Seed torch's draws by these numbers within the block, and leave the caller's as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
        yield


def _top1(answer: Answer, held_out: TrainItems, config: RecoverConfig, device: torch.device) -> float:
    from torchmetrics import MeanMetric

    top1 = MeanMetric().to(device)
    for batch in _batches(held_out, config.training.batch, device):
        assert batch.targets is not None
        top1.update((answer(batch.inputs).argmax(-1) == batch.targets).float())
    return float(top1.compute())


def _loss(objective: Objective, held_out: TrainItems, config: RecoverConfig, device: torch.device) -> float:
    from torchmetrics import MeanMetric

    mean = MeanMetric().to(device)
    for batch in _batches(held_out, config.training.batch, device):
        mean.update(objective(batch)["loss"], len(batch.inputs))
    return float(mean.compute())


def _batches(held_out: TrainItems, size: int, device: torch.device) -> Iterator[Batch]:
    """This process's share of the items held out."""
    several = torch.distributed.is_initialized()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if several else (0, 1)
    own = range(rank, len(held_out), world)
    for start in range(0, len(own), size):
        yield moved(held_out.batch(own[start : start + size]), device)
