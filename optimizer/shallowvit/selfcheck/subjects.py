"""The models that are checked, made here without network: the demo model, and a VideoMAE-B with random weights.

A newcomer's trap: speed doesn't depend on the weights' values, so random ones serve; accuracy does, so only the demo has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from pathlib import Path

    from ..engines import BuildConfig
    from ..exporting import Precision

__all__ = ["SUBJECTS", "Subject", "export_subject"]


@dataclass(frozen=True)
class Subject:
    """A model, how much of it goes, and the data set it has an accuracy on."""

    name: str
    prune_ratio: float
    data: str | None
    large: bool


SUBJECTS = (
    Subject("demo", 0.25, "demo", large=False),
    Subject("videomae-b", 0.5, None, large=True),
)


def export_subject(subject: Subject, folder: Path, precision: Precision, build: BuildConfig | None) -> tuple[Path, Path]:
    """Write the bundles of a subject, pruned and whole, into ``folder`` and return their paths.

    Raises:
        ShallowvitError: transformers is missing, or an export or an engine fails.
    """
    from .. import ExportConfig, PlanConfig, export, load, plan, prune, score

    spec = "demo" if subject.name == "demo" else f"hf:{_videomae_base(folder / 'videomae-b')}"
    model = load(spec)
    pruned = prune(model, plan(model, score(model), PlanConfig(prune_ratio=subject.prune_ratio)))
    paths = (folder / f"{subject.name}-shallow", folder / f"{subject.name}-full")
    export(pruned, paths[0], ExportConfig(precision=precision), build=build)
    export(model, paths[1], ExportConfig(precision=precision), build=build)
    return paths


def _videomae_base(folder: Path) -> Path:
    """Save a VideoMAE-B classifier with random weights, seed 0."""
    try:
        from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEImageProcessor
    except ImportError as err:
        raise ShallowvitError("selfcheck: VideoMAE-B needs transformers. Run: pip install 'shallowvit[transformers]'") from err
    import torch

    torch.manual_seed(0)
    VideoMAEForVideoClassification(VideoMAEConfig(num_labels=400)).save_pretrained(folder)
    VideoMAEImageProcessor().save_pretrained(folder)
    return folder
