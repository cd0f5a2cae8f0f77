"""Compare a quantised graph with the fp32 graph on real inputs that it wasn't calibrated on, and refuse too large a loss.

A newcomer's trap: the drop is checked as measured, not by its interval. On 2,000 items a drop of half a point is within noise;
the record says so, but a floor that forgave noise would forgive more the fewer items there are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from shallowvit_bench.accuracy import wilson_interval
from shallowvit_bench.datasets import open_dataset
from shallowvit_bench.errors import BenchError
from shallowvit_bench.feeding import batch_beside
from shallowvit_bench.preprocessing import input_from_frames
from shallowvit_bench.runners import RunnerOptions, open_onnxruntime
from shallowvit_bench.runners.onnx_runtime import session_feed

from ..errors import ParityError, ShallowvitError
from .bf16 import emulated_bf16
from .calibration_inputs import item_hashes
from .quantize_records import AccuracyError, QuantizationCheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from shallowvit_bench.bundles import BundleInfo
    from shallowvit_bench.feeding import Batch

    from .calibration_inputs import CalibrationInputs
    from .records import GraphInput

__all__ = ["EvaluationItems", "check_outputs", "items_from_inputs", "outputs_of", "read_evaluation"]

_BATCH = 8
_NOISE = 0.05  # a p-value above is no evidence of a difference


@dataclass(frozen=True)
class EvaluationItems:
    """What a graph is compared on: a graph's inputs in batches, their labels int64 [count] where there are any.

    ``held_out`` counts the items of the data that were left aside because the graph was calibrated on them.
    """

    data: str
    count: int
    held_out: int
    labels: np.ndarray[Any, Any] | None = field(repr=False)
    batches: Callable[[], Iterator[Batch]] = field(repr=False)


def read_evaluation(info: BundleInfo, data: str, calibration: CalibrationInputs | None = None) -> EvaluationItems:
    """Open data to evaluate on, without the items that calibrated.

    Args:
        info: The graph: a bundle's, or ``info_of_graph``.
        data: What ``open_dataset`` opens; where it has no labels there is no accuracy, only agreement.
        calibration: The items to leave aside, known by the hash of their frames.

    Raises:
        ShallowvitError: it isn't there, doesn't fit, or holds nothing but calibration items.
    """
    try:
        dataset = open_dataset(data, info, labelled=False)
        used = set(calibration.item_sha256) if calibration else set()
        free = np.arange(dataset.count)
        if used:
            hashes = [digest for frames in dataset.batches(64) for digest in item_hashes(frames)]
            free = np.array([item for item, digest in enumerate(hashes) if digest not in used], dtype=np.int64)
    except BenchError as err:
        raise ShallowvitError(f"quantize: {err}") from err
    if not len(free):
        raise ShallowvitError(
            f"quantize: all {dataset.count} items of {data} were calibrated on, so none is left to check the graph on; lower "
            "--samples or give other --data"
        )

    def batches() -> Iterator[Batch]:
        for first in range(0, len(free), _BATCH):
            items = free[first : first + _BATCH].tolist()
            yield batch_beside(input_from_frames(dataset.take(items), info), info, dataset.beside_of(items))

    labels = dataset.labels[free] if len(dataset.labels) else None
    return EvaluationItems(data, len(free), dataset.count - len(free), labels, batches)


def items_from_inputs(
    inputs: Mapping[str, np.ndarray[Any, Any]], graph_inputs: Sequence[GraphInput], inputs_from: str
) -> EvaluationItems:
    """Return inputs in memory, by name, as items without labels: what parity is shown on where no data is named."""
    count = len(inputs[graph_inputs[0].name])

    def batches() -> Iterator[Batch]:
        for first in range(0, count, _BATCH):
            yield {
                one.name: inputs[one.name][first : first + _BATCH] if one.batch else inputs[one.name] for one in graph_inputs
            }

    return EvaluationItems(inputs_from, count, 0, None, batches)


def outputs_of(path: Path, base: str, items: EvaluationItems, threads: int | None = None) -> tuple[np.ndarray[Any, Any], str]:
    """Return a graph's outputs on all items, and what computed them: onnxruntime's CPU provider, with bf16 emulated."""
    import onnxruntime

    computed_by = f"onnxruntime {onnxruntime.__version__} CPU"
    if base != "bf16":
        with open_onnxruntime(path, RunnerOptions(threads=threads)) as runner:
            return np.concatenate([runner.infer(batch) for batch in items.batches()]), computed_by
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0  # 0: it chooses
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it would drop the rounding
    session = onnxruntime.InferenceSession(emulated_bf16(path), options, providers=["CPUExecutionProvider"])
    first = session.get_outputs()[0].name
    outputs = [session.run([first], session_feed(session, batch))[0] for batch in items.batches()]
    return np.concatenate(outputs), f"{computed_by}, bf16 emulated: every result rounded to bf16"


def check_outputs(
    expected: np.ndarray[Any, Any],
    found: np.ndarray[Any, Any],
    items: EvaluationItems,
    graph: tuple[str, str, str],
    max_drop: float,
) -> QuantizationCheck:
    """Compare outputs [N, ...] with those of the fp32 graph.

    Args:
        expected: The fp32 graph's.
        found: The other graph's.
        items: What both ran on.
        graph: The other graph's precision and base, and what computed it.
        max_drop: How much top-1 may fall, as a share (0.01 is one point); only checked where there are labels.

    Raises:
        ParityError: the other graph answers with NaN or Inf, or the fp32 graph with zeros.
        AccuracyError: top-1 falls by more than ``max_drop``.
    """
    precision, base, computed_by = graph
    scale = float(np.abs(expected).max())
    if scale < 1e-6:
        raise ParityError(
            f"quantize: the fp32 graph's outputs are all zero on {items.count} items of {items.data}, so nothing can be shown; "
            "is its head trained?"
        )
    if not np.isfinite(found).all():
        raise ParityError(
            f"quantize: in {precision} on {base} the graph answers with NaN or Inf on {items.data}, where fp32 is finite; use "
            "another base precision, or calibration inputs that look like the data"
        )
    error = float(np.abs(found - expected).max())
    figures: dict[str, Any] = {}
    if expected.ndim == 2 and expected.shape[1] > 1:
        figures = _figures(expected.argmax(1), found.argmax(1), items.labels)
    check = QuantizationCheck(
        precision=precision,
        base=base,
        data=items.data,
        items=items.count,
        held_out=items.held_out,
        computed_by=computed_by,
        max_abs_error=error,
        relative_error=error / scale,
        max_drop=max_drop,
        **figures,
    )
    _check_drop(check)
    return check


def _figures(
    expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any], labels: np.ndarray[Any, Any] | None
) -> dict[str, Any]:
    """Agreement of predicted classes and, with labels, the accuracy of both sides and the paired drop."""
    agreement = float((expected == found).mean())
    if labels is None:
        return {"top1_agreement": agreement}
    from scipy.stats import binomtest

    items, right, right_here = len(labels), expected == labels, found == labels
    lost, gained = int((right & ~right_here).sum()), int((right_here & ~right).sum())
    p_value = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    # Agresti and Min's interval for a difference of paired shares: half an item more in each cell, then Wald
    centre, spread = (lost - gained) / (items + 2), lost + gained + 1 - (lost - gained) ** 2 / (items + 2)
    half = 1.959964 * sqrt(spread) / (items + 2)
    return {
        "top1_agreement": agreement,
        "top1_reference": float(right.mean()),
        "top1_reference_interval": wilson_interval(int(right.sum()), items),
        "top1": float(right_here.mean()),
        "top1_interval": wilson_interval(int(right_here.sum()), items),
        "lost": lost,
        "gained": gained,
        "drop": (lost - gained) / items,
        "drop_interval": (max(-1.0, centre - half), min(1.0, centre + half)),
        "p_value": p_value,
        "within_noise": p_value >= _NOISE,
    }


def _check_drop(check: QuantizationCheck) -> None:
    if check.drop is None or check.drop <= check.max_drop + 1e-12:  # 0.886 - 0.876 is above 0.01 in binary
        return
    assert check.top1 is not None and check.top1_reference is not None
    raise AccuracyError(
        f"quantize: {check.precision} on {check.base} has {100 * check.top1:.2f} % top-1 on {check.items:,} items of "
        f"{check.data}, fp32 has {100 * check.top1_reference:.2f} %: a drop of {100 * check.drop:.2f} points, above the "
        f"{100 * check.max_drop:.2f} that --max-accuracy-drop allows. Leave the blocks that matter in {check.base} with "
        "--keep-precise, calibrate otherwise, or use fp16"
    )
