"""Criteria from labelled inputs: what skipping a block costs, a first-order guess at it, and what it costs after finetuning.

A newcomer's trap: a loaded model's parameters ask for no gradients, and must not afterwards. What needs gradients turns them on
for the blocks alone and puts everything back, also after an error; what trains works on a copy.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..errors import ShallowvitError
from ..exporting import deployable
from ..models.halves import find_halves
from ..recovery.finetuning import FinetuneConfig, evaluate, finetune, item_results
from .activations import estimate, item_tokens, watched
from .calibration import check_calibration
from .records import Calibration, Estimate
from .skipped import skipped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from ..models import LoadedModel
    from .criteria import ScoreConfig

    _States = dict[int, tuple[torch.Tensor, torch.Tensor]]  # by block: its input and its output

__all__ = ["ORACLE_LEARNING_RATE", "bypass", "oracle", "taylor_activation", "taylor_weight"]

ORACLE_LEARNING_RATE = 5e-4  # half of what a new head gets: the weights are trained already


def bypass(model: LoadedModel, data: Calibration | None, config: ScoreConfig) -> list[Estimate]:
    """Score a block by what skipping it costs: the rise of the cross-entropy, or with ``metric`` the drop of top-1 accuracy.

    The noise is the standard error of the difference, taken item by item.
    """
    inputs, labels = _labelled(model, data, config)
    module = _classifier(model, config, labels)
    kind = 1 if config.metric == "accuracy" else 0
    whole = item_results(module, inputs, labels, config.batch)[kind].double()
    found = []
    for block in model.blocks:
        with skipped(model, config.granularity, block.index):
            without = item_results(module, inputs, labels, config.batch)[kind].double()
        found.append(estimate(whole - without if kind else without - whole))
    return found


def taylor_weight(model: LoadedModel, data: Calibration | None, config: ScoreConfig) -> list[Estimate]:
    """Score a block by the sum over its parameters of |g w|, g the gradient of the mean loss over all items.

    Molchanov et al., arXiv 1906.10771, sum (g w)^2 over a group's parameters; |g w| is the same first-order change of the loss
    without its square, in the loss's unit. All parameters of the block count, norms and biases too. The noise is the standard
    error over batches of the sum of s g w, s the final sign of each g w, so the data is run through twice.
    """
    inputs, labels = _labelled(model, data, config)
    module = _classifier(model, config, labels)
    blocks = [_parameters(model, block.index, config.granularity) for block in model.blocks]
    parameters = [parameter for block in blocks for parameter in block]
    starts = range(0, len(labels), config.batch)
    with _asking(parameters):
        totals: list[torch.Tensor] = []
        for start in starts:
            found = _gradients(module, parameters, inputs[start : start + config.batch], labels[start : start + config.batch])
            totals = [total + one for total, one in zip(totals, found, strict=True)] if totals else found
        signs = [torch.sign(total * parameter.detach()) for total, parameter in zip(totals, parameters, strict=True)]
        by_batch = []
        for start in starts if len(starts) > 1 else []:
            target = labels[start : start + config.batch]
            found = _gradients(module, parameters, inputs[start : start + config.batch], target)
            by_batch.append([value / len(target) for value in _sums(blocks, found, signs)])
    scores = [value / len(labels) for value in _sums(blocks, totals, signs)]
    noise = [estimate(values).noise for values in zip(*by_batch, strict=True)] or [None] * len(blocks)
    return [Estimate(score, deviation) for score, deviation in zip(scores, noise, strict=True)]


def taylor_activation(model: LoadedModel, data: Calibration | None, config: ScoreConfig) -> list[Estimate]:
    """Score a block by |g . (output - input)|, g the gradient of an item's loss at the block's output, the mean over items.

    The first-order change of the loss when the block is skipped; Molchanov et al., arXiv 1611.06440, take it of single feature
    maps. The noise is the standard error over items.
    """
    inputs, labels = _labelled(model, data, config)
    module = _classifier(model, config, labels)
    found: dict[int, list[torch.Tensor]] = {block.index: [] for block in model.blocks}
    for start in range(0, len(labels), config.batch):
        target = labels[start : start + config.batch]
        states: _States = {}

        def note(block: int, before: torch.Tensor, after: torch.Tensor, states: _States = states) -> None:
            # the first block's output is where gradients begin, since nothing before it asks for any
            states[block] = before, after if after.requires_grad else after.requires_grad_()

        with torch.enable_grad(), watched(model, note):
            loss = torch.nn.functional.cross_entropy(module(inputs[start : start + config.batch]), target, reduction="sum")
            outputs = [after for _, after in states.values()]
            gradients = torch.autograd.grad(loss, outputs, allow_unused=True, materialize_grads=True)
        for (block, (before, after)), gradient in zip(states.items(), gradients, strict=True):
            change = gradient.double() * (after.detach().double() - before.double())
            found[block].append(item_tokens(model, block, change, len(target)).sum((1, 2)).abs())
    return [estimate(torch.cat(found[block.index])) for block in model.blocks]


def oracle(model: LoadedModel, data: Calibration | None, config: ScoreConfig) -> list[Estimate]:
    """Score a block by the accuracy lost when it is removed and the rest finetuned, as in the paper: one finetuning a block.

    The first ``finetune_items`` train, the others measure; the whole model is finetuned alike. The noise is the binomial error
    of the difference, without that of the finetuning itself: for replicates over seeds see ``shallowvit study``.
    """
    inputs, labels = _labelled(model, data, config)
    count = config.finetune_items
    if len(labels) <= count:
        raise ShallowvitError(
            f"score: oracle finetunes on {count} items and measures on others, but the data holds {len(labels)}; give more "
            "data or lower --finetune-items"
        )
    settings = FinetuneConfig(seed=config.seed, epochs=config.finetune_epochs, learning_rate=ORACLE_LEARNING_RATE)
    held_out = len(labels) - count

    def accuracy(removed: Sequence[int]) -> float:
        shallow = replace(model, module=copy.deepcopy(model.module))
        with skipped(
            shallow, config.granularity, *removed, copied_from=model
        ):  # a block that is skipped gets no gradient: the same as one that is gone
            module = _classifier(shallow, config, labels)
            finetune(module, inputs[:count], labels[:count], settings)
            return evaluate(module, inputs[count:], labels[count:], config.batch).top1

    whole = accuracy([])
    found = []
    for block in model.blocks:
        without = accuracy([block.index])
        variance = whole * (1 - whole) / held_out + without * (1 - without) / held_out
        found.append(Estimate(whole - without, variance**0.5))
    return found


def _labelled(model: LoadedModel, data: Calibration | None, config: ScoreConfig) -> tuple[torch.Tensor, torch.Tensor]:
    data = check_calibration(model, data, config)
    if data.labels is None:
        raise ShallowvitError(f"score: {config.criterion} needs labels, {data.name} has none; give labelled data")
    return data.inputs.float(), data.labels


def _classifier(model: LoadedModel, config: ScoreConfig, labels: torch.Tensor) -> nn.Module:
    """The model from inputs to logits, or an error where it has none or not for these labels."""
    extra = [name for name in model.example if name != model.input_spec.name]
    logits = None
    if not extra:
        module = deployable(model)
        with torch.no_grad():
            logits = module(model.example[model.input_spec.name])
        if logits.ndim == 2 and len(logits) == 1:
            lowest, highest = int(labels.min()), int(labels.max())
            if lowest < 0 or highest >= logits.shape[1]:
                raise ShallowvitError(
                    f"score: the labels run from {lowest} to {highest}, and {model.origin.spec} has {logits.shape[1]} classes; "
                    "give data of its classes"
                )
            return module
    found = f"takes {', '.join(extra)} too" if logits is None else f"gives {list(logits.shape)} for one item"
    raise ShallowvitError(
        f"score: {config.criterion} needs a classifier, and {model.origin.architecture} {found}; load a finetuned model, or "
        "use --criterion block-influence, which needs no labels"
    )


def _parameters(model: LoadedModel, block: int, granularity: str) -> list[nn.Parameter]:
    """All of the block's, or of its half."""
    if granularity == "block":
        return list(model.block(block).parameters())
    named = dict(model.block(block).named_parameters())
    return [named[name] for name in find_halves(model, granularity, [block])[block].weights]


@contextmanager
def _asking(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let these parameters ask for gradients inside the ``with``."""
    with ExitStack() as stack, torch.enable_grad():
        for parameter in parameters:
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(True)
        yield


def _gradients(
    module: nn.Module, parameters: Sequence[nn.Parameter], inputs: torch.Tensor, target: torch.Tensor
) -> list[torch.Tensor]:
    """The gradients of the summed loss; zero for a parameter that the loss doesn't depend on."""
    loss = torch.nn.functional.cross_entropy(module(inputs), target, reduction="sum")
    return list(torch.autograd.grad(loss, list(parameters), allow_unused=True, materialize_grads=True))


@torch.no_grad()
def _sums(
    blocks: Sequence[Sequence[nn.Parameter]], gradients: Sequence[torch.Tensor], signs: Sequence[torch.Tensor]
) -> list[float]:
    """The sum of sign x gradient x weight over each block's parameters."""
    parameters = [parameter.detach() for block in blocks for parameter in block]
    terms = iter(
        [
            float((sign * gradient * parameter).double().sum())
            for sign, gradient, parameter in zip(signs, gradients, parameters, strict=True)
        ]
    )
    return [sum(next(terms) for _ in block) for block in blocks]
