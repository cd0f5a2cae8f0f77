"""Read what is tuned, and its data in three parts: what candidates are trained on, what judges them, and what is reported on.

A newcomer's trap: without data of its own, the part that judges is drawn out of ``train`` before anything else, so that neither
a criterion nor a repair nor a training sees it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ShallowvitError
from ..models import load
from ..study.materials import Items, ModelSource, read_items
from ..study.subject import identity_of

if TYPE_CHECKING:
    from ..models import LoadedModel
    from .config import TuneConfig

__all__ = ["Materials", "Subject", "read_subject"]


@dataclass(frozen=True)
class Materials:
    """What a worker needs; ``trained_on`` is a ``.npz`` of the training items once they are stored."""

    model: ModelSource
    train: Items
    heldout: Items
    trained_on: Path | None = None

    def stored(self, folder: Path) -> Materials:
        """Return the same with the items in files of a folder."""
        if self.trained_on is not None:
            return self
        path = folder / f"{self.train.sha256}.npz"
        if not path.is_file():
            beside = path.with_name(f".{os.getpid()}.partial.npz")
            np.savez(beside, frames=np.asarray(self.train.frames), labels=self.train.labels)
            beside.replace(path)
        empty = replace(self.train, frames=np.zeros((0,), np.uint8))
        return replace(self, train=empty, heldout=self.heldout.stored(folder), trained_on=path)

    def opened(self) -> Materials:
        """Return the same with the held-out items mapped and the training items in a file, wherever that is."""
        kept = self if self.trained_on else self.stored(Path(tempfile.mkdtemp(prefix="shallowvit-tune-")))
        return replace(kept, heldout=kept.heldout.opened())


@dataclass(frozen=True)
class Subject:
    """What is tuned: the model, what tells it from others, and the items."""

    model: LoadedModel
    identity: str
    materials: Materials
    data_sha256: str
    warnings: tuple[str, ...]


def read_subject(source: str, config: TuneConfig) -> Subject:
    """Load the model and read the data; ``data`` only to know that it fits and is no part of ``train``.

    Raises:
        ShallowvitError: the model has no classes or no preprocessing, or the data holds too few items or those it is
            reported on.
        BenchError: the data isn't there, has no labels, or doesn't fit the model.
    """
    model = load(source, arch=config.arch, blocks=config.blocks)
    if len(model.output_shapes[0]) != 2:
        raise ShallowvitError(
            f"tune: {source} gives {list(model.output_shapes[0][1:])} an item, and what is held to an accuracy needs classes; "
            "give a classifier"
        )
    train, heldout = _apart(model, config) if config.validation else _held_out(model, config)
    _check_step(config, len(train))
    data = read_items(config.data, model, stage="tune")
    warnings = _overlap(config, data, train, heldout)
    identity = identity_of(model)
    return Subject(
        model=model,
        identity=identity,
        materials=Materials(ModelSource(source, model.sha256, config.arch, config.blocks), train, heldout),
        data_sha256=data.sha256,
        warnings=warnings,
    )


def _apart(model: LoadedModel, config: TuneConfig) -> tuple[Items, Items]:
    """The items to train on, and those of the data set that judges."""
    assert config.validation is not None
    return (
        read_items(config.train, model, config.items, stage="tune"),
        read_items(config.validation, model, config.holdout, stage="tune"),
    )


def _held_out(model: LoadedModel, config: TuneConfig) -> tuple[Items, Items]:
    """The items to train on, and those that were drawn out of them."""
    drawn = read_items(config.train, model, config.items + config.holdout, stage="tune")
    if len(drawn) < config.holdout + 2:
        raise ShallowvitError(
            f"tune: {config.train} holds {len(drawn)} items, and {config.holdout} of them judge candidates; give at least "
            f"{config.holdout + 2}, lower --holdout, or give --validation"
        )
    # as many of a small set come in its own order
    order = np.random.default_rng([config.seed, len(drawn)]).permutation(len(drawn))
    heldout, train = (_part(drawn, np.sort(chosen)) for chosen in (order[: config.holdout], order[config.holdout :]))
    return train, heldout


def _check_step(config: TuneConfig, count: int) -> None:
    """Refuse items that don't fill a step of a training, which would fail for every candidate when all are repaired."""
    training = config.training
    left, step = count - round(training.validation_share * count), training.batch * training.accumulate
    if config.rungs and left < step:
        judging = "what judges epochs" if config.validation else f"--holdout {config.holdout} and what judges epochs"
        fewer = "" if config.validation else ", lower --holdout"
        raise ShallowvitError(
            f"tune: {left} items of {config.train} are left to train on behind {judging}, a step takes {step}; give more "
            f"items{fewer}, or train nothing: --method {config.closed_form}"
        )


def _part(items: Items, chosen: np.ndarray) -> Items:
    frames, labels = np.asarray(items.frames)[chosen], items.labels[chosen]
    digest = hashlib.sha256(items.sha256.encode())
    digest.update(chosen.astype("<i8").tobytes())
    return Items(items.name, frames, labels, digest.hexdigest())


def _overlap(config: TuneConfig, data: Items, train: Items, heldout: Items) -> tuple[str, ...]:
    """Accuracy on items that were trained on, or that candidates were chosen by, says little."""
    own, trained, judged = _hashes(data), _hashes(train), _hashes(heldout)
    reported, training, judging = f"--data {config.data}", f"--train {config.train}", f"--validation {config.validation}"
    if config.validation is None:
        pairs = [(reported, own, training, trained + judged)]
    else:
        pairs = [(reported, own, training, trained), (reported, own, judging, judged), (judging, judged, training, trained)]
    warnings = []
    for one, items, other, seen in pairs:
        known = set(seen)
        again = sum(item in known for item in items)
        if again == len(items):
            raise ShallowvitError(f"tune: all {again} items of {one} are among those of {other}; give others")
        if again:
            warnings.append(f"{again} of {len(items)} items of {one} are among those of {other}, so accuracies are too good")
    return tuple(warnings)


def _hashes(items: Items) -> list[bytes]:
    return [hashlib.blake2b(frames.data).digest() for frames in np.asarray(items.frames)]
