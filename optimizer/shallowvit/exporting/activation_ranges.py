"""Run a graph on calibration inputs and choose a symmetric range for each activation, with onnxruntime's own collectors.

A newcomer's trap: onnxruntime's calibrators take fp32 alone (numpy can't bin fp16 values finely, and its CPU provider has no
bf16 kernels), so the graph runs as its fp32 twin: same nodes, same names, every float tensor in fp32.
"""

from __future__ import annotations

import io
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ShallowvitError
from .graph import EXTERNAL_DATA_ABOVE_BYTES
from .quantize_records import ActivationRange, CalibrationMethod

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx_ir

    from .quantize_records import QuantizeConfig

__all__ = ["activation_ranges", "widen_to_fp32"]

# onnxruntime's default of 128 leaves the entropy search a single candidate, the whole range; beyond 512 it takes minutes
_ENTROPY_BINS = 512
_PERCENTILE_BINS = 2048


def activation_ranges(
    source: Path, tensors: Sequence[str], batches: Iterable[Mapping[str, np.ndarray[Any, Any]]], config: QuantizeConfig
) -> tuple[ActivationRange, ...]:
    """Return the range of each named tensor over all batches.

    Args:
        source: The graph, in fp32, fp16 or bf16.
        tensors: Names of float values in it.
        batches: Inputs as the graph takes them, [B, ...], by name.
        config: ``method`` and ``percentile``.

    Raises:
        ShallowvitError: there are no inputs, or a tensor takes values that aren't finite.
    """
    collector = _MinMax() if config.method is CalibrationMethod.MINMAX else _Histograms(config)
    with tempfile.TemporaryDirectory() as name:
        session = _open_with_outputs(source, tensors, Path(name))
        main, count = session.get_inputs()[0].name, 0
        for batch in batches:
            values = dict(zip(tensors, session.run(list(tensors), dict(batch)), strict=True))
            _check_finite(values, source)
            collector.collect(values)  # a batch at a time: a calibrator of onnxruntime keeps the outputs of all of them
            count += len(batch[main])
    if not count:
        raise ShallowvitError("quantize: there are no calibration inputs; give a data set with --calibration")
    return tuple(ActivationRange(tensor, low, high) for tensor, (low, high) in collector.ranges().items())


def widen_to_fp32(model: onnx_ir.Model) -> None:
    """Make every fp16 or bf16 tensor of a model fp32, in place; inputs and outputs too."""
    import onnx_ir

    narrow = (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)
    for value in model.graph.initializers.values():
        if value.dtype in narrow and value.const_value is not None:
            value.const_value = onnx_ir.Tensor(value.const_value.numpy().astype("float32"), name=value.name)
            value.dtype = onnx_ir.DataType.FLOAT
    for value in model.graph.inputs:
        if value.dtype in narrow:
            value.dtype = onnx_ir.DataType.FLOAT
    for node in model.graph.all_nodes():
        for output in node.outputs:
            if output.dtype in narrow:
                output.dtype = onnx_ir.DataType.FLOAT
        for name, attribute in list(node.attributes.items()):
            if attribute.type is onnx_ir.AttributeType.TENSOR and attribute.value.dtype in narrow:
                wide = onnx_ir.Tensor(attribute.value.numpy().astype("float32"))
                node.attributes[name] = onnx_ir.AttrTensor(name, wide)
            elif name in ("to", "dtype", "output_dtype") and attribute.value in narrow:
                node.attributes[name] = onnx_ir.AttrInt64(name, int(onnx_ir.DataType.FLOAT))


def _open_with_outputs(source: Path, tensors: Sequence[str], folder: Path) -> Any:
    """Open the fp32 twin of a graph with these tensors as its outputs."""
    import onnx_ir
    import onnxruntime

    model = onnx_ir.load(source)
    widen_to_fp32(model)
    wanted = set(tensors)
    values = [value for node in model.graph for value in node.outputs if value.name in wanted]
    values += [value for value in model.graph.inputs if value.name in wanted]
    model.graph.outputs.clear()
    model.graph.outputs.extend(values)
    path = folder / "twin.onnx"
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    onnx_ir.save(model, path, external_data="twin.onnx.data" if size > EXTERNAL_DATA_ABOVE_BYTES else None)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _check_finite(values: Mapping[str, np.ndarray[Any, Any]], source: Path) -> None:
    for tensor, found in values.items():
        if not np.isfinite(found).all():
            raise ShallowvitError(
                f"quantize: {tensor} of {source.name} takes NaN or Inf on the calibration inputs, so it has no range; look at "
                "those inputs, or --keep-precise its block in the float type"
            )


class _MinMax:
    def __init__(self) -> None:
        self._ranges: dict[str, tuple[float, float]] = {}

    def collect(self, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
        for tensor, found in values.items():
            low, high = self._ranges.get(tensor, (np.inf, -np.inf))
            self._ranges[tensor] = (min(low, float(found.min())), max(high, float(found.max())))

    def ranges(self) -> dict[str, tuple[float, float]]:
        return self._ranges


class _Histograms:
    def __init__(self, config: QuantizeConfig) -> None:
        from onnxruntime.quantization.calibrate import HistogramCollector

        bins = _ENTROPY_BINS if config.method is CalibrationMethod.ENTROPY else _PERCENTILE_BINS
        self._collector = HistogramCollector(
            method=str(config.method),
            symmetric=True,
            num_bins=bins,
            num_quantized_bins=128,  # the magnitudes of int8
            percentile=config.percentile,
            scenario="same",
        )

    def collect(self, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
        with redirect_stdout(io.StringIO()):  # it prints its progress
            self._collector.collect(values)

    def ranges(self) -> dict[str, tuple[float, float]]:
        with redirect_stdout(io.StringIO()):
            found = self._collector.compute_collection_result()
        return {tensor: (float(low), float(high)) for tensor, (low, high, *_) in found.items()}
