"""Build TensorRT engines from an ONNX graph with or without a GPU, and prove that their attention is fused."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .build import build_engine
    from .doctor import diagnose
    from .records import AttentionFusion, BatchRange, BuildConfig, EngineBuild, Flavour, FusionReport
    from .roofline import estimate
    from .sites import AttentionSite, find_attentions
    from .targets import Target, all_targets, find_target

_HOMES = {
    "build_engine": "build",
    "diagnose": "doctor",
    "AttentionFusion": "records",
    "BatchRange": "records",
    "BuildConfig": "records",
    "EngineBuild": "records",
    "Flavour": "records",
    "FusionReport": "records",
    "estimate": "roofline",
    "AttentionSite": "sites",
    "find_attentions": "sites",
    "Target": "targets",
    "all_targets": "targets",
    "find_target": "targets",
}

__all__ = [
    "AttentionFusion",
    "AttentionSite",
    "BatchRange",
    "BuildConfig",
    "EngineBuild",
    "Flavour",
    "FusionReport",
    "Target",
    "all_targets",
    "build_engine",
    "diagnose",
    "estimate",
    "find_attentions",
    "find_target",
]

__getattr__ = lazy_names(__name__, _HOMES)
