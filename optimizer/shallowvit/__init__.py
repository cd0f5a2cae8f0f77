"""Make a vision transformer shallow and ship it.

    load -> score -> plan -> prune -> recover -> export -> build -> verify

Each stage is a plain function that takes the record of the one before it. Nothing heavy is imported until a stage is used.
"""

from typing import TYPE_CHECKING

from .lazy import lazy_names

if TYPE_CHECKING:
    from .bundle import Bundle, build, export, verify
    from .engines import BuildConfig
    from .errors import ShallowvitError
    from .exporting import ExportConfig
    from .inspecting import Inspection, inspect_model
    from .models import Changes, LoadedModel, load
    from .pruning import PlanConfig, PrunedModel, PruningPlan, plan, prune, save_pruned
    from .recovery import RecoverConfig, TrainConfig, recover
    from .scoring import BlockScores, ScoreConfig, score
    from .tuning import Budgets, TuneConfig, tune

__version__ = "0.1.0"

_HOMES = {
    "inspect_model": "inspecting",
    "Inspection": "inspecting",
    "load": "models",
    "Changes": "models",
    "LoadedModel": "models",
    "score": "scoring",
    "BlockScores": "scoring",
    "ScoreConfig": "scoring",
    "plan": "pruning",
    "prune": "pruning",
    "save_pruned": "pruning",
    "recover": "recovery",
    "RecoverConfig": "recovery",
    "TrainConfig": "recovery",
    "PlanConfig": "pruning",
    "tune": "tuning",
    "TuneConfig": "tuning",
    "Budgets": "tuning",
    "PrunedModel": "pruning",
    "PruningPlan": "pruning",
    "export": "bundle",
    "build": "bundle",
    "BuildConfig": "engines",
    "ExportConfig": "exporting",
    "verify": "bundle",
    "Bundle": "bundle",
    "ShallowvitError": "errors",
}

__all__ = [
    "BlockScores",
    "Budgets",
    "BuildConfig",
    "Bundle",
    "Changes",
    "ExportConfig",
    "Inspection",
    "LoadedModel",
    "PlanConfig",
    "PrunedModel",
    "PruningPlan",
    "RecoverConfig",
    "ScoreConfig",
    "ShallowvitError",
    "TrainConfig",
    "TuneConfig",
    "__version__",
    "build",
    "export",
    "inspect_model",
    "load",
    "plan",
    "prune",
    "recover",
    "save_pruned",
    "score",
    "tune",
    "verify",
]

__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
