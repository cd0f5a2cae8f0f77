"""The stage *recover*: a pruned model and the model it came from in, the pruned model with some of the loss made good out."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from ..models import Changes, load
from ..models.rebuild import LINEAGE_FILE, read_lineage
from ..models.token_reducer import token_reduction_of
from ..models.weights import hash_state
from ..pruning import PlanConfig, plan, prune
from ..pruning.saved import arch_of
from ..scoring.calibration import forward_arguments, read_calibration
from ..scoring.criteria import ScoreConfig
from ..tokens.stage import with_reduction
from .closed_form import RepairConfig, repair_gaps
from .records import Recovered, Workplace, line_of
from .resuming import alone_in, repaired_once
from .settings import CLOSED_FORM, RecoverConfig, RecoverMethod, RepairMethod

if TYPE_CHECKING:
    from ..models import LoadedModel
    from ..pruning import PrunedModel
    from .closed_form import Repair
    from .records import Training

__all__ = ["pruned_from_folder", "recover", "repair"]

# method -> the module and function (teacher, pruned, config, place) -> (PrunedModel, Training); a function trains the copy
# of the pruned model that it is given, in place
_TRAININGS = {
    RecoverMethod.DISTILL: ("distillation", "distill_pruned"),
    RecoverMethod.PRETRAIN: ("pretraining", "pretrain_pruned"),
    RecoverMethod.FINETUNE: ("supervised", "finetune_pruned"),
}


def recover(teacher: LoadedModel, pruned: PrunedModel, config: RecoverConfig, place: Workplace | None = None) -> Recovered:
    """Recover a pruned model by the steps of ``config.method`` in order; ``pruned`` stays as it is.

    Args:
        teacher: The unpruned model, which ``pruned`` was made from.
        pruned: What ``prune`` returned.
        config: See ``RecoverConfig``.
        place: Where trainings keep what resumes them, and whom they tell how far they are.

    Raises:
        ShallowvitError: the teacher is another model, a method doesn't fit the model, or the data isn't there.
    """
    check_teacher(teacher, pruned)
    place = place or Workplace()
    if all(method in CLOSED_FORM for method in config.methods):
        place = replace(place, folder=None)  # seconds of work, which nothing goes on from
    done: list[Repair | Training] = []
    with alone_in(place.folder):
        for method in config.methods:
            if method in CLOSED_FORM:
                fit = partial(repair, teacher, pruned, config, RepairMethod(method))
                repaired = repaired_once(place.folder, pruned, config, str(method), fit)
                pruned = _noted(repaired.pruned, repaired, method, config)
                done.append(repaired)
                continue
            pruned, training = _trained(teacher, pruned, config, method, place)
            done.append(training)
    return Recovered(pruned, tuple(done))


def _trained(
    teacher: LoadedModel, pruned: PrunedModel, config: RecoverConfig, method: RecoverMethod, place: Workplace
) -> tuple[PrunedModel, Training]:
    """A copy of the pruned model, trained, and what that took."""
    module, name = _TRAININGS[method]
    train = getattr(import_module(f".{module}", __package__), name)
    own = replace(pruned, model=replace(pruned.model, module=copy.deepcopy(pruned.model.module)))
    folder = place.folder / str(method) if place.folder else None
    training: Training = train(teacher, own, config, replace(place, folder=folder))
    own = replace(own, model=replace(own.model, sha256=hash_state(own.model.module)))
    return _noted(own, training, method, config), training


def _noted(pruned: PrunedModel, step: Repair | Training, method: str, config: RecoverConfig) -> PrunedModel:
    return replace(pruned, recovery=(*pruned.recovery, line_of(step, str(method), config)))


def check_teacher(teacher: LoadedModel, pruned: PrunedModel) -> None:
    """Refuse a teacher that the pruned model wasn't made from.

    Raises:
        ShallowvitError: says what both are.
    """
    if teacher.sha256 != pruned.plan.weights_sha256:
        raise ShallowvitError(
            f"recover: the pruned model was made from weights {pruned.plan.weights_sha256[:12]}, the teacher "
            f"{teacher.origin.spec} ({teacher.origin.architecture}, {len(teacher.blocks)} blocks) has {teacher.sha256[:12]}; "
            "give the model that was pruned"
        )


def repair(teacher: LoadedModel, pruned: PrunedModel, config: RecoverConfig, method: RepairMethod) -> Repair:
    """Repair the gaps of a pruned model in closed form on inputs from ``config.data``; ``pruned`` stays as it is.

    Raises:
        ShallowvitError: whole blocks weren't what was removed, or the data isn't there.
    """
    if pruned.halves or not pruned.plan.gone:
        what = "halves of blocks were removed" if pruned.halves else "no block was removed"
        raise ShallowvitError(f"recover: {what}, and what is repaired are gaps of whole blocks; prune blocks")
    drawn = ScoreConfig(data=config.data, samples=config.samples, seed=config.seed)
    data = read_calibration(teacher, drawn, labelled=False)
    batch = min(config.batch, max(1, len(data) // 4))  # four batches at least, of which one judges
    return repair_gaps(teacher, pruned, lambda: forward_arguments(teacher, data, batch), RepairConfig(method))


def pruned_from_folder(folder: str | Path, teacher: str | None = None) -> tuple[LoadedModel, PrunedModel]:
    """Load a folder that ``prune`` wrote, and the model it was made from.

    Args:
        folder: The pruned model.
        teacher: What the folder's lineage names as its source, where that has moved.

    Raises:
        ShallowvitError: it is no such folder, or the teacher has other weights than the folder was pruned from.
    """
    folder = Path(folder)
    if not (folder / LINEAGE_FILE).is_file():
        raise ShallowvitError(f"recover: {folder} is no folder that shallowvit prune wrote (no {LINEAGE_FILE}); prune first")
    lineage = read_lineage(folder)
    source, chosen = lineage["source"], lineage["plan"]
    size = source.get("image_size")
    changes = Changes(head=source.get("head"), image_size=tuple(size) if size else None, frames=source.get("frames"))
    arch = None if teacher else source.get("arch")
    whole = load(teacher or source["spec"], arch=arch, blocks=source.get("blocks") or (), changes=changes)
    if whole.sha256 != chosen["weights_sha256"]:
        raise ShallowvitError(
            f"recover: {folder} was pruned from weights {chosen['weights_sha256'][:12]}, {whole.origin.spec} has "
            f"{whole.sha256[:12]}; name the unpruned model with --teacher"
        )
    wanted = PlanConfig(
        remove=",".join(map(str, chosen["removed"])) or None, granularity=chosen.get("granularity", "block"), split_pairs=True
    )
    again = prune(whole, replace(plan(whole, config=wanted), reason=chosen["reason"]))
    if lineage.get("tokens"):
        again = with_reduction(again, token_reduction_of(lineage["tokens"]))
    loaded = load(str(folder), arch=None if lineage["stock"] else arch_of(whole))
    again.model.module.load_state_dict(loaded.module.state_dict())
    again = replace(again, model=replace(again.model, sha256=loaded.sha256))
    return whole, replace(again, recovery=tuple(lineage.get("recovery", ())))
