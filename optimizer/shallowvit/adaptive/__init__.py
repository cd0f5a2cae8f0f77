"""Adaptive depth: a bundle with two or three depths of a model, and a gate that chooses one for each input."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .checking import AdaptiveBundle, is_adaptive, parts_of, verify_adaptive
    from .settings import AdaptConfig
    from .sources import depths_of, read_depths
    from .stage import adapt

__all__ = ["AdaptConfig", "AdaptiveBundle", "adapt", "depths_of", "is_adaptive", "parts_of", "read_depths", "verify_adaptive"]

__getattr__ = lazy_names(
    __name__,
    {
        "adapt": "stage",
        "AdaptConfig": "settings",
        "AdaptiveBundle": "checking",
        "depths_of": "sources",
        "is_adaptive": "checking",
        "parts_of": "checking",
        "read_depths": "sources",
        "verify_adaptive": "checking",
    },
)
