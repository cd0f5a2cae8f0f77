"""Models whose blocks have an attention and an MLP, written in the ways that public code has."""

import torch
from torch import nn

from shallowvit.models import InputSpec
from shallowvit.models.load import loaded_from_module
from shallowvit.models.raw import RawModel

from .small_models import loaded

WIDTH = 16


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(torch.softmax(q @ k.mT / 4, -1) @ v)


def mlp():
    return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))


class Plain(nn.Module):
    """``start`` is what the layer scale begins at."""

    def __init__(self, start=0.5):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = Attention(), mlp()
        self.gamma = nn.Parameter(torch.full((WIDTH,), start))

    def forward(self, x):
        x = x + self.gamma * self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PostNorm(Plain):
    def forward(self, x):
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class ResPostNorm(Plain):
    def forward(self, x):
        x = x + self.norm1(self.attn(x))
        return x + self.norm2(self.mlp(x))


class Windows(Plain):
    """Attention in windows of two tokens, shifted by one, over six."""

    def forward(self, x):
        y = torch.roll(self.norm1(x), -1, 1)
        batch, tokens, width = y.shape
        y = self.attn(y.reshape(batch * tokens // 2, 2, width)).reshape(batch, tokens, width)
        x = x + torch.roll(y, 1, 1)
        return x + self.mlp(self.norm2(x))


class Parallel(Plain):
    def forward(self, x):
        y = self.norm1(x)
        return x + self.attn(y) + self.mlp(y)


class InlineAttention(nn.Module):
    """Attention written out in the block: its last module is the layer of queries, keys and values."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + torch.softmax(q @ k.mT / 4, -1) @ v
        return x + torch.relu(self.fc(self.norm2(x)))


class InnerResidual(nn.Module):
    """The second layer of the MLP adds the state itself, as transformers' ``VideoMAEOutput`` does."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.fc1, self.out = Attention(), nn.Linear(WIDTH, 2 * WIDTH), _Out()

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return self.out(torch.relu(self.fc1(self.norm2(x))), x)


class _Out(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x, state):
        return self.dense(x) + state


class TwoMixers(Plain):
    """Nothing in it works on a token by itself."""

    def __init__(self):
        super().__init__()
        self.mlp = Attention()


class Residual(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.norm, self.branch = nn.LayerNorm(WIDTH), branch

    def forward(self, x):
        return x + self.branch(self.norm(x))


class Added(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.norm, self.branch = nn.LayerNorm(WIDTH), branch

    def forward(self, x):
        return self.branch(self.norm(x))


class Lists(nn.Module):
    """Blocks that are lists of parts; ``residual`` parts add the state themselves."""

    def __init__(self, residual, count=3):
        super().__init__()
        self.residual, kind = residual, Residual if residual else Added
        self.layers = nn.ModuleList(nn.ModuleList([kind(Attention()), kind(mlp())]) for _ in range(count))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        for attention, feed_forward in self.layers:
            x = attention(x) if self.residual else attention(x) + x
            x = feed_forward(x) if self.residual else feed_forward(x) + x
        return self.head(x)


class Blocks(nn.Module):
    def __init__(self, kind, count=3):
        super().__init__()
        self.blocks = nn.ModuleList(kind() for _ in range(count))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def blocks_of_kind(kind, count=3, tokens=5):
    """A loaded model of blocks of this kind, its weights all drawn."""
    return loaded(Blocks(kind, count), torch.zeros(1, tokens, WIDTH), seed=0)


def loaded_stock(module, *shape):
    """A loaded model of a class of transformers on pictures or clips of this shape."""
    spec = InputSpec("pixel_values", "NCHW" if len(shape) == 3 else "NTCHW", shape)
    raw = RawModel(module.eval(), "module", spec, {"pixel_values": torch.zeros(1, *shape)})
    return loaded_from_module(raw, "test:stock", None, ())


def without_part(model, paths):
    """A copy of a loaded model in whose modules at these paths the answers are zeros."""
    import copy

    module = copy.deepcopy(model.module)
    for path in paths:
        module.get_submodule(path).register_forward_hook(_zeros)
    return module


def _zeros(_module, _args, output):
    return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)
