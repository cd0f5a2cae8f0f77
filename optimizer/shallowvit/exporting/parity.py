"""Compare an exported graph with the torch model it was made from, on real inputs and in batches of different sizes.

A newcomer's trap: agreement on outputs that are all zero proves nothing, so a model that answers with a constant zero fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import ParityError, ShallowvitError
from .bf16 import emulated_bf16
from .records import FLOATS, Parity, Precision
from .values import FLOAT_NAMES

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from ..models import InputSpec
    from .records import GraphInput

__all__ = ["TOLERANCES", "check_parity", "number_of_inputs", "real_inputs"]

# Largest difference over largest output. Seen on the demo model and VideoMAE-B: below 1e-6, 6e-4 and 9e-3.
TOLERANCES = {Precision.FP32: 1e-4, Precision.FP16: 1e-2, Precision.BF16: 5e-2}
_CHECKED_FLOPS = 5e11  # about 5 s a side on two cores


def number_of_inputs(flops: int) -> int:
    """Return how many inputs to compare: 4 for a large model, up to 32 for a small one."""
    return int(min(32, max(4, _CHECKED_FLOPS // max(1, flops))))


def real_inputs(graph_input: GraphInput, spec: InputSpec, count: int) -> tuple[np.ndarray[Any, Any], str]:
    """Return ``count`` inputs for the graph and where they come from: clips of handwritten digits, resized to fit.

    Inputs that aren't pictures or clips (spectrograms, features) are drawn from a normal distribution.
    """
    from shallowvit_bench.demo_clips import demo_clips

    uint8 = graph_input.dtype == "uint8"
    shape, layout = graph_input.shape, graph_input.layout
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
        settings = spec.preprocessing
        mean, std = (settings.mean, settings.std) if settings else ((0.5,) * channels, (0.5,) * channels)
        rescale = settings.rescale if settings else 1 / 255
        pixels = (pixels * rescale - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    array = pixels.contiguous().numpy()
    return (array if layout.startswith("NT") else array[:, 0]), "clips of handwritten digits"


def check_parity(
    path: Path, module: nn.Module, graph_input: GraphInput, inputs: np.ndarray[Any, Any], inputs_from: str, precision: Precision
) -> Parity:
    """Run the graph in onnxruntime and the fp32 module in torch on the same inputs and compare.

    The inputs go through in a batch of 3 and one of the rest, so that a batch baked into the graph shows. The tolerance is that
    of the lowest float type in the graph: an fp32 graph with bf16 attention is held to bf16's.

    Raises:
        ParityError: the outputs differ by more than the tolerance, or are all zero.
    """
    with torch.no_grad():
        expected = np.concatenate([module(torch.from_numpy(batch)).numpy() for batch in _batches(inputs)])
    types = _float_types(path)
    lowest = max((*types, precision) if precision in FLOATS else types, key=FLOATS.index, default=Precision.FP32)
    found, computed_by = _run(path, graph_input, inputs, types)
    scale = float(np.abs(expected).max())
    if scale < 1e-6:
        raise ParityError(
            f"export: the model's outputs are all zero on {len(inputs)} inputs ({inputs_from}), so parity can't be shown; is "
            "its head trained?"
        )
    error = float(np.abs(found - expected).max()) if np.isfinite(found).all() else float("inf")
    tolerance = TOLERANCES[lowest]
    agreement = float((found.argmax(-1) == expected.argmax(-1)).mean()) if expected.ndim == 2 else None
    label = precision if lowest == precision else f"{precision} with {lowest} in it"
    if not error / scale <= tolerance:
        raise ParityError(
            f"export: in {label} the graph's outputs differ from torch by {error / scale:.2g} of the largest output over "
            f"{len(inputs)} inputs, above the tolerance of {tolerance:g}. Use a higher --precision"
        )
    return Parity(str(precision), len(inputs), inputs_from, computed_by, error, error / scale, tolerance, agreement)


def _batches(inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    return [inputs[:3], *(inputs[first : first + 8] for first in range(3, len(inputs), 8))]


def _float_types(path: Path) -> set[Precision]:
    import onnx_ir

    graph = onnx_ir.load(path).graph
    values = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    names = {FLOAT_NAMES.get(value.dtype.name) for value in values if value.dtype is not None}
    return {one for one in FLOATS if one in names}


def _run(
    path: Path, graph_input: GraphInput, inputs: np.ndarray[Any, Any], types: set[Precision]
) -> tuple[np.ndarray[Any, Any], str]:
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
    outputs = [session.run(None, {graph_input.name: batch})[0] for batch in _batches(inputs)]
    return np.concatenate(outputs), computed_by
