"""Export a model to ONNX, decide its precision in the graph, and prove that it answers as torch does."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .deployment import deployable
    from .onnx_export import export_onnx
    from .records import ExportConfig, ExportedOnnx, Parity, Precision

__all__ = ["ExportConfig", "ExportedOnnx", "Parity", "Precision", "deployable", "export_onnx"]

__getattr__ = lazy_names(
    __name__,
    {
        "deployable": "deployment",
        "export_onnx": "onnx_export",
        "ExportConfig": "records",
        "ExportedOnnx": "records",
        "Parity": "records",
        "Precision": "records",
    },
)
