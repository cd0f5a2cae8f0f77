"""Quantise one graph with another tool: ``quantization.py`` runs this in the Python that has the tool.

    PYTHON benchmarks/quantization_tools.py TOOL PRECISION SOURCE OUT INPUTS.npy

Prints the tool's version. Imports nothing of this project, which the other Python lacks.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def quantize_static(precision: str, source: str, out: str, inputs: np.ndarray[Any, Any]) -> str:
    """Use onnxruntime's own, by the recipe that TensorRT takes."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as run

    graph = onnx.load(source).graph
    constants = {value.name for value in graph.initializer}
    feed = graph.input[0].name

    class Reader:
        def __init__(self) -> None:
            self.batches = iter([{feed: inputs[first : first + 8]} for first in range(0, len(inputs), 8)])

        def get_next(self) -> Any:
            return next(self.batches, None)

    # its fp8 knows one way to find ranges
    fp8 = precision == "fp8"
    kind = QuantType.QFLOAT8E4M3FN if fp8 else QuantType.QInt8
    run(
        source,
        out,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=kind,
        weight_type=kind,
        calibrate_method=CalibrationMethod.Distribution if fp8 else CalibrationMethod.MinMax,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        nodes_to_exclude=[n.name for n in graph.node if n.op_type == "MatMul" and not constants & set(n.input)],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )
    return f"onnxruntime {onnxruntime.__version__}"


def model_optimizer(precision: str, source: str, out: str, inputs: np.ndarray[Any, Any]) -> str:
    """Use NVIDIA Model Optimizer with the calibration that it takes by default; int4 in blocks of 64, since 128 is too wide."""
    import modelopt
    import onnx
    from modelopt.onnx.quantization import quantize

    name = onnx.load(source).graph.input[0].name
    quantize(
        source,
        quantize_mode=precision,
        calibration_data={name: inputs},
        calibration_eps=["cpu"],
        output_path=out,
        high_precision_dtype="fp16" if "fp16" in source else "fp32",
        calibration_method={"int8": "entropy", "fp8": "max", "int4": "rtn_dq"}[precision],
        **({"block_size": 64} if precision == "int4" else {}),
    )
    return f"nvidia-modelopt {modelopt.__version__}"


def main() -> None:
    """Quantise."""
    tool, precision, source, out, inputs = sys.argv[1:]
    run = quantize_static if tool == "quantize_static" else model_optimizer
    version = run(precision, source, out, np.load(inputs))
    sys.stdout.write(f"\n{version}\n")


if __name__ == "__main__":
    main()
