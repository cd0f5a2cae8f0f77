"""Load a graph or an engine into a runtime behind one interface; ``RUNNERS`` is the whole list of this package.

torch's side is ``shallowvit.baselines``, outside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .onnx_providers import open_cuda, open_openvino, open_openvino_bf16, open_tensorrt_ep
from .onnx_runtime import open_onnxruntime
from .protocol import Bound, Runner, RunnerFacts, RunnerOptions
from .tensorrt_engine import open_rtx, open_tensorrt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["RUNNERS", "Bound", "Runner", "RunnerFacts", "RunnerOptions", "open_onnxruntime"]

# provider -> what opens a file with it
RUNNERS: dict[str, Callable[[Path, RunnerOptions], Runner]] = {
    "cpu": open_onnxruntime,
    "openvino": open_openvino,
    "openvino-bf16": open_openvino_bf16,
    "cuda": open_cuda,
    "tensorrt-ep": open_tensorrt_ep,
    "rtx": open_rtx,
    "tensorrt": open_tensorrt,
}
