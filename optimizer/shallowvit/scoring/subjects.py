"""What a command scores: the weights in a checkpoint, read where they lie, or a model that has to be built.

A newcomer's trap: blocks of a checkpoint are found by the names of its weights and those of a model by its structure and one
forward; both take the longest list, and a test holds them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..models.load import checkpoint_of, load
from .apply import score, score_checkpoint
from .criteria import CRITERIA, Scope
from .mixing import parse_mix
from .records import Needs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..models import Changes, LoadedModel
    from .criteria import ScoreConfig
    from .records import BlockScores

__all__ = ["Subject", "open_subject"]


@dataclass(frozen=True)
class Subject:
    """Something to score: ``model`` is None where its weights are read straight from a checkpoint."""

    model: LoadedModel | None
    score_by: Callable[[ScoreConfig], BlockScores]
    met: Needs  # the most that the data at hand meets


def open_subject(
    source: str,
    config: ScoreConfig,
    criteria: Sequence[str],
    *,
    arch: str | None = None,
    stacks: Sequence[str] = (),
    fingerprint: bool = False,
    changes: Changes | None = None,
) -> Subject:
    """Open a source for these criteria: its checkpoint alone where that is enough, else the model and the data.

    With ``fingerprint``, scores of a checkpoint can be saved: they say of which weights they are.

    Raises:
        ShallowvitError: the source, or the data that ``config`` names, can't be read.
    """
    built = arch or changes or config.granularity != "block"  # which weights are a half's shows when the model runs
    path = None if built else checkpoint_of(source)
    if path is not None and config.data is None and not any(_runs_model(name, config) for name in criteria):
        return Subject(None, partial(score_checkpoint, path, stacks=stacks, fingerprint=fingerprint), Needs.NOTHING)
    model = load(source, arch=arch, blocks=stacks, changes=changes)
    if config.data is None:
        return Subject(model, partial(score, model), Needs.NOTHING)
    from .calibration import read_calibration

    data = read_calibration(model, config, labelled=False)
    met = Needs.UNLABELLED if data.labels is None else Needs.LABELLED
    return Subject(model, lambda settings: score(model, settings, data), met)


def _runs_model(name: str, config: ScoreConfig) -> bool:
    """Whether a criterion needs the model: auto asks what it is."""
    if name == "mix":
        return any(_runs_model(part, config) for part in parse_mix(config.mix))
    return name == "auto" or CRITERIA[name].scope is Scope.MODEL
