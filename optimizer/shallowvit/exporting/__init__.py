"""Export a model to ONNX, decide its precision in the graph, and prove that it answers as torch does."""

from .deployable import deployable
from .export_onnx import export_onnx
from .records import ExportConfig, ExportedOnnx, Parity, Precision

__all__ = ["ExportConfig", "ExportedOnnx", "Parity", "Precision", "deployable", "export_onnx"]
