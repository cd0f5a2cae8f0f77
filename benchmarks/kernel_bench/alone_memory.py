"""How much memory one attention alone takes in an engine, in plain operators and as a plugin, for each of the cases.

A newcomer's trap: inputs and outputs of an engine aren't in the activation memory that TensorRT tells, so they are added here:
what is compared is everything that must be in memory at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kernel_bench.cases import CASES, Shape, variant_of
from shallowvit.engines import BatchRange, BuildConfig, Flavour, build_engine
from shallowvit.engines.records import AttentionChoice
from shallowvit.errors import ShallowvitError
from shallowvit_kernels.errors import KernelError
from shallowvit_kernels.records import Dtype
from shallowvit_kernels.tensors import inputs_of, outputs_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from shallowvit_kernels.records import Variant
    from shallowvit_kernels.tensors import TensorSpec

    Row = dict[str, Any]

__all__ = ["alone_rows"]

_BATCH, _HEAD_SIZE = 8, 64
_OPSET = 18


def alone_rows(tokens: int, work: Path, only: Sequence[str] = (), dtypes: Sequence[Dtype] = ()) -> Iterator[Row]:
    """Yield a row for each case, type and choice of who computes it; 8 items, 12 heads of 64, the operands [1, 12, N, N].

    Args:
        tokens: Queries, and as many keys.
        work: Graphs and engines are written there.
        only: Names of cases; by default all.
        dtypes: By default fp32 and fp16.
    """
    for case in CASES:
        if only and case.name not in only:
            continue
        for dtype in dtypes or (Dtype.FP32, Dtype.FP16):
            shape = Shape(case, dtype, _HEAD_SIZE, tokens, _BATCH)
            graph = work / f"{case.name}-{dtype}-{tokens}.onnx"
            _write_graph(variant_of(case, dtype, _HEAD_SIZE), shape, graph)
            for choice in (AttentionChoice.NATIVE, AttentionChoice.PLUGIN):
                row = {"kind": "alone-memory", "variant": case.name, "dtype": str(dtype), "tokens": tokens, "batch": _BATCH}
                row |= {"heads": shape.heads, "head_size": _HEAD_SIZE, "attention": str(choice), "io_mib": shape.bytes / 2**20}
                yield row | _built(graph, graph.with_suffix(f".{choice}"), choice)


def _built(graph: Path, out: Path, choice: AttentionChoice) -> Row:
    out.mkdir()
    batches = (BatchRange(1, _BATCH, _BATCH),)  # the rewritten graph is tried with the least
    # the graph has a node of ours, which ``native`` writes out again in plain operators
    config = BuildConfig(Flavour.RTX, allow_unfused=True, batches=batches, attention=choice)
    try:
        built = build_engine(graph, out, config)
    except (ShallowvitError, KernelError) as err:
        return {"status": "failed", "reason": str(err)}
    assert built.activation_bytes is not None
    return {
        "status": "ok",
        "activation_mib": built.activation_bytes / 2**20,
        "fused": built.fusion.fused,
        "plugins": sum(len(one.nodes) for one in built.plugins),
        "tensorrt": built.version,
    }


def _write_graph(variant: Variant, shape: Shape, path: Path) -> None:
    import onnx_ir

    from shallowvit_kernels.functions import DOMAIN, TYPES, function_of

    inputs = [_value(spec, shape, TYPES[spec.dtype]) for spec in inputs_of(variant)]
    attributes = {"variant": variant.to_json(), "plugin_namespace": DOMAIN, "plugin_version": "1"}
    node = onnx_ir.node(variant.name, inputs, attributes, domain=DOMAIN, name="node_attention", version=1)
    spec = outputs_of(variant)[0]
    output = node.outputs[0]
    given = _value(spec, shape, TYPES[spec.dtype])
    output.name, output.shape, output.type = given.name, given.shape, given.type
    graph = onnx_ir.Graph(inputs, [output], nodes=[node], opset_imports={"": _OPSET, DOMAIN: 1}, name="attention")
    model = onnx_ir.Model(graph, ir_version=10, functions=[function_of(variant, _OPSET)])
    onnx_ir.save(model, path)


def _value(spec: TensorSpec, shape: Shape, dtype: Any) -> Any:
    import onnx_ir

    sizes = {"b": "batch", "h": shape.heads, "n": shape.tokens, "m": shape.tokens, "d": shape.head_size, "e": shape.head_size}
    dims = [1 if letter in spec.broadcast else sizes[letter] for letter in spec.axes]
    return onnx_ir.Value(name=spec.name, shape=onnx_ir.Shape(dims), type=onnx_ir.TensorType(dtype))
