"""The records of a study: the models and items it is about, what was scored and measured, and what follows from it.

A newcomer's trap: ``None`` means not measured (a cell failed, or there is nothing to compute from); 0.0 never does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "ORACLES",
    "Agreement",
    "BlockValues",
    "Estimated",
    "Measured",
    "Power",
    "Progress",
    "StudiedModel",
    "StudyResult",
]

# oracle -> what it is; higher always means that the block matters more
ORACLES = {
    "finetuned accuracy": "points of top-1 lost when the block is removed and the rest finetuned, as the whole model is",
    "zero-shot accuracy": "points of top-1 lost when the block is removed, nothing retrained",
    "zero-shot loss": "rise of the cross-entropy when the block is removed, nothing retrained",
    "reconstruction loss": "rise of the masked-reconstruction loss of the pretraining checkpoint when the block is skipped",
}


@dataclass(frozen=True)
class StudiedModel:
    """A model of the study and its masked-pretraining checkpoint, if it has one."""

    source: str
    weights_sha256: str
    architecture: str
    blocks: tuple[str, ...]  # their paths
    parameters: int
    flops: int
    block_flops: tuple[int, ...]
    pretrained: str | None = None
    pretrained_sha256: str | None = None


@dataclass(frozen=True)
class BlockValues:
    """A value a block: the scores by a criterion, or an oracle; ``seed`` is None where the finetuning's seed plays no part."""

    name: str
    model: int
    seed: int | None
    values: tuple[float, ...]
    noise: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What was measured when ``criterion`` chose ``removed`` blocks of a model; accuracies are shares, losses nats."""

    criterion: str
    count: int
    model: int
    seed: int
    removed: tuple[int, ...]
    zero_shot_top1: float | None = None
    zero_shot_loss: float | None = None
    finetuned_top1: float | None = None
    finetuned_loss: float | None = None


@dataclass(frozen=True)
class Estimated:
    """A mean over replicates with its 95 % interval; None where one replicate alone gives none."""

    mean: float
    low: float | None
    high: float | None
    replicates: int


@dataclass(frozen=True)
class Agreement:
    """How a criterion's scores agree with an oracle.

    ``spearman`` and ``kendall`` are per replicate, then averaged; ``pooled`` is of scores and oracle averaged over replicates,
    with its permutation p-value. ``over_depth`` is the paired difference of Spearman to depth's; ``given_depth`` the partial
    rank correlation.
    """

    criterion: str
    oracle: str
    spearman: Estimated | None
    kendall: Estimated | None
    pooled_spearman: float | None
    pooled_p: float | None
    over_depth: Estimated | None
    given_depth: Estimated | None


@dataclass(frozen=True)
class Power:
    """Whether an oracle can tell blocks apart: its spread between them, its noise, what a perfect criterion could reach."""

    oracle: str
    spread: float | None  # standard deviation between blocks, mean over models
    noise: float | None  # standard deviation of one value
    noise_from: str
    reliability: float | None
    ceiling: float | None  # the largest Spearman to expect of a perfect criterion on one replicate
    models_agree: float | None  # intraclass correlation between models
    sentence: str


@dataclass(frozen=True)
class Progress:
    """How far a study is; ``done`` and ``total`` are in expected work, not in cells."""

    done: float
    total: float
    cells: int
    failed: int
    what: str


@dataclass(frozen=True)
class StudyResult:
    """What a study found. ``computed`` counts the cells of this run; the rest came from the folder."""

    config: dict[str, Any]
    models: tuple[StudiedModel, ...]
    data: dict[str, dict[str, Any]]
    criteria: tuple[str, ...]
    counts: tuple[int, ...]
    scores: tuple[BlockValues, ...]
    oracles: tuple[BlockValues, ...]
    whole: tuple[Measured, ...]
    measured: tuple[Measured, ...]
    agreements: tuple[Agreement, ...]
    powers: tuple[Power, ...]
    cells: int
    cells_named: int
    failures: tuple[str, ...]
    warnings: tuple[str, ...]
    conditions: tuple[dict[str, Any], ...]
    computed: int = field(default=0, compare=False)

    @property
    def record(self) -> dict[str, Any]:
        """The result as JSON values: the same whenever it is computed from the same cells."""
        values = asdict(self)
        del values["computed"]
        return values
