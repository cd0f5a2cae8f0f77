"""What a checkpoint was pretrained by, as far as its architecture's name tells.

A newcomer's trap: most plain ViT checkpoints share one class whatever trained them, so "not known" is the common answer and an
honest one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models import LoadedModel

__all__ = ["has_decoder", "pretraining_from_names", "pretraining_of"]

# Parts of names of architectures and of timm's checkpoint tags; the first that fits decides. iBOT's masked loss is half of
# DINOv2's and DINOv3's training, so they count as masked.
_MASKED = (
    "videomae", "vit_mae", "vitmae", ".mae", "_mae", "ibot", "beit", "data2vec", "dinov2", "dinov3", "simmim", "eva02", "eva_",
    "hiera", "vitmsn", "vit_msn", "ijepa", "vjepa", "mim", "fcmae",
)  # fmt: skip
_OTHER = (
    "deit", "vivit", "timesformer", "clip", "siglip", "swin", "convnext", "augreg", "in1k", "in21k", "pvt", "mvit", "maxvit",
    "dino_", ".dino", "poolformer", "segformer", "torchvision",
)  # fmt: skip


def pretraining_of(model: LoadedModel) -> str | None:
    """Return ``masked``, ``other`` (supervised, contrastive) or None (not known) for a loaded model."""
    config = getattr(model.module, "config", None)
    name = model.recipe.get("name") or model.recipe.get("architecture") or ""
    tag = (getattr(model.module, "pretrained_cfg", None) or {}).get("tag") or ""
    return pretraining_from_names(
        model.origin.architecture, str(getattr(config, "model_type", "")), f"{name}.{tag}", model.origin.family
    )


def has_decoder(model: LoadedModel) -> bool:
    """Whether a loaded model is a masked autoencoder that still gives the loss it was pretrained with."""
    return "bool_masked_pos" in model.example or model.origin.architecture.endswith("MAEForPreTraining")


def pretraining_from_names(*names: str) -> str | None:
    """Return ``masked``, ``other`` or None by the names of an architecture, of its type or its checkpoint."""
    text = " ".join(names).lower()
    for parts, kind in ((_MASKED, "masked"), (_OTHER, "other")):
        if any(part in text for part in parts):
            return kind
    return None
