"""Turn uint8 frames into the model's input, in torch: part of the exported graph, and what scoring reads its data through.

A newcomer's trap: rescale, mean and deviation are one multiplication and one addition here, as they are in the harness's numpy,
so that a model is scored on the same numbers that it is deployed on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from shallowvit_bench.preprocessing import crop_corner, resized_shape

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from ..models import InputSpec, Preprocessing

__all__ = ["FramesToInput"]


class FramesToInput(nn.Module):
    """uint8 [B, (T,) H, W, C] to float [B, (T,) C, H, W]: resize, centre crop, rescale, normalise, as the checkpoint says."""

    def __init__(self, spec: InputSpec, settings: Preprocessing, frame_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.scale: torch.Tensor
        self.shift: torch.Tensor
        self.settings = settings
        self.size = spec.shape[-2:]
        self.resizes = frame_size is not None and frame_size != self.size
        self.register_buffer("mean", torch.tensor(settings.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("scale", settings.rescale / torch.tensor(settings.std).view(-1, 1, 1), persistent=False)
        self.register_buffer(
            "shift", -torch.tensor(settings.mean).view(-1, 1, 1) / torch.tensor(settings.std).view(-1, 1, 1), False
        )

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the model's input for uint8 frames."""
        pixels = frames.movedim(-1, -3).float()  # [B, (T,) C, H, W]
        if self.resizes:
            leading = pixels.shape[:-3]
            pixels = self._resize(pixels.flatten(0, -4))
            pixels = pixels.unflatten(0, leading)
        return pixels * self.scale + self.shift

    def _resize(self, pixels: torch.Tensor) -> torch.Tensor:
        height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
        resize, crop = self.settings.resize, self.settings.crop
        if resize:
            height, width = resized_shape((height, width), resize)
        mode = self.settings.resample
        antialias = {"antialias": True, "align_corners": False} if mode in ("bilinear", "bicubic") else {}
        pixels = nn.functional.interpolate(pixels, (height, width), mode=mode, **antialias)
        pixels = pixels.round().clamp(0, 255)  # image libraries resize to whole numbers
        if crop:
            top, left = crop_corner((height, width), crop, self.settings.crop_rounding)
            pixels = pixels[..., top : top + crop["height"], left : left + crop["width"]]
        if tuple(pixels.shape[-2:]) != tuple(self.size):
            raise ShallowvitError(
                f"export: the checkpoint's own resize and crop turn --frame-size into {tuple(pixels.shape[-2:])}, but the "
                f"model takes {tuple(self.size)}; give frames of another aspect ratio"
            )
        return pixels
