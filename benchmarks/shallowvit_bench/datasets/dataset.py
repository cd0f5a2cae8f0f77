"""What an opened data set is: items that are read when asked for, in threads ahead of the model, with their labels.

A newcomer's trap: an item can be several *views*, as 5 clips x 3 crops of one video. ``take`` and ``batches`` are for items of
one view; ``read`` gives every view, and hands on what couldn't be read instead of raising it.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..bundles import BundleInfo
from ..conditions import usable_cores
from ..errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    Found = tuple[int, "np.ndarray[Any, Any] | UnreadableError"]

__all__ = ["KINDS", "NO_LABELS", "Dataset", "Items", "Settings", "Taker", "UnreadableError", "called"]

KINDS = ("classes", "binary", "retrieval")  # what is measured: predicted classes, one score of two classes, a ranked gallery
NO_LABELS = np.zeros(0, np.int64)
_MEMORY_AHEAD = 256 << 20  # bytes of frames that may wait for the model
_MOST_THREADS = 8


class UnreadableError(BenchError):
    """One item can't be read, and says why; the others can."""


class Settings(Protocol):
    """What a checkpoint says about frames."""

    @property
    def frame_shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def resize(self) -> dict[str, int] | None: ...  # noqa: D102
    @property
    def crop(self) -> dict[str, int] | None: ...  # noqa: D102
    @property
    def resample(self) -> str: ...  # noqa: D102
    @property
    def crop_rounding(self) -> str: ...  # noqa: D102


class _Input(Protocol):
    @property
    def layout(self) -> str: ...
    @property
    def shape(self) -> tuple[int | str, ...]: ...


class Taker(Protocol):
    """What takes the items, a bundle or a model in memory, as far as the data has to fit it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def input(self) -> _Input: ...  # noqa: D102
    @property
    def preprocessing(self) -> Settings | None: ...  # noqa: D102
    @property
    def labels(self) -> tuple[str, ...] | None: ...  # noqa: D102


class Items(Protocol):
    """Where items come from; ``in_memory`` says whether reading ahead in threads would gain anything."""

    in_memory: bool

    def __len__(self) -> int: ...

    def read(self, item: int) -> np.ndarray[Any, Any]:
        """Return [views, ...], or raise ``UnreadableError``."""

    def name(self, item: int) -> str:
        """Return what a person calls the item, as the path of its file."""

    def stamp(self, item: int) -> int:
        """Return a number that changes when the item's file does."""


@dataclass(frozen=True)
class Dataset:
    """Items in order, with their labels.

    Args:
        name: For rows and messages; names the views where an item isn't one plain frame or clip.
        labels: int64 [count]: classes, or who is on the image for retrieval; none [0] where the data was opened without a need
            for them and has none that fit.
        kind: One of ``KINDS``.
        views: Of an item; the model's answers to them are averaged.
        preprocessed: Items are the graph's input as it stands; otherwise uint8 frames [(T,) H, W, C].
        cameras: Of each image, for retrieval.
        queries: Which images are queries, for retrieval; the others are the gallery.
        beside: Items of the graph's other inputs, by name, each as many as there are items.
    """

    name: str
    count: int
    labels: np.ndarray[Any, Any]
    items: Items = field(repr=False)
    kind: str = "classes"
    views: int = 1
    preprocessed: bool = False
    cameras: np.ndarray[Any, Any] | None = None
    queries: np.ndarray[Any, Any] | None = None
    beside: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict, repr=False)

    def beside_of(self, items: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
        """Return these items of the graph's other inputs, by name."""
        return {name: array[list(items)] for name, array in self.beside.items()}

    def batches(self, size: int) -> Iterator[np.ndarray[Any, Any]]:
        """Yield uint8 frames [size or fewer, (T,) H, W, C] in order.

        Raises:
            BenchError: an item can't be read, has several views, or isn't frames.
        """
        for start in range(0, self.count, size):
            yield self.take(range(start, min(start + size, self.count)))

    def take(self, items: Sequence[int]) -> np.ndarray[Any, Any]:
        """Return the uint8 frames of these items alone, in this order.

        Raises:
            BenchError: an item can't be read, has several views, or isn't frames.
        """
        if self.preprocessed:
            raise BenchError(f"take: {self.name} holds inputs of the graph, expected frames here; give data with uint8 frames")
        if self.views != 1:
            raise BenchError(f"take: {self.name} has {self.views} views an item, expected one here; open it with ?views=1x1")
        taken = []
        for _item, found in self.read(items):
            if isinstance(found, UnreadableError):
                raise found
            taken.append(found[0])
        return np.stack(taken)

    def read(self, items: Iterable[int]) -> Iterator[Found]:
        """Yield each item's number with its views [views, ...], or with why it can't be read; in this order."""
        if self.items.in_memory:
            yield from ((item, self._read(item)) for item in items)
            return
        source = iter(items)
        waiting: deque[tuple[int, Future[np.ndarray[Any, Any] | UnreadableError]]] = deque()
        pool = ThreadPoolExecutor(min(_MOST_THREADS, usable_cores()), "read")

        def fill(ahead: int) -> None:
            for item in islice(source, max(0, ahead - len(waiting))):
                waiting.append((item, pool.submit(self._read, item)))

        try:
            fill(1)  # the first item shows how large they are
            while waiting:
                item, future = waiting.popleft()
                found = future.result()
                large = found.nbytes if isinstance(found, np.ndarray) else 0
                fill(max(1, min(4 * _MOST_THREADS, _MEMORY_AHEAD // large)) if large else 1)
                yield item, found
        finally:
            pool.shutdown(cancel_futures=True)

    def digest(self) -> str:
        """Return a sha256 of what is measured: names, labels and views, and the items themselves where they are in memory."""
        digest = hashlib.sha256(json.dumps([self.name, self.kind, self.count, self.views, self.preprocessed]).encode())
        for array in (self.labels, self.cameras, self.queries):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        for name, array in self.beside.items():
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        for item in range(self.count):
            digest.update(self.items.name(item).encode() + b"\n")
            if self.items.in_memory:
                digest.update(np.ascontiguousarray(self.items.read(item)).tobytes())
        return digest.hexdigest()

    def _read(self, item: int) -> np.ndarray[Any, Any] | UnreadableError:
        try:
            return self.items.read(item)
        except UnreadableError as err:
            return err


def called(taker: Taker) -> str:
    """Return what messages call the taker."""
    return f"the {'bundle' if isinstance(taker, BundleInfo) else 'model'} {taker.name}"
