"""Segmentation and depth: heads that take features from the middle of an encoder, by hooks or by the blocks' numbers.

A newcomer's trap: a hook stays on its module, so deleting another block leaves it right, while a number goes on counting.
A hook that writes into a dictionary of its own closure still writes there when the model is copied: the copy reads old states.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .parts import Attention, Block, Mlp, PatchEmbed, images, redrawn
from .streams import CrossViewCompletion

__all__ = [
    "build_closure_hooks",
    "build_cross_view_dense",
    "build_hooks",
    "build_mask_transformer",
    "build_multi_level",
    "build_pyramid",
]


class Backbone(nn.Module):
    """Patches, blocks, and nothing else."""

    def __init__(self, width: int = 16, depth: int = 6) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(width)
        self.pos_embed = nn.Parameter(torch.zeros(1, 16, width))
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.patch_embed(x) + self.pos_embed)


def _grid(tokens: Tensor, side: int = 4) -> Tensor:
    """[B, N, D] to [B, D, side, side]."""
    return tokens.transpose(1, 2).unflatten(2, (side, side))


class Reassemble(nn.Module):
    """Features of several depths, each resized to its scale, fused from the deepest up, to one map."""

    def __init__(self, width: int, taps: int) -> None:
        super().__init__()
        self.scratch = nn.ModuleList([nn.Conv2d(width, 8, 1) for _ in range(taps)])
        self.refine = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(taps)])
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        path: Tensor | None = None
        for i in reversed(range(len(self.scratch))):
            here = self.scratch[i](_grid(features[i]))
            if path is not None:
                here = here + path
            path = F.interpolate(F.relu(self.refine[i](here)), scale_factor=2, mode="bilinear", align_corners=True)
            path = F.avg_pool2d(path, 2) if i else path
        assert path is not None
        return self.out(path)


class DenseByHooks(nn.Module):
    """Hooks on four blocks keep their outputs; after the backbone has run, the head reads them."""

    def __init__(self, hooks: tuple[int, ...]) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.activations: dict[str, Tensor] = {}
        for name, place in enumerate(hooks):
            self.backbone.blocks[place].register_forward_hook(partial(self._keep, str(name)))
        self.head = Reassemble(16, len(hooks))

    def _keep(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.activations[name] = output

    def forward(self, x: Tensor) -> Tensor:
        self.backbone(x)
        return self.head([self.activations[str(i)] for i in range(len(self.head.scratch))])


class DenseByClosures(DenseByHooks):
    """The same, but each hook is a function that has the dictionary in its closure."""

    def __init__(self, hooks: tuple[int, ...]) -> None:
        super().__init__(())
        activations = self.activations

        def get_activation(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
                activations[name] = output

            return hook

        for name, place in enumerate(hooks):
            self.backbone.blocks[place].register_forward_hook(get_activation(str(name)))
        self.head = Reassemble(16, len(hooks))


class DenseCrossView(CrossViewCompletion):
    """Two views, all outputs of encoder and decoder in one list, of which ``hooks_idx`` picks four."""

    def __init__(self, hooks_idx: tuple[int, ...] = (1, 4, 6, 8)) -> None:
        super().__init__()
        self.hooks_idx = hooks_idx
        self.dpt = Reassemble(16, len(hooks_idx))

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        outputs = []
        x, pos1 = self.patch_embed(img1), self.position_getter(img1.size(0), 4, 4)
        for blk in self.enc_blocks:
            x = blk(x, pos1)
            outputs.append(x)
        feat2, pos2 = self.encode(img2)
        x, y = self.decoder_embed(self.enc_norm(x)), self.decoder_embed(feat2)
        for blk in self.dec_blocks:
            x, y = blk(x, y, pos1, pos2)
            outputs.append(x)
        return self.dpt([outputs[hook] for hook in self.hooks_idx])


class PyramidPooling(nn.Module):
    """The deepest map beside its means over grids of several sizes."""

    def __init__(self, width: int, scales: tuple[int, ...] = (1, 2, 4)) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Sequential(nn.AdaptiveAvgPool2d(s), nn.Conv2d(width, 4, 1)) for s in scales])
        self.bottleneck = nn.Conv2d(width + 4 * len(scales), 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        means = [F.interpolate(stage(x), size=x.shape[2:], mode="bilinear", align_corners=False) for stage in self.stages]
        return self.bottleneck(torch.cat([x, *means], dim=1))


class PyramidSegmenter(nn.Module):
    """Blocks numbered in ``out_indices`` feed a pyramid, with pyramid pooling at its top."""

    def __init__(self, out_indices: tuple[int, ...] = (1, 2, 3, 5)) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.out_indices = out_indices
        self.resize = nn.ModuleList([nn.ConvTranspose2d(16, 16, 2, 2), nn.Identity(), nn.Identity(), nn.MaxPool2d(2)])
        self.laterals = nn.ModuleList([nn.Conv2d(16, 8, 1) for _ in out_indices[:-1]])
        self.psp = PyramidPooling(16)
        self.cls_seg = nn.Conv2d(8 * len(out_indices), 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone.patch_embed(x) + self.backbone.pos_embed
        features = []
        for i, blk in enumerate(self.backbone.blocks):
            x = blk(x)
            if i in self.out_indices:
                features.append(self.resize[len(features)](_grid(x)))
        levels = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=False)]
        levels.append(self.psp(features[-1]))
        size = levels[0].shape[2:]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], size=levels[i - 1].shape[2:], mode="nearest")
        levels = [levels[0], *(F.interpolate(level, size=size, mode="bilinear") for level in levels[1:])]
        return self.cls_seg(torch.cat(levels, dim=1))


class MultiLevelSegmenter(nn.Module):
    """Every block's output is kept; the head adds up those numbered in ``mla_index`` from the top down and upsamples."""

    def __init__(self, mla_index: tuple[int, ...] = (0, 2, 3, 5)) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.mla_index = mla_index
        self.mla = nn.ModuleList([nn.Conv2d(16, 8, 1) for _ in mla_index])
        self.up = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone.patch_embed(x) + self.backbone.pos_embed
        outs = []
        for blk in self.backbone.blocks:
            x = blk(x)
            outs.append(x)
        total = self.mla[-1](_grid(outs[self.mla_index[-1]]))
        for layer, index in zip(reversed(self.mla[:-1]), reversed(self.mla_index[:-1]), strict=True):
            total = total + layer(_grid(outs[index]))
        return F.interpolate(self.up(total), scale_factor=8, mode="bilinear", align_corners=False)


class ScaleEncoderLayer(nn.Module):
    """Post-norm attention over the tokens of all scales: ``layer(src, pos)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn, self.norm1 = Attention(width), nn.LayerNorm(width)
        self.ffn, self.norm2 = Mlp(width), nn.LayerNorm(width)

    def forward(self, src: Tensor, pos: Tensor) -> Tensor:
        src = self.norm1(src + self.self_attn(src + pos))
        return self.norm2(src + self.ffn(src))


class ScaleEncoder(nn.Module):
    """Layers over all scales, counted by ``num_layers``."""

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([ScaleEncoderLayer(width) for _ in range(num_layers)])
        self.num_layers = num_layers

    def forward(self, src: Tensor, pos: Tensor) -> Tensor:
        for layer in self.layers:
            src = layer(src, pos)
        return src


class QueryLayer(nn.Module):
    """Attention of queries, post-norm; masked where it looks at an image's scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.multihead_attn, self.norm = nn.MultiheadAttention(width, 2, batch_first=True), nn.LayerNorm(width)

    def forward(self, tgt: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.norm(tgt + self.multihead_attn(tgt, memory, memory, attn_mask=mask, need_weights=False)[0])


class MaskTransformer(nn.Module):
    """A pyramid of scales, encoded together, then queries that look only where their last mask was, one scale a layer."""

    def __init__(self, width: int = 16, layers: int = 6, queries: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.down = nn.ModuleList([nn.Conv2d(width, width, 2, 2) for _ in range(2)])
        self.level_embed = nn.Parameter(torch.zeros(3, width))
        self.encoder = ScaleEncoder(width, 5)
        self.num_layers = layers
        self.transformer_cross_attention_layers = nn.ModuleList([QueryLayer(width) for _ in range(layers)])
        self.transformer_self_attention_layers = nn.ModuleList([QueryLayer(width) for _ in range(layers)])
        self.query_feat = nn.Embedding(queries, width)
        self.class_embed, self.mask_embed = nn.Linear(width, 5), nn.Linear(width, width)

    def masks(self, queries: Tensor, features: Tensor) -> Tensor:
        return torch.einsum("bqc,bchw->bqhw", self.mask_embed(queries), features)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        maps = [self.stem(image)]
        for down in self.down:
            maps.append(down(maps[-1]))
        shapes = [tuple(one.shape[2:]) for one in maps]
        counts = [height * width for height, width in shapes]
        pos = torch.cat([self.level_embed[i].expand(count, -1) for i, count in enumerate(counts)])
        memory = self.encoder(torch.cat([one.flatten(2).transpose(1, 2) for one in maps], dim=1), pos)
        scales = memory.split(counts, dim=1)
        features = scales[0].transpose(1, 2).unflatten(2, shapes[0])
        queries = self.query_feat.weight.unsqueeze(0).expand(image.shape[0], -1, -1)
        for i in range(self.num_layers):
            level = i % 3
            seen = F.interpolate(self.masks(queries, features), size=shapes[level], mode="bilinear").flatten(2).sigmoid() < 0.5
            seen = seen & ~seen.all(-1, keepdim=True)  # a query that would see nothing sees all
            mask = seen.repeat_interleave(2, dim=0)  # by head
            queries = self.transformer_cross_attention_layers[i](queries, scales[level], mask)
            queries = self.transformer_self_attention_layers[i](queries, queries)
        return self.class_embed(queries), self.masks(queries, features)


def build_hooks() -> tuple[nn.Module, dict[str, Any]]:
    """Return a dense head on hooks that are methods."""
    return redrawn(DenseByHooks((0, 2, 4, 5))), {"x": images(3, 32, 32)}


def build_closure_hooks() -> tuple[nn.Module, dict[str, Any]]:
    """Return a dense head on hooks that are closures."""
    return redrawn(DenseByClosures((0, 2, 4, 5))), {"x": images(3, 32, 32)}


def build_cross_view_dense() -> tuple[nn.Module, dict[str, Any]]:
    """Return a dense head on numbered outputs of encoder and decoder."""
    return redrawn(DenseCrossView()), {"img1": images(3, 32, 32), "img2": images(3, 32, 32, seed=2)}


def build_pyramid() -> tuple[nn.Module, dict[str, Any]]:
    """Return a pyramid with pooling on numbered blocks."""
    return redrawn(PyramidSegmenter()), {"x": images(3, 32, 32)}


def build_multi_level() -> tuple[nn.Module, dict[str, Any]]:
    """Return a head that adds up numbered blocks."""
    return redrawn(MultiLevelSegmenter()), {"x": images(3, 32, 32)}


def build_mask_transformer() -> tuple[nn.Module, dict[str, Any]]:
    """Return encoder and decoder of masks."""
    return redrawn(MaskTransformer()), {"image": images(3, 32, 32)}
