"""Read the depths that an adaptive bundle is made of, or make them of one model, and check that they are nested.

A newcomer's trap: a folder that ``prune`` or ``recover`` wrote says which blocks of which weights it keeps, and that is what is
checked; two models that only look alike are refused.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from ..models import load
from ..models.rebuild import LINEAGE_FILE
from ..pruning import PlanConfig, PrunedModel, plan, prune
from ..recovery import RecoverConfig, recover
from ..recovery.stage import pruned_from_folder
from ..scoring import score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..models import LoadedModel
    from .settings import AdaptConfig

__all__ = ["check_depths", "depths_of", "read_depths"]


def read_depths(sources: Sequence[str | Path]) -> tuple[PrunedModel, ...]:
    """Load the depths: a source of ``load`` is a whole model, a folder that ``prune`` or ``recover`` wrote a pruned one.

    Raises:
        ShallowvitError: one can't be loaded.
    """
    return tuple(_read(source) for source in sources)


def depths_of(model: LoadedModel, counts: Sequence[int], config: AdaptConfig) -> tuple[PrunedModel, ...]:
    """Prune a model to each number of blocks by one order, that of entropy, and repair each in closed form.

    Raises:
        ShallowvitError: it has fewer blocks, or the data of the repair isn't there.
    """
    whole = len(model.blocks)
    if max(counts) > whole:
        raise ShallowvitError(f"adapt: --depths {max(counts)}: {model.origin.spec} has {whole} blocks; give that many at most")
    scores = score(model)
    drawn = RecoverConfig(config.data, "projection", config.samples, seed=config.seed)
    made = []
    for count in counts:
        pruned = prune(model, plan(model, scores, PlanConfig(prune_ratio=(whole - count) / whole)))
        made.append(pruned if count == whole else recover(model, pruned, drawn).pruned)
    return tuple(made)


def check_depths(models: Sequence[PrunedModel]) -> tuple[PrunedModel, ...]:
    """Return the depths from the shallowest, each of which keeps a subset of the next one's blocks.

    Raises:
        ShallowvitError: these aren't two or three depths of one model, or not nested.
    """
    if len(models) not in (2, 3):
        raise ShallowvitError(f"adapt: {len(models)} depth{'s' if len(models) != 1 else ''} given; give two or three")
    ordered = tuple(sorted(models, key=lambda one: len(one.plan.kept)))
    for shallow, deep in pairwise(ordered):
        _check_pair(shallow, deep)
    return ordered


def _read(source: str | Path) -> PrunedModel:
    folder = Path(source)
    if (folder / LINEAGE_FILE).is_file():
        return pruned_from_folder(folder)[1]
    model = load(source)
    return PrunedModel(model, plan(model))


def _check_pair(shallow: PrunedModel, deep: PrunedModel) -> None:
    if shallow.halves or deep.halves:
        raise ShallowvitError("adapt: halves of blocks were removed, and depths differ by whole blocks; prune blocks")
    root, other = shallow.plan.weights_sha256, deep.plan.weights_sha256
    directly = root == deep.model.sha256
    if root != other and not directly:
        raise ShallowvitError(
            f"adapt: the model of {len(shallow.plan.kept)} blocks was made from weights {root[:12]}, that of "
            f"{len(deep.plan.kept)} from {other[:12]} ({shallow.model.origin.spec} and {deep.model.origin.spec}); give depths "
            "of one model"
        )
    extra = set(shallow.plan.kept) - (set(range(len(deep.plan.kept))) if directly and root != other else set(deep.plan.kept))
    if extra or len(shallow.plan.kept) == len(deep.plan.kept):
        what = f"it keeps blocks {', '.join(map(str, sorted(extra)))} besides" if extra else "it keeps as many"
        raise ShallowvitError(
            f"adapt: the model of {len(shallow.plan.kept)} blocks isn't nested in that of {len(deep.plan.kept)}: {what}; prune "
            "both by one order, as --depths does"
        )
    widths = [one.model.output_shapes[0] for one in (shallow, deep)]
    if any(len(shape) != 2 or shape[-1] < 2 for shape in widths) or widths[0] != widths[1]:
        raise ShallowvitError(
            f"adapt: the depths answer with {list(widths[0])} and {list(widths[1])}; give classifiers with the same classes"
        )
