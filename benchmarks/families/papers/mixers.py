"""Blocks without attention: gated recursive convolutions, long convolutions by FFT, global filters, and plain ConvNeXt.

A newcomer's trap: complex weights are kept as pairs of real numbers and joined in ``forward``, and an FFT of twice the length
is what makes a convolution causal; neither has an operator in every engine.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .parts import Mlp, PatchEmbed, images, redrawn

__all__ = ["build_afno", "build_convnext", "build_gfnet", "build_hornet", "build_hyena"]


class ChannelsFirstNorm(nn.Module):
    """Layer norm over the channels of [B, C, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        x = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class GatedConvolution(nn.Module):
    """Features of rising width, each gating the next: an interaction of ``order`` from convolutions alone."""

    def __init__(self, width: int, order: int = 3) -> None:
        super().__init__()
        self.order = order
        self.dims = [width // 2**i for i in range(order)][::-1]
        self.proj_in = nn.Conv2d(width, 2 * width, 1)
        self.dwconv = nn.Conv2d(sum(self.dims), sum(self.dims), 7, padding=3, groups=sum(self.dims))
        self.pws = nn.ModuleList([nn.Conv2d(self.dims[i], self.dims[i + 1], 1) for i in range(order - 1)])
        self.proj_out = nn.Conv2d(width, width, 1)
        self.scale = 1 / 3

    def forward(self, x: Tensor) -> Tensor:
        first, rest = torch.split(self.proj_in(x), (self.dims[0], sum(self.dims)), dim=1)
        gates = torch.split(self.dwconv(rest) * self.scale, self.dims, dim=1)
        x = first * gates[0]
        for i in range(self.order - 1):
            x = self.pws[i](x) * gates[i + 1]
        return self.proj_out(x)


class HorBlock(nn.Module):
    """Gated convolution and MLP, each with layer scale and residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.gnconv = ChannelsFirstNorm(width), GatedConvolution(width)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)
        self.gamma1, self.gamma2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma1.view(-1, 1, 1) * self.gnconv(self.norm1(x))
        y = self.gamma2 * self.mlp(self.norm2(x.permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


class ConvBlock(nn.Module):
    """ConvNeXt's: depthwise 7 x 7, norm, MLP, layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.pwconv1 = nn.LayerNorm(width), nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))).permute(0, 3, 1, 2)


class StagedConvolutions(nn.Module):
    """Three stages, each a ``Sequential`` of one kind of block behind its own downsampling layer."""

    def __init__(self, block: type[nn.Module], depths: tuple[int, ...] = (2, 5, 2), width: int = 8) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(len(depths))]
        self.downsample_layers = nn.ModuleList([nn.Sequential(nn.Conv2d(3, width, 4, 4), ChannelsFirstNorm(width))])
        for before, after in pairwise(widths):
            self.downsample_layers.append(nn.Sequential(ChannelsFirstNorm(before), nn.Conv2d(before, after, 2, 2)))
        self.stages = nn.ModuleList(
            [nn.Sequential(*[block(own) for _ in range(n)]) for own, n in zip(widths, depths, strict=True)]
        )
        self.norm, self.head = nn.LayerNorm(widths[-1]), nn.Linear(widths[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(len(self.stages)):
            x = self.stages[i](self.downsample_layers[i](x))
        return self.head(self.norm(x.mean([-2, -1])))


class ImplicitFilter(nn.Module):
    """A filter as long as the sequence, from a small network over positions, faded out with a window."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        t = torch.linspace(0, 1, length)[None, :, None]
        bands = torch.linspace(1e-4, 2, 2)[None, None]
        angle = 2 * math.pi * t * bands
        self.register_buffer("z", torch.cat([t, angle.cos(), angle.sin()], dim=-1))  # [1, L, 5]
        self.register_buffer("t", t)
        self.net = nn.ModuleList([nn.Linear(5, 16), nn.Linear(16, width, bias=False)])
        self.decay = nn.Parameter(torch.linspace(1, 4, width)[None, None])

    def forward(self, length: int) -> Tensor:
        h = self.net[1](torch.sin(self.net[0](self.z[:, :length])))
        return (h * torch.exp(-self.t[:, :length] * self.decay.abs())).transpose(1, 2)  # [1, D, L]


def _fft_convolution(u: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    length = u.shape[-1]
    k_f = torch.fft.rfft(k, n=2 * length) / (2 * length)
    u_f = torch.fft.rfft(u, n=2 * length)
    y = torch.fft.irfft(u_f * k_f, n=2 * length, norm="forward")[..., :length]
    return y + u * bias.unsqueeze(-1)


class HyenaBlock(nn.Module):
    """Short convolutions, then gates and one long convolution of the whole sequence."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.norm, self.in_proj = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.short_filter = nn.Conv1d(3 * width, 3 * width, 3, padding=2, groups=3 * width)
        self.filter_fn, self.bias = ImplicitFilter(width, length), nn.Parameter(torch.zeros(width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, u: Tensor) -> Tensor:
        length = u.shape[1]
        uc = self.short_filter(self.in_proj(self.norm(u)).transpose(1, 2))[..., :length]
        x0, x1, v = uc.chunk(3, dim=1)
        v = _fft_convolution(v * x1, self.filter_fn(length), self.bias)
        return u + self.out_proj((v * x0).transpose(1, 2))


class GlobalFilterBlock(nn.Module):
    """GFNet's: one residual around a learned filter of the whole grid's spectrum and an MLP."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.complex_weight = nn.Parameter(torch.zeros(side, side // 2 + 1, width, 2))
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        side = int(math.sqrt(count))
        y = self.norm1(x).view(batch, side, side, width).to(torch.float32)
        y = torch.fft.rfft2(y, dim=(1, 2), norm="ortho") * torch.view_as_complex(self.complex_weight)
        y = torch.fft.irfft2(y, s=(side, side), dim=(1, 2), norm="ortho").reshape(batch, count, width)
        return x + self.mlp(self.norm2(y))


class FourierOperatorBlock(nn.Module):
    """AFNO's: a block-diagonal complex MLP on the spectrum, shrunk towards 0, then an MLP."""

    def __init__(self, width: int, side: int, blocks: int = 2) -> None:
        super().__init__()
        self.side, self.num_blocks, own = side, blocks, width // blocks
        self.norm1, self.norm2, self.mlp = nn.LayerNorm(width), nn.LayerNorm(width), Mlp(width)
        self.w1, self.w2 = (nn.Parameter(torch.zeros(2, blocks, own, own)) for _ in range(2))
        self.b1, self.b2 = (nn.Parameter(torch.zeros(2, blocks, own)) for _ in range(2))

    @staticmethod
    def multiply(real: Tensor, imag: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        def by(x: Tensor, part: int) -> Tensor:
            return torch.einsum("...bi,bio->...bo", x, weight[part])

        return by(real, 0) - by(imag, 1) + bias[0], by(imag, 0) + by(real, 1) + bias[1]

    def mix(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        x = torch.fft.rfft2(x.reshape(batch, self.side, self.side, width), dim=(1, 2), norm="ortho")
        x = x.reshape(batch, self.side, self.side // 2 + 1, self.num_blocks, width // self.num_blocks)
        real, imag = self.multiply(x.real, x.imag, self.w1, self.b1)
        real, imag = self.multiply(F.relu(real), F.relu(imag), self.w2, self.b2)
        x = F.softshrink(torch.stack([real, imag], dim=-1), lambd=0.01)
        x = torch.view_as_complex(x).reshape(batch, self.side, self.side // 2 + 1, width)
        return torch.fft.irfft2(x, s=(self.side, self.side), dim=(1, 2), norm="ortho").reshape(batch, count, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenMixer(nn.Module):
    """Patches, blocks of one kind, mean, head."""

    def __init__(self, blocks: list[nn.Module], width: int = 16) -> None:
        super().__init__()
        self.patch_embed, self.pos_embed = PatchEmbed(width), nn.Parameter(torch.zeros(1, 16, width))
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x) + self.pos_embed
        for blk in self.blocks:
            x = blk(x)
        return self.head(self.norm(x).mean(1))


def build_hornet() -> tuple[nn.Module, dict[str, Any]]:
    """Return stages of gated recursive convolutions."""
    return redrawn(StagedConvolutions(HorBlock)), {"x": images(3, 32, 32)}


def build_convnext() -> tuple[nn.Module, dict[str, Any]]:
    """Return stages of depthwise convolutions."""
    return redrawn(StagedConvolutions(ConvBlock)), {"x": images(3, 32, 32)}


def build_hyena() -> tuple[nn.Module, dict[str, Any]]:
    """Return long convolutions over patches, by FFT."""
    return redrawn(TokenMixer([HyenaBlock(16, 16) for _ in range(5)])), {"x": images(3, 32, 32)}


def build_gfnet() -> tuple[nn.Module, dict[str, Any]]:
    """Return global filters of the patch grid's spectrum."""
    return redrawn(TokenMixer([GlobalFilterBlock(16, 4) for _ in range(5)])), {"x": images(3, 32, 32)}


def build_afno() -> tuple[nn.Module, dict[str, Any]]:
    """Return complex MLPs on the patch grid's spectrum."""
    return redrawn(TokenMixer([FourierOperatorBlock(16, 4) for _ in range(5)])), {"x": images(3, 32, 32)}
