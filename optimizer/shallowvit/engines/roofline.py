"""Estimate a graph's latency on a target from its arithmetic and the bytes it must move: a lower bound, not a measurement.

A newcomer's trap: the bound assumes that the GPU computes at its dense peak and reads each byte from memory once. Real engines
seldom do either, so the estimate says what is likely to limit a graph; how fast it runs is for ``shallowvit bench`` to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from .graph_bytes import GraphBytes, count_graph_bytes
from .targets import Kind, precision_refusal

if TYPE_CHECKING:
    from pathlib import Path

    from .target_records import Target

__all__ = ["ESTIMATE", "GraphBytes", "RooflineEstimate", "count_graph_bytes", "estimate"]

ESTIMATE = "estimate, not a measurement: a lower bound on latency at dense peak rates, each byte from memory once"

# int4 is of weights only: they are widened to fp16 before they are multiplied
_RATE = {"int4": "fp16"}


@dataclass(frozen=True)
class RooflineEstimate:
    """A lower bound on the latency of one batch, and what it came from. None is unknown; ``unknown`` says why.

    ``bound_ms`` is the larger of the two sides, or the only one that is known. ``limited_by`` needs both. ``activation_bytes``
    counts the output of each node of the graph once, as if nothing were fused; ``unfused_memory_ms`` writes and reads each of
    them. ``intensity`` and ``ridge`` are in operations a byte: below the ridge the memory limits.
    """

    target: str
    precision: str
    batch: int
    flops: int
    weight_bytes: int
    io_bytes: int
    activation_bytes: int | None
    peak_tera_ops: float | None
    bandwidth_gb_s: float | None
    compute_ms: float | None
    memory_ms: float | None
    bound_ms: float | None
    limited_by: str | None
    unfused_memory_ms: float | None
    intensity: float
    ridge: float | None
    unknown: tuple[str, ...]
    cautions: tuple[str, ...]
    kind: str = ESTIMATE


def estimate(onnx_path: Path, flops_per_item: int, target: Target, precision: str, batch: int = 1) -> RooflineEstimate:
    """Estimate the latency of a batch on a target from the graph's own bytes.

    Args:
        onnx_path: The graph; its weights may be in files beside it, which aren't read.
        flops_per_item: Floating-point operations of one item, a multiply-add counted as two (``plan.flops_after``).
        target: The device.
        precision: What the matrix products are computed in; the peak rate of it is taken.
        batch: Items in a batch.

    Raises:
        ShallowvitError: no graph there, the batch is below 1, or the target can't run the precision.
    """
    if batch < 1:
        raise ShallowvitError(f"estimate: a batch of {batch}; give --batch 1 or more")
    if reason := precision_refusal(target, precision):
        raise ShallowvitError(f"estimate: {reason}; choose another precision or target")
    moved = count_graph_bytes(onnx_path, batch)
    flops = flops_per_item * batch
    peak, bandwidth = target.peak(_RATE.get(precision, precision)).value, target.bandwidth_gb_s
    once = moved.weight_bytes + moved.io_bytes
    compute_ms = None if peak is None else flops / (peak * 1e12) * 1e3
    memory_ms = _transfer_ms(once, bandwidth)
    unfused = None if moved.activation_bytes is None else once + 2 * moved.activation_bytes
    known = [side for side in (compute_ms, memory_ms) if side is not None]
    limited_by = None
    if compute_ms is not None and memory_ms is not None:
        limited_by = "compute" if compute_ms >= memory_ms else "memory"
    return RooflineEstimate(
        target=target.key,
        precision=precision,
        batch=batch,
        flops=flops,
        weight_bytes=moved.weight_bytes,
        io_bytes=moved.io_bytes,
        activation_bytes=moved.activation_bytes,
        peak_tera_ops=peak,
        bandwidth_gb_s=bandwidth,
        compute_ms=compute_ms,
        memory_ms=memory_ms,
        bound_ms=max(known, default=None),
        limited_by=limited_by,
        unfused_memory_ms=None if unfused is None else _transfer_ms(unfused, bandwidth),
        intensity=flops / once if once else 0.0,
        ridge=None if peak is None or not bandwidth else peak * 1e12 / (bandwidth * 1e9),
        unknown=_unknown(target, precision, moved),
        cautions=_cautions(target, precision, compute_ms),
    )


def _transfer_ms(count: int, bandwidth_gb_s: float | None) -> float | None:
    return None if bandwidth_gb_s is None else count / (bandwidth_gb_s * 1e9) * 1e3


def _unknown(target: Target, precision: str, moved: GraphBytes) -> tuple[str, ...]:
    """Why a side of the roofline is missing."""
    reasons = []
    rate = _RATE.get(precision, precision)
    figure = target.peak(rate)
    if figure.value is None:
        note = f" ({figure.note})" if figure.note else ""
        reasons.append(f"compute: the dense {rate} rate of {target.title}'s GPU was not read{note}")
    if target.bandwidth_gb_s is None:
        reasons.append(f"memory: the memory bandwidth of {target.title} was not read")
    if moved.unsized:
        reasons.append(
            f"activations: {len(moved.unsized)} results of the graph have no known shape, {moved.unsized[0]!r} is the first"
        )
    return tuple(reasons)


def _cautions(target: Target, precision: str, compute_ms: float | None) -> tuple[str, ...]:
    # no cache sizes were read, so this can't be left to the models that it is about
    cautions = ["weights that stay in the GPU's cache between runs aren't read again: a small model can beat the memory side"]
    faster = target.peak("fp16-accumulate").value
    rate = target.peak("fp16").value
    if target.kind is Kind.GEFORCE and _RATE.get(precision, precision) == "fp16" and compute_ms and faster and rate:
        cautions.append(
            f"on GeForce fp16 with fp32 accumulation runs at half the rate of fp16 with fp16 accumulation and TensorRT may use "
            f"either: with {faster:g} TFLOPS the compute side is {compute_ms * rate / faster:.3g} ms"
        )
    if target.kind is Kind.JETSON:
        cautions.append("the rates are of the highest power mode: lower modes clock lower and take longer")
    if precision in ("int8", "fp8"):
        cautions.append(f"all operations are counted at the {precision} rate; those that stay in a float type take longer")
    return tuple(cautions)
