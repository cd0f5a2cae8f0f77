"""Encoders of volumes [B, 1, D, H, W]: one whose list holds pairs of attention and MLP, one with windows and a list a stage.

A newcomer's trap: a pair ``ModuleList([attn, ff])`` has no ``forward``, its residuals stand in the loop; and the last element
of a stage's ``Sequential`` is no block but the layer that halves the volume.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .parts import Mlp, images, redrawn

__all__ = ["build_swin3d", "build_vit3d"]


class NormedAttention(nn.Module):
    """Norm, then attention with one projection to q, k and v and no bias."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = head_dim**-0.5
        self.norm = nn.LayerNorm(width)
        self.attend = nn.Softmax(dim=-1)
        self.to_qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, width), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.to_qkv(x).chunk(3, dim=-1))
        attn = self.attend(torch.matmul(q, k.transpose(-1, -2)) * self.scale)
        return self.to_out(torch.matmul(attn, v).transpose(1, 2).flatten(2))


class NormedMlp(nn.Module):
    """Norm, then two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PairedTransformer(nn.Module):
    """A list of pairs, walked with the residuals outside of them."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList([])
        for _ in range(depth):
            self.layers.append(nn.ModuleList([NormedAttention(width, 2, 8), NormedMlp(width)]))

    def forward(self, x: Tensor) -> Tensor:
        for attn, ff in self.layers:
            x = attn(x) + x
            x = ff(x) + x
        return self.norm(x)


class VolumeTransformer(nn.Module):
    """Cubes to tokens by reshaping, a trainable position embedding over depth, height and width, pairs, head."""

    def __init__(self, width: int = 16, depth: int = 5, size: int = 8, patch: int = 4) -> None:
        super().__init__()
        self.patch = patch
        side = size // patch
        self.to_embedding = nn.Linear(patch**3, width)
        self.pos_embedding = nn.Parameter(torch.zeros(1, side, side, side, width))
        self.transformer = PairedTransformer(width, depth)
        self.mlp_head = nn.Linear(width, 5)

    def forward(self, volume: Tensor) -> Tensor:
        p = self.patch
        x = volume.unfold(2, p, p).unfold(3, p, p).unfold(4, p, p).flatten(5).squeeze(1)  # [B, d, h, w, p*p*p]
        x = (self.to_embedding(x) + self.pos_embedding).flatten(1, 3)
        return self.mlp_head(self.transformer(x).mean(dim=1))


def _windows(x: Tensor, window: int) -> Tensor:
    """[B, D, H, W, C] to [B * windows, window**3, C]."""
    b, d, h, w, c = x.shape
    x = x.view(b, d // window, window, h // window, window, w // window, window, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, window**3, c)


def _whole(x: Tensor, window: int, shape: torch.Size) -> Tensor:
    b, d, h, w, c = shape
    x = x.view(b, d // window, h // window, w // window, window, window, window, c)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, d, h, w, c)


class WindowBlock(nn.Module):
    """Attention within windows of a volume, shifted by half a window in every other block."""

    def __init__(self, width: int, window: int, shift: int) -> None:
        super().__init__()
        self.window_size, self.shift_size = window, shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        shortcut, shape, shift = x, x.shape, self.shift_size
        x = self.norm1(x)
        if shift > 0:
            x = torch.roll(x, (-shift, -shift, -shift), dims=(1, 2, 3))
        windows = _windows(x, self.window_size)
        windows = self.attn(windows, windows, windows, need_weights=False)[0]
        x = _whole(windows, self.window_size, shape)
        if shift > 0:
            x = torch.roll(x, (shift, shift, shift), dims=(1, 2, 3))
        x = shortcut + x
        return x + self.mlp(self.norm2(x))


class Halve(nn.Module):
    """Every 2 x 2 x 2 neighbours become one token of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * width)
        self.reduction = nn.Linear(8 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, i::2, j::2, k::2] for i in (0, 1) for j in (0, 1) for k in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class VolumeSwin(nn.Module):
    """Stages that are ``Sequential``: window blocks in turns unshifted and shifted, then, in all but the last, a ``Halve``."""

    def __init__(self, width: int = 8, depths: tuple[int, ...] = (2, 6, 2), window: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, width, 2, 2)
        self.stages = nn.ModuleList()
        for place, depth in enumerate(depths):
            layers: list[nn.Module] = [WindowBlock(width, window, 0 if i % 2 == 0 else window // 2) for i in range(depth)]
            if place < len(depths) - 1:
                layers.append(Halve(width))
                width *= 2
            self.stages.append(nn.Sequential(*layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, volume: Tensor) -> Tensor:
        x = self.stem(volume).permute(0, 2, 3, 4, 1)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(x).mean(dim=(1, 2, 3)))


def build_vit3d() -> tuple[nn.Module, dict[str, Any]]:
    """Return a transformer over cubes of a volume, whose list holds pairs."""
    return redrawn(VolumeTransformer()), {"volume": images(1, 8, 8, 8)}


def build_swin3d() -> tuple[nn.Module, dict[str, Any]]:
    """Return a hierarchy of windows over a volume."""
    return redrawn(VolumeSwin()), {"volume": images(1, 16, 16, 16)}
