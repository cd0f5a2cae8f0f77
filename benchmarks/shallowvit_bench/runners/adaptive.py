"""Run an adaptive bundle: the gate first, then each depth on the items that it was chosen for, the answers put back in order.

A newcomer's trap: a depth gets as many items as the gate sends it, so that an engine's least batch is met by running the last
item again, and its most by several runs.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..adaptive_choice import choose_depths
from ..errors import BenchError
from ..feeding import batch_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from ..feeding import Batch
    from .protocol import Bound, Runner

__all__ = ["AdaptiveRunner", "Part", "open_adaptive"]


@dataclass(frozen=True)
class Part:
    """The gate or a depth: what opens it, and the batch of its graph where that is fixed."""

    opener: Callable[[], Runner]
    batch: int | None = None


def open_adaptive(parts: Sequence[Part], names: tuple[str, ...], thresholds: tuple[float, ...]) -> AdaptiveRunner:
    """Open the gate, which stands first, and the depths behind it, from the shallowest.

    Raises:
        BenchError: one can't be opened; those that were are closed again.
    """
    with ExitStack() as stack:
        runners = [stack.enter_context(part.opener()) for part in parts]
        return AdaptiveRunner(runners, [part.batch for part in parts], names, thresholds, stack.pop_all())


class AdaptiveRunner:
    """A gate and depths as one model; ``take_shares`` tells which depths its answers came from."""

    def __init__(
        self,
        runners: Sequence[Runner],
        batches: Sequence[int | None],
        names: tuple[str, ...],
        thresholds: tuple[float, ...],
        stack: ExitStack,
    ) -> None:
        self._gate, *self._depths = (_Sized(runner, batch) for runner, batch in zip(runners, batches, strict=True))
        self._names, self._thresholds, self._stack = names, thresholds, stack
        self._counts = np.zeros(len(names), np.int64)
        self.errors = tuple(dict.fromkeys(kind for runner in runners for kind in runner.errors))
        remarks = tuple(dict.fromkeys(text for runner in runners for text in runner.facts.remarks))
        digests = [runner.facts.engine_sha256 for runner in runners]
        engine = digests[-1] if all(digests) else None
        self.facts = replace(runners[-1].facts, remarks=remarks, batches=(), engine_sha256=engine, cuda_graph=None)

    def infer(self, batch: Batch) -> np.ndarray[Any, Any]:
        """Run one batch and return the answers, in the order of its items."""
        chosen = choose_depths(self._gate.run(batch), self._thresholds)
        self._counts += np.bincount(chosen, minlength=len(self._counts))
        first = int(chosen[0])
        if (chosen == first).all():  # of one item always
            return self._depths[first].run(batch)
        answers: np.ndarray[Any, Any] | None = None
        for depth in np.unique(chosen).tolist():
            items = np.flatnonzero(chosen == depth)
            found = self._depths[depth].run(_items_of(batch, items, len(chosen)))
            if answers is None:
                answers = np.empty((len(chosen), *found.shape[1:]), found.dtype)
            answers[items] = found
        assert answers is not None
        return answers

    def bind(self, batch: Batch) -> Bound:
        """Put a batch in place; what the gate answers to it is computed anew at each run."""
        return _BoundMix(self, batch)

    def take_shares(self) -> dict[str, float]:
        """Return the share of each depth since the last call, by name; nothing where nothing ran."""
        counts, self._counts = self._counts, np.zeros_like(self._counts)
        total = int(counts.sum())
        return {name: int(count) / total for name, count in zip(self._names, counts, strict=True)} if total else {}

    def close(self) -> None:
        """Free the gate and all depths."""
        self._stack.close()

    def __enter__(self) -> AdaptiveRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _BoundMix:
    device_ms = None

    def __init__(self, runner: AdaptiveRunner, batch: Batch) -> None:
        self._runner, self._batch = runner, batch
        self._output: np.ndarray[Any, Any] = np.zeros(0, np.float32)

    def __call__(self) -> None:
        self._output = self._runner.infer(self._batch)

    def output(self) -> np.ndarray[Any, Any]:
        return self._output

    def outputs(self) -> dict[str, np.ndarray[Any, Any]]:
        return {"output": self._output}


class _Sized:
    """A part that takes any number of items, whatever its engine or graph takes at a time."""

    def __init__(self, runner: Runner, fixed: int | None) -> None:
        self._runner = runner
        self._ranges = runner.facts.batches or (((fixed, fixed),) if fixed else ())
        self._most = max((most for _least, most in self._ranges), default=None)

    def run(self, batch: Batch) -> np.ndarray[Any, Any]:
        count = batch_size(batch)
        if not self._ranges:
            return self._runner.infer(batch)
        assert self._most is not None
        if any(least <= count <= most for least, most in self._ranges):
            return self._runner.infer(batch)
        parts = []
        for start in range(0, count, self._most):
            items = np.arange(start, min(start + self._most, count))
            size = min(max(least, len(items)) for least, most in self._ranges if most >= len(items))
            filled = np.concatenate([items, np.repeat(items[-1:], size - len(items))])
            answer = self._runner.infer(_items_of(batch, filled, count))
            if len(answer) != size:
                raise BenchError(f"infer: {len(answer)} answers to {size} items; a depth must answer each item with a row")
            parts.append(answer[: len(items)].copy())  # the next run may overwrite it
        return np.concatenate(parts)


def _items_of(batch: Batch, items: np.ndarray[Any, Any], count: int) -> Batch:
    """These items of a batch of ``count``; an input without a batch is fed whole."""
    if isinstance(batch, np.ndarray):
        return batch[items]
    return {name: array[items] if len(array) == count else array for name, array in batch.items()}
