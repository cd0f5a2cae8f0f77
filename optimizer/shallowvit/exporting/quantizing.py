"""Quantise an exported graph on real inputs and check it on others: what int8, fp8 and int4 add to the stage *export*."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shallowvit_bench.feeding import arrays_by_name

from .calibration_inputs import info_of_graph, read_calibration_inputs
from .evaluation import check_outputs, items_from_inputs, outputs_of, read_evaluation
from .inputs import sample_inputs
from .parity import number_of_inputs
from .quantization import quantize_graph
from .records import Precision

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import nn

    from ..models import LoadedModel
    from .quantize_records import QuantizationCheck, QuantizeConfig, QuantizedGraph
    from .records import ExportedOnnx

__all__ = ["quantize_checked"]


def quantize_checked(
    model: LoadedModel,
    exported: ExportedOnnx,
    out: Path,
    config: QuantizeConfig,
    reference: nn.Module,
    data: str | None,
    max_drop: float,
) -> tuple[QuantizedGraph, QuantizationCheck]:
    """Quantise a float graph into ``out`` and compare it with the fp32 model in torch.

    Args:
        model: What was exported.
        exported: Its float graph.
        out: The file to write.
        config: Calibration data, method, what stays float.
        reference: The deployable fp32 module, from the graph's input to its output.
        data: What to check on, without the items that calibrate; clips of handwritten digits by default, which show parity and
            agreement but no accuracy.
        max_drop: The share of top-1 that may be lost.

    Raises:
        ShallowvitError: no calibration data, or it doesn't fit, or nothing is left to check on.
        ParityError: the quantised graph answers with NaN or Inf.
        AccuracyError: it loses more than ``max_drop``.
    """
    info = info_of_graph(model, exported.inputs, exported.path, exported.precision)
    calibration = None if config.precision is Precision.INT4 else read_calibration_inputs(info, config)
    items = read_evaluation(info, data, calibration) if data else None
    if items is None:
        inputs, inputs_from = sample_inputs(exported.inputs, model, number_of_inputs(model.flops))
        items = items_from_inputs(inputs, exported.inputs, inputs_from)
    quantized = quantize_graph(exported.path, out, config, calibration.batches() if calibration else None)
    names = [one.name for one in exported.inputs]
    expected = _outputs_in_torch(reference, (arrays_by_name(batch, names, "quantize") for batch in items.batches()))
    found, computed_by = outputs_of(out, quantized.base, items)
    return quantized, check_outputs(expected, found, items, (quantized.precision, quantized.base, computed_by), max_drop)


def _outputs_in_torch(module: nn.Module, batches: Iterable[dict[str, np.ndarray[Any, Any]]]) -> np.ndarray[Any, Any]:
    """The first output of all items, which is what a quantised graph is judged by."""
    found = []
    with torch.no_grad():
        for batch in batches:
            output = module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in batch.values()))
            found.append((output[0] if isinstance(output, tuple) else output).numpy())
    return np.concatenate(found)
