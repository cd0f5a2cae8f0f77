"""Modules a few nodes long, for tests that need a stack of blocks and nothing else."""

import copy

import torch
from torch import nn

from shallowvit.models import InputSpec
from shallowvit.models.load import loaded_from_module
from shallowvit.models.raw import RawModel
from shallowvit.scoring.records import BlockWeights, Matrix


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.fc2(torch.relu(self.fc1(self.norm(x))))


class Stacked(nn.Module):
    """``blocks`` one after the other, then a head."""

    def __init__(self, blocks, width=8):
        super().__init__()
        self.blocks = blocks
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Adds(Stacked):
    """Adds positions before each block, as point-cloud transformers do, so that a deleted block takes one addition along."""

    def __init__(self, blocks, width=8):
        super().__init__(blocks, width)
        self.pos = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x):
        for block in self.blocks:
            x = block(x + self.pos)
        return self.head(x)


def loaded(module, example=None, blocks=(), seed=None):
    """A ``LoadedModel`` of a module, without a source on disk."""
    example = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0)) if example is None else example
    if seed is not None:
        redraw(module, seed)
    spec = InputSpec("x", "N" + "D" * (example.ndim - 1), tuple(example.shape[1:]))
    return loaded_from_module(RawModel(module, "module", spec, {"x": example}), "test:module", None, blocks)


def redraw(module, seed):
    """Draw every weight anew, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def stacked(count=4, seed=0):
    """A loaded model of ``count`` blocks at path ``blocks``."""
    return loaded(Stacked(nn.ModuleList(Block() for _ in range(count))), seed=seed)


def bypassed(model, removed):
    """A copy of a loaded model's whole module in which the removed blocks pass their input through."""
    module = copy.deepcopy(model.module)
    for index in removed:
        # still of its class, since transformers finds the states to return by the class
        module.get_submodule(model.blocks[index].path).forward = _pass_through
    return module


def _pass_through(hidden, *_args, **_kwargs):
    return hidden


def blocks_of(*weights):
    """One block a matrix, or a list of matrices, in one stack."""
    return [
        BlockWeights(index, "blocks", f"blocks.{index}", tuple(_matrix(str(n), one) for n, one in enumerate(matrices)))
        for index, matrices in enumerate(one if isinstance(one, list) else [one] for one in weights)
    ]


def _matrix(name, values):
    return Matrix(name, tuple(values.shape), lambda: values)
