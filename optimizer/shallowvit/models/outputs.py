"""Find the tensors in whatever a model returns, and put others in their places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["shapes_in", "tensors_in", "with_tensors"]


def tensors_in(output: object) -> list[torch.Tensor]:
    """Return the tensors in a tensor, a tuple, a list, a dict or a transformers output, depth first."""
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return [tensor for value in values for tensor in tensors_in(value)]


def shapes_in(output: object) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of those tensors."""
    return tuple(tuple(tensor.shape) for tensor in tensors_in(output))


def with_tensors(output: Any, tensors: Sequence[torch.Tensor | None]) -> Any:
    """Return the same structure with other tensors, in the order of ``tensors_in``; a ``None`` stands for no tensor."""
    return _filled(output, iter(tensors))


def _filled(output: Any, tensors: Iterator[torch.Tensor | None]) -> Any:
    if isinstance(output, torch.Tensor):
        return next(tensors)
    if isinstance(output, dict):
        filled = {key: _filled(value, tensors) for key, value in output.items()}
        return filled if type(output) is dict else type(output)(**filled)
    if isinstance(output, tuple | list):
        values = [_filled(value, tensors) for value in output]
        return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
    return output
