"""Repair the gaps of a pruned model in closed form, from unlabelled inputs: no gradient, no epoch, no node more in the graph.

In front of each gap stands a block that hands on what the removed blocks would have been given; its last linear layer is fitted
anew so that it hands on what they would have answered. A newcomer's trap: gaps are repaired one after another, since what comes
out of one repair is what the next is fitted on.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError
from ..models.outputs import tensors_in
from ..models.token_reducer import choices_of, take_tokens
from ..models.weights import hash_state
from .least_squares import RIDGES, Fit, Sums, fit_ridge
from .projections import Projection, find_projections
from .settings import RepairMethod
from .states import list_of, state_pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..models import LoadedModel
    from ..pruning import PrunedModel

    Batches = Callable[[], Iterable[dict[str, Any]]]

__all__ = ["Repair", "RepairConfig", "RepairMethod", "RepairedGap", "repair_gaps"]


@dataclass(frozen=True)
class RepairConfig:
    """How to repair.

    Args:
        method: What is fitted.
        held_out: The share of the batches that chooses the ridge and judges the fit; the second batch does in any case, so that
            two are enough.
        ridges: Tried, as shares of a feature's mean square.
    """

    method: RepairMethod = RepairMethod.PROJECTION
    held_out: float = 0.25
    ridges: tuple[float, ...] = RIDGES

    def __post_init__(self) -> None:
        if self.method not in list(RepairMethod):
            raise ShallowvitError(f"repair: unknown method {str(self.method)!r}; choose from {', '.join(RepairMethod)}")
        object.__setattr__(self, "method", RepairMethod(self.method))
        if not 0 < self.held_out < 1:
            raise ShallowvitError(f"repair: a held-out share of {self.held_out:g}; give one between 0 and 1, such as 0.25")


@dataclass(frozen=True)
class RepairedGap:
    """A gap: the kept block that was fitted and the block whose answer is aimed at, by their numbers in the unpruned
    model. Errors are mean squares over held-out tokens; ``reason`` says why nothing was fitted.
    """

    block: int
    target: int
    layer: str | None
    ridge: float | None
    error_before: float | None
    error_after: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Repair:
    """A repaired copy, what was done at each gap, and what it took."""

    pruned: PrunedModel
    gaps: tuple[RepairedGap, ...]
    inputs: int
    seconds: float


def repair_gaps(teacher: LoadedModel, pruned: PrunedModel, batches: Batches, config: RepairConfig | None = None) -> Repair:
    """Fit the layer in front of each gap so that it answers as the unpruned model does behind the gap.

    Args:
        teacher: The unpruned model, which ``pruned`` was made from.
        pruned: Left as it is; a copy is repaired.
        batches: Called once a gap: yields the keyword arguments of the same forwards each time, as ``forward_arguments``
            makes them. Two at least, since some are held out.
        config: See ``RepairConfig``.

    Raises:
        ShallowvitError: the teacher is another model, there are fewer than two batches, or states aren't finite.
    """
    config, started = config or RepairConfig(), monotonic()
    if teacher.sha256 != pruned.plan.weights_sha256:
        raise ShallowvitError(
            f"repair: the pruned model was made from weights {pruned.plan.weights_sha256[:12]}, the teacher has "
            f"{teacher.sha256[:12]}; give the model that was pruned"
        )
    module = copy.deepcopy(pruned.model.module)
    model = replace(pruned.model, module=module)
    projections = find_projections(model)
    count = sum(len(batch[model.input_spec.name]) for batch in batches())
    found = []
    for path, block, target in _gaps(pruned):
        projection = projections[path]
        if isinstance(projection, str):
            found.append(RepairedGap(block, target, None, None, None, None, f"it {projection}"))
            continue
        task = _Gap(teacher, model, path, projection, teacher.blocks[target].path, config)
        task.reduced_behind = [site.block for site in pruned.tokens.sites if site.block < block] if pruned.tokens else []
        fit = task.fit(batches)
        if fit.ridge is not None:
            task.fold(fit)
        reason = None if fit.ridge is not None else "no fit erred less on held-out inputs"
        found.append(RepairedGap(block, target, projection.path, fit.ridge, fit.error_before, fit.error_after, reason))
    model = replace(model, sha256=hash_state(module))
    return Repair(replace(pruned, model=model), tuple(found), count, monotonic() - started)


def _gaps(pruned: PrunedModel) -> list[tuple[str, int, int]]:
    """The path in the pruned model and number of each kept block that is to be fitted, and the block whose answer is aimed at.

    That is the last removed one behind it; a list's first kept block also makes up for those in front of it, which have none
    that could.
    """
    removed, paths = set(pruned.plan.gone), pruned.plan.paths
    found, lists = [], set()
    for pair in state_pairs(pruned):
        own = list_of(paths, pair.block)
        first = own not in lists and pair.block - 1 in removed
        lists.add(own)
        if pair.target != pair.block or first:
            found.append((pair.student, pair.block, pair.target))
    return found


class _Gap:
    """One gap: what its layer is fitted on, and how the fit is folded into it."""

    def __init__(
        self,
        teacher: LoadedModel,
        student: LoadedModel,
        path: str,
        projection: Projection,
        target: str,
        config: RepairConfig,
    ) -> None:
        self._teacher, self._student, self._config = teacher, student, config
        self._block = student.module.get_submodule(path)
        layer = student.module.get_submodule(projection.path)
        assert isinstance(layer, torch.nn.Linear)
        self._layer, self._scale = layer, projection.scale
        self._target = teacher.module.get_submodule(target)
        self.reduced_behind: list[int] = []  # blocks in front of this one behind which the pruned model keeps some tokens

    def fit(self, batches: Batches) -> Fit:
        """Add up what the layer sees and should answer, and solve."""
        start = self._start()
        fitted, held_out = (Sums(*start.shape) for _ in range(2))
        every = round(1 / self._config.held_out)  # and the second batch, since there may be no more than two
        number = -1
        for number, batch in enumerate(batches()):
            features, wanted = self._tokens(batch)
            if not bool(torch.isfinite(features).all() and torch.isfinite(wanted).all()):
                raise ShallowvitError("repair: a state isn't finite in fp32; are the inputs prepared as in training?")
            (held_out if number % every == every - 1 or (number == 1 and every > 2) else fitted).add(features, wanted)
        if not (fitted.tokens and held_out.tokens):
            raise ShallowvitError(f"repair: {number + 1} batches; give at least two, since some choose how strongly to fit")
        if self._config.method is RepairMethod.SCALE:
            return _fit_scale(fitted, held_out, start)
        return fit_ridge(fitted, held_out, start, self._config.ridges)

    def _start(self) -> torch.Tensor:
        """The layer as it is, as weights [F, C] of the features."""
        layer = self._layer
        channels = layer.out_features
        if self._config.method is RepairMethod.PROJECTION:
            offset = () if layer.bias is None else (layer.bias.detach()[None],)
            return torch.cat([layer.weight.detach().T, *offset]).double()
        offset = () if layer.bias is None else (torch.zeros(1, channels),)
        return torch.cat([torch.eye(channels), *offset]).double()

    @torch.no_grad()
    def _tokens(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [tokens, F] of the layer and what it should answer [tokens, C] for the block to hand on the target."""
        seen: dict[str, torch.Tensor] = {}
        handles = [
            self._layer.register_forward_hook(lambda _m, args, answer: seen.update(given=args[0], answer=answer)),
            # before the block's own tokens are reduced, as its layer was given them
            self._block.register_forward_hook(lambda _m, _args, output: seen.update(state=tensors_in(output)[0]), prepend=True),
            self._target.register_forward_hook(lambda _m, _args, output: seen.update(target=tensors_in(output)[0])),
        ]
        try:
            with choices_of(self._student.module) as kept:
                self._student.module(**batch)
            self._teacher.module(**batch)
        finally:
            for handle in handles:
                handle.remove()
        if self.reduced_behind:
            seen["target"] = take_tokens(seen["target"], kept[self.reduced_behind[-1]])
        given, answer, state, target = (seen[name].flatten(0, -2).double() for name in ("given", "answer", "state", "target"))
        scale = torch.where(self._scale.abs() < _SMALLEST_SCALE * self._scale.abs().max(), torch.inf, self._scale)
        wanted = answer + (target - state) / scale
        features = given if self._config.method is RepairMethod.PROJECTION else answer
        if self._layer.bias is not None:
            features = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], 1)
        return features, wanted

    @torch.no_grad()
    def fold(self, fit: Fit) -> None:
        """Write the fit into the layer's own weights; a layer without a bias gets none."""
        layer, weights = self._layer, fit.weights
        biased = layer.bias is not None
        if self._config.method is not RepairMethod.PROJECTION:  # a map of answers: the layer's weights go through it
            own = torch.cat([layer.weight.T, layer.bias[None]]) if biased else layer.weight.T
            channels = layer.out_features
            mapped = own.double() @ weights[:channels]
            if biased:
                mapped[-1] += weights[-1]
            weights = mapped
        layer.weight.copy_(weights[: layer.in_features].T.to(layer.weight.dtype))
        if biased:
            layer.bias.copy_(weights[-1].to(layer.bias.dtype))


_SMALLEST_SCALE = 1e-3  # of the largest: a channel that a layer scale all but mutes can't be repaired through it


def _fit_scale(fitted: Sums, held_out: Sums, start: torch.Tensor) -> Fit:
    """A factor and an offset a channel (a factor alone without a bias), from the sums of the channel and of the ones."""
    channels = start.shape[1]
    places = torch.arange(channels)
    if len(start) == channels:
        factor = fitted.cross[places, places] / fitted.gram[places, places].clamp_min(1e-12)
        return _better(torch.diag(factor), held_out, start)
    square, total = fitted.gram[places, places], fitted.gram[places, -1]
    cross, aim, tokens = fitted.cross[places, places], fitted.cross[-1], fitted.gram[-1, -1]
    spread = (square * tokens - total * total).clamp_min(1e-12 * square.mean() * tokens)
    factor = (cross * tokens - total * aim) / spread
    weights = torch.cat([torch.diag(factor), ((aim - factor * total) / tokens)[None]])
    return _better(weights, held_out, start)


def _better(weights: torch.Tensor, held_out: Sums, start: torch.Tensor) -> Fit:
    before, after = held_out.error(start), held_out.error(weights)
    return Fit(weights, 0.0, before, after) if after < before else Fit(start, None, before, before)
