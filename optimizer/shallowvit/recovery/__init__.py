"""Recover what removing blocks cost: repair the gaps in closed form, or train what is left; and measure it."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .closed_form import Repair, RepairConfig, repair_gaps
    from .finetuning import Evaluation, FinetuneConfig, evaluate, finetune
    from .records import Recovered, Training, Workplace
    from .settings import RecoverConfig, RecoverMethod, RepairMethod, TrainConfig
    from .stage import pruned_from_folder, recover

_HOMES = {
    "Evaluation": "finetuning",
    "FinetuneConfig": "finetuning",
    "evaluate": "finetuning",
    "finetune": "finetuning",
    "Repair": "closed_form",
    "RepairConfig": "closed_form",
    "repair_gaps": "closed_form",
    "RecoverConfig": "settings",
    "RecoverMethod": "settings",
    "RepairMethod": "settings",
    "TrainConfig": "settings",
    "Recovered": "records",
    "Training": "records",
    "Workplace": "records",
    "pruned_from_folder": "stage",
    "recover": "stage",
}

__all__ = [
    "Evaluation",
    "FinetuneConfig",
    "RecoverConfig",
    "RecoverMethod",
    "Recovered",
    "Repair",
    "RepairConfig",
    "RepairMethod",
    "TrainConfig",
    "Training",
    "Workplace",
    "evaluate",
    "finetune",
    "pruned_from_folder",
    "recover",
    "repair_gaps",
]

__getattr__ = lazy_names(__name__, _HOMES)
