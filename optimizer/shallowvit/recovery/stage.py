"""The stage *recover*: a pruned model and the model it came from in, the pruned model with some of the loss made good out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from ..models import Changes, load
from ..models.rebuild import LINEAGE_FILE, read_lineage
from ..pruning import PlanConfig, plan, prune
from ..scoring.calibration import forward_arguments, read_calibration
from ..scoring.criteria import ScoreConfig
from .closed_form import RepairConfig, RepairMethod, repair_gaps

if TYPE_CHECKING:
    from ..models import LoadedModel
    from ..pruning import PrunedModel
    from .closed_form import Repair

__all__ = ["RecoverConfig", "pruned_from_folder", "recover"]


@dataclass(frozen=True)
class RecoverConfig:
    """How to recover.

    Args:
        data: Unlabelled inputs: ``demo:train``, a ``.npz``, a folder; best not what accuracy is measured on.
        method: What is fitted in front of each gap, see ``RepairMethod``.
        samples: Items to fit on; a quarter of them or a little more only judges the fit.
        seed: Of which items are drawn.
        batch: Items a forward.
    """

    data: str
    method: RepairMethod = RepairMethod.PROJECTION
    samples: int = 256
    seed: int = 0
    batch: int = 16

    def __post_init__(self) -> None:
        RepairConfig(self.method)
        object.__setattr__(self, "method", RepairMethod(self.method))
        if self.batch < 1 or self.samples < 2:
            raise ShallowvitError(
                f"recover: {self.samples} items in batches of {self.batch}; give 2 items or more in batches of 1 up"
            )


def recover(teacher: LoadedModel, pruned: PrunedModel, config: RecoverConfig) -> Repair:
    """Repair the gaps of a pruned model in closed form on inputs from ``config.data``; ``pruned`` stays as it is.

    Raises:
        ShallowvitError: the teacher is another model, whole blocks weren't what was removed, or the data isn't there.
    """
    if pruned.halves or not pruned.plan.gone:
        what = "halves of blocks were removed" if pruned.halves else "no block was removed"
        raise ShallowvitError(f"recover: {what}, and what is repaired are gaps of whole blocks; prune blocks")
    drawn = ScoreConfig(data=config.data, samples=config.samples, seed=config.seed)
    data = read_calibration(teacher, drawn, labelled=False)
    batch = min(config.batch, max(1, len(data) // 4))  # four batches at least, of which one judges
    return repair_gaps(teacher, pruned, lambda: forward_arguments(teacher, data, batch), RepairConfig(config.method))


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
    if chosen.get("granularity", "block") != "block":
        raise ShallowvitError(
            f"recover: {folder} lacks the {chosen['granularity']} of blocks; only gaps of whole blocks are repaired"
        )
    removed = ",".join(map(str, chosen["removed"]))
    again = prune(whole, replace(plan(whole, config=PlanConfig(remove=removed, split_pairs=True)), reason=chosen["reason"]))
    loaded = load(str(folder), arch=None if lineage["stock"] else whole.origin.arch or whole.origin.spec)
    again.model.module.load_state_dict(loaded.module.state_dict())
    return whole, again
