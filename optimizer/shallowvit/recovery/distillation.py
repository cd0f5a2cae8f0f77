"""Teach a pruned model what the unpruned one answers, without labels: its output, and the states behind the blocks that stand.

States as in FitNets (Romero et al., arXiv 1412.6550) and TinyBERT (Jiao et al., arXiv 1909.10351), without their projections,
since both models are as wide; the output softened as in Hinton et al. (arXiv 1503.02531). A newcomer's trap: the teacher is
asked about the very inputs of the student, augmented and mixed, in the precision of the training.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from ..errors import ShallowvitError
from ..exporting.outputs import default_output, values_of
from ..models.token_reducer import choices_of, take_tokens
from .items import read_train_items
from .objectives import Batch, Objective
from .states import Watch, normalised_error, state_loss, state_pairs
from .training import train
from .validating import validation_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..models import LoadedModel
    from ..pruning import PrunedModel
    from .records import Training, Workplace
    from .settings import RecoverConfig, TrainConfig

__all__ = ["Teaching", "distill_pruned", "forward_of", "output_loss", "output_of", "teaching"]


class Teaching:
    """What the unpruned model teaches: the losses of a student's output and states on a batch.

    Watches the student from when it is made until ``close``; ``teaching`` makes one for a ``with``. Behind reduced tokens
    a state is compared with the teacher's at the tokens that the student kept.
    """

    def __init__(self, teacher: LoadedModel, pruned: PrunedModel, config: TrainConfig) -> None:
        self._teacher, self._config = teacher, config
        self._module = teacher.module
        self._pairs = state_pairs(pruned) if config.hidden_weight else ()
        self.classifies = default_output(pruned.model).source == "logits"
        self._student = Watch(pruned.model.module, [pair.student for pair in self._pairs])
        self._held = ExitStack()
        self._chosen = self._held.enter_context(choices_of(pruned.model.module))

    def losses(self, inputs: torch.Tensor, output: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``output`` and ``hidden``, unweighted, of the student's last forward; a part of weight 0 is left out.

        Args:
            inputs: What the student was given, [B, ...].
            output: What it answered.
        """
        answer, aims = self.answers(inputs)
        return self.compared(output, output_of(self._teacher, answer), aims)

    def compared(self, output: torch.Tensor, aim: torch.Tensor, aims: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the losses of the student's last forward against outputs and states of the teacher's."""
        states, found = self._student.take(), {}
        if self._config.output_weight:
            found["output"] = output_loss(output, aim, self._config.temperature if self.classifies else None)
        hidden = state_loss(states, self._at_kept_tokens(aims), self._pairs)
        if hidden is not None:
            found["hidden"] = hidden
        return found

    def _at_kept_tokens(self, aims: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The teacher's states where the student kept tokens in its last forward."""
        found = dict(aims)
        for pair in self._pairs:
            behind = [block for block in self._chosen if block <= pair.block]
            if behind:
                found[pair.teacher] = take_tokens(aims[pair.teacher], self._chosen[max(behind)])
        self._chosen.clear()
        return found

    def total(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum of those losses by their weights."""
        weights = {"output": self._config.output_weight, "hidden": self._config.hidden_weight}
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()

    @torch.no_grad()
    def answers(self, inputs: torch.Tensor, **others: Any) -> tuple[Any, dict[str, torch.Tensor]]:
        """Return what the teacher answers and its states by path.

        On another device a copy of it answers, since the caller's stays where it is.
        """
        device = next((parameter.device for parameter in self._module.parameters()), inputs.device)
        if device != inputs.device:
            self._module = copy.deepcopy(self._module).to(inputs.device)
        watch = Watch(self._module, {pair.teacher for pair in self._pairs})
        try:
            return forward_of(self._teacher, self._module, inputs, **others), watch.take()
        finally:
            watch.close()

    def close(self) -> None:
        """Stop watching the student."""
        self._student.close()
        self._held.close()


@contextmanager
def teaching(teacher: LoadedModel, pruned: PrunedModel, config: TrainConfig) -> Iterator[Teaching]:
    """Watch the student while the block runs."""
    made = Teaching(teacher, pruned, config)
    try:
        yield made
    finally:
        made.close()


def forward_of(model: LoadedModel, module: torch.nn.Module, inputs: torch.Tensor, **others: Any) -> Any:
    """Run a model on inputs, and return its output as it is.

    Args:
        model: Says how its module is called.
        module: ``model.module``, or a copy of it.
        inputs: [B, ...] of the main input.
        others: Of the other inputs; those that aren't named are as in the example.
    """
    arguments = {name: _repeated(value, inputs) for name, value in model.example.items() if name not in others}
    return module(**(arguments | others | {model.input_spec.name: inputs}))


def output_of(model: LoadedModel, answer: object) -> torch.Tensor:
    """Return what a graph of the model gives by default: logits, else the first tensor."""
    return values_of(answer, (default_output(model),), {})[0]


def _repeated(value: Any, inputs: torch.Tensor) -> Any:
    """A tensor of the example, whose batch is 1, for each item and on their device."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.to(inputs.device)
    return value.expand(len(inputs), *value.shape[1:]) if value.ndim and len(value) == 1 else value


def output_loss(output: torch.Tensor, aim: torch.Tensor, temperature: float | None) -> torch.Tensor:
    """Return how far an output is from the teacher's: of logits the divergence, else ``normalised_error``.

    The divergence is that of the softened probabilities, times the temperature's square, so that its gradient is as large at
    any temperature. No temperature says that these are no logits.

    Raises:
        ShallowvitError: the shapes differ.
    """
    if output.shape != aim.shape:
        raise ShallowvitError(
            f"distill: the student answers {list(output.shape)}, the teacher {list(aim.shape)}; give a model of the same head"
        )
    if temperature is None:
        return normalised_error(output, aim)
    student, wanted = ((one.float() / temperature).log_softmax(-1).flatten(0, -2) for one in (output, aim))
    return functional.kl_div(student, wanted, reduction="batchmean", log_target=True) * temperature**2


class _Distillation(Objective):
    """The student's output and states against the teacher's, by their weights."""

    def __init__(self, pruned: PrunedModel, taught: Teaching) -> None:
        super().__init__()
        self.student = pruned.model.module
        self._model, self._taught = pruned.model, taught

    def answer(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the student's output."""
        return output_of(self._model, forward_of(self._model, self.student, inputs))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        parts = self._taught.losses(batch.inputs, self.answer(batch.inputs))
        return {"loss": self._taught.total(parts), **parts}


def distill_pruned(teacher: LoadedModel, pruned: PrunedModel, config: RecoverConfig, place: Workplace) -> Training:
    """Train the pruned model in place on the teacher's output and states; no labels are needed.

    Epochs are judged by minus the loss on the items held out, or by top-1 where ``config.validation`` names labelled items.

    Raises:
        ShallowvitError: neither part has a weight, or the data isn't there or doesn't fit.
    """
    training = config.training
    if not (training.output_weight or training.hidden_weight):
        raise ShallowvitError("distill: output weight 0 and hidden weight 0, so nothing is taught; give one more than 0")
    items, held_out = read_train_items(pruned.model, config, labelled=False)
    if config.validation is not None and len(held_out.dataset.labels):
        held_out = replace(held_out, labelled=True)
    with teaching(teacher, pruned, training) as taught:
        objective = _Distillation(pruned, taught)
        validate = validation_of(objective, held_out, config, objective.answer if taught.classifies else None)
        return train(objective, items, config, "distill", place, validate, pruned.model)
