"""Find the tensors in whatever a model returns."""

from __future__ import annotations

import torch

__all__ = ["shapes_in", "tensors_in"]


def tensors_in(output: object) -> list[torch.Tensor]:
    """Return the tensors in a tensor, a tuple, a list, a dict or a transformers output, depth first."""
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return [tensor for value in values for tensor in tensors_in(value)]


def shapes_in(output: object) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of those tensors."""
    return tuple(tuple(tensor.shape) for tensor in tensors_in(output))
