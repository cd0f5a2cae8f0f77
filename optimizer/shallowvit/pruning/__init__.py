"""Plan which blocks go, remove them from a copy, and save the copy so that its own library loads it."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .planning import PlanConfig, PruningPlan, Select, check_plan, choose, plan
    from .saved import PrunedFolder, save_pruned
    from .surgery import PrunedModel, prune

__all__ = [
    "PlanConfig",
    "PrunedFolder",
    "PrunedModel",
    "PruningPlan",
    "Select",
    "check_plan",
    "choose",
    "plan",
    "prune",
    "save_pruned",
]

__getattr__ = lazy_names(
    __name__,
    {
        "PlanConfig": "planning",
        "PruningPlan": "planning",
        "Select": "selection",
        "check_plan": "planning",
        "choose": "planning",
        "plan": "planning",
        "PrunedFolder": "saved",
        "save_pruned": "saved",
        "PrunedModel": "surgery",
        "prune": "surgery",
    },
)
