"""Plan which blocks go, remove them from a copy, and save the copy so that its own library loads it."""

from .plan import PlanConfig, PruningPlan, plan
from .saved import PrunedFolder, save_pruned
from .surgery import PrunedModel, prune

__all__ = ["PlanConfig", "PrunedFolder", "PrunedModel", "PruningPlan", "plan", "prune", "save_pruned"]
