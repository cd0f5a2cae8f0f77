"""Go on with the masked pretraining of a pruned autoencoder, beside the unpruned one that rebuilds under the same masks.

VideoMAE (Tong et al., arXiv 2203.12602) and MAE (He et al., arXiv 2111.06377) of transformers, with the decoder they were
pretrained with. A newcomer's trap: what comes out is an encoder to be finetuned; a classifier that was finetuned before has no
decoder, so prune and recover its pretraining checkpoint and finetune that, or distill the classifier.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..models.outputs import tensors_in
from .distillation import Teaching, forward_of, teaching
from .items import read_train_items
from .masking import MaskPlan, hiding, mask_plan
from .objectives import Batch, Objective
from .training import train
from .validating import validation_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..models import LoadedModel
    from ..pruning import PrunedModel
    from .records import Training, Workplace
    from .settings import RecoverConfig

__all__ = ["pretrain_pruned"]


class _Pretraining(Objective):
    """The model's own loss, that of rebuilding what is hidden, as a share of the teacher's, plus what the teacher teaches.

    The share is 1 where the student rebuilds as well as the teacher, so that it counts alike for any data. Masks are drawn from
    torch's random state, which the loop sets for each step, and for items held out as often as they are looked at.
    """

    def __init__(self, pruned: PrunedModel, taught: Teaching, plan: MaskPlan) -> None:
        super().__init__()
        self.student = pruned.model.module
        self._model, self._taught, self._plan = pruned.model, taught, plan

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        masks = {name: value.to(batch.inputs.device) for name, value in self._plan.draw(len(batch.inputs)).items()}
        own = forward_of(self._model, self.student, batch.inputs, **masks)
        answer, aims = self._taught.answers(batch.inputs, **masks)
        loss, reached = tensors_in(own)[0], tensors_in(answer)[0]
        parts = self._taught.compared(_rebuilt(own), _rebuilt(answer), aims)
        share = loss / reached.clamp_min(_LEAST_LOSS)
        return {"loss": share + self._taught.total(parts) if parts else share, "reconstruction": loss, **parts}


_LEAST_LOSS = 1e-8


def _rebuilt(answer: Any) -> torch.Tensor:
    """What a model puts in the places that are hidden; ViTMAE answers for the others too, where nothing taught it."""
    rebuilt = getattr(answer, "reconstruction", None)
    if rebuilt is None:
        rebuilt = answer.logits
    mask = getattr(answer, "mask", None)
    found: torch.Tensor = rebuilt if mask is None else rebuilt[mask.bool()]
    return found


@contextmanager
def _learning(module: Any) -> Iterator[None]:
    """Have what the library's own model learns ask for gradients within the block: ViTMAE's positions are fixed parameters."""
    with torch.device("meta"):
        fixed = {name for name, parameter in type(module)(module.config).named_parameters() if not parameter.requires_grad}
    learning = [parameter for name, parameter in module.named_parameters() if name not in fixed]
    for parameter in learning:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(False)


def pretrain_pruned(teacher: LoadedModel, pruned: PrunedModel, config: RecoverConfig, place: Workplace) -> Training:
    """Train the pruned autoencoder in place to rebuild what is hidden and to answer as the teacher does; no labels are needed.

    Epochs are judged by minus the loss on the items held out, under the same masks each time.

    Raises:
        ShallowvitError: the model has no decoder, the mask hides nothing, or the data isn't there or doesn't fit.
    """
    training = config.training
    plan = mask_plan(pruned.model, training.mask_ratio)
    items, held_out = read_train_items(pruned.model, config, labelled=False)
    student = pruned.model.module
    with hiding(plan, teacher.module, student), _learning(student), teaching(teacher, pruned, training) as taught:
        objective = _Pretraining(pruned, taught, plan)
        return train(objective, items, config, "pretrain", place, validation_of(objective, held_out, config), pruned.model)
