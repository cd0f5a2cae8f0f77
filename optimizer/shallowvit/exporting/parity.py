"""Compare an exported graph with the torch model it was made from, on real inputs and in batches of different sizes.

A newcomer's trap: agreement on outputs that are all zero proves nothing, so a model that answers with a constant zero fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import ParityError, ShallowvitError
from .bf16 import emulated_bf16
from .records import FLOATS, OutputParity, Parity, Precision
from .settled import settled_random
from .values import FLOAT_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from ..models import InputSpec
    from .records import GraphInput

    Items = Mapping[str, np.ndarray[Any, Any]]  # by input; of those without a batch the one there is

__all__ = ["TOLERANCES", "check_parity", "float_types", "number_of_inputs", "real_inputs", "run_graph"]

# Largest difference over largest output. Seen on the demo model and VideoMAE-B: below 1e-6, 6e-4 and 9e-3.
TOLERANCES = {Precision.FP32: 1e-4, Precision.FP16: 1e-2, Precision.BF16: 5e-2}
_NOT_THE_MODEL = (
    "Something that depends on the input was fixed while the model was traced (a loop's length, a branch); write it without"
)
_CHECKED_FLOPS = 5e11  # about 5 s a side on two cores


def number_of_inputs(flops: int) -> int:
    """Return how many inputs to compare: 4 for a large model, up to 32 for a small one."""
    return int(min(32, max(4, _CHECKED_FLOPS // max(1, flops))))


def real_inputs(
    graph_input: GraphInput, spec: InputSpec | None, count: int, largest: int = 1
) -> tuple[np.ndarray[Any, Any], str]:
    """Return ``count`` inputs for the graph and where they come from: clips of handwritten digits, resized to fit.

    Inputs that aren't pictures or clips (spectrograms, features) are drawn from a normal distribution, whole numbers from 0 to
    ``largest``.
    """
    from shallowvit_bench.demo_clips import demo_clips

    uint8 = graph_input.dtype == "uint8"
    shape, layout = graph_input.least_shape, graph_input.layout
    if graph_input.dtype in ("int32", "int64", "bool"):
        drawn = np.random.default_rng(0).integers(0, largest + 1, (count, *shape))
        return drawn.astype(graph_input.dtype), f"whole numbers from 0 to {largest}"
    if layout not in ("NTCHW", "NCHW", "NTHWC", "NHWC"):
        return np.random.default_rng(0).standard_normal((count, *shape), dtype=np.float32), "normal distribution"
    channels = shape[-1] if uint8 else shape[-3]
    height, width = shape[-3:-1] if uint8 else shape[-2:]
    frames = shape[0] if layout.startswith("NT") else 1
    clips = torch.from_numpy(demo_clips("test", count).frames).float()  # [N, 8, 16, 16, 3]
    clips = clips[:, torch.linspace(0, clips.shape[1] - 1, frames).round().long()]
    pixels = clips.flatten(0, 1).permute(0, 3, 1, 2)  # [N * T, 3, 16, 16]
    if (height, width) != tuple(pixels.shape[-2:]):
        pixels = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear")
    pixels = pixels if channels == 3 else pixels.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
    pixels = pixels.round().unflatten(0, (count, frames))  # [N, T, C, H, W]
    if uint8:
        pixels = pixels.permute(0, 1, 3, 4, 2).to(torch.uint8)
    else:
        settings = spec.preprocessing if spec else None
        mean, std = (settings.mean, settings.std) if settings else ((0.5,) * channels, (0.5,) * channels)
        rescale = settings.rescale if settings else 1 / 255
        pixels = (pixels * rescale - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    array = pixels.contiguous().numpy()
    return (array if layout.startswith("NT") else array[:, 0]), "clips of handwritten digits"


def check_parity(
    path: Path,
    module: nn.Module,
    graph_inputs: GraphInput | Sequence[GraphInput],
    inputs: np.ndarray[Any, Any] | Items,
    inputs_from: str,
    precision: Precision,
    batch: int | None = None,
) -> Parity:
    """Run the graph in onnxruntime and the fp32 module in torch on the same inputs and compare every output.

    The inputs go through in a batch of 3 and one of the rest, so that a batch baked into the graph shows. The tolerance is that
    of the lowest float type in the graph: an fp32 graph with bf16 attention is held to bf16's.

    Args:
        path: The graph.
        module: Takes its inputs by position.
        graph_inputs: The graph's, the main one first.
        inputs: Items of the one input, or of each by its name.
        inputs_from: Where those of the main one come from, for messages.
        precision: What the graph computes in.
        batch: The graph's, where it is fixed.

    Raises:
        ParityError: the outputs differ by more than the tolerance, or are all zero.
    """
    graph_inputs = (graph_inputs,) if not isinstance(graph_inputs, tuple | list) else graph_inputs
    items = {graph_inputs[0].name: inputs} if isinstance(inputs, np.ndarray) else inputs
    batches = _batches(graph_inputs, items, batch)
    with torch.no_grad():
        expected = [_in_torch(module, graph_inputs, one) for one in batches]
    types = float_types(path)
    lowest = max((*types, precision) if precision in FLOATS else types, key=FLOATS.index, default=Precision.FP32)
    found, names, computed_by = run_graph(path, batches, types)
    outputs = tuple(
        _output_parity(name, [one[place] for one in expected], [one[place] for one in found])
        for place, name in enumerate(names)
    )
    count = len(items[graph_inputs[0].name])
    worst = _judged(outputs, f"{count} inputs", inputs_from, precision, lowest)
    return Parity(
        str(precision),
        count,
        inputs_from,
        computed_by,
        max(one.max_abs_error for one, _zero in outputs),
        worst.relative_error,
        TOLERANCES[lowest],
        _agreement([one[0] for one in expected], [one[0] for one in found]),
        tuple(one for one, _zero in outputs),
    )


def _judged(
    outputs: Sequence[tuple[OutputParity, bool]], count: str, inputs_from: str, precision: Precision, lowest: Precision
) -> OutputParity:
    """Return the worst output; refuse one that is all zero or above the tolerance."""
    silent = [one.name for one, zero in outputs if zero]
    if silent:
        what = "the model's outputs are" if len(outputs) == 1 else f"the model's output {silent[0]} is"
        raise ParityError(f"export: {what} all zero on {count} ({inputs_from}), so parity can't be shown; is its head trained?")
    worst = max((one for one, _zero in outputs), key=lambda one: one.relative_error)
    label = precision if lowest == precision else f"{precision} with {lowest} in it"
    if not worst.relative_error <= TOLERANCES[lowest]:
        what = "the graph's outputs differ" if len(outputs) == 1 else f"the graph's output {worst.name} differs"
        advice = "Use a higher --precision" if lowest != Precision.FP32 else _NOT_THE_MODEL
        raise ParityError(
            f"export: in {label} {what} from torch by {worst.relative_error:.2g} of the largest output over {count}, "
            f"above the tolerance of {TOLERANCES[lowest]:g}. {advice}"
        )
    return worst


def _in_torch(module: nn.Module, graph_inputs: Sequence[GraphInput], batch: Items) -> list[np.ndarray[Any, Any]]:
    # what a forward draws at random is constant in the graph, and the same here
    with settled_random(batch=len(batch[graph_inputs[0].name])):
        output = module(*(torch.from_numpy(np.ascontiguousarray(batch[one.name])) for one in graph_inputs))
    return [one.numpy() for one in (output if isinstance(output, tuple) else (output,))]


def _output_parity(
    name: str, expected: list[np.ndarray[Any, Any]], found: list[np.ndarray[Any, Any]]
) -> tuple[OutputParity, bool]:
    """Compare an output batch by batch, since not every one has a row an item; say also whether it is all zero."""
    shapes = [(one.shape, other.shape) for one, other in zip(expected, found, strict=True) if one.shape != other.shape]
    if shapes:
        raise ParityError(
            f"export: the graph's output {name} has the shape {list(shapes[0][1])}, torch's {list(shapes[0][0])}; a size was "
            "fixed while the model was traced"
        )
    if expected[0].dtype.kind != "f":
        if all(np.array_equal(one, other) for one, other in zip(expected, found, strict=True)):
            return OutputParity(name, 0.0, 0.0), False
        raise ParityError(f"export: the graph's output {name}, of {expected[0].dtype}, isn't equal to torch's; export it not")
    scale = max((float(np.abs(one).max()) for one in expected if one.size), default=0.0)
    finite = all(np.isfinite(one).all() for one in found)
    pairs = zip(expected, found, strict=True)
    error = max((float(np.abs(other - one).max()) for one, other in pairs if one.size), default=0.0)
    error = error if finite else float("inf")
    return OutputParity(name, error, error / scale if scale else float("inf")), scale < 1e-6


def _agreement(expected: list[np.ndarray[Any, Any]], found: list[np.ndarray[Any, Any]]) -> float | None:
    """The share of rows with the same largest entry, of a first output with a row an item."""
    if expected[0].ndim != 2 or expected[0].dtype.kind != "f" or len({one.shape[1] for one in expected}) > 1:
        return None
    return float((np.concatenate(found).argmax(-1) == np.concatenate(expected).argmax(-1)).mean())


def _batches(graph_inputs: Sequence[GraphInput], items: Items, batch: int | None) -> list[dict[str, np.ndarray[Any, Any]]]:
    count = len(items[graph_inputs[0].name])
    starts = range(0, count - batch + 1, batch) if batch else (0, *range(3, count, 8))
    ends = [first + batch for first in starts] if batch else [3, *(first + 8 for first in range(3, count, 8))]
    return [
        {one.name: items[one.name][first:end] if one.batch else items[one.name] for one in graph_inputs}
        for first, end in zip(starts, ends, strict=True)
    ]


def float_types(path: Path) -> set[Precision]:
    """Return the float types that a graph's values have."""
    import onnx_ir

    graph = onnx_ir.load(path).graph
    values = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    names = {FLOAT_NAMES.get(value.dtype.name) for value in values if value.dtype is not None}
    return {one for one in FLOATS if one in names}


def run_graph(
    path: Path, batches: Sequence[Items], types: set[Precision]
) -> tuple[list[list[np.ndarray[Any, Any]]], list[str], str]:
    """Run a graph in onnxruntime as a device would compute in ``types``; return the outputs of each batch, their names, and
    what computed them.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    graph: str | bytes = str(path)
    computed_by = f"onnxruntime {onnxruntime.__version__} CPU"
    lower = [one for one in (Precision.FP16, Precision.BF16) if one in types]
    try:
        graph = emulated_bf16(path) if lower else graph
    except ShallowvitError:  # too large for an emulation; of fp16 onnxruntime has kernels of its own
        if Precision.BF16 in lower:
            raise
    if isinstance(graph, bytes):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it would drop the rounding
        computed_by += f", {' and '.join(lower)} emulated: every result rounded to {'its type' if len(lower) > 1 else lower[0]}"
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    used = {one.name for one in session.get_inputs()}
    outputs = [session.run(None, {name: array for name, array in batch.items() if name in used}) for batch in batches]
    return outputs, [one.name for one in session.get_outputs()], computed_by
