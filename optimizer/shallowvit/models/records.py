"""The records that the stage *load* returns: a model, the stacks of blocks found in it, and what its input looks like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

__all__ = ["Block", "BlockStack", "InputSpec", "LoadedModel", "Origin", "Preprocessing"]


@dataclass(frozen=True)
class Block:
    """One removable block.

    ``index`` counts from 0 over all chosen stacks; ``position`` is its place in the module list, whose other children may be
    fixed (a downsampling layer among blocks); ``stack`` is the name of its ``BlockStack``.
    """

    index: int
    position: int
    stack: str
    path: str
    class_name: str
    parameters: int
    flops: int


@dataclass(frozen=True)
class BlockStack:
    """Like, residual, shape-preserving blocks of one module list: where they stand and how large they are.

    ``path`` names the stack: the list's module path, with the places in brackets (``blocks[3-13]``) where the list holds other
    children too. ``list_path`` is the list's own path, ``length`` the number of blocks. Blocks that are lists of parts
    themselves, which ``forward`` walks (``ModuleList([attn, ff])``), have ``modes``: what each part does when its block is
    skipped, ``zero`` (its output is added to the state) or ``pass``.
    """

    path: str
    class_name: str
    length: int
    parameters: int
    flops: int
    list_path: str
    modes: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.path}: {self.length} x {self.class_name}, {self.parameters:,} parameters"


@dataclass(frozen=True)
class Preprocessing:
    """From uint8 frames to the model's floats: resize, centre crop, times ``rescale``, minus ``mean``, over ``std``.

    ``frame_shape`` is the shape of one uint8 item that needs no resize: [T, H, W, C] or [H, W, C]. ``crop_rounding`` is what
    becomes of half a pixel in the crop's offset: ``down`` (transformers) or to ``even`` (torchvision, timm).
    """

    frame_shape: tuple[int, ...]
    rescale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resize: dict[str, int] | None = None
    crop: dict[str, int] | None = None
    resample: str = "bilinear"
    crop_rounding: str = "down"


@dataclass(frozen=True)
class InputSpec:
    """The model's main input: its name in ``forward``, its shape without the batch and the layout's letters (batch first)."""

    name: str
    layout: str  # NTCHW, NCHW; N... for anything else
    shape: tuple[int, ...]
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class Origin:
    """Where a model came from, enough to load it again; the last three are what ``load`` changed about it."""

    spec: str
    family: str  # transformers, timm, torchvision, module
    architecture: str
    arch: str | None = None
    blocks: tuple[str, ...] = ()
    head: str | None = None
    image_size: tuple[int, int] | None = None
    frames: int | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A torch module in eval mode on the CPU with what is known of it.

    ``example`` holds the keyword arguments of one forward with a batch of 1. ``sha256`` is the hash of all weights, by name.
    """

    module: torch.nn.Module = field(repr=False)
    origin: Origin
    stacks: tuple[BlockStack, ...]
    blocks: tuple[Block, ...]
    input_spec: InputSpec
    example: dict[str, Any] = field(repr=False)  # every input, not the main one alone
    sha256: str
    flops: int
    output_shapes: tuple[tuple[int, ...], ...]  # of one forward with ``example``
    labels: tuple[str, ...] | None = None
    folder: Path | None = None
    recipe: dict[str, Any] = field(default_factory=dict)  # how the family's own loader builds it (timm: name and arguments)
    pairs: tuple[tuple[int, ...], ...] = ()  # numbers of blocks that go together: a shifted window with its unshifted one
    notes: tuple[str, ...] = ()  # what to know before using it: a head that is random

    @property
    def parameters(self) -> int:
        """The number of parameters of the whole model."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def block(self, index: int) -> torch.nn.Module:
        """Return the module of block ``index``."""
        if not 0 <= index < len(self.blocks):
            raise ShallowvitError(f"load: no block {index} in {self.origin.spec}; it has blocks 0 to {len(self.blocks) - 1}")
        return self.module.get_submodule(self.blocks[index].path)

    def modes_of(self, index: int) -> dict[str, str]:
        """Return the modes of block ``index``'s parts; empty where the block is a module of its own."""
        return dict(next(stack.modes for stack in self.stacks if stack.path == self.blocks[index].stack))
