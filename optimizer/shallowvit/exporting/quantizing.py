"""Quantise an exported graph on real inputs and check it on others: what int8, fp8 and int4 add to the stage *export*."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .calibration_inputs import info_of_graph, read_calibration_inputs
from .evaluation import check_outputs, items_from_inputs, outputs_of, read_evaluation
from .parity import number_of_inputs, real_inputs
from .quantization import quantize_graph
from .records import Precision

if TYPE_CHECKING:
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
    info = info_of_graph(model, exported.input, exported.path, exported.precision)
    calibration = None if config.precision is Precision.INT4 else read_calibration_inputs(info, config)
    items = read_evaluation(info, data, calibration) if data else None
    if items is None:
        items = items_from_inputs(*real_inputs(exported.input, model.input_spec, number_of_inputs(model.flops)))
    quantized = quantize_graph(exported.path, out, config, calibration.batches() if calibration else None)
    expected = _outputs_in_torch(reference, items.batches())
    found, computed_by = outputs_of(out, quantized.base, items)
    return quantized, check_outputs(expected, found, items, (quantized.precision, quantized.base, computed_by), max_drop)


def _outputs_in_torch(module: nn.Module, batches: Any) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.concatenate([module(torch.from_numpy(np.ascontiguousarray(batch))).numpy() for batch in batches])
