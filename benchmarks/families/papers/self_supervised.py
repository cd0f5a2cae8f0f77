"""Encoders in the style of the papers' own code: ViT, MAE, VideoMAE, DINO and iBOT, all with ``x = blk(x)``.

A newcomer's trap: MAE draws its mask within ``forward``, so two calls differ unless the generator is seeded before each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .parts import Attention, Block, Mlp, PatchEmbed, images, redrawn

__all__ = ["build_dino", "build_ibot", "build_mae", "build_videomae", "build_vit"]

_WIDTH, _DEPTH = 16, 5


class VisionTransformer(nn.Module):
    """Class token, added position embedding, blocks, norm, head."""

    def __init__(self, width: int = _WIDTH, depth: int = _DEPTH, tokens: int = 16) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + 1, width))
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        cls_tokens = self.cls_token.expand(x.shape[0], -1, -1)
        x = torch.cat((cls_tokens, x), dim=1) + self.pos_embed
        for blk in self.blocks:
            x = blk(x)
        return self.norm(x)[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x))


class MaskedEncoder(nn.Module):
    """MAE's encoder: a random quarter of the patches is encoded; returns latent, mask and the order to restore."""

    def __init__(self, width: int = _WIDTH, depth: int = _DEPTH, tokens: int = 16) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + 1, width))
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def random_masking(self, x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, width = x.shape
        len_keep = int(length * (1 - mask_ratio))
        noise = torch.rand(batch, length, device=x.device)
        ids_shuffle = torch.argsort(noise, dim=1)
        ids_restore = torch.argsort(ids_shuffle, dim=1)
        ids_keep = ids_shuffle[:, :len_keep]
        kept = torch.gather(x, 1, ids_keep.unsqueeze(-1).repeat(1, 1, width))
        mask = torch.ones([batch, length], device=x.device)
        mask[:, :len_keep] = 0
        return kept, torch.gather(mask, 1, ids_restore), ids_restore

    def forward(self, imgs: Tensor, mask_ratio: float = 0.75) -> tuple[Tensor, Tensor, Tensor]:
        x = self.patch_embed(imgs) + self.pos_embed[:, 1:, :]
        x, mask, ids_restore = self.random_masking(x, mask_ratio)
        cls_tokens = (self.cls_token + self.pos_embed[:, :1, :]).expand(x.shape[0], -1, -1)
        x = torch.cat((cls_tokens, x), dim=1)
        for blk in self.blocks:
            x = blk(x)
        return self.norm(x), mask, ids_restore


class TubeletAttention(nn.Module):
    """Packed qkv whose bias is put together in each call: keys have none."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.num_heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias, requires_grad=False), self.v_bias))
        qkv = F.linear(input=x, weight=self.qkv.weight, bias=bias)
        qkv = qkv.reshape(batch, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        q = q * self.scale
        attn = (q @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(batch, count, -1))


class TubeletBlock(nn.Module):
    """A pre-norm block with optional layer scale, as a branch on ``gamma_1``."""

    def __init__(self, width: int, init_values: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = TubeletAttention(width)
        self.drop_path = nn.Identity()
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        if init_values > 0:
            self.gamma_1 = nn.Parameter(init_values * torch.ones(width))
            self.gamma_2 = nn.Parameter(init_values * torch.ones(width))
        else:
            self.gamma_1, self.gamma_2 = None, None

    def forward(self, x: Tensor) -> Tensor:
        if self.gamma_1 is None:
            x = x + self.drop_path(self.attn(self.norm1(x)))
            return x + self.drop_path(self.mlp(self.norm2(x)))
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x)))
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))


class VideoTransformer(nn.Module):
    """VideoMAE's classifier: tubelets by a 3D convolution, a fixed sine table, the mean of the tokens to the head."""

    def __init__(self, width: int = _WIDTH, depth: int = _DEPTH, frames: int = 4, size: int = 16) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, width, (2, 8, 8), (2, 8, 8))
        tokens = (frames // 2) * (size // 8) ** 2
        angles = torch.arange(tokens)[:, None] / 10000 ** (torch.arange(width)[None] // 2 * 2 / width)
        self.pos_embed = torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos())[
            None
        ]  # neither buffer nor weight
        self.blocks = nn.ModuleList([TubeletBlock(width, init_values=0.1 if i % 2 else 0.0) for i in range(depth)])
        self.fc_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x).flatten(2).transpose(1, 2)
        batch = x.shape[0]
        x = x + self.pos_embed.expand(batch, -1, -1).type_as(x).to(x.device).clone().detach()
        for blk in self.blocks:
            x = blk(x)
        return self.head(self.fc_norm(x.mean(1)))


class WeightsAttention(Attention):
    """Attention that answers with its weights too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        batch, count, width = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q @ k.transpose(-2, -1)) * self.scale
        attn = attn.softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(batch, count, width)), attn


class DinoBlock(nn.Module):
    """A block that answers with the attention weights alone when asked to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = WeightsAttention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, return_attention: bool = False) -> Tensor:
        y, attn = self.attn(self.norm1(x))
        if return_attention:
            return attn
        x = x + y
        return x + self.mlp(self.norm2(x))


class Dino(nn.Module):
    """DINO's backbone whose answer is the last block's attention: that block is told by ``len(self.blocks) - 1``."""

    def __init__(self, width: int = _WIDTH, depth: int = _DEPTH, tokens: int = 16) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + 1, width))
        self.blocks = nn.ModuleList([DinoBlock(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def interpolate_pos_encoding(self, x: Tensor, width: int, height: int) -> Tensor:
        own = self.pos_embed.shape[1] - 1
        if x.shape[1] - 1 == own and width == height:
            return self.pos_embed
        side, dim = int(own**0.5), x.shape[-1]
        grid = self.pos_embed[:, 1:].reshape(1, side, side, dim).permute(0, 3, 1, 2)
        scale = ((width // 8 + 0.1) / side, (height // 8 + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat((self.pos_embed[:, :1], grid.permute(0, 2, 3, 1).view(1, -1, dim)), dim=1)

    def prepare_tokens(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, _, width, height = x.shape
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(batch, -1, -1), x), dim=1)
        return x + self.interpolate_pos_encoding(x, width, height)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prepare_tokens(x)
        for i, blk in enumerate(self.blocks):
            x = blk(x) if i < len(self.blocks) - 1 else blk(x, return_attention=True)
        return x[:, :, 0, 1:]  # the class token's attention to the patches


class MaskedStudent(Dino):
    """iBOT's student: masked patches are overwritten by one learned token, class and patch tokens come out apart."""

    def __init__(self, masked_im_modeling: bool = True) -> None:
        super().__init__()
        self.masked_im_modeling = masked_im_modeling
        if masked_im_modeling:
            self.masked_embed = nn.Parameter(torch.zeros(1, _WIDTH))

    def mask_model(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x[mask, :] = self.masked_embed.to(x.dtype)
        return x.permute(0, 3, 1, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        batch, _, width, height = x.shape
        x = self.patch_embed.proj(x)
        if self.masked_im_modeling:
            assert mask is not None
            x = self.mask_model(x, mask)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(batch, -1, -1), x), dim=1)
        x = x + self.interpolate_pos_encoding(x, width, height)
        for blk in self.blocks:
            x = blk(x)
        x = self.norm(x)
        return x[:, 0], x[:, 1:]


def build_vit() -> tuple[nn.Module, dict[str, Any]]:
    """Return a plain vision transformer."""
    return redrawn(VisionTransformer()), {"x": images(3, 32, 32)}


def build_mae() -> tuple[nn.Module, dict[str, Any]]:
    """Return an encoder that masks at random within ``forward``."""
    return redrawn(MaskedEncoder()), {"imgs": images(3, 32, 32)}


def build_videomae() -> tuple[nn.Module, dict[str, Any]]:
    """Return a classifier of clips [B, C, T, H, W]."""
    return redrawn(VideoTransformer()), {"x": images(3, 4, 16, 16)}


def build_dino() -> tuple[nn.Module, dict[str, Any]]:
    """Return a backbone that answers with its last attention."""
    return redrawn(Dino()), {"x": images(3, 32, 32)}


def build_ibot() -> tuple[nn.Module, dict[str, Any]]:
    """Return a masked student with its mask as the second input."""
    mask = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.3
    return redrawn(MaskedStudent()), {"x": images(3, 32, 32), "mask": mask}
