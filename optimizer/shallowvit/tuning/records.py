"""What tune returns: every point it looked at, the front of those that were measured, and what it recommends and why.

A newcomer's trap: ``searched_top1`` is of the held-out items that judge candidates and steered the search; ``top1`` is of the
named data, on the bundle itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .budgets import Missed

__all__ = ["MEASURED", "MODELLED", "Progress", "TunePoint", "TuneResult"]

MEASURED, MODELLED = "measured", "modelled"


@dataclass(frozen=True)
class Progress:
    """How far a search is: what it does now, and how many candidates of how many of this round are done."""

    doing: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class TunePoint:
    """A model in a precision at a batch size; None is not measured.

    Args:
        name: Of the model and its variant, such as ``d9-entropy-fp16-b1``.
        bundle: The name of its folder in ``front``; None: it wasn't exported.
        depth: Blocks that are kept.
        removed: Those that aren't.
        latency_ms: Of an inference, the median.
        latency_source: ``measured`` or ``modelled``; ``latency_error`` is the largest relative error of the model on depths
            that it wasn't fitted on.
        size_bytes: Of the graph, and ``energy_mj`` of an inference; modelled where the latency is.
        epochs: That the model was trained; 0: repaired in closed form or untouched.
        missed: The budgets it doesn't meet; of accuracy by ``top1``, else by ``searched_top1``.
        failure: Why it could not be exported or measured.
    """

    name: str
    bundle: str | None
    criterion: str
    select: str
    depth: int
    removed: tuple[int, ...]
    keep_tokens: float
    precision: str
    batch: int
    latency_ms: float | None
    latency_source: str
    latency_error: float | None
    size_bytes: float | None
    energy_mj: float | None
    searched_top1: float | None
    epochs: int
    top1: float | None = None
    top1_interval: tuple[float, float] | None = None
    items: int | None = None
    missed: tuple[Missed, ...] = ()
    failure: str | None = None

    @property
    def distance(self) -> float:
        """By how much all budgets are missed together, each as a share of itself; 0 where every one is met."""
        return sum(one.share for one in self.missed)

    @property
    def item_ms(self) -> float:
        """Latency over the batch; infinite where it isn't known."""
        return float("inf") if self.latency_ms is None else self.latency_ms / self.batch


@dataclass(frozen=True)
class TuneResult:
    """A finished search.

    Args:
        settings: Of the search.
        whole_top1: Of the unpruned model on the named data.
        points: All of them, those that were measured first.
        front: Names of the measured points that no other is better than in latency an item, accuracy and what is budgeted.
        recommended: The name of one that meets every budget; None: none does.
        nearest: Where none does, the one that misses least.
        reason: A sentence.
        trainings: Trainings that were done, all rungs counted, and their epochs together.
        candidates: That were repaired and measured.
        latency_from: Where latencies come from, in words.
        warnings: What to know before trusting it.
        failures: Candidates that could not be tried, each as a sentence.
        seconds: What this run took.
    """

    settings: dict[str, Any]
    whole_top1: float | None
    points: tuple[TunePoint, ...]
    front: tuple[str, ...]
    recommended: str | None
    nearest: str | None
    reason: str
    trainings: int
    epochs: int
    candidates: int
    latency_from: str
    warnings: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    seconds: float = 0.0

    def point(self, name: str) -> TunePoint:
        """Return the point with this name."""
        return next(point for point in self.points if point.name == name)

    @property
    def record(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self)
