"""Hold a rewritten graph's answers against those of the graph it came from, in onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ParityError
from ..exporting.parity import TOLERANCES, float_types, run_graph
from ..exporting.records import FLOATS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx_ir

__all__ = ["check_same_answers", "random_inputs"]

_BATCH = 2


def check_same_answers(before: Path, after: Path, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Run both graphs on the same random inputs; return the largest difference over the largest output.

    Args:
        before: The graph that is right.
        after: The other.
        shapes: Of inputs, by name; those that aren't in it get two items.

    Raises:
        ParityError: it is above the tolerance of the lowest float type in the graph.
    """
    batch = random_inputs(before, shapes)
    types = float_types(before)
    # the emulation of narrow types is of graphs with fp32 inputs, as export writes them
    emulated = set() if any(array.dtype.itemsize == 2 for array in batch.values()) else types
    (expected,), names, _tool = run_graph(before, [batch], emulated)
    (found,), _names, _tool = run_graph(after, [batch], emulated)
    worst = 0.0
    for name, one, other in zip(names, expected, found, strict=True):
        if one.shape != other.shape:
            error = float("inf")  # numbers of other shapes may still be held against each other, and be alike
        elif one.dtype.kind != "f":
            error = 0.0 if np.array_equal(one, other) else float("inf")
        else:
            scale = float(np.abs(one).max()) or 1.0
            error = float(np.abs(other - one).max()) / scale if np.isfinite(other).all() else float("inf")
        allowed = TOLERANCES[next((one for one in reversed(FLOATS) if one in types), FLOATS[0])]
        if not error <= allowed:
            raise ParityError(
                f"attention: with kernels of our own the graph's output {name} differs by {error:.2g} of the largest, above "
                f"{allowed:g}; use --attention native, and please report this model"
            )
        worst = max(worst, error)
    return worst


def random_inputs(graph: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray[Any, Any]]:
    """Return an array for each input of a graph, by name; of those that ``shapes`` leaves out, two items."""
    import onnx_ir

    inputs = onnx_ir.load(graph).graph.inputs
    return {value.name or "": _drawn(value, shapes) for value in inputs if value.const_value is None}


def _drawn(value: onnx_ir.Value, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray[Any, Any]:
    """Normally distributed numbers; zeros for whole numbers, which may be places in a table.

    Of booleans every second is true, since a mask that hides every key, or none, isn't one.
    """
    assert value.shape is not None
    assert value.dtype is not None
    dims = shapes.get(value.name or "") or [dim if isinstance(dim, int) else _BATCH for dim in value.shape]
    dtype = value.dtype.numpy()
    if dtype == np.uint8:
        return np.random.default_rng(0).integers(0, 256, dims).astype(np.uint8)
    if dtype.kind == "b":
        return np.broadcast_to(np.arange(dims[-1] if dims else 1) % 2 == 0, dims).copy()
    if dtype.kind != "f":
        return np.zeros(dims, dtype)
    return np.random.default_rng(0).standard_normal(dims).astype(dtype)
