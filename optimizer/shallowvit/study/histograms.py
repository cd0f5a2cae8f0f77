"""Count the weights of each block in equal intervals, for the plot that shows what entropy sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..scoring.weights import weights_from_model

if TYPE_CHECKING:
    from ..models import LoadedModel

__all__ = ["Histograms", "weight_histograms"]

_BINS = 120


@dataclass(frozen=True)
class Histograms:
    """Counts [blocks][bins] over one common range."""

    source: str
    edges: tuple[float, ...]
    counts: tuple[tuple[int, ...], ...]


def weight_histograms(model: LoadedModel) -> Histograms:
    """Count the matrices' weights of every block over the range of all of them, symmetric about zero."""
    blocks = weights_from_model(model)
    matrices = [[matrix.read().float().numpy() for matrix in block.matrices] for block in blocks]
    most = max((float(np.abs(matrix).max()) for own in matrices for matrix in own), default=1.0) or 1.0
    edges = np.linspace(-most, most, _BINS + 1)
    counts = [sum((np.histogram(matrix, edges)[0] for matrix in own), np.zeros(_BINS, np.int64)) for own in matrices]
    return Histograms(model.origin.spec, tuple(edges.tolist()), tuple(tuple(own.tolist()) for own in counts))
