"""Make a vision transformer shallow and ship it.

    load -> score -> plan -> prune -> export -> verify

Each stage is a plain function that takes the record of the one before it. Nothing heavy is imported until a stage is used.
"""

from .lazy import lazy_names

__version__ = "0.1.0"

_HOMES = {
    "load": "models",
    "LoadedModel": "models",
    "score": "scoring",
    "BlockScores": "scoring",
    "ScoreConfig": "scoring",
    "plan": "pruning",
    "prune": "pruning",
    "save_pruned": "pruning",
    "PlanConfig": "pruning",
    "PruningPlan": "pruning",
    "export": "bundle",
    "ExportConfig": "exporting",
    "verify": "bundle",
    "Bundle": "bundle",
    "ShallowvitError": "errors",
}

__all__ = ["__version__", *_HOMES]


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
