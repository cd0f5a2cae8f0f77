"""What the families share where their twist lies elsewhere: a plain pre-norm block, hand-written attention, random weights.

A newcomer's trap: weights are drawn wide (0.2), since with an initialisation of 0.02 every block is nearly the identity and a
removal that goes wrong would pass any comparison.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Attention", "Block", "Mlp", "PatchEmbed", "images", "redrawn"]


def redrawn(module: nn.Module, seed: int = 0, std: float = 0.2) -> nn.Module:
    """Draw every parameter anew, in place: scales of norms around 1, all else around 0; return the module for inference."""
    generator = torch.Generator().manual_seed(seed)
    norms = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)
    scales = {id(part.weight) for part in module.modules() if isinstance(part, norms)}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + (id(parameter) in scales))
    return module.eval()


def images(*shape: int, seed: int = 1) -> Tensor:
    """Return a batch of 1 of this shape, drawn from a normal distribution."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


class PatchEmbed(nn.Module):
    """An image [B, 3, H, W] to tokens [B, N, D]."""

    def __init__(self, width: int, patch: int = 8) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, N, D]."""
        return self.proj(x).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    """Two layers with GELU in between."""

    def __init__(self, width: int, ratio: int = 2) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    """Self-attention with packed qkv, written out."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.num_heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        batch, count, width = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]  # [B, heads, N, head_dim]
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, count, width))


class Block(nn.Module):
    """Pre-norm attention and MLP, each with its residual."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))
