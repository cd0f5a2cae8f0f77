"""The gate: the shallowest model's first blocks with a small head, trained on which depth suffices for an input.

Where the model has its logits the gate has one logit a depth, shallowest first, and what is pooled is what the model's own head
reads. A newcomer's trap: the blocks aren't trained, and they aren't shared with the depths at run time either: what the gate
computes is computed again by the depth that it chooses, and counts in the mix's cost.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import ShallowvitError
from ..models.heads import find_head
from ..models.weights import hash_state
from ..pruning import PlanConfig, plan, prune

if TYPE_CHECKING:
    from ..pruning import PrunedModel
    from .settings import AdaptConfig

__all__ = ["TrainedHead", "gate_body", "train_head", "with_gate_head"]

_BATCHES = 16  # an epoch, so that little data gets as many steps as much
_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 0.05

TrainedHead = nn.Sequential


def gate_body(shallowest: PrunedModel, blocks: int) -> tuple[PrunedModel, str]:
    """Return the shallowest model's first blocks, its head handing on what it pooled, and the path of that head.

    Raises:
        ShallowvitError: it has fewer blocks, or no linear head.
    """
    model = shallowest.model
    count = len(model.blocks)
    if blocks > count:
        raise ShallowvitError(
            f"adapt: --gate-blocks {blocks} is more than the {count} blocks of the shallowest model; give fewer"
        )
    keep = None if blocks == count else PlanConfig(keep=",".join(map(str, range(blocks))), split_pairs=True)
    body = prune(model, plan(model, config=keep))
    module = copy.deepcopy(body.model.module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        path, _head = find_head(module, model.example)
    _put(module, path, nn.Identity())
    return replace(body, model=replace(body.model, module=module)), path


def train_head(features: torch.Tensor, right: torch.Tensor, costs: tuple[float, ...], config: AdaptConfig) -> TrainedHead:
    """Train the gate's head on pooled features; the same seed gives the same head.

    The target of an item is the depth of least risk, a wrong answer or not plus ``tradeoff`` times the cost: the shallowest
    that is right and, where none is, the shallowest. Items count by the root of how much their choice matters.

    Args:
        features: float32 [items, width].
        right: Whether each depth answers rightly, bool [items, depths].
        costs: Of the depths, as shares of the deepest's.
        config: The hidden layer, the trade-off, epochs and seed.
    """
    risk = (~right).float() + config.tradeoff * torch.tensor(costs)
    targets = risk.argmin(dim=1)
    # the root, since by the difference itself items that every depth gets right hardly counted, and the gate ranked worse
    weights = (risk.amax(dim=1) - risk.amin(dim=1)).sqrt()
    weights = weights / weights.mean() if weights.any() else torch.ones(len(weights))
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
    scaled = (features - mean) / deviation
    draws = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = _head(features.shape[1], config.gate_width, len(costs))
    batch = -(-len(scaled) // _BATCHES)
    steps = config.epochs * -(-len(scaled) // batch)
    optimizer = torch.optim.AdamW(head.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for _epoch in range(config.epochs):
            for chosen in torch.randperm(len(scaled), generator=draws).split(batch):
                losses = F.cross_entropy(head(scaled[chosen]), targets[chosen], reduction="none")
                optimizer.zero_grad()
                (losses * weights[chosen]).mean().backward()
                optimizer.step()
                schedule.step()
    _fold(head, mean, deviation)
    return head.eval().requires_grad_(False)


def with_gate_head(body: PrunedModel, path: str, head: TrainedHead, names: tuple[str, ...]) -> PrunedModel:
    """Return the gate: the body with the head, as a model whose classes are the depths."""
    module = copy.deepcopy(body.model.module)
    _put(module, path, copy.deepcopy(head))
    model = replace(
        body.model,
        module=module,
        labels=names,
        output_shapes=((1, len(names)),),
        sha256=hash_state(module),
        recipe=body.model.recipe | {"stock": False},
    )
    return replace(body, model=model)


def _head(width: int, hidden: int, depths: int) -> TrainedHead:
    if not hidden:
        return nn.Sequential(nn.Linear(width, depths))
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, depths))


def _fold(head: TrainedHead, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Have the first layer take features as they are, in place."""
    first = head[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight.div_(deviation)
        first.bias.sub_(first.weight @ mean)


def _put(module: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)
