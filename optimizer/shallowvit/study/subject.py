"""Read what a study is about: its models, checked against each other, and the items they are measured and finetuned on.

A newcomer's trap: models of a study are replicates of one another, so anything they differ in beside their weights is refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ShallowvitError
from ..models import load
from ..workers.cells import hash_of
from .config import Column, StudyConfig, columns_from_text, counts_of_ratios
from .histograms import Histograms, weight_histograms
from .materials import Items, Materials, ModelSource, read_items
from .records import StudiedModel

if TYPE_CHECKING:
    from ..models import LoadedModel

__all__ = ["Subject", "identity_of", "read_subject"]


@dataclass(frozen=True)
class Subject:
    """What is studied, read and checked."""

    models: tuple[StudiedModel, ...]
    identities: tuple[str, ...]  # of the models, then of their pretraining checkpoints
    materials: Materials
    columns: tuple[Column, ...]
    counts: tuple[int, ...]
    histograms: Histograms
    warnings: tuple[str, ...]

    @property
    def blocks(self) -> int:
        """How many blocks each model has."""
        return len(self.models[0].blocks)


def read_subject(config: StudyConfig) -> Subject:
    """Load every model once to know what it is; the workers load their own."""
    sources, facts, identities = [], [], []
    histograms: Histograms | None = None
    items: tuple[Items, Items] | None = None
    for source in config.sources:
        model = load(source, arch=config.arch, blocks=config.blocks)
        if items is None:
            items = read_items(config.data, model), read_items(config.train, model, config.finetune_items)
            histograms = weight_histograms(model)
            first = model
        _check_same(first, model)
        sources.append(ModelSource(source, model.sha256, config.arch, config.blocks))
        facts.append(_facts(source, model))
        identities.append(identity_of(model))
    for number, source in enumerate(config.pretrained):
        model = load(source)
        if len(model.blocks) != len(facts[0].blocks):
            raise ShallowvitError(
                f"study: --pretrained {source} has {len(model.blocks)} blocks, {config.sources[number]} has "
                f"{len(facts[0].blocks)}; give the checkpoint it was finetuned from"
            )
        sources.append(ModelSource(source, model.sha256))
        facts[number] = replace(facts[number], pretrained=source, pretrained_sha256=model.sha256)
        identities.append(identity_of(model))
    assert items is not None and histograms is not None
    blocks = len(facts[0].blocks)
    counts = tuple(sorted(set(config.counts))) or counts_of_ratios(blocks)
    if counts[-1] >= blocks:
        raise ShallowvitError(f"study: --counts {counts[-1]} of {blocks} blocks; at least one block must stay")
    return Subject(
        models=tuple(facts),
        identities=tuple(identities),
        materials=Materials(tuple(sources), *items, config.batch),
        columns=columns_from_text(config.criteria, pretrained=bool(config.pretrained)),
        counts=counts,
        histograms=histograms,
        warnings=_overlap(*items),
    )


def _facts(source: str, model: LoadedModel) -> StudiedModel:
    return StudiedModel(
        source,
        model.sha256,
        model.origin.architecture,
        tuple(block.path for block in model.blocks),
        model.parameters,
        model.flops,
        tuple(block.flops for block in model.blocks),
    )


def _check_same(first: LoadedModel, model: LoadedModel) -> None:
    """Models of a study are replicates of one another."""
    for what, one, other in (
        ("blocks", len(first.blocks), len(model.blocks)),
        ("inputs", first.input_spec, model.input_spec),
        ("labels", first.labels, model.labels),
    ):
        if one != other:
            raise ShallowvitError(
                f"study: {first.origin.spec} and {model.origin.spec} have different {what} ({one} and {other}); give models of "
                "one architecture, finetuned for one task"
            )


def identity_of(model: LoadedModel) -> str:
    """Return the hash of all that makes a model answer as it does: weights, architecture, settings, blocks, preprocessing."""
    config: Any = getattr(model.module, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    settings = {name: value for name, value in settings.items() if name not in ("_name_or_path", "transformers_version")}
    record = {
        "weights": model.sha256,
        "architecture": model.origin.architecture,
        "settings": repr(sorted(settings.items(), key=lambda item: item[0])),
        "recipe": repr(sorted(model.recipe.items())),
        "blocks": [block.path for block in model.blocks],
        "input": repr(model.input_spec),
    }
    return hash_of(record)


def _overlap(test: Items, train: Items) -> tuple[str, ...]:
    """Accuracy on items that were trained on says nothing."""
    if test.sha256 == train.sha256:
        raise ShallowvitError(f"study: --data and --train hold the same {len(test)} items; measure on others than you train on")
    seen = {hashlib.blake2b(frames.data).digest() for frames in np.asarray(train.frames)}
    again = sum(hashlib.blake2b(frames.data).digest() in seen for frames in np.asarray(test.frames))
    return (f"{again} of {len(test)} test items are among the training items, so accuracies are too good",) if again else ()
