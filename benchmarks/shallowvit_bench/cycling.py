"""Time a model on real inputs, one batch after another, where what it takes depends on what it is given.

A newcomer's trap: a bound batch is in place before it is timed; here each run is handed its inputs, as a deployment's is, so
that such a time is only to be held against others taken this way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .datasets import UnreadableError
from .errors import BenchError
from .feeding import batch_beside
from .preprocessing import input_from_frames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .bundles import BundleInfo
    from .datasets import Dataset
    from .feeding import Batch
    from .runners import Runner

__all__ = ["Cycled", "real_batches"]

_MOST_ITEMS = 512
_MOST_BYTES = 256 << 20  # of inputs that wait in memory
_FEWEST_BATCHES = 8


class Cycled:
    """Batches as one bound batch: each call runs the next of them, from the first again behind the last."""

    device_ms = None

    def __init__(self, runner: Runner, batches: Sequence[Batch]) -> None:
        self._infer, self._batches, self._next = runner.infer, batches, 0
        self._output: np.ndarray[Any, Any] = np.zeros(0, np.float32)

    def __call__(self) -> None:
        """Run the next batch."""
        self._output = self._infer(self._batches[self._next])
        self._next = (self._next + 1) % len(self._batches)

    def restart(self) -> None:
        """Begin with the first batch again, so that sides that warmed up for longer run on the same inputs as others."""
        self._next = 0

    def output(self) -> np.ndarray[Any, Any]:
        """Return the first output of the last run."""
        return self._output

    def outputs(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return that output by a name."""
        return {"output": self._output}


def real_batches(dataset: Dataset, bundle: BundleInfo, size: int) -> list[Batch]:
    """Return batches of a data set's items, spread over the whole of it: 512 items, fewer where those would fill the memory.

    Raises:
        BenchError: none of the items can be read, or they are fewer than a batch.
    """
    first = next((views for _item, views in dataset.read(range(dataset.count)) if not isinstance(views, UnreadableError)), None)
    if first is None or dataset.count < size:
        raise BenchError(f"bench: {dataset.name} holds {dataset.count} items, too few to time batches of {size} on; give more")
    bytes_each = int(np.prod(bundle.input.measured_shape)) * np.dtype(bundle.input.dtype).itemsize
    wanted = max(_FEWEST_BATCHES * size, min(_MOST_ITEMS, _MOST_BYTES // bytes_each))
    # an odd stride through all items would pair with the order of classes; a draw doesn't
    drawn = np.random.default_rng(0).permutation(dataset.count)[:wanted].tolist()
    found: list[tuple[int, np.ndarray[Any, Any]]] = [
        (item, views[0]) for item, views in dataset.read(drawn) if not isinstance(views, UnreadableError)
    ]
    batches: list[Batch] = []
    for start in range(0, len(found) - size + 1, size):
        items, views = zip(*found[start : start + size], strict=True)
        stacked = np.stack(views)
        main = stacked.astype(bundle.input.dtype, copy=False) if dataset.preprocessed else input_from_frames(stacked, bundle)
        batches.append(batch_beside(np.ascontiguousarray(main), bundle, dataset.beside_of(items)))
    if not batches:
        raise BenchError(
            f"bench: {len(found)} items of {dataset.name} can be read, too few to time batches of {size} on; give more"
        )
    return batches
