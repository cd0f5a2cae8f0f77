"""Two streams: cross-view completion with rotary positions, a decoder whose even blocks look at themselves, text beside images.

A newcomer's trap: ``zip()`` ends with the shorter list, so a layer deleted from one tower silently drops one of the other too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .parts import Mlp, PatchEmbed, images, redrawn

__all__ = ["build_alternating_decoder", "build_cross_view", "build_fusion"]


class PatchPositions:
    """Row and column of each patch."""

    def __call__(self, batch: int, height: int, width: int) -> Tensor:
        return torch.cartesian_prod(torch.arange(height), torch.arange(width)).view(1, -1, 2).expand(batch, -1, 2).clone()


class RotaryTwoAxes(nn.Module):
    """Half of a head's channels turn with the row, half with the column; the table is as long as the positions seen."""

    def __init__(self, base: float = 100.0) -> None:
        super().__init__()
        self.base = base
        self.cache: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def table(self, dim: int, length: int) -> tuple[Tensor, Tensor]:
        if (dim, length) not in self.cache:
            inv_freq = 1.0 / (self.base ** (torch.arange(0, dim, 2).float() / dim))
            freqs = torch.einsum("i,j->ij", torch.arange(length).float(), inv_freq)
            freqs = torch.cat((freqs, freqs), dim=-1)
            self.cache[dim, length] = (freqs.cos(), freqs.sin())
        return self.cache[dim, length]

    @staticmethod
    def turn(tokens: Tensor, place: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos = nn.functional.embedding(place, cos)[:, None]
        sin = nn.functional.embedding(place, sin)[:, None]
        first, second = tokens.chunk(2, dim=-1)
        return tokens * cos + torch.cat((-second, first), dim=-1) * sin

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        half = tokens.size(3) // 2
        cos, sin = self.table(half, int(positions.max()) + 1)
        y, x = tokens.chunk(2, dim=-1)
        return torch.cat((self.turn(y, positions[:, :, 0], cos, sin), self.turn(x, positions[:, :, 1], cos, sin)), dim=-1)


class RotaryAttention(nn.Module):
    """Attention from tokens to a memory, which may be the tokens themselves."""

    def __init__(self, width: int, rope: nn.Module, heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.rope = heads, rope
        self.projq, self.projk, self.projv = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, query: Tensor, memory: Tensor, qpos: Tensor, kpos: Tensor) -> Tensor:
        batch, count, width = query.shape
        q, k, v = (
            layer(x).reshape(batch, -1, self.num_heads, width // self.num_heads).permute(0, 2, 1, 3)
            for layer, x in ((self.projq, query), (self.projk, memory), (self.projv, memory))
        )
        q, k = self.rope(q, qpos), self.rope(k, kpos)
        attn = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(batch, count, width))


class EncoderBlock(nn.Module):
    """``blk(x, xpos)``."""

    def __init__(self, width: int, rope: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), RotaryAttention(width, rope)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Tensor, xpos: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn(y, y, xpos, xpos)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """``blk(x, y, xpos, ypos) -> (x, y)``: self-attention, cross-attention to the other view, MLP."""

    def __init__(self, width: int, rope: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), RotaryAttention(width, rope)
        self.norm2, self.cross_attn = nn.LayerNorm(width), RotaryAttention(width, rope)
        self.norm3, self.mlp = nn.LayerNorm(width), Mlp(width)
        self.norm_y = nn.LayerNorm(width)

    def forward(self, x: Tensor, y: Tensor, xpos: Tensor, ypos: Tensor) -> tuple[Tensor, Tensor]:
        own = self.norm1(x)
        x = x + self.attn(own, own, xpos, xpos)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(y), xpos, ypos)
        return x + self.mlp(self.norm3(x)), y


class CrossViewCompletion(nn.Module):
    """Both views through one encoder, the first decoded with an eye on the second."""

    def __init__(self, width: int = 16, depth: int = 5, dec_depth: int = 4) -> None:
        super().__init__()
        self.patch_embed, self.position_getter = PatchEmbed(width), PatchPositions()
        self.rope = RotaryTwoAxes()
        self.enc_blocks = nn.ModuleList([EncoderBlock(width, self.rope) for _ in range(depth)])
        self.enc_norm = nn.LayerNorm(width)
        self.decoder_embed = nn.Linear(width, width)
        self.dec_blocks = nn.ModuleList([DecoderBlock(width, self.rope) for _ in range(dec_depth)])
        self.dec_norm = nn.LayerNorm(width)
        self.prediction_head = nn.Linear(width, 3 * 64)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patch_embed(image)
        pos = self.position_getter(image.size(0), image.size(2) // 8, image.size(3) // 8)
        for blk in self.enc_blocks:
            x = blk(x, pos)
        return self.enc_norm(x), pos

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        feat1, pos1 = self.encode(img1)
        feat2, pos2 = self.encode(img2)
        x, y = self.decoder_embed(feat1), self.decoder_embed(feat2)
        for blk in self.dec_blocks:
            x, y = blk(x, y, pos1, pos2)
        return self.prediction_head(self.dec_norm(x))


class TurnBlock(nn.Module):
    """Attention to a memory where there is one, else to itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        query = self.norm1(x)
        source = query if memory is None else memory
        x = x + self.attn(query, source, source)[0]
        return x + self.mlp(self.norm2(x))


class AlternatingDecoder(nn.Module):
    """Queries look at themselves in even blocks and at the image in odd ones."""

    def __init__(self, width: int = 16, depth: int = 6, queries: int = 4) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(width)
        self.queries = nn.Parameter(torch.zeros(1, queries, width))
        self.decoder = nn.ModuleList([TurnBlock(width) for _ in range(depth)])
        self.head = nn.Linear(width, 5)

    def forward(self, image: Tensor) -> Tensor:
        memory = self.patch_embed(image)
        x = self.queries.expand(image.shape[0], -1, -1)
        for i, layer in enumerate(self.decoder):
            x = layer(x) if i % 2 == 0 else layer(x, memory)
        return self.head(x.mean(1))


class CrossLayer(nn.Module):
    """One tower's fusion layer: itself, then the other tower, both with residuals."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.crossattention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm3, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, hidden: Tensor, other: Tensor) -> Tensor:
        own = self.norm1(hidden)
        hidden = hidden + self.attention(own, own, own)[0]
        hidden = hidden + self.crossattention(self.norm2(hidden), other, other)[0]
        return hidden + self.mlp(self.norm3(hidden))


class VisionLanguage(nn.Module):
    """An image and a text tower whose fusion layers are walked side by side."""

    def __init__(self, width: int = 16, depth: int = 5, words: int = 30) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(width)
        self.word_embeddings = nn.Embedding(words, width)
        self.cross_modal_image_layers = nn.ModuleList([CrossLayer(width) for _ in range(depth)])
        self.cross_modal_text_layers = nn.ModuleList([CrossLayer(width) for _ in range(depth)])
        self.itm_score = nn.Linear(2 * width, 2)

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        image, text = self.patch_embed(pixel_values), self.word_embeddings(input_ids)
        for image_layer, text_layer in zip(self.cross_modal_image_layers, self.cross_modal_text_layers):  # noqa: B905
            image, text = image_layer(image, text), text_layer(text, image)
        return self.itm_score(torch.cat((image.mean(1), text.mean(1)), dim=-1))


def build_cross_view() -> tuple[nn.Module, dict[str, Any]]:
    """Return an encoder and a decoder of two views."""
    return redrawn(CrossViewCompletion()), {"img1": images(3, 32, 32), "img2": images(3, 32, 32, seed=2)}


def build_alternating_decoder() -> tuple[nn.Module, dict[str, Any]]:
    """Return a decoder whose blocks' roles are the parity of their places."""
    return redrawn(AlternatingDecoder()), {"image": images(3, 32, 32)}


def build_fusion() -> tuple[nn.Module, dict[str, Any]]:
    """Return a vision and a text tower with fusion."""
    words = torch.randint(0, 30, (1, 5), generator=torch.Generator().manual_seed(2))
    return redrawn(VisionLanguage()), {"pixel_values": images(3, 32, 32), "input_ids": words}
