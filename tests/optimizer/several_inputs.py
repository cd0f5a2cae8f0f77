"""Tiny models of several inputs: two streams, an image with a camera, and transformers' CLIP."""

import torch
from torch import nn

from shallowvit.models import InputSpec
from shallowvit.models.load import loaded_from_module
from shallowvit.models.raw import RawModel

from .small_models import redraw

SIZE = 16


class Attending(nn.Module):
    """A pre-norm block with a packed projection, as timm's."""

    def __init__(self, width=32, heads=2):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        packed = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class Encoder(nn.Module):
    def __init__(self, depth, width=32):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Parameter(torch.zeros(1, (SIZE // 4) ** 2, width))
        self.blocks = nn.ModuleList(Attending(width) for _ in range(depth))

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return x


class TwoStreams(nn.Module):
    """One encoder for each of two pictures, and a head on both: disparities, as CroCo's relatives."""

    def __init__(self, depth=4, width=32):
        super().__init__()
        self.encoder = Encoder(depth, width)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, left, right):
        both = torch.cat([self.encoder(left), self.encoder(right)], dim=-1)
        return {"disparity": self.head(both), "score": both.mean((1, 2))}


class WithCamera(nn.Module):
    """A picture with the number of its camera and a table that is the same for all, as TransReID's side information."""

    def __init__(self, depth=4, width=32, cameras=6):
        super().__init__()
        self.encoder = Encoder(depth, width)
        self.cameras = nn.Embedding(cameras, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 7)

    def forward(self, x, camera, gain, *, scale=1.0, mode="mean"):
        tokens = self.encoder(x) * gain + scale * self.cameras(camera)[:, None]
        tokens = self.norm(tokens)
        assert mode == "mean"
        return self.head(tokens.mean(1)), camera + 1


def two_streams(depth=4):
    example = {"left": torch.zeros(1, 3, SIZE, SIZE), "right": torch.zeros(1, 3, SIZE, SIZE)}
    return _loaded(TwoStreams(depth), example)


def with_camera(depth=4):
    example = {"x": torch.zeros(1, 3, SIZE, SIZE), "camera": torch.tensor([5]), "gain": torch.full((32,), 0.5)}
    return _loaded(WithCamera(depth), example | {"scale": 0.5, "mode": "mean"})


def tiny_clip():
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = tower | {"vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 49, "bos_token_id": 48, "pad_token_id": 0}
    config = CLIPConfig(text_config=text, vision_config=tower | {"image_size": SIZE, "patch_size": 4}, projection_dim=24)
    example = {
        "pixel_values": torch.zeros(1, 3, SIZE, SIZE),
        "input_ids": torch.tensor([[48, 3, 4, 5, 6, 7, 8, 49]]),
        "attention_mask": torch.ones(1, 8, dtype=torch.int64),
    }
    return _loaded(CLIPModel(config), example, ("vision_model.encoder.layers",))


def _loaded(module, example, blocks=()):
    main = next(iter(example))
    spec = InputSpec(main, "NCHW", (3, SIZE, SIZE))
    return loaded_from_module(RawModel(redraw(module, 0), "module", spec, example), "test:module", None, blocks)
