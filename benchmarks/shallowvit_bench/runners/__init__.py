"""Load a graph or an engine into a runtime behind one interface; ``RUNNERS`` is the whole list of this package.

torch's side is ``shallowvit.baselines``, outside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .onnx_runtime import open_onnxruntime
from .protocol import Bound, Runner, RunnerFacts, RunnerOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["RUNNERS", "Bound", "Runner", "RunnerFacts", "RunnerOptions", "open_onnxruntime"]

# provider -> what opens a file with it
RUNNERS: dict[str, Callable[[Path, RunnerOptions], Runner]] = {"cpu": open_onnxruntime}
