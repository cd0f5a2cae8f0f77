"""What each kernel and modifier computes, and for which paper, in words for people; nothing is imported for it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SUMMARIES", "Summary"]


@dataclass(frozen=True)
class Summary:
    """A kernel, or one with a modifier: its name, what it computes, and who uses it."""

    name: str
    computes: str
    serves: str


SUMMARIES = (
    Summary("attention", "softmax(scale q k^T) v", "fp32, head sizes outside 9 to 256, what TensorRT misses"),
    Summary("attention + score_mask", "softmax(mask * scale q k^T) v", "masks and gates multiplied on scores"),
    Summary("attention + soft_cap", "softmax(cap tanh(scale q k^T / cap)) v", "capped scores, as Gemma 2's (arXiv 2408.00118)"),
    Summary(
        "attention + bias", "softmax(scale q k^T + bias) v", "relative positions and masks, in fp32 or with other modifiers"
    ),
    Summary(
        "attention + probability_mask",
        "(mask * softmax(scale q k^T)) v, divided by its sum or not",
        "Gaussian and polyline masks, head gates",
    ),
    Summary(
        "attention + positions",
        "((1 - gate) softmax(scale q k^T) + gate positions) v",
        "gated positional attention, ConViT (arXiv 2103.10697)",
    ),
    Summary(
        "gaussian",
        "exp(-scale |q - k|^2 / 2) v, no softmax",
        "SOFT (arXiv 2110.11945); launched twice over landmarks it is linear",
    ),
    Summary(
        "linear",
        "f(q) sum(f(k) v^T) / (f(q) sum f(k)), f relu or elu + 1",
        "linear attention (arXiv 2006.16236), EfficientViT (arXiv 2205.14756)",
    ),
)
