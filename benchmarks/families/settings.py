"""Settings of small models that several classes of transformers share, and short forms of what a case should come to.

A newcomer's trap: depths are larger than a model needs, so that a stack still has two blocks when one is gone.
"""

from __future__ import annotations

from typing import Any

from .cases import Expected

__all__ = ["CLASSES", "DECODER", "DINO", "IMAGE", "SWIN", "TIMM", "WIDTH", "deleted", "kept"]

WIDTH: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
IMAGE: dict[str, Any] = {**WIDTH, "image_size": 32, "patch_size": 8}
CLASSES = {"num_labels": 5}
DECODER = {
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 3,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}
DINO = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 32, "depths": [2, 4], "num_heads": [2, 4], "window_size": 4}
TIMM = "img_size=32&patch_size=8&depth=4&embed_dim=32&num_heads=2&num_classes=5"


def deleted(stack: str, blocks: int) -> Expected:
    """Return that the blocks of this stack are deleted."""
    return Expected(stack, blocks)


def kept(stack: str, blocks: int, reason: str) -> Expected:
    """Return that a module without weights keeps a block's place, for a reason that holds these words."""
    return Expected(stack, blocks, "placeholder", reason)
