"""Judge measured points: which no other beats, which one to take, and why, in a sentence.

A newcomer's trap: where an accuracy is asked for, the cheapest point that has it is recommended; where none is, the most
accurate that fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .records import MODELLED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .budgets import Budgets
    from .records import TunePoint

__all__ = ["Verdict", "front_of", "recommend"]


@dataclass(frozen=True)
class Verdict:
    """The point to take, or the nearest where none meets every budget, and the reason."""

    recommended: str | None
    nearest: str | None
    reason: str


def front_of(points: Sequence[TunePoint], budgets: Budgets) -> tuple[str, ...]:
    """Return the names of the points that no other is at least as good as everywhere and better somewhere."""
    usable = [point for point in points if point.failure is None and point.top1 is not None and point.latency_ms is not None]
    rows = [(point, _figures(point, budgets)) for point in usable]
    front = [point for point, own in rows if not any(_beats(other, own) for _, other in rows)]
    return tuple(point.name for point in sorted(front, key=lambda point: (point.item_ms, point.name)))


def recommend(points: Sequence[TunePoint], budgets: Budgets, source: str) -> Verdict:
    """Choose among measured points.

    Args:
        points: Those of the finalists.
        budgets: What they must meet.
        source: Where latencies come from, for the reason.
    """
    usable = [point for point in points if point.failure is None and point.top1 is not None]
    if not usable:
        failures = "; ".join(dict.fromkeys(point.failure for point in points if point.failure)) or "there is no finalist"
        return Verdict(None, None, f"no point could be measured: {failures}")
    meeting = [point for point in usable if not point.missed]
    if not meeting:
        near = min(usable, key=lambda point: (point.distance, point.item_ms, point.name))
        told = ", ".join(f"{one.found} against {one.budget} {one.limit}" for one in near.missed)
        return Verdict(None, near.name, f"no point meets {budgets}; nearest: {near.name} with {told}")
    if budgets.asks_accuracy:
        best = min(meeting, key=lambda point: (_price(point, budgets), -(point.top1 or 0), point.name))
        why = "the cheapest an item"
    else:
        best = min(meeting, key=lambda point: (-(point.top1 or 0), _price(point, budgets), point.name))
        why = "the most accurate"
    one_of = f"of {len(meeting)} points that meet {budgets}" if len(meeting) > 1 else f"and the only one that meets {budgets}"
    return Verdict(best.name, None, f"{best.name} is {why} {one_of}: {_told(best)}{_doubt(best, source)}")


def _price(point: TunePoint, budgets: Budgets) -> float:
    """Energy an item where energy is budgeted, else time."""
    if budgets.max_energy_mj is not None and point.energy_mj is not None:
        return point.energy_mj / point.batch
    return point.item_ms


def _figures(point: TunePoint, budgets: Budgets) -> tuple[float, ...]:
    """What a front is of; smaller is better."""
    found = [point.item_ms, -(point.top1 or 0.0)]
    if budgets.max_latency_ms is not None:
        found.append(point.latency_ms or 0.0)
    if budgets.max_size_bytes is not None:
        found.append(point.size_bytes or 0.0)
    if budgets.max_energy_mj is not None:
        found.append(float("inf") if point.energy_mj is None else point.energy_mj / point.batch)
    return tuple(found)


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(mine <= yours for mine, yours in zip(one, other, strict=True)) and one != other


def _told(point: TunePoint) -> str:
    latency = "unknown" if point.latency_ms is None else f"{point.latency_ms:.3g} ms ({point.latency_source})"
    size = "" if point.size_bytes is None else f", {point.size_bytes / 1e6:.3g} MB"
    energy = "" if point.energy_mj is None else f", {point.energy_mj:.3g} mJ"
    between = f" ({point.top1_interval[0]:.1%} to {point.top1_interval[1]:.1%})" if point.top1_interval else ""
    return f"{latency}{size}{energy}, top-1 {point.top1 or 0:.1%}{between}"


def _doubt(point: TunePoint, source: str) -> str:
    if point.latency_source != MODELLED:
        return ""
    error = "" if point.latency_error is None else f", off by up to {point.latency_error:.0%} where it was checked"
    return f"; latency is {source}{error}: measure it on the device before relying on it"
