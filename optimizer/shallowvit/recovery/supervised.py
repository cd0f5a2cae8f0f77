"""Finetune a pruned model on labels, by the recipe of BEiT, MAE and VideoMAE, with the unpruned model's answers if wished.

A newcomer's trap: mixup and CutMix mix prepared inputs, all frames of a clip alike, and what is mixed is what the teacher
answers, too.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError
from .augmenting import seeded_globals
from .distillation import forward_of, output_of, teaching
from .items import check_classes, read_train_items
from .lora import low_rank
from .objectives import Batch, Objective
from .training import require_packages, train
from .validating import validation_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..models import LoadedModel
    from ..pruning import PrunedModel
    from .distillation import Teaching
    from .records import Training, Workplace
    from .settings import RecoverConfig, TrainConfig

__all__ = ["Supervised", "finetune_pruned", "stochastic_depth"]


class Supervised(Objective):
    """A classifier's cross-entropy on labels, mixed ones where ``config`` says so, and what a teacher adds.

    Args:
        model: What is trained.
        classes: How many logits it gives.
        config: See ``TrainConfig``.
        taught: What the unpruned model teaches, weighed by ``config.teacher_weight``.
    """

    def __init__(self, model: LoadedModel, classes: int, config: TrainConfig, taught: Teaching | None = None) -> None:
        super().__init__()
        self.student = model.module
        self._model, self._config, self._taught = model, config, taught
        self._mixup = _mixup(config, classes, model.input_spec.layout)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``loss`` with ``labels`` and the teacher's parts."""
        assert batch.targets is not None
        inputs, targets, smoothing = batch.inputs, batch.targets, self._config.label_smoothing
        if self.training and self._mixup is not None:
            inputs, targets, smoothing = *_mixed(self._mixup, inputs, targets), 0.0  # timm smooths what it mixes
        logits = self.answer(inputs)
        labels = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        if self._taught is None:
            return {"loss": labels, "labels": labels}
        parts = self._taught.losses(inputs, logits)
        return {"loss": labels + self._config.teacher_weight * self._taught.total(parts), "labels": labels, **parts}

    def answer(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return output_of(self._model, forward_of(self._model, self.student, inputs)).float()


def finetune_pruned(teacher: LoadedModel, pruned: PrunedModel, config: RecoverConfig, place: Workplace) -> Training:
    """Train the pruned model in place on labelled items; epochs are judged by top-1 on those held out.

    Raises:
        ShallowvitError: labels are out of range or of one class, the model is no classifier, or the data doesn't fit.
    """
    require_packages()
    training, model = config.training, pruned.model
    items, held_out = read_train_items(model, config, labelled=True)
    classes = _classes(model)
    for some in (items, held_out):
        check_classes(some, classes, model, "finetune")
    with ExitStack() as around:
        around.enter_context(low_rank(model, training.lora_rank, config.seed))
        around.enter_context(stochastic_depth(model, training.drop_path))
        # last, so that its hooks see the states that stochastic depth hands on
        taught = around.enter_context(teaching(teacher, pruned, training)) if training.teacher_weight else None
        if taught is not None:
            taught.classifies = True  # labels are learnt from logits, by whatever name the model gives them
        objective = Supervised(model, classes, training, taught)
        validate = validation_of(objective, held_out, config, objective.answer)
        return train(objective, items, config, "finetune", place, validate, model)


@contextmanager
def stochastic_depth(model: LoadedModel, rate: float) -> Iterator[None]:
    """Within the block skip each block for an item by chance, in training: never the first, the last at this rate.

    Raises:
        ShallowvitError: its blocks are lists of parts, of which none can be skipped as one.
    """
    hooks = []
    if rate:
        for place, block in enumerate(model.blocks):
            if model.modes_of(block.index):
                raise ShallowvitError(
                    f"recover: --drop-path {rate:g}: {block.path} of {model.origin.spec} is a list of parts, which can't be "
                    "skipped for one item; give 0"
                )
            own = rate * place / max(1, len(model.blocks) - 1)
            hooks.append(model.module.get_submodule(block.path).register_forward_hook(_Skip(own), with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Skip:
    """A hook that takes a block's change of its input away for some items, and makes it larger for the others."""

    def __init__(self, rate: float) -> None:
        self._rate = rate

    def __call__(self, block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        from timm.layers import drop_path

        given = args[0] if args else next(iter(kwargs.values()))
        state = output[0] if isinstance(output, tuple) else output
        if not block.training or not isinstance(given, torch.Tensor) or given.shape != state.shape:
            return None  # as it is
        skipped = given + drop_path(state - given, self._rate, True)
        return (skipped, *output[1:]) if isinstance(output, tuple) else skipped


def _classes(model: LoadedModel) -> int:
    with torch.no_grad():
        logits = output_of(model, model.module(**model.example))
    if logits.ndim != 2:
        raise ShallowvitError(
            f"finetune: {model.origin.spec} answers {list(logits.shape)}, labels need logits [batch, classes]; give a "
            "classifier, or recover by distill, which needs no labels"
        )
    return logits.shape[1]


def _mixup(config: TrainConfig, classes: int, layout: str) -> Any:
    """The mixing by timm of a batch with its reverse, or None."""
    if not (config.mixup or config.cutmix):
        return None
    if config.batch % 2:
        raise ShallowvitError(f"finetune: --mixup and --cutmix mix pairs, --batch is {config.batch}; give an even one")
    if config.cutmix and not layout.endswith("HW"):
        raise ShallowvitError(
            f"finetune: --cutmix {config.cutmix:g} cuts boxes out of images, the input's layout is {layout}; give 0"
        )
    from timm.data import Mixup

    return Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=classes)


def _mixed(mixup: Any, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix a batch; the draw is torch's, so that it belongs to the batch."""
    images = inputs.flatten(1, -3) if inputs.ndim > 4 else inputs  # [B, frames x channels, H, W]: one box for all frames
    with seeded_globals(int(torch.randint(2**31, ()))):
        mixed, soft = mixup(images.clone(), targets)
    return mixed.reshape(inputs.shape), soft
