"""What to study: models, data, criteria, how many blocks go, how the rest is finetuned, and where the work is done.

Light enough for the command line to read its defaults here. A newcomer's trap: a replicate is one finetuning seed of one model;
several models (pretrained or finetuned from different seeds) say far more than several seeds of one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import ShallowvitError
from ..scoring.criteria import CRITERIA, Needs, ScoreConfig, check_criterion

__all__ = ["RATIOS", "Column", "StudyConfig", "columns_from_text", "counts_of_ratios"]

RATIOS = tuple(odd / 12 for odd in range(1, 12, 2))  # the paper's six
_PRETRAINED = "pretrained"
_LEFT_OUT = ("oracle", "auto")  # the study measures the first itself; the second is one of the others
_VARIED = ("mantissa_bits", "bins", "bin_range", "metric")


@dataclass(frozen=True)
class Column:
    """A criterion of the study: which, with what settings beside the defaults, on the weights of which checkpoint."""

    criterion: str
    settings: tuple[tuple[str, Any], ...] = ()
    pretrained: bool = False  # scored on the masked-pretraining checkpoint instead of the model itself

    @property
    def name(self) -> str:
        """How tables call it."""
        settings = "".join(f", {name.replace('_', ' ')} {value}" for name, value in self.settings)
        # the criterion can be had of no other checkpoint
        weights = " (pretrained weights)" if self.pretrained and self.criterion != "reconstruction" else ""
        return f"{self.criterion}{settings}{weights}"

    @property
    def seeded(self) -> bool:
        """Whether each replicate draws anew."""
        return self.criterion == "random"


@dataclass(frozen=True)
class StudyConfig:
    """A study.

    Args:
        sources: The models, as ``models.load`` takes them: finetuned classifiers of one architecture, each from other seeds.
        data: Labelled items that accuracy is measured on: ``demo`` or a path; see ``scoring.read_calibration``.
        train: Labelled items, none of ``data``: what is finetuned on, and what criteria that need inputs see.
        pretrained: The masked-pretraining checkpoint of each model, in the same order; None where there is none.
        seeds: Finetuning seeds a model.
        criteria: Comma-separated ``NAME[:SETTING=VALUE][@pretrained]``, or ``all`` that the data allows. Depth is always there.
        counts: Numbers of blocks to remove; by default the paper's six ratios, 1/12 to 11/12 of the blocks.
        out: The folder for cells, tables and plots; a study that is there already goes on.
        jobs: Worker processes, each of one thread; by default one a usable core (of the cluster, with ``ray``).
        ray: Address of a Ray cluster, or ``auto`` for one started here; None for processes of this machine.
        finetune_items: Items of ``train`` at most, drawn once.
        finetune_epochs: Of each finetuning.
        learning_rate: Of each finetuning, at its peak.
        samples: Items of ``train`` that criteria which need inputs see.
        batch: Items a forward when measuring.
        arch: Of sources that are state dicts; see ``models.load``.
        blocks: Module paths of the lists of blocks; the longest stack by default.
    """

    sources: tuple[str, ...]
    data: str
    train: str
    pretrained: tuple[str, ...] = ()
    seeds: int = 3
    criteria: str = "all"
    counts: tuple[int, ...] = ()
    out: Path = Path("study")
    jobs: int | None = None
    ray: str | None = None
    finetune_items: int = 8000
    finetune_epochs: int = 1
    learning_rate: float = 5e-4
    samples: int = ScoreConfig.samples
    batch: int = 250
    arch: str | None = None
    blocks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            raise ShallowvitError("study: no model; give at least one SOURCE")
        twice = sorted({source for source in self.sources if self.sources.count(source) > 1})
        if twice:
            raise ShallowvitError(f"study: {twice[0]} is given twice; models are replicates, so each must be another one")
        if self.pretrained and len(self.pretrained) != len(self.sources):
            raise ShallowvitError(
                f"study: {len(self.pretrained)} --pretrained for {len(self.sources)} models; give one a model, in the same "
                "order"
            )
        for name in ("seeds", "finetune_items", "finetune_epochs", "samples", "batch"):
            if getattr(self, name) < 1:
                raise ShallowvitError(f"study: --{name.replace('_', '-')} {getattr(self, name)} is too few; give at least 1")
        if self.jobs is not None and self.jobs < 1:
            raise ShallowvitError(f"study: --jobs {self.jobs} is too few; give at least 1")
        if not self.learning_rate > 0:
            raise ShallowvitError(f"study: --learning-rate {self.learning_rate:g} moves nothing; give more than 0")
        if any(count < 1 for count in self.counts):
            raise ShallowvitError(f"study: --counts {min(self.counts)} removes nothing; give numbers of blocks from 1 on")
        columns_from_text(self.criteria, pretrained=bool(self.pretrained))


def columns_from_text(text: str, *, pretrained: bool) -> tuple[Column, ...]:
    """Return the criteria that a text such as ``entropy,entropy:mantissa_bits=23@pretrained`` or ``all`` names, depth first.

    Args:
        text: See ``StudyConfig``.
        pretrained: Whether the masked-pretraining checkpoints are there.

    Raises:
        ShallowvitError: an unknown criterion or setting, or one that the study can't use as it was called.
    """
    if text == "all":
        names = [name for name in CRITERIA if name not in (*_LEFT_OUT, "reconstruction")]
        columns = [Column(name) for name in names]
        if pretrained:
            columns += [Column("reconstruction", pretrained=True), Column("entropy", pretrained=True)]
    else:
        columns = [_column(part.strip(), pretrained) for part in text.split(",") if part.strip()]
    return tuple(dict.fromkeys([Column("depth"), *columns]))


def _column(text: str, pretrained: bool) -> Column:
    text, _, weights = text.partition("@")
    name, *given = text.split(":")
    check_criterion(name)
    if name in _LEFT_OUT:
        raise ShallowvitError(f"study: --criteria {name}: the study measures the oracle itself, and auto is one of the others")
    if weights not in ("", _PRETRAINED):
        raise ShallowvitError(f"study: --criteria {name}@{weights}: write {name} or {name}@{_PRETRAINED}")
    of_pretrained = weights == _PRETRAINED or name == "reconstruction"
    if of_pretrained and not pretrained:
        raise ShallowvitError(
            f"study: --criteria {name}{f'@{weights}' if weights else ''} looks at the masked-pretraining checkpoint; give it "
            "with --pretrained"
        )
    if of_pretrained and name != "reconstruction" and CRITERIA[name].needs is Needs.LABELLED:
        raise ShallowvitError(
            f"study: --criteria {name}@{_PRETRAINED} needs a classifier, not the masked-pretraining checkpoint; write {name}"
        )
    return Column(name, tuple(sorted(_setting(name, part) for part in given)), of_pretrained)


def _setting(name: str, text: str) -> tuple[str, Any]:
    setting, _, value = text.partition("=")
    known = [own for own in CRITERIA[name].settings if own in _VARIED]
    if setting not in known:
        choices = ", ".join(known) or "(it has none)"
        raise ShallowvitError(f"study: --criteria {name}: no setting {setting!r}; choose from {choices}")
    kind = {field.name: field.type for field in fields(ScoreConfig)}[setting]
    if kind == "int" and not value.isdecimal():
        raise ShallowvitError(f"study: --criteria {name}:{text}: {value!r} is no whole number; write {setting}=7")
    typed: Any = int(value) if kind == "int" else value
    ScoreConfig(name, **{setting: typed})  # refuses what is out of range
    return setting, typed


def counts_of_ratios(blocks: int) -> tuple[int, ...]:
    """Return how many of ``blocks`` the paper's six ratios remove, at least one and never all."""
    return tuple(sorted({min(max(round(ratio * blocks), 1), blocks - 1) for ratio in RATIOS}))
