"""The literal table of criteria and the settings they read. The command line, the documentation and the tests read it here.

A newcomer's trap: the functions are named, not imported, so that reading the table (a help text) loads neither torch nor numpy;
``apply.score`` imports the one that is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..errors import ShallowvitError
from .records import Needs

__all__ = [
    "CRITERIA",
    "EXACT_MANTISSA_BITS",
    "GRANULARITIES",
    "Criterion",
    "Scope",
    "ScoreConfig",
    "check_criterion",
    "check_granularity",
]

EXACT_MANTISSA_BITS = 23
GRANULARITIES = ("block", "attention", "mlp")
_RANGES = ("own", "common")
_METRICS = ("loss", "accuracy")


class Scope(StrEnum):
    """What a criterion's function is given at a time.

    ``block``: ``f(matrices: Sequence[Tensor], config) -> Estimate``, the matrices of one block.
    ``stack``: ``f(blocks: Sequence[BlockWeights], config) -> list[Estimate]``, the matrices of all blocks.
    ``model``: ``f(model: LoadedModel, data: Calibration | None, config) -> list[Estimate]``, or a pair
    of that and ``list[Interval]``.
    ``composed``: made of others by ``apply``.
    """

    BLOCK = "block"
    STACK = "stack"
    MODEL = "model"
    COMPOSED = "composed"


@dataclass(frozen=True)
class Criterion:
    """A row of the table: what computes it, what it needs, its unit, where it comes from, the settings it reads."""

    function: str  # module:function in shallowvit.scoring
    scope: Scope
    needs: Needs
    unit: str
    summary: str
    source: str
    settings: tuple[str, ...] = ()
    halves: bool = False  # of scope model: whether it knows the attention and the MLP of a block


@dataclass(frozen=True)
class ScoreConfig:
    """How to score.

    Args:
        criterion: A key of ``CRITERIA``.
        mantissa_bits: Of ``entropy``, ``efficiency`` and ``mutual-information``: 23 counts exact fp32 values, as the released
            implementation does. The default of 7 is the bf16 grid, which ranks the same for a checkpoint stored in fp32 or bf16
            and stays clear of its own sampling noise from about 50,000 weights a block on, where the exact count is noise up to
            several millions.
        bins: Of ``interval-entropy``: K, the number of equal intervals.
        bin_range: Of ``interval-entropy``: ``own`` (each block's own lowest to highest weight) or ``common`` (over all blocks).
        seed: Of ``random``, and of what is drawn from the data.
        data: What criteria that need inputs run on: ``demo:train`` or a path; see ``read_calibration``.
        samples: How many items of ``data`` at most.
        batch: Items a forward.
        metric: Of ``bypass``: the rise of the ``loss`` or the drop of ``accuracy``.
        mix: Of ``mix``: criteria and their weights, such as ``entropy=0.3,bypass=0.7``.
        finetune_items: Of ``oracle``: items of ``data`` that each shallower model is finetuned on; the rest measures it.
        finetune_epochs: Of ``oracle``.
        granularity: What is scored of each block: all of it, or its ``attention`` or ``mlp`` alone.
    """

    criterion: str = "entropy"
    mantissa_bits: int = 7
    bins: int = 256
    bin_range: str = "common"
    seed: int = 0
    data: str | None = None
    samples: int = 256
    batch: int = 32
    metric: str = "loss"
    mix: str = "entropy=0.3,bypass=0.7"
    finetune_items: int = 4096
    finetune_epochs: int = 1
    granularity: str = "block"

    def __post_init__(self) -> None:
        check_criterion(self.criterion)
        check_granularity(self.granularity, "score")
        if not 1 <= self.mantissa_bits <= EXACT_MANTISSA_BITS:
            raise ShallowvitError(
                f"score: --mantissa-bits {self.mantissa_bits} is out of range; fp32 has 1 to {EXACT_MANTISSA_BITS}"
            )
        if self.bins < 2:
            raise ShallowvitError(f"score: --bins {self.bins} is too few; give at least 2")
        for name, value, choices in (("bin-range", self.bin_range, _RANGES), ("metric", self.metric, _METRICS)):
            if value not in choices:
                raise ShallowvitError(f"score: unknown --{name} {value!r}; choose from {', '.join(choices)}")
        for name in ("samples", "batch", "finetune_items", "finetune_epochs"):
            if getattr(self, name) < 1:
                raise ShallowvitError(f"score: --{name.replace('_', '-')} {getattr(self, name)}: give at least 1")


def check_criterion(name: str) -> None:
    """Refuse a name that isn't in the table."""
    if name not in CRITERIA:
        raise ShallowvitError(f"score: unknown criterion {name!r}; choose from {', '.join(CRITERIA)}")


def check_granularity(text: str, stage: str) -> None:
    """Refuse what is neither a block nor a half of one."""
    if text not in GRANULARITIES:
        raise ShallowvitError(f"{stage}: unknown --granularity {text!r}; choose from {', '.join(GRANULARITIES)}")


_GARDENER = "Xiang, Wu, Bai, arXiv 2602.03918"
_DATA = ("data", "samples", "batch", "seed")

CRITERIA: dict[str, Criterion] = {
    # from the weights alone
    "entropy": Criterion(
        "entropy:weight_entropy", Scope.BLOCK, Needs.NOTHING, "nats", "entropy of the weights on the floating-point grid",
        _GARDENER, ("mantissa_bits",),
    ),
    "interval-entropy": Criterion(
        "entropy:interval_entropy", Scope.STACK, Needs.NOTHING, "nats",
        "entropy over K equal intervals, as the paper's text has it",
        _GARDENER, ("bins", "bin_range"),
    ),
    "value-entropy": Criterion(
        "entropy:value_entropy", Scope.BLOCK, Needs.NOTHING, "nats", "entropy of |w| / sum |w|", _GARDENER,
    ),
    "efficiency": Criterion(
        "entropy:efficiency", Scope.BLOCK, Needs.NOTHING, "share of ln N", "entropy over the most it could be", _GARDENER,
        ("mantissa_bits",),
    ),
    "mean-abs": Criterion("statistics:mean_abs", Scope.BLOCK, Needs.NOTHING, "mean |w|", "mean absolute weight", _GARDENER),
    "variance": Criterion("statistics:variance", Scope.BLOCK, Needs.NOTHING, "variance of |w|", "variance of |w|", _GARDENER),
    "std": Criterion("statistics:std", Scope.BLOCK, Needs.NOTHING, "deviation of |w|", "standard deviation of |w|", _GARDENER),
    "l1": Criterion("statistics:l1", Scope.BLOCK, Needs.NOTHING, "sum of |w|", "sum of absolute weights", _GARDENER),
    "l2": Criterion("statistics:l2", Scope.BLOCK, Needs.NOTHING, "root of sum of w^2", "Euclidean norm", _GARDENER),
    "kurtosis": Criterion(
        "statistics:kurtosis", Scope.BLOCK, Needs.NOTHING, "-excess kurtosis", "heaviest tails go first, as published",
        _GARDENER,
    ),
    "mutual-information": Criterion(
        "entropy:mutual_information", Scope.STACK, Needs.NOTHING, "-nats", "most shared with the other blocks goes first",
        _GARDENER, ("mantissa_bits",),
    ),
    "stable-rank": Criterion(
        "spectral:stable_rank", Scope.BLOCK, Needs.NOTHING, "stable rank / full rank",
        "mean over matrices of |W|_F^2 / |W|_2^2",
        "Rudelson, Vershynin 2007",
    ),
    "spectral-entropy": Criterion(
        "spectral:spectral_entropy", Scope.BLOCK, Needs.NOTHING, "share of ln rank", "entropy of the singular values' energies",
        "Roy, Vetterli 2007 (effective rank)",
    ),
    "relative-norm": Criterion(
        "spectral:relative_norm", Scope.STACK, Needs.NOTHING, "share of the stream", "norm of what the block can write to the "
        "residual stream over what stands before it", "ours",
    ),
    "depth": Criterion(
        "position:depth", Scope.STACK, Needs.NOTHING, "blocks behind", "last blocks first (last-k)", "baseline",
    ),
    "random": Criterion("position:random", Scope.STACK, Needs.NOTHING, "uniform in 0..1", "baseline", "baseline", ("seed",)),
    # from the model, without data
    "probe-influence": Criterion(
        "activations:probe_influence", Scope.MODEL, Needs.NOTHING, "1 - cosine",
        "how far a block turns plain colours: runs the model, but on no data", "ours", ("seed",),
    ),
    # from inputs without labels
    "block-influence": Criterion(
        "activations:block_influence", Scope.MODEL, Needs.UNLABELLED, "1 - cosine", "how far a block turns its input",
        "ShortGPT: Men et al., arXiv 2403.03853", _DATA,
    ),
    "angular": Criterion(
        "activations:angular", Scope.MODEL, Needs.UNLABELLED, "angle / pi", "angular distance over intervals of blocks",
        "Gromov et al., arXiv 2403.17887", _DATA,
    ),
    "cka": Criterion(
        "activations:cka", Scope.MODEL, Needs.UNLABELLED, "1 - linear CKA", "how unlike input and output are, up to rotation",
        "Kornblith et al., arXiv 1905.00414", _DATA,
    ),
    "residual-norm": Criterion(
        "activations:residual_norm", Scope.MODEL, Needs.UNLABELLED, "|out - in| / |in|", "how much a block adds to its input",
        "residual contribution", _DATA,
    ),
    "reconstruction": Criterion(
        "reconstruction:reconstruction", Scope.MODEL, Needs.UNLABELLED, "rise of the loss",
        "rise of the masked-reconstruction loss when the block is skipped (masked autoencoders)", "ours, after He et al. 2022",
        _DATA, halves=True,
    ),
    # from labelled inputs
    "taylor-weight": Criterion(
        "sensitivity:taylor_weight", Scope.MODEL, Needs.LABELLED, "sum of |g w|",
        "first-order change of the loss without each weight",
        "Molchanov et al., arXiv 1906.10771", _DATA, halves=True,
    ),
    "taylor-activation": Criterion(
        "sensitivity:taylor_activation", Scope.MODEL, Needs.LABELLED, "mean |g . (out - in)|",
        "first-order change of the loss without what the block adds", "Molchanov et al., arXiv 1611.06440", _DATA,
    ),
    "bypass": Criterion(
        "sensitivity:bypass", Scope.MODEL, Needs.LABELLED, "rise of the loss",
        "loss or accuracy lost when the block is skipped",
        "baseline", (*_DATA, "metric"), halves=True,
    ),
    "oracle": Criterion(
        "sensitivity:oracle", Scope.MODEL, Needs.LABELLED, "accuracy lost", "remove the block, finetune, measure: hours",
        _GARDENER, (*_DATA, "finetune_items", "finetune_epochs"), halves=True,
    ),
    # made of others
    "mix": Criterion(
        "mixing:mix", Scope.COMPOSED, Needs.NOTHING, "weighted rank", "weighted mean of the ranks by other criteria",
        "0.3 entropy + 0.7 bypass: a DeiT-S report", ("mix",),
    ),
    "auto": Criterion(
        "mixing:choose", Scope.COMPOSED, Needs.NOTHING, "",
        "picks by the data given and by what the checkpoint is, and says why", "ours",
    ),
}  # fmt: skip
