"""Attention with a twist: gates by position, masks on the probabilities, no softmax at all, strips, shared biases, polylines.

A newcomer's trap: where the probabilities are multiplied after the softmax, or there is no softmax, no engine fuses it as
attention; and a class token that enters when the loop reaches a fixed number never enters a model that was cut below it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .parts import Attention, Block, Mlp, PatchEmbed, images, redrawn

__all__ = [
    "build_convit",
    "build_mixture_mask",
    "build_polyline",
    "build_pyramid_transformer",
    "build_shared_bias",
    "build_soft",
    "build_strips",
]

_SIDE = 4


def _offsets(side: int = _SIDE) -> Tensor:
    """Row and column distance of each patch to each: [N, N, 2]."""
    place = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    return place[None, :] - place[:, None]


class PositionalAttention(nn.Module):
    """Content and position each have their own probabilities, mixed by a gate a head."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.qk, self.v = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, width, bias=False)
        self.proj, self.pos_proj = nn.Linear(width, width), nn.Linear(3, heads)
        self.gating_param = nn.Parameter(torch.ones(heads))
        self.rel_indices: Tensor | None = None

    def relative(self, count: int) -> Tensor:
        offsets = _offsets(int(count**0.5)).float()
        return torch.cat([offsets, offsets.pow(2).sum(-1, keepdim=True)], dim=-1).unsqueeze(0)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        if self.rel_indices is None or self.rel_indices.size(1) != count:
            self.rel_indices = self.relative(count)
        q, k = self.qk(x).reshape(batch, count, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        content = ((q @ k.transpose(-2, -1)) * self.scale).softmax(-1)
        position = self.pos_proj(self.rel_indices.expand(batch, -1, -1, -1)).permute(0, 3, 1, 2).softmax(-1)
        gating = torch.sigmoid(self.gating_param.view(1, -1, 1, 1))
        attn = (1.0 - gating) * content + gating * position
        attn = attn / attn.sum(dim=-1).unsqueeze(-1)
        v = self.v(x).reshape(batch, count, self.num_heads, -1).permute(0, 2, 1, 3)
        return self.proj((attn @ v).transpose(1, 2).reshape(batch, count, width))


class ConvitBlock(Block):
    """A plain block, with positional attention or without."""

    def __init__(self, width: int, use_gpsa: bool) -> None:
        super().__init__(width)
        if use_gpsa:
            self.attn = PositionalAttention(width)


class Convit(nn.Module):
    """Gated blocks over patches alone; the class token enters before block ``local_up_to_layer``."""

    def __init__(self, width: int = 16, depth: int = 7, local_up_to_layer: int = 5) -> None:
        super().__init__()
        self.local_up_to_layer = local_up_to_layer
        self.patch_embed, self.pos_embed = PatchEmbed(width), nn.Parameter(torch.zeros(1, _SIDE**2, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList([ConvitBlock(width, use_gpsa=i < local_up_to_layer) for i in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x) + self.pos_embed
        cls_tokens = self.cls_token.expand(x.shape[0], -1, -1)
        for u, blk in enumerate(self.blocks):
            if u == self.local_up_to_layer:
                x = torch.cat((cls_tokens, x), dim=1)
            x = blk(x)
        return self.head(self.norm(x)[:, 0])


class MixtureMaskAttention(Attention):
    """Each head's probabilities are multiplied by its own mixture of Gaussians of the distance between patches."""

    def __init__(self, width: int, heads: int = 2, kernels: int = 3) -> None:
        super().__init__(width, heads)
        self.sigma, self.alpha = nn.Parameter(torch.zeros(heads, kernels)), nn.Parameter(torch.zeros(heads, kernels))
        self.register_buffer("distance", _offsets().float().pow(2).sum(-1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attn = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        falls = torch.exp(-self.distance[None, None] / (2 * (0.5 + self.sigma.abs()) ** 2)[..., None, None])
        mask = (F.softmax(self.alpha, -1)[..., None, None] * falls).sum(1)  # [heads, N, N]
        attn = attn * mask
        attn = attn / attn.sum(-1, keepdim=True)
        return self.proj((attn @ v).transpose(1, 2).reshape(batch, count, width))


class TwistedBlock(Block):
    """A plain block around an attention of another kind."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__(width)
        self.attn = attention


class Tokens(nn.Module):
    """Patches, blocks with ``x = blk(x)``, norm, mean, head."""

    def __init__(self, blocks: list[nn.Module], width: int = 16) -> None:
        super().__init__()
        self.patch_embed, self.pos_embed = PatchEmbed(width), nn.Parameter(torch.zeros(1, _SIDE**2, width))
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x) + self.pos_embed
        for blk in self.blocks:
            x = blk(x)
        return self.head(self.norm(x).mean(1))


class GaussianAttention(nn.Module):
    """A Gaussian kernel in place of the softmax, from a few landmarks, whose kernel is inverted by Newton's iterations."""

    def __init__(self, width: int, heads: int = 2, landmarks: int = 4) -> None:
        super().__init__()
        self.num_heads, self.landmarks = heads, landmarks
        self.scale = (width // heads) ** -0.5
        self.qk, self.v, self.proj = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.pool = nn.Conv1d(width // heads, width // heads, 4, 4)

    @staticmethod
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = a.pow(2).sum(-1)[..., :, None] + b.pow(2).sum(-1)[..., None, :]
        return torch.exp(-0.5 * (squares - 2 * a @ b.transpose(-2, -1)))

    @staticmethod
    def pseudo_inverse(matrix: Tensor, tolerance: float = 1e-5, most: int = 20) -> Tensor:
        identity = torch.eye(matrix.shape[-1], device=matrix.device)
        matrix = matrix + 0.5 * identity
        inverse = 2 / matrix.abs().sum(-1).max() ** 2 * matrix
        for _ in range(most):
            inverse = 2 * inverse - inverse @ matrix @ inverse
            if (identity - matrix @ inverse).abs().max() < tolerance:
                break
        return inverse

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        q = self.qk(x).reshape(batch, count, self.num_heads, -1).transpose(1, 2) * self.scale**0.5
        v = self.v(x).reshape(batch, count, self.num_heads, -1).transpose(1, 2)
        landmarks = self.pool(q.flatten(0, 1).transpose(1, 2)).transpose(1, 2).unflatten(0, (batch, self.num_heads))
        across = self.kernel(q, landmarks)
        middle = self.pseudo_inverse(self.kernel(landmarks, landmarks))
        out = across @ (middle @ (across.transpose(-2, -1) @ v))
        return self.proj(out.transpose(1, 2).reshape(batch, count, width))


class SoftBlock(nn.Module):
    """Post-norm: the norms stand on the stream, so a skipped block isn't even the identity of a normed stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn, self.norm1 = GaussianAttention(width), nn.LayerNorm(width)
        self.mlp, self.norm2 = Mlp(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class StripAttention(nn.Module):
    """Half of the heads attend within rows, half within columns, two wide each."""

    def __init__(self, width: int, strip: int = 2) -> None:
        super().__init__()
        self.strip, self.qkv, self.proj = strip, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def within(self, qkv: Tensor, high: int, wide: int) -> Tensor:
        three, batch, count, width = qkv.shape
        side = int(count**0.5)
        strips = qkv.view(three, batch, side // high, high, side // wide, wide, width).transpose(3, 4)
        q, k, v = strips.reshape(three, -1, high * wide, width)
        out = F.scaled_dot_product_attention(q, k, v)
        out = out.view(batch, side // high, side // wide, high, wide, width).transpose(2, 3)
        return out.reshape(batch, count, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, -1)).permute(2, 0, 1, 3)
        half, side = x.shape[-1] // 2, int(x.shape[1] ** 0.5)
        rows = self.within(qkv[..., :half], self.strip, side)
        columns = self.within(qkv[..., half:], side, self.strip)
        return self.proj(torch.cat([rows, columns], dim=-1))


class BiasedBlock(nn.Module):
    """``blk(x, rel_pos_bias=bias)``, the bias one table for all blocks."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Tensor, rel_pos_bias: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=rel_pos_bias)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class SharedBias(nn.Module):
    """A learned bias of each offset between patches, shared by all blocks."""

    def __init__(self, width: int = 16, depth: int = 5, heads: int = 2) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * _SIDE - 1) ** 2, heads))
        offsets = _offsets() + _SIDE - 1
        self.register_buffer("relative_position_index", offsets[..., 0] * (2 * _SIDE - 1) + offsets[..., 1])
        self.blocks = nn.ModuleList([BiasedBlock(width) for _ in range(depth)])
        self.head = nn.Linear(width, 5)

    def rel_pos_bias(self) -> Tensor:
        index = self.relative_position_index.view(-1)
        return self.relative_position_bias_table[index].view(_SIDE**2, _SIDE**2, -1).permute(2, 0, 1).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        x, bias = self.patch_embed(x), self.rel_pos_bias()
        for blk in self.blocks:
            x = blk(x, rel_pos_bias=bias)
        return self.head(x.mean(1))


class PolylineBlock(nn.Module):
    """Each head sees the patches that share a polyline with it within the head's radius."""

    def __init__(self, width: int, radii: tuple[float, ...] = (1.0, 2.0)) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), nn.MultiheadAttention(width, len(radii), batch_first=True)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)
        self.register_buffer("radii", torch.tensor(radii), persistent=False)

    def forward(self, x: Tensor, distance: Tensor) -> Tensor:
        near = distance[:, None] < self.radii[None, :, None, None]  # [B, heads, N, lines]
        seen = (near.float() @ near.float().transpose(-2, -1)) > 0
        seen = seen | torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        y = self.norm1(x)
        x = x + self.attn(y, y, y, attn_mask=~seen.flatten(0, 1), need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class PolylineTransformer(nn.Module):
    """An image and, as second input, each patch's distance to each polyline."""

    def __init__(self, width: int = 16, depth: int = 5) -> None:
        super().__init__()
        self.patch_embed, self.pos_embed = PatchEmbed(width), nn.Parameter(torch.zeros(1, _SIDE**2, width))
        self.layers = nn.ModuleList([PolylineBlock(width) for _ in range(depth)])
        self.head = nn.Linear(width, 5)

    def forward(self, image: Tensor, distance: Tensor) -> Tensor:
        x = self.patch_embed(image) + self.pos_embed
        for layer in self.layers:
            x = layer(x, distance)
        return self.head(x.mean(1))


class ReducedBlock(nn.Module):
    """``blk(x, H, W)``: keys and values from a grid that a strided convolution shrank."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.norm1, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.sr = nn.Conv2d(width, width, reduction, reduction)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        y = self.norm1(x)
        batch, count, width = y.shape
        q = self.q(y).reshape(batch, count, 2, -1).permute(0, 2, 1, 3)
        small = self.sr(y.permute(0, 2, 1).reshape(batch, width, H, W)).reshape(batch, width, -1).permute(0, 2, 1)
        k, v = self.kv(self.norm(small)).reshape(batch, -1, 2, 2, width // 2).permute(2, 0, 3, 1, 4)
        attn = ((q @ k.transpose(-2, -1)) * (width // 2) ** -0.5).softmax(dim=-1)
        x = x + self.proj((attn @ v).transpose(1, 2).reshape(batch, count, width))
        return x + self.mlp(self.norm2(x))


class PyramidTransformer(nn.Module):
    """Stages that are sibling attributes, ``block1`` to ``block3``, found by name."""

    def __init__(self, depths: tuple[int, ...] = (2, 5, 2), widths: tuple[int, ...] = (8, 16, 16)) -> None:
        super().__init__()
        self.num_stages = len(depths)
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            patch = 4 if i == 0 else 2
            setattr(self, f"patch_embed{i + 1}", nn.Conv2d(widths[i - 1] if i else 3, width, patch, patch))
            setattr(self, f"block{i + 1}", nn.ModuleList([ReducedBlock(width, 2 >> (i // 2)) for _ in range(depth)]))
            setattr(self, f"norm{i + 1}", nn.LayerNorm(width))
        self.head = nn.Linear(widths[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        for i in range(self.num_stages):
            x = getattr(self, f"patch_embed{i + 1}")(x)
            _, _, H, W = x.shape
            x = x.flatten(2).transpose(1, 2)
            for blk in getattr(self, f"block{i + 1}"):
                x = blk(x, H, W)
            x = getattr(self, f"norm{i + 1}")(x)
            if i != self.num_stages - 1:
                x = x.reshape(batch, H, W, -1).permute(0, 3, 1, 2).contiguous()
        return self.head(x.mean(dim=1))


def build_convit() -> tuple[nn.Module, dict[str, Any]]:
    """Return gated positional attention with a class token that enters late."""
    return redrawn(Convit()), {"x": images(3, 32, 32)}


def build_mixture_mask() -> tuple[nn.Module, dict[str, Any]]:
    """Return attention whose probabilities are multiplied by masks."""
    return redrawn(Tokens([TwistedBlock(16, MixtureMaskAttention(16)) for _ in range(5)])), {"x": images(3, 32, 32)}


def build_soft() -> tuple[nn.Module, dict[str, Any]]:
    """Return attention without softmax, in post-norm blocks."""
    return redrawn(Tokens([SoftBlock(16) for _ in range(5)])), {"x": images(3, 32, 32)}


def build_strips() -> tuple[nn.Module, dict[str, Any]]:
    """Return attention within horizontal and vertical strips."""
    return redrawn(Tokens([TwistedBlock(16, StripAttention(16)) for _ in range(5)])), {"x": images(3, 32, 32)}


def build_shared_bias() -> tuple[nn.Module, dict[str, Any]]:
    """Return blocks that are handed one learned bias."""
    return redrawn(SharedBias()), {"x": images(3, 32, 32)}


def build_polyline() -> tuple[nn.Module, dict[str, Any]]:
    """Return attention along polylines, with the distances as the second input."""
    return redrawn(PolylineTransformer()), {"image": images(3, 32, 32), "distance": images(16, 3, seed=2).abs() * 2}


def build_pyramid_transformer() -> tuple[nn.Module, dict[str, Any]]:
    """Return stages with ``blk(x, H, W)``."""
    return redrawn(PyramidTransformer()), {"x": images(3, 32, 32)}
