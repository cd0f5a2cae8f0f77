"""Recover what removing blocks cost: repair the gaps in closed form, or finetune what is left; and measure it."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .closed_form import Repair, RepairConfig, RepairMethod, repair_gaps
    from .finetuning import Evaluation, FinetuneConfig, evaluate, finetune
    from .stage import RecoverConfig, pruned_from_folder, recover

_HOMES = {
    "Evaluation": "finetuning",
    "FinetuneConfig": "finetuning",
    "evaluate": "finetuning",
    "finetune": "finetuning",
    "Repair": "closed_form",
    "RepairConfig": "closed_form",
    "RepairMethod": "closed_form",
    "repair_gaps": "closed_form",
    "RecoverConfig": "stage",
    "pruned_from_folder": "stage",
    "recover": "stage",
}

__all__ = [
    "Evaluation",
    "FinetuneConfig",
    "RecoverConfig",
    "Repair",
    "RepairConfig",
    "RepairMethod",
    "evaluate",
    "finetune",
    "pruned_from_folder",
    "recover",
    "repair_gaps",
]

__getattr__ = lazy_names(__name__, _HOMES)
