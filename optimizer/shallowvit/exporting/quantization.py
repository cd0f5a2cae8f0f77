"""Turn an fp32, fp16 or bf16 graph into one with explicit QuantizeLinear/DequantizeLinear pairs: int8, fp8 or int4 weights.

What comes out is what TensorRT keeps its fused attention with: symmetric (no zero points but 0), weights stored quantised and
per output channel (int4: per block), activations quantised at the inputs of MatMul, Gemm and Conv with constant weights and
nowhere else, biases float. Scales have the graph's float type, as a strongly typed network wants.

A newcomer's trap: onnxruntime's own ``quantize_static`` isn't used, because it neither takes fp16 or bf16 graphs with every
calibration nor writes a graph at opset 21 or above that onnxruntime itself loads; ``docs/quantization.md`` has the figures.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from shallowvit_bench.feeding import arrays_by_name

from ..errors import ShallowvitError
from .activation_ranges import activation_ranges
from .graph import count_attention, write_graph
from .quantize_nodes import SCOPES, choose_nodes
from .quantize_records import QuantizedGraph
from .records import Precision

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import onnx_ir

    from shallowvit_bench.feeding import Batch

    from .quantize_nodes import Quantizable
    from .quantize_records import ActivationRange, KeptNode, QuantizeConfig

__all__ = ["graph_bytes", "quantize_graph"]

# What Q and DQ need: fp16 and bf16 scales and fp8 since opset 19, int4 and blocks since 21.
_OPSETS = {Precision.INT8: 19, Precision.FP8: 19, Precision.INT4: 21}
_LARGEST = {Precision.INT8: 127.0, Precision.FP8: 448.0, Precision.INT4: 7.0}
_FLOATS = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}
_BATCH = 8  # calibration inputs at a time: their activations are in memory together


def quantize_graph(
    source: Path,
    out: Path,
    config: QuantizeConfig,
    inputs: np.ndarray[Any, Any] | Iterable[Batch] | None = None,
) -> QuantizedGraph:
    """Quantise the graph at ``source`` into ``out``.

    Args:
        source: A graph that ``export_onnx`` wrote, in fp32, fp16 or bf16; left as it is.
        out: The file to write; weights above 2 GB stand beside it. The opset rises to 19 (int8, fp8) or 21 (int4) where it is
            below; names and metadata of nodes stay.
        config: See ``QuantizeConfig``.
        inputs: Real inputs as the graph takes them, [N, ...] or batches of those, dicts by name for a graph of several inputs;
            needed but for int4.

    Raises:
        ShallowvitError: inputs are missing or don't fit, ``config.keep`` names nothing, or the checker refuses the result.
    """
    import onnx_ir

    if out.resolve() == source.resolve():
        raise ShallowvitError(f"quantize: {out} is the graph to quantise; write to another path")
    model = onnx_ir.load(source)
    base, opset = _base(model, source), _raised(model, _OPSETS[config.precision])
    chosen, kept = choose_nodes(model.graph, config)
    ranges: tuple[ActivationRange, ...] = ()
    seen = _Seen()
    if config.method is not None:
        tensors = list(dict.fromkeys(str(item.node.inputs[0].name) for item in chosen if item.node.inputs[0] is not None))
        ranges = activation_ranges(source, tensors, seen.batches(inputs, config, model.graph.inputs), config)
        _quantize_activations(chosen, {row.tensor: row for row in ranges}, config.precision)
    _quantize_weights(chosen, config.precision)
    _drop_unused(model.graph, {str(item.weight.name) for item in chosen})
    write_graph(model, out, dict(model.metadata_props) | _metadata(config, base, len(chosen), kept))
    return QuantizedGraph(
        path=out,
        precision=str(config.precision),
        base=base,
        opset=opset,
        quantized=len(chosen),
        kept=tuple(kept),
        attention_nodes=count_attention(model, opset),
        method=str(config.method) if config.method else None,
        percentile=config.percentile if config.method == "percentile" else None,
        block_sizes=tuple(sorted({item.block_size for item in chosen})) if config.precision is Precision.INT4 else (),
        samples=seen.items,
        inputs_sha256=seen.digest.hexdigest() if seen.items else None,
        tool=_tool(),
        bytes_before=graph_bytes(source),
        bytes_after=graph_bytes(out),
        ranges=ranges,
    )


class _Seen:
    """Batches on their way through: how many items, and the hash of them all."""

    def __init__(self) -> None:
        self.items = 0
        self.digest = hashlib.sha256()

    def batches(
        self, inputs: Any, config: QuantizeConfig, graph_inputs: Sequence[onnx_ir.Value]
    ) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        if inputs is None:
            raise ShallowvitError(
                f"quantize: {config.precision} needs real inputs to find the ranges of activations, and got none; give a data "
                "set with --calibration, or use --precision int4, which needs none"
            )
        names = [str(value.name) for value in graph_inputs]
        if isinstance(inputs, np.ndarray):
            inputs = [inputs[first : first + _BATCH] for first in range(0, len(inputs), _BATCH)]
        for batch in inputs:
            arrays = arrays_by_name(batch, names, "quantize")
            for value in graph_inputs:
                _check_input(arrays[str(value.name)], value)
                self.digest.update(np.ascontiguousarray(arrays[str(value.name)]).data)
            self.items += len(arrays[names[0]])
            yield arrays


def _check_input(array: np.ndarray[Any, Any], value: onnx_ir.Value) -> None:
    assert value.dtype is not None and value.shape is not None
    dtype, shape = value.dtype.numpy(), tuple(value.shape)
    fits = array.ndim == len(shape) and all(not isinstance(b, int) or a == b for a, b in zip(array.shape, shape, strict=False))
    if array.dtype != dtype or not fits:
        raise ShallowvitError(
            f"quantize: calibration inputs are {array.dtype} {list(array.shape)}, the graph takes {dtype} "
            f"[N, {', '.join(map(str, shape[1:]))}]; preprocess them as the model was trained"
        )


def _base(model: onnx_ir.Model, source: Path) -> str:
    """The type that most weights are stored in."""
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.all_nodes()):
        raise ShallowvitError(f"quantize: {source.name} is quantised already; start from the fp16 or fp32 graph")
    sizes: dict[str, int] = {}
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.dtype is not None and value.dtype.name in _FLOATS:
            sizes[value.dtype.name] = sizes.get(value.dtype.name, 0) + value.const_value.size
    if not sizes:
        raise ShallowvitError(f"quantize: {source.name} has no fp32, fp16 or bf16 weights; start from an exported graph")
    return _FLOATS[max(sizes, key=lambda name: sizes[name])]


def _raised(model: onnx_ir.Model, least: int) -> int:
    """Raise the opset, in place, where it is below the least; return the opset."""
    from onnxscript import version_converter

    if model.opset_imports[""] < least:
        version_converter.convert_version(model, least)
    return model.opset_imports[""]


def _quantize_activations(chosen: Sequence[Quantizable], ranges: dict[str, ActivationRange], precision: Precision) -> None:
    """Put one pair behind each activation that chosen nodes read, for them alone."""
    made: dict[str, onnx_ir.Value] = {}
    for item in chosen:
        value = item.node.inputs[0]
        assert value is not None and value.name is not None and item.weight.dtype is not None
        name = value.name
        if name not in made:
            found = ranges[name]
            scale = _scales(np.array(max(-found.low, found.high), np.float32), precision, item.weight.dtype)
            scale_value = _constant(item.node, f"{name}_scale", scale)
            zero = _constant(item.node, f"{name}_zero_point", np.zeros((), _stored(precision)))
            quantize = _node("QuantizeLinear", f"{name}_QuantizeLinear", [value, scale_value, zero], item.node)
            restore = _node("DequantizeLinear", f"{name}_DequantizeLinear", [quantize.outputs[0], scale_value, zero], item.node)
            for output, dtype in ((quantize.outputs[0], zero.dtype), (restore.outputs[0], item.weight.dtype)):
                output.shape = value.shape
                if dtype is not None:
                    output.dtype = dtype
            made[name] = restore.outputs[0]
            assert item.node.graph is not None
            item.node.graph.insert_before(item.node, [quantize, restore])
        item.node.replace_input_with(0, made[name])


def _quantize_weights(chosen: Sequence[Quantizable], precision: Precision) -> None:
    """Store the weights quantised, with a DequantizeLinear in front of each node; tied weights once per axis."""
    made: dict[tuple[str, int], onnx_ir.Value] = {}
    for item in chosen:
        weight = item.weight
        assert weight.name is not None and weight.const_value is not None and weight.dtype is not None
        axis = item.input_axis if precision is Precision.INT4 else item.output_axis
        key = (weight.name, axis)
        if key not in made:
            name = weight.name if not any(other == weight.name for other, _ in made) else f"{weight.name}_axis{axis}"
            values = weight.const_value.numpy().astype(np.float32)
            attributes = {"axis": axis}
            if precision is Precision.INT4:
                attributes["block_size"] = item.block_size
                scale = _scales(_block_maxima(values, axis, item.block_size), precision, weight.dtype)
                spread = np.repeat(scale.astype(np.float32), item.block_size, axis)
            else:
                others = tuple(other for other in range(values.ndim) if other != axis)
                scale = _scales(np.abs(values).max(axis=others), precision, weight.dtype)
                spread = np.expand_dims(scale.astype(np.float32), others)
            stored = _constant(item.node, f"{name}_quantized", _stored_values(values / spread, precision))
            scale_value = _constant(item.node, f"{name}_scale", scale)
            restore = _node("DequantizeLinear", f"{name}_DequantizeLinear", [stored, scale_value], item.node, attributes)
            restore.outputs[0].dtype, restore.outputs[0].shape = weight.dtype, weight.shape
            made[key] = restore.outputs[0]
            assert item.node.graph is not None
            item.node.graph.insert_before(item.node, restore)
        item.node.replace_input_with(1, made[key])


def _block_maxima(values: np.ndarray[Any, Any], axis: int, size: int) -> np.ndarray[Any, Any]:
    shape = (*values.shape[:axis], values.shape[axis] // size, size, *values.shape[axis + 1 :])
    maxima: np.ndarray[Any, Any] = np.abs(values).reshape(shape).max(axis=axis + 1)
    return maxima


def _scales(maxima: np.ndarray[Any, Any], precision: Precision, dtype: onnx_ir.DataType) -> np.ndarray[Any, Any]:
    """Scales in the graph's float type: the largest magnitude over the largest number; 1 where all is zero."""
    scales = (np.where(maxima > 0, maxima, _LARGEST[precision]) / _LARGEST[precision]).astype(dtype.numpy())
    # a scale that the float type rounds to zero would divide by it
    return np.maximum(scales, np.array(_smallest(dtype), scales.dtype))


def _smallest(dtype: onnx_ir.DataType) -> float:
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype.numpy()).smallest_normal)


def _stored(precision: Precision) -> Any:
    import ml_dtypes

    return {Precision.INT8: np.int8, Precision.FP8: ml_dtypes.float8_e4m3fn, Precision.INT4: ml_dtypes.int4}[precision]


def _stored_values(scaled: np.ndarray[Any, Any], precision: Precision) -> np.ndarray[Any, Any]:
    clipped = np.clip(scaled, -_LARGEST[precision], _LARGEST[precision])
    whole = clipped if precision is Precision.FP8 else np.rint(clipped)
    stored: np.ndarray[Any, Any] = whole.astype(_stored(precision))
    return stored


def _constant(node: onnx_ir.Node, name: str, array: np.ndarray[Any, Any]) -> onnx_ir.Value:
    import onnx_ir

    assert node.graph is not None
    tensor = onnx_ir.Tensor(array, dtype=onnx_ir.DataType.from_numpy(array.dtype), name=name)
    value = onnx_ir.Value(name=name, type=onnx_ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    node.graph.initializers[name] = value
    return value


def _node(
    kind: str, name: str, inputs: Sequence[onnx_ir.Value], user: onnx_ir.Node, attributes: dict[str, int] | None = None
) -> onnx_ir.Node:
    """A node that says it is of the module whose node uses it."""
    import onnx_ir

    scopes = {SCOPES: user.metadata_props[SCOPES]} if SCOPES in user.metadata_props else {}
    node = onnx_ir.node(kind, inputs, attributes, name=name, metadata_props=scopes)
    node.outputs[0].name = f"{name}_output"
    return node


def _drop_unused(graph: onnx_ir.Graph, names: set[str]) -> None:
    for name in names:
        if not graph.initializers[name].uses():
            del graph.initializers[name]


def _metadata(config: QuantizeConfig, base: str, quantized: int, kept: Sequence[KeptNode]) -> dict[str, str]:
    """What a reader of the file alone wants to know; no time and no path, so that a second run gives the same bytes."""
    return {
        "shallowvit.precision": str(config.precision),
        "shallowvit.base_precision": base,
        "shallowvit.calibration": str(config.method or ""),
        "shallowvit.quantized": json.dumps(quantized),
        "shallowvit.kept": json.dumps([row.node for row in kept]),
        "shallowvit.quantized_with": _tool(),
    }


def _tool() -> str:
    import onnx_ir
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__} ranges, onnx-ir {onnx_ir.__version__} graph"


def graph_bytes(path: Path) -> int:
    """Return the bytes of a graph on disk with the weights beside it."""
    beside = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)
