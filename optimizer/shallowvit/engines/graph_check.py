"""Look at a graph before TensorRT does, whose parser takes garbage for an empty network and any opset for one it knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

__all__ = ["GraphFacts", "check_graph"]

_ATTENTION_OPSET = 23
# Smallest compute capability of a type in the graph (TensorRT's own table; int4 as probed with TensorRT-RTX 1.7)
_MINIMUM_SM = {"INT8": 75, "BFLOAT16": 80, "INT4": 80, "FLOAT8E4M3FN": 89}


@dataclass(frozen=True)
class GraphFacts:
    """What a build has to know of a graph.

    Its inputs with -1 for a dynamic size, its opset, the number formats in it, the smallest compute capability that has them
    all (as 80 for 8.0), and whether a matrix product with weights computes in fp32.
    """

    inputs: dict[str, tuple[int, ...]]
    opset: int
    formats: frozenset[str]
    minimum_sm: int
    fp32_products: bool

    @property
    def needs_attention_operator(self) -> bool:
        """Whether the graph's opset has the operator ``Attention``, which TensorRT reads from 10.14 on."""
        return self.opset >= _ATTENTION_OPSET


def check_graph(path: Path) -> GraphFacts:
    """Check an ONNX file and return what is needed of it.

    Raises:
        ShallowvitError: it isn't an ONNX graph, is of an opset unknown to the installed onnx, is empty, or lacks its weights.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ShallowvitError(f"build: no graph {path}; export the model again")
    try:
        model = onnx.load(path, "protobuf", load_external_data=False)  # a name such as x.json would be read as text
    except DecodeError as err:
        raise ShallowvitError(f"build: {path} is not an ONNX file ({err}); export the model again") from err
    opset = _check_versions(model, path)
    if not model.graph.node or not model.graph.output:
        what = "no nodes" if not model.graph.node else "no outputs"
        raise ShallowvitError(f"build: {path} has {what}, so there is nothing to build; export the model again")
    _check_external_data(model, path)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as err:
        raise ShallowvitError(f"build: the onnx checker refuses {path}: {str(err).strip().partition(chr(10))[0]}") from err
    formats = _formats(model)
    minimum = max((_MINIMUM_SM.get(name, 0) for name in formats), default=0)
    return GraphFacts(_inputs(model), opset, formats, minimum, _has_fp32_products(model))


def _check_versions(model: onnx.ModelProto, path: Path) -> int:
    import onnx

    if not model.ir_version:
        raise ShallowvitError(f"build: {path} is not an ONNX file (it names no IR version); export the model again")
    if model.ir_version > onnx.IR_VERSION:
        raise ShallowvitError(
            f"build: {path} has IR version {model.ir_version}, onnx {onnx.__version__} here knows up to {onnx.IR_VERSION}; "
            "update onnx or export again with this version"
        )
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    known = onnx.defs.onnx_opset_version()
    if not 0 < opset <= known:
        raise ShallowvitError(
            f"build: {path} has opset {opset}, onnx {onnx.__version__} here knows 1 to {known}; export again with --opset 23"
        )
    return opset


def _check_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Every tensor whose numbers stand in another file must find them there."""
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if "location" not in entries:
            continue
        file = path.parent / entries["location"]
        needed = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        found = file.stat().st_size if file.is_file() else None
        if found is None or found < needed:
            has = "isn't there" if found is None else f"has {found:,} bytes"
            raise ShallowvitError(
                f"build: {path} keeps {tensor.name} in {entries['location']}, which {has} (it needs {needed:,} bytes); copy it "
                "too"
            )


def _formats(model: onnx.ModelProto) -> frozenset[str]:
    from onnx import TensorProto

    values: list[Any] = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    kinds = {value.type.tensor_type.elem_type for value in values}
    kinds |= {tensor.data_type for tensor in model.graph.initializer}
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    kinds |= {attribute.i for node in casts for attribute in node.attribute if attribute.name == "to"}
    kinds |= {attribute.t.data_type for node in model.graph.node for attribute in node.attribute if attribute.name == "value"}
    return frozenset(TensorProto.DataType.Name(kind) for kind in kinds if kind in TensorProto.DataType.values())


def _has_fp32_products(model: onnx.ModelProto) -> bool:
    from onnx import TensorProto

    fp32 = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    return any(node.op_type in ("MatMul", "Gemm") and fp32 & set(node.input) for node in model.graph.node)


def _inputs(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    constants = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        if value.name not in constants:
            dims = value.type.tensor_type.shape.dim
            found[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
    return found
