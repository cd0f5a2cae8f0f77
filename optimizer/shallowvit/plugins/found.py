"""What the finders of attention hand to the rewrite: an attention taken apart into what a kernel's inputs are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shallowvit_kernels.records import Kernel

if TYPE_CHECKING:
    import onnx_ir

    from shallowvit_kernels.records import FeatureMap

    from ..exporting.attention import AttentionSite

__all__ = ["Factor", "Found", "Gate"]


@dataclass(frozen=True)
class Factor:
    """A tensor that scores or probabilities are multiplied by.

    Args:
        value: Broadcastable to [b, h, n, m]; a boolean one stands for 1 and 0.
        turned: Of a boolean one: 1 where it is False. Of numbers: divided by them.
    """

    value: onnx_ir.Value
    turned: bool = False


@dataclass(frozen=True)
class Gate:
    """(1 - gate) * probabilities + gate * positions."""

    gate: onnx_ir.Value
    positions: onnx_ir.Value


@dataclass(frozen=True)
class Found:
    """An attention.

    Args:
        site: Queries, keys, values, scale and added masks; its ``second`` gives the output, ``softmax`` the name.
        kernel: What computes it.
        score_masks: Scores are multiplied by them, before a soft cap and masks that are added.
        soft_cap: See ``Variant``.
        factors: Probabilities are multiplied by them.
        renormalise: And divided by their sum then.
        gate: What they are mixed with.
        heads: Of an ``Attention`` node with three dimensions: the output is [b, n, heads * size].
        feature_map: Of linear attention.
        epsilon: Of linear attention and of ``renormalise``: added to the sum.
    """

    site: AttentionSite
    kernel: Kernel = Kernel.ATTENTION
    score_masks: tuple[Factor, ...] = ()
    soft_cap: float | None = None
    factors: tuple[Factor, ...] = ()
    renormalise: bool = False
    gate: Gate | None = None
    heads: int | None = None
    feature_map: FeatureMap | None = None
    epsilon: float = 0.0
