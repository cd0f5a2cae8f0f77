"""The items that a training sees: drawn from any data the harness opens, prepared as the model takes them, a share held out.

Items are decoded when a batch asks for them, so a large set takes no memory. A newcomer's trap: a draw belongs to a batch's
seed, not to the process that makes it, so workers and a resumed run give the same batches.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from shallowvit_bench.datasets import open_dataset
from shallowvit_bench.errors import BenchError

from ..errors import ShallowvitError
from ..exporting.frames import FramesToInput
from ..scoring.calibration import taker_of
from .augmenting import augment_frames, check_augment, flip_inputs
from .objectives import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shallowvit_bench.datasets.dataset import Dataset

    from ..models import InputSpec, LoadedModel
    from .settings import RecoverConfig

__all__ = ["TrainItems", "check_classes", "read_train_items"]

_DRAWN_FROM = 4  # clips of demo to draw from for each that is wanted, since all of them take seconds to make


@dataclass(frozen=True)
class TrainItems:
    """Some items of a data set, by their numbers there.

    ``labelled`` says whether batches have targets; ``augment`` is what a seeded batch goes through (``TrainConfig.augment``).
    """

    dataset: Dataset = field(repr=False)
    numbers: np.ndarray = field(repr=False)  # int64 [items]
    spec: InputSpec
    labelled: bool
    augment: str = "none"

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def name(self) -> str:
        """What a person calls the data."""
        return self.dataset.name

    @property
    def labels(self) -> torch.Tensor:
        """int64 [items]; empty without labels."""
        return torch.from_numpy(self.dataset.labels[self.numbers] if self.labelled else np.zeros(0, np.int64))

    def batch(self, chosen: Sequence[int], seed: int | None = None) -> Batch:
        """Return these items (by their place among ours), prepared; augmented where a seed says which draw.

        Raises:
            ShallowvitError: an item can't be read.
        """
        numbers = self.numbers[list(chosen)]
        targets = torch.from_numpy(self.dataset.labels[numbers]) if self.labelled else None
        return Batch(self._inputs(numbers.tolist(), seed), targets)

    def fingerprints(self) -> list[bytes]:
        """Return what tells each item from others: its content where it is in memory, else its file's name and stamp."""
        items = self.dataset.items
        if items.in_memory:
            return [hashlib.sha256(np.ascontiguousarray(items.read(number)).tobytes()).digest() for number in self.numbers]
        return [f"{items.name(number)} {items.stamp(number)}".encode() for number in self.numbers.tolist()]

    def digest(self) -> str:
        """Return a sha256 over all items in order and their labels."""
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        for one in self.fingerprints():
            digest.update(one)
        return digest.hexdigest()

    def _inputs(self, numbers: list[int], seed: int | None) -> torch.Tensor:
        augment = "none" if seed is None else self.augment
        try:
            if not self.dataset.preprocessed:
                frames = augment_frames(self.dataset.take(numbers), augment, seed or 0)
                assert self.spec.preprocessing is not None
                return FramesToInput(self.spec, self.spec.preprocessing)(torch.from_numpy(frames))
            rows = []
            for _number, found in self.dataset.read(numbers):
                if isinstance(found, BenchError):
                    raise found
                rows.append(found[0])
        except BenchError as err:
            raise ShallowvitError(str(err)) from err
        inputs = torch.from_numpy(np.stack(rows)).float()
        return inputs if augment == "none" else flip_inputs(inputs, seed or 0)


def read_train_items(model: LoadedModel, config: RecoverConfig, *, labelled: bool) -> tuple[TrainItems, TrainItems]:
    """Return the items to train on and those held out, drawn by ``config.seed``; the latter may be none where unlabelled.

    Args:
        model: Says what an item looks like and which classes there are.
        config: ``data``, ``items``, ``validation`` and the training's ``validation_share`` and ``augment`` say which.
        labelled: Whether batches need targets.

    Raises:
        ShallowvitError: the data isn't there or doesn't fit, all labels are one class, a side is empty, or an item stands on
            both sides.
    """
    wanted, training = config.items, config.training
    dataset = _open(model, config.data, labelled, _DRAWN_FROM * wanted if wanted else None)
    check_augment(training.augment, model.input_spec, dataset.preprocessed)
    drawn = np.random.default_rng(config.seed).permutation(dataset.count)[:wanted]
    held_out = TrainItems(dataset, drawn[:0], model.input_spec, labelled)
    if config.validation is not None:
        judges = _open(model, config.validation, labelled)
        held_out = replace(held_out, dataset=judges, numbers=np.arange(judges.count))
    else:
        share = round(training.validation_share * len(drawn))
        if training.validation_share and not 0 < share < len(drawn):
            raise ShallowvitError(
                f"recover: a validation share of {training.validation_share:g} holds {share} of {len(drawn)} items of "
                f"{dataset.name} out; give more items, another share, or --validation DATA"
            )
        held_out = replace(held_out, numbers=np.sort(drawn[:share]))
        drawn = drawn[share:]
    items = TrainItems(dataset, drawn, model.input_spec, labelled, training.augment)
    _check_labels(items)
    if config.validation is not None:
        _check_apart(items, held_out)
    return items, held_out


def check_classes(items: TrainItems, classes: int, model: LoadedModel, stage: str) -> None:
    """Refuse labels that the model has no class of.

    Raises:
        ShallowvitError: names the first.
    """
    wrong = [label for label in items.labels.unique().tolist() if not 0 <= label < classes]
    if wrong:
        raise ShallowvitError(
            f"{stage}: {items.name} has the label {wrong[0]}, {model.origin.spec} has classes 0 to {classes - 1}; give "
            "labels of its classes"
        )


def _open(model: LoadedModel, data: str, labelled: bool, enough: int | None = None) -> Dataset:
    try:
        dataset = open_dataset(data, taker_of(model), labelled=labelled, enough=enough)
    except BenchError as err:
        raise ShallowvitError(str(err)) from err
    if dataset.beside:
        raise ShallowvitError(
            f"recover: {dataset.name} holds {', '.join(dataset.beside)} beside the main input; give data of that alone"
        )
    if dataset.views != 1:
        raise ShallowvitError(
            f"recover: {dataset.name} has {dataset.views} views an item, a training takes one; open it with ?views=1x1"
        )
    if labelled and dataset.kind == "retrieval":
        raise ShallowvitError(f"recover: {dataset.name} is for retrieval, whose labels are no classes; give labelled classes")
    if not dataset.count:
        raise ShallowvitError(f"recover: {dataset.name} holds no items; give at least 2")
    return dataset


def _check_labels(items: TrainItems) -> None:
    classes = torch.unique(items.labels)
    if items.labelled and len(classes) < 2:
        raise ShallowvitError(
            f"recover: all {len(items)} items of {items.name} have the label {int(classes[0])}, so nothing is learnt; "
            "give items of two classes or more"
        )


def _check_apart(items: TrainItems, held_out: TrainItems) -> None:
    both = len(set(items.fingerprints()) & set(held_out.fingerprints()))
    if both:
        raise ShallowvitError(
            f"recover: {both} of the {len(held_out)} items of {held_out.name} that judge the training are also trained on, in "
            f"{items.name}; give --validation data of its own"
        )
