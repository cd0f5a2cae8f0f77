"""What a training minimises: a module from a batch to its losses, with the model that is trained inside.

A newcomer's trap: the teacher isn't a submodule, so it is neither trained nor saved nor wrapped; only its device follows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["Batch", "Objective"]


class Batch(NamedTuple):
    """Inputs as the model takes them, fp32 [B, ...], and their targets: int64 [B], soft [B, classes], or none."""

    inputs: torch.Tensor
    targets: torch.Tensor | None = None


class Objective(torch.nn.Module):
    """Holds what is trained (its submodules) and what it is compared with.

    ``forward`` takes a ``Batch`` and returns ``loss``, a scalar to be minimised, with its parts by name beside it.
    """

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``loss`` and its parts."""
        raise NotImplementedError
