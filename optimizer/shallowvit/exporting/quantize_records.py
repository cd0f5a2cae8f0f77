"""The configuration of quantising, and the records that quantising, its check and the search over precisions return.

A newcomer's trap: int8, fp8 and int4 say how the constant matrices (and, but for int4, their inputs) are stored; everything
else is computed in the float type of the graph that was quantised, its ``base``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from .records import FLOATS, Precision

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "MAX_ACCURACY_DROP",
    "QUANTIZED",
    "AccuracyError",
    "ActivationRange",
    "CalibrationMethod",
    "KeptNode",
    "PrecisionSearch",
    "PrecisionTrial",
    "QuantizationCheck",
    "QuantizeConfig",
    "QuantizedGraph",
    "TrialStatus",
]

QUANTIZED = tuple(precision for precision in Precision if precision not in FLOATS)
MAX_ACCURACY_DROP = 0.01  # one point of top-1


class AccuracyError(ShallowvitError):
    """A quantised graph loses more top-1 than allowed."""


class CalibrationMethod(StrEnum):
    """How the range of an activation is chosen from the values that were seen.

    ``minmax``: all of them. ``percentile``: the share ``QuantizeConfig.percentile`` of them by magnitude. ``entropy``: the
    range whose quantised histogram has the least Kullback-Leibler divergence from the whole one, as in TensorRT 10 and before.
    """

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"


@dataclass(frozen=True)
class QuantizeConfig:
    """How to quantise.

    Args:
        precision: ``int8`` and ``fp8`` (E4M3) quantise weights and activations, ``int4`` weights alone.
        calibration: How ranges of activations are chosen; without meaning for int4. ``minmax`` lost least of the three on the
            demo model (``docs/quantization.md``).
        percentile: Percent of the values that lie inside the range, for ``percentile`` alone.
        data: What calibration inputs are drawn from: ``demo:train``, a ``.npz`` file, or a folder; see ``open_dataset``.
        samples: How many of its items; all where it holds fewer.
        seed: Which of its items.
        keep: Blocks by module path (``videomae.encoder.layer.3``) or nodes by name that stay in the float type.
        block_size: How many weights along the input share a scale, for ``int4`` alone.
    """

    precision: Precision = Precision.INT8
    calibration: CalibrationMethod = CalibrationMethod.MINMAX
    percentile: float = 99.99
    data: str | None = None
    samples: int = 128
    seed: int = 0
    keep: tuple[str, ...] = ()
    block_size: int = 128

    def __post_init__(self) -> None:
        if self.precision not in QUANTIZED:
            raise ShallowvitError(f"quantize: {str(self.precision)!r} isn't quantised; choose from {', '.join(QUANTIZED)}")
        if self.calibration not in list(CalibrationMethod):
            raise ShallowvitError(
                f"quantize: unknown calibration {str(self.calibration)!r}; choose from {', '.join(CalibrationMethod)}"
            )
        object.__setattr__(self, "precision", Precision(self.precision))  # plain text is as good
        object.__setattr__(self, "calibration", CalibrationMethod(self.calibration))
        object.__setattr__(self, "keep", tuple(self.keep))
        if self.precision is Precision.FP8 and self.calibration is CalibrationMethod.ENTROPY:
            raise ShallowvitError(
                "quantize: entropy calibration compares histograms over steps of one size, which int8 has and fp8 hasn't; use "
                "minmax or percentile"
            )
        if not 90 <= self.percentile <= 100:
            raise ShallowvitError(f"quantize: a percentile of {self.percentile:g} is outside 90 to 100; 99.99 is usual")
        if self.samples < 1:
            raise ShallowvitError(f"quantize: {self.samples} calibration samples; give 1 or more, 128 is usual")
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise ShallowvitError(f"quantize: a block size of {self.block_size} isn't a power of two from 16; 128 is usual")

    @property
    def method(self) -> CalibrationMethod | None:
        """The calibration in force; None where activations stay float and nothing is calibrated."""
        return None if self.precision is Precision.INT4 else self.calibration


@dataclass(frozen=True)
class KeptNode:
    """A MatMul, Gemm or Conv with constant weights that stayed in the float type, the module it is of, and why."""

    node: str
    module: str
    reason: str


@dataclass(frozen=True)
class ActivationRange:
    """The range of one quantised activation: values in ``low`` to ``high`` were taken as the whole; symmetric in the graph."""

    tensor: str
    low: float
    high: float


@dataclass(frozen=True)
class QuantizedGraph:
    """A quantised ONNX graph on disk that passed the checker.

    ``quantized`` and ``kept`` count MatMul, Gemm and Conv nodes with constant weights; ``attention_nodes`` stay float.
    ``ranges`` is the calibration table (empty for int4), ``samples`` and ``inputs_sha256`` say what it was taken on;
    ``block_sizes`` are those used (int4): a matrix whose inputs 128 doesn't divide gets the largest smaller power of two.
    """

    path: Path
    precision: str
    base: str
    opset: int
    quantized: int
    kept: tuple[KeptNode, ...]
    attention_nodes: int
    method: str | None
    percentile: float | None
    block_sizes: tuple[int, ...]
    samples: int
    inputs_sha256: str | None
    tool: str
    bytes_before: int
    bytes_after: int
    ranges: tuple[ActivationRange, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class QuantizationCheck:
    """A graph against the fp32 graph on the same real inputs, none of which it was calibrated on.

    ``relative_error`` is the largest absolute difference over the largest absolute output in fp32. Shares are of ``items``,
    with 95 % Wilson intervals; ``drop`` is top-1 in fp32 less top-1 here, its interval that of paired shares (Agresti, Min
    2005) and ``p_value`` McNemar's exact test, from the items that one side alone has right (``lost``, ``gained`` here). None
    where there are no classes or no labels. ``held_out`` counts the items of ``data`` left aside because they calibrated.
    """

    precision: str
    base: str
    data: str
    items: int
    held_out: int
    computed_by: str
    max_abs_error: float
    relative_error: float
    top1_agreement: float | None = None
    top1_reference: float | None = None
    top1_reference_interval: tuple[float, float] | None = None
    top1: float | None = None
    top1_interval: tuple[float, float] | None = None
    lost: int | None = None
    gained: int | None = None
    drop: float | None = None
    drop_interval: tuple[float, float] | None = None
    p_value: float | None = None
    within_noise: bool | None = None
    max_drop: float = MAX_ACCURACY_DROP


class TrialStatus(StrEnum):
    """What became of a candidate of the search."""

    CHOSEN = "chosen"
    SLOWER = "slower"
    INACCURATE = "inaccurate"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True)
class PrecisionTrial:
    """A candidate of the search over precisions: what it is, what was measured, what became of it and why.

    ``file`` is its graph in the search's folder. ``median_ms`` is of one batch; ``ratio`` is the median of the first
    candidate that runs (fp32) over this one's, above 1 is faster; ``ratio_low`` and ``ratio_high`` are its 10th and 90th
    percentile over alternating rounds.
    """

    name: str
    precision: str
    base: str
    calibration: str | None
    status: TrialStatus
    reason: str
    file: str | None = None
    bytes: int | None = None
    median_ms: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    check: QuantizationCheck | None = None
    quantized: QuantizedGraph | None = field(default=None, repr=False)


@dataclass(frozen=True)
class PrecisionSearch:
    """Which precision is fastest within the floor, on which backend and data, and every candidate that was tried."""

    chosen: str
    backend: str
    batch: int
    runs: int
    data: str
    max_drop: float
    trials: tuple[PrecisionTrial, ...]
