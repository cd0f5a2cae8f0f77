"""Settle ``--precision auto``: measure candidates of one model on this machine and return the configuration of the fastest."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .calibration_inputs import info_of_graph
from .onnx_export import export_onnx, inputs_of_graph
from .precision_search import search_precision
from .records import FLOATS, Precision

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..pruning import PrunedModel
    from .precision_search import SearchConfig
    from .quantize_records import PrecisionSearch
    from .records import ExportConfig

__all__ = ["settle_precision"]


def settle_precision(
    pruned: PrunedModel, config: ExportConfig, search: SearchConfig, progress: Callable[[str], None] = lambda _: None
) -> tuple[ExportConfig, PrecisionSearch]:
    """Measure candidates in a temporary folder and return the configuration to export with, and what was measured.

    Args:
        pruned: What is exported.
        config: Everything but the precision: opset, preprocessing, floor.
        search: What to try, on which backend and data.
        progress: Told what is going on, a line at a time.

    Raises:
        ShallowvitError: see ``search_precision``.
    """
    config = replace(config, precision=Precision.FP32, quantize=None, float_precision=None)

    def export(precision: Precision, path: Path) -> Path:
        return export_onnx(pruned, path, replace(config, precision=precision)).path

    with tempfile.TemporaryDirectory(prefix="shallowvit-") as name:
        folder = Path(name)
        info = info_of_graph(pruned.model, inputs_of_graph(pruned.model, config), folder / "fp32.onnx", "fp32")
        found = search_precision(export, info, folder, search, progress)
    candidate = next(candidate for candidate in search.candidates if candidate.name == found.chosen)
    if candidate.precision in FLOATS:
        return replace(config, precision=candidate.precision), found
    quantize = replace(search.quantize, precision=candidate.precision, calibration=candidate.calibration)
    return replace(config, precision=candidate.precision, float_precision=candidate.base, quantize=quantize), found
