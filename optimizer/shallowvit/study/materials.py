"""What every worker of a study works on: which models, and the items, read once and kept as the bytes they are stored in.

A newcomer's trap: items stay uint8 until a batch is preprocessed; 40,000 demo clips as the model's floats would take a
gigabyte a worker.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shallowvit_bench.datasets import open_dataset

from ..errors import ShallowvitError
from ..scoring.calibration import taker_of

if TYPE_CHECKING:
    from ..models import LoadedModel

__all__ = ["Items", "Materials", "ModelSource", "read_items"]

_DRAW_SEED = 0


@dataclass(frozen=True)
class ModelSource:
    """How a worker loads a checkpoint, and the hash its weights must have."""

    source: str
    sha256: str
    arch: str | None = None
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Items:
    """Labelled uint8 items [N, (T,) H, W, C] with int64 labels [N], and the hash of both."""

    name: str
    frames: np.ndarray[Any, Any] | Path  # a path: an .npy file that workers map
    labels: np.ndarray[Any, Any]
    sha256: str

    def __len__(self) -> int:
        return len(self.labels)

    def stored(self, folder: Path) -> Items:
        """Return the same items with the frames in a file, which processes of a machine share."""
        path = folder / f"{self.sha256}.npy"
        np.save(path, np.asarray(self.frames))
        return replace(self, frames=path)

    def opened(self) -> Items:
        """Return the same items with the frames mapped into memory."""
        if not isinstance(self.frames, Path):
            return self
        return replace(self, frames=np.load(self.frames, mmap_mode="c"))


@dataclass(frozen=True)
class Materials:
    """All that a worker needs; ``models`` holds the studied models, then their pretraining checkpoints."""

    models: tuple[ModelSource, ...]
    test: Items
    train: Items
    batch: int

    def stored(self, folder: Path) -> Materials:
        """Return the same with the frames in files."""
        return replace(self, test=self.test.stored(folder), train=self.train.stored(folder))

    def opened(self) -> Materials:
        """Return the same with the frames mapped into memory."""
        return replace(self, test=self.test.opened(), train=self.train.opened())


def read_items(spec: str, model: LoadedModel, count: int | None = None, stage: str = "study") -> Items:
    """Read labelled items for a model, all or ``count`` drawn from the whole set, in the order they were drawn.

    Raises:
        ShallowvitError: the model came without preprocessing settings.
        BenchError: no such data, or it doesn't fit the model.
    """
    if model.input_spec.preprocessing is None:
        raise ShallowvitError(
            f"{stage}: {model.origin.spec} comes without preprocessing settings (preprocessor_config.json), so it can't be "
            "measured on frames; add them"
        )
    dataset = open_dataset(spec, taker_of(model))
    labels = np.ascontiguousarray(dataset.labels, dtype=np.int64)
    if count is not None and count < len(labels):
        # any first part of what was drawn is itself a draw from the whole set
        chosen = np.random.default_rng(_DRAW_SEED).permutation(len(labels))[:count]
        frames, labels = dataset.take(chosen.tolist()), labels[chosen]
    else:
        frames = np.concatenate(list(dataset.batches(1000)))
    frames = np.ascontiguousarray(frames)
    digest = hashlib.sha256(repr((frames.shape, str(frames.dtype))).encode())
    digest.update(frames.data)
    digest.update(labels.data)
    return Items(dataset.name, frames, labels, digest.hexdigest())
