"""Set the thresholds of a mix on held-out items, and judge it on others beside a random mix and a cascade by confidence.

A newcomer's trap: of a thousand settings the best on the items they were chosen on looks better than it is. So a drop counts
with one standard error on top when it is chosen, and what is told comes from items that chose nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from shallowvit_bench.adaptive_choice import NEVER, first_above, sufficiency

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .settings import AdaptConfig

    Array = np.ndarray[Any, Any]

__all__ = ["Mix", "Outcomes", "Thresholds", "judge", "set_thresholds", "verdict"]

_QUANTILES = 33  # thresholds a depth that are tried


@dataclass(frozen=True)
class Outcomes:
    """What the depths and the gate made of items; depths from the shallowest, costs as shares of the deepest's FLOPs."""

    gate_logits: Array  # [items, depths]
    confidence: Array  # the greatest probability of each depth's answer, [items, depths]
    right: Array  # whether it is as the label says or, without labels, as the deepest answers; bool [items, depths]
    costs: tuple[float, ...]
    gate_cost: float

    @property
    def gate_costs(self) -> tuple[float, ...]:
        """What an item costs that the gate sends to each depth."""
        return tuple(self.gate_cost + cost for cost in self.costs)

    @property
    def cascade_costs(self) -> tuple[float, ...]:
        """What an item costs that every depth up to this one has run on."""
        return tuple(np.cumsum(self.costs).tolist())

    def part(self, items: slice) -> Outcomes:
        """Return these items alone."""
        return Outcomes(self.gate_logits[items], self.confidence[items], self.right[items], self.costs, self.gate_cost)


@dataclass(frozen=True)
class Thresholds:
    """One a depth but the deepest, from the shallowest; ``cascade`` are of the confidence."""

    gate: tuple[float, ...]
    cascade: tuple[float, ...] | None


@dataclass(frozen=True)
class Mix:
    """A way to use the depths: the share of each, the mean cost, the accuracy (without labels the agreement), and the drop
    against the deepest and what it lacks to the gate, each with its standard error.
    """

    shares: tuple[float, ...]
    cost: float
    accuracy: float
    drop: float
    drop_error: float
    behind_gate: float
    behind_gate_error: float


def set_thresholds(outcomes: Outcomes, config: AdaptConfig) -> Thresholds:
    """Choose the thresholds of gate and cascade on these items.

    Raises:
        ShallowvitError: no thresholds meet the budget.
    """
    gate = _search(sufficiency(outcomes.gate_logits), outcomes, outcomes.gate_costs, config)
    if gate is None:
        least = outcomes.gate_costs[0]
        raise ShallowvitError(
            f"adapt: --budget {config.budget:g} can't be met: the gate and the shallowest model alone cost {least:.3f} of the "
            f"deepest; give at least {least:.3f}, or a shallower model"
        )
    return Thresholds(gate, _search(outcomes.confidence[:, :-1], outcomes, outcomes.cascade_costs, config))


def judge(outcomes: Outcomes, thresholds: Thresholds) -> dict[str, Mix]:
    """Return what each way does on these items: gate, random (at the gate's shares), confidence, and each depth alone."""
    each = np.eye(len(outcomes.costs))
    gate = each[first_above(sufficiency(outcomes.gate_logits), thresholds.gate)]
    ways = {"gate": (gate, outcomes.gate_costs), "random": (np.tile(gate.mean(axis=0), (len(gate), 1)), outcomes.costs)}
    if thresholds.cascade is not None:
        chosen = first_above(outcomes.confidence[:, :-1], thresholds.cascade)
        ways["confidence"] = (each[chosen], outcomes.cascade_costs)
    ways |= {f"depth {depth}": (np.tile(row, (len(gate), 1)), outcomes.costs) for depth, row in enumerate(each)}
    best = (gate * outcomes.right).sum(axis=1)
    return {name: _mix(outcomes, weights, costs, best) for name, (weights, costs) in ways.items()}


def verdict(found: dict[str, Mix], names: Sequence[str], measure: str) -> tuple[str, ...]:
    """Say in a sentence each what a user must know: whether the gate ever chooses, and whether it earns its keep."""
    gate, random, cascade = found["gate"], found["random"], found.get("confidence")
    said = []
    always = [name for name, share in zip(names, gate.shares, strict=True) if share == 1]
    if always:
        said.append(f"the gate always picks {always[0]}, so that this bundle only costs more than {always[0]} alone")
        return tuple(said)
    if random.behind_gate <= random.behind_gate_error:
        said.append(
            f"the gate doesn't earn its keep: a random mix at the same shares has {random.accuracy:.1%} {measure}, the gate's "
            f"{gate.accuracy:.1%} (within one standard error)"
        )
    if cascade is not None and cascade.cost < gate.cost and cascade.behind_gate <= cascade.behind_gate_error:
        said.append(
            f"a cascade by confidence does as well for less: {cascade.accuracy:.1%} {measure} at {cascade.cost:.2f} of the "
            f"deepest model's cost, the gate {gate.accuracy:.1%} at {gate.cost:.2f}"
        )
    for depth, name in enumerate(names[:-1]):
        alone = found[f"depth {depth}"]
        if alone.cost < gate.cost and alone.behind_gate <= alone.behind_gate_error:
            said.append(
                f"{name} alone does as well for less: {alone.accuracy:.1%} {measure} at {alone.cost:.2f} of the deepest "
                f"model's cost, the gate {gate.accuracy:.1%} at {gate.cost:.2f}"
            )
    if gate.cost >= 1:
        said.append(f"the mix costs {gate.cost:.2f} of the deepest model, so that the deepest alone is cheaper")
    return tuple(said)


def _search(scores: Array, outcomes: Outcomes, costs: Sequence[float], config: AdaptConfig) -> tuple[float, ...] | None:
    """The cheapest thresholds within the drop, or the most accurate ones within the budget; None where there are none."""
    right, count = outcomes.right, len(outcomes.right)
    tried = [(*np.unique(np.quantile(column, np.linspace(0, 1, _QUANTILES))).tolist(), NEVER) for column in scores.T]
    best: tuple[tuple[float, float], tuple[float, ...]] | None = None
    for thresholds in product(*tried):
        chosen = first_above(scores, thresholds)
        cost = float(np.asarray(costs)[chosen].mean())
        lost = right[:, -1].astype(np.float64) - right[np.arange(count), chosen]
        drop = float(lost.mean())
        if config.budget is not None:
            fits, rank = cost <= config.budget + 1e-9, (drop, cost)
        else:
            assert config.max_drop is not None
            fits, rank = drop + float(lost.std()) / count**0.5 <= config.max_drop + 1e-9, (cost, drop)
        if fits and (best is None or rank < best[0]):
            best = rank, thresholds
    return best[1] if best else None


def _mix(outcomes: Outcomes, weights: Array, costs: Sequence[float], gate_right: Array) -> Mix:
    """``weights`` [items, depths] say how often an item goes to each depth."""
    right = (weights * outcomes.right).sum(axis=1)
    lost, behind = outcomes.right[:, -1] - right, gate_right - right
    shares = weights.mean(axis=0)
    root = len(right) ** 0.5
    return Mix(
        shares=tuple(shares.tolist()),
        cost=float(shares @ np.asarray(costs)),
        accuracy=float(right.mean()),
        drop=float(lost.mean()),
        drop_error=float(lost.std() / root),
        behind_gate=float(behind.mean()),
        behind_gate_error=float(behind.std() / root),
    )
