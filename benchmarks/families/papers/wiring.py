"""Plain blocks in loops that are wired by number: early exits, copies of the last block, maps of all blocks, camera numbers.

A newcomer's trap: what counts blocks needn't stand near them: a gate has one weight a block, a head owns a copy of the last.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .parts import Attention, Block, Mlp, PatchEmbed, images, redrawn
from .self_supervised import WeightsAttention

__all__ = [
    "build_camera",
    "build_early_exit",
    "build_macaron",
    "build_parallel",
    "build_parts_head",
    "build_post_norm",
    "build_rollout",
    "build_tuples",
]

_WIDTH = 16


class Embedding(nn.Module):
    """Patches behind a class token, with positions."""

    def __init__(self, width: int = _WIDTH, tokens: int = 16) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + 1, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        return torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed


class Classifier(nn.Module):
    """Embedding, blocks with ``x = blk(x)``, the class token to the head."""

    def __init__(self, blocks: list[nn.Module], width: int = _WIDTH) -> None:
        super().__init__()
        self.embed, self.blocks = Embedding(width), nn.ModuleList(blocks)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for blk in self.blocks:
            x = blk(x)
        return self.head(x[:, 0])


class EarlyExit(nn.Module):
    """After each layer an answer; a gate on the embedded image, with one output a layer, weighs the answers."""

    def __init__(self, width: int = _WIDTH, num_layers: int = 5) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.embed = Embedding(width)
        self.layers = nn.ModuleList([Block(width) for _ in range(num_layers)])
        self.gate = nn.Linear(width, num_layers)
        self.exit = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weights = self.gate(x.mean(1)).softmax(-1)  # [B, layers]
        answers = []
        for layer in self.layers:
            x = layer(x)
            answers.append(self.exit(x[:, 0]))
        return (weights.unsqueeze(-1) * torch.stack(answers, dim=1)).sum(1)


class CameraTokens(nn.Module):
    """A learned vector of the camera is added to every token."""

    def __init__(self, width: int = _WIDTH, depth: int = 5, cameras: int = 3, strength: float = 3.0) -> None:
        super().__init__()
        self.embed = Embedding(width)
        self.sie_embed = nn.Parameter(torch.zeros(cameras, 1, width))
        self.sie_xishu = strength
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.local_feature = False

    def forward(self, x: Tensor, cam_label: Tensor) -> Tensor:
        x = self.embed(x) + self.sie_xishu * self.sie_embed[cam_label]
        if self.local_feature:
            for blk in self.blocks[:-1]:
                x = blk(x)
            return x
        for blk in self.blocks:
            x = blk(x)
        return self.norm(x)[:, 0]


class PartsHead(nn.Module):
    """The backbone stops before its last block, of which two copies go on: one over all tokens, one over each part."""

    def __init__(self, depth: int = 5, parts: int = 2) -> None:
        super().__init__()
        self.base = CameraTokens(depth=depth)
        self.base.local_feature = True
        block, norm = self.base.blocks[-1], self.base.norm
        self.b1 = nn.Sequential(copy.deepcopy(block), copy.deepcopy(norm))
        self.b2 = nn.Sequential(copy.deepcopy(block), copy.deepcopy(norm))
        self.parts, self.shift_num = parts, 5
        self.bottleneck = nn.BatchNorm1d(_WIDTH)

    def shuffle(self, x: Tensor) -> Tensor:
        """Shift the patches, then deal them out to two groups, as the parts are to see the whole image."""
        x = torch.cat([x[:, self.shift_num :], x[:, : self.shift_num]], dim=1)
        batch, count, width = x.shape
        return x.view(batch, 2, count // 2, width).transpose(1, 2).contiguous().view(batch, -1, width)

    def forward(self, x: Tensor, cam_label: Tensor) -> Tensor:
        features = self.base(x, cam_label)
        whole = self.b1(features)[:, 0]
        token, patches = features[:, :1], self.shuffle(features[:, 1:])
        length = patches.size(1) // self.parts
        local = [self.b2(torch.cat((token, patches[:, i * length : (i + 1) * length]), dim=1))[:, 0] for i in range(self.parts)]
        return torch.cat([self.bottleneck(whole), *(one / self.parts for one in local)], dim=1)


class MacaronBlock(nn.Module):
    """Half an MLP, attention, half an MLP, norm at the end."""

    def __init__(self, width: int = _WIDTH) -> None:
        super().__init__()
        self.norm1, self.ff1 = nn.LayerNorm(width), Mlp(width)
        self.norm2, self.attn = nn.LayerNorm(width), Attention(width)
        self.norm3, self.ff2 = nn.LayerNorm(width), Mlp(width)
        self.post_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.ff1(self.norm1(x))
        x = x + self.attn(self.norm2(x))
        return self.post_norm(x + 0.5 * self.ff2(self.norm3(x)))


class ParallelBlock(nn.Module):
    """Attention and MLP side by side on one norm."""

    def __init__(self, width: int = _WIDTH) -> None:
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(width), Attention(width), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attn(y) + self.mlp(y)


class PostNormBlock(nn.Module):
    """The norms stand on the stream, behind each sum."""

    def __init__(self, width: int = _WIDTH) -> None:
        super().__init__()
        self.attn, self.norm1 = Attention(width), nn.LayerNorm(width)
        self.mlp, self.norm2 = Mlp(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class TupleBlock(nn.Module):
    """``blk(x) -> (x, attention)``."""

    def __init__(self, width: int = _WIDTH) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), WeightsAttention(width)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.attn(self.norm1(x))
        x = x + y
        return x + self.mlp(self.norm2(x)), weights


class TupleClassifier(Classifier):
    """Drops the attention that its blocks return."""

    def __init__(self) -> None:
        super().__init__([TupleBlock() for _ in range(5)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for blk in self.blocks:
            x, _ = blk(x)
        return self.head(x[:, 0])


class RolloutClassifier(TupleClassifier):
    """Multiplies the attention of all blocks, and pools the tokens by what the product gives the class token."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        attn_weights = []
        for layer in self.blocks:
            x, weights = layer(x)
            attn_weights.append(weights)
        product = attn_weights[0]
        for weights in attn_weights[1:]:
            product = torch.matmul(weights, product)
        return self.head((product.mean(1)[:, :1] @ x)[:, 0])


def _image() -> dict[str, Any]:
    return {"x": images(3, 32, 32)}


def build_early_exit() -> tuple[nn.Module, dict[str, Any]]:
    """Return an encoder whose gate has an output a layer."""
    return redrawn(EarlyExit()), _image()


def build_camera() -> tuple[nn.Module, dict[str, Any]]:
    """Return an encoder with the camera's number as second input."""
    return redrawn(CameraTokens()), _image() | {"cam_label": torch.tensor([1])}


def build_parts_head() -> tuple[nn.Module, dict[str, Any]]:
    """Return a head of parts that owns copies of the last block."""
    return redrawn(PartsHead()), _image() | {"cam_label": torch.tensor([1])}


def build_macaron() -> tuple[nn.Module, dict[str, Any]]:
    """Return blocks between two half MLPs."""
    return redrawn(Classifier([MacaronBlock() for _ in range(5)])), _image()


def build_parallel() -> tuple[nn.Module, dict[str, Any]]:
    """Return blocks with attention beside the MLP."""
    return redrawn(Classifier([ParallelBlock() for _ in range(5)])), _image()


def build_post_norm() -> tuple[nn.Module, dict[str, Any]]:
    """Return post-norm blocks."""
    return redrawn(Classifier([PostNormBlock() for _ in range(5)])), _image()


def build_tuples() -> tuple[nn.Module, dict[str, Any]]:
    """Return blocks that answer with their attention, which is dropped."""
    return redrawn(TupleClassifier()), _image()


def build_rollout() -> tuple[nn.Module, dict[str, Any]]:
    """Return blocks whose attention maps are multiplied."""
    return redrawn(RolloutClassifier()), _image()
