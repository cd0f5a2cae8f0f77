"""Measure the demo model in every precision: top-1, agreement with fp32, file and engine size, speed on this CPU.

    python benchmarks/quantization.py [--modelopt PYTHON] [--part check|engine|speed|tools]...

The whole model and one without the 3 of 12 blocks of lowest entropy, calibrated on ``demo:train``, checked on the 2,000 clips
of ``demo``. ``tools`` compares with onnxruntime's own ``quantize_static`` and, where another Python has it, NVIDIA Model
Optimizer (``pip install nvidia-modelopt[onnx]`` asks for versions of onnx and onnxruntime of its own). Rows are appended to
``benchmarks/results/quantization.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import shallowvit
from shallowvit import ExportConfig, PlanConfig
from shallowvit.exporting import Precision, export_onnx
from shallowvit.exporting.calibration_inputs import info_of_graph, read_calibration_inputs
from shallowvit.exporting.evaluation import check_outputs, outputs_of, read_evaluation
from shallowvit.exporting.precision_search import CANDIDATES
from shallowvit.exporting.quantization import quantize_graph
from shallowvit.exporting.quantize_records import CalibrationMethod, QuantizeConfig
from shallowvit.exporting.records import FLOATS
from shallowvit_bench.conditions import read_conditions
from shallowvit_bench.preprocessing import random_input
from shallowvit_bench.runners import RunnerOptions, open_onnxruntime
from shallowvit_bench.timing import TimingLimits, time_rounds, warm_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shallowvit_bench.bundles import BundleInfo

RESULTS = Path(__file__).parent / "results" / "quantization.jsonl"
MODELS = {"12 blocks": None, "9 of 12 blocks": 0.25}
PARTS = ("check", "engine", "speed", "tools")
SEEDS = (0, 1, 2)  # of the calibration items


def append(row: dict[str, Any]) -> None:
    """Append a row with the conditions."""
    RESULTS.parent.mkdir(exist_ok=True)
    conditions = asdict(read_conditions(1))
    conditions["command"] = re.sub(r"/\S*/", "", conditions["command"])  # where the other Python is says nothing
    with RESULTS.open("a") as file:
        file.write(json.dumps(row | {"conditions": conditions}) + "\n")
    sys.stdout.write(json.dumps(row)[:300] + "\n")
    sys.stdout.flush()


class Subject:
    """A model with its float graphs, what they answer in fp32, and the items to check on."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        model, ratio = shallowvit.load("demo"), MODELS[name]
        scores = shallowvit.score(model) if ratio else None
        self.pruned = shallowvit.prune(model, shallowvit.plan(model, scores, PlanConfig(prune_ratio=ratio)))
        exported = [export_onnx(self.pruned, folder / f"{kind}.onnx", ExportConfig(kind)) for kind in FLOATS]
        self.info: BundleInfo = info_of_graph(self.pruned.model, exported[0].input, exported[0].path, "fp32")
        self.items = read_evaluation(self.info, "demo")
        self.expected, _ = outputs_of(folder / "fp32.onnx", "fp32", self.items)

    def quantized(self, config: QuantizeConfig, base: str) -> Any:
        """Quantise the graph of a base precision."""
        inputs = None
        if config.method:
            calibration = read_calibration_inputs(self.info, config)
            inputs = calibration.batches()
        out = self.folder / f"{config.precision}-{config.method}-{config.seed}-{config.block_size}-{base}.onnx"
        return quantize_graph(self.folder / f"{base}.onnx", out, config, inputs)

    def check(self, path: Path, precision: str, base: str) -> dict[str, Any]:
        """What a graph answers against fp32."""
        found, computed_by = outputs_of(path, base, self.items, threads=1)
        return asdict(check_outputs(self.expected, found, self.items, (precision, base, computed_by), 1.0))


def configs(whole: bool) -> Iterator[tuple[QuantizeConfig, str]]:
    """Every way to quantise that is measured, and the base; of the whole model more draws of calibration items and bf16 too."""
    for method, seed in product(CalibrationMethod, SEEDS if whole else SEEDS[:1]):
        yield QuantizeConfig(Precision.INT8, method, data="demo:train", seed=seed), "fp16"
    for precision in (Precision.FP8, Precision.INT4):
        yield QuantizeConfig(precision, data="demo:train"), "fp16"
    if whole:
        for precision in (Precision.INT8, Precision.FP8, Precision.INT4):
            yield QuantizeConfig(precision, data="demo:train"), "bf16"


def checks(subject: Subject) -> None:
    """Accuracy, agreement and size of every float and quantised graph."""
    for kind in FLOATS:
        path = subject.folder / f"{kind}.onnx"
        row = {"method": None, "seed": None, "bytes": path.stat().st_size, "weights_bytes": _weights_bytes(path)}
        append({"kind": "check", "model": subject.name, **row, "check": subject.check(path, str(kind), str(kind))})
    for config, base in configs(MODELS[subject.name] is None):
        started = time.perf_counter()
        done = subject.quantized(config, base)
        row = {
            "method": done.method,
            "seed": config.seed,
            "samples": done.samples,
            "quantized": done.quantized,
            "kept": len(done.kept),
            "bytes": done.bytes_after,
            "weights_bytes": _weights_bytes(done.path),
            "seconds": round(time.perf_counter() - started, 2),
        }
        append({"kind": "check", "model": subject.name, **row, "check": subject.check(done.path, done.precision, base)})


def _weights_bytes(path: Path) -> int:
    """Bytes of the weights alone: half of a small graph's file are the names of its modules."""
    import onnx_ir

    values = onnx_ir.load(path).graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def engines(subject: Subject) -> None:
    """Build each precision with TensorRT-RTX: how many attentions are fused, and the size."""
    from shallowvit.engines.build import build_engine

    graphs = {f"{kind}": subject.folder / f"{kind}.onnx" for kind in ("fp16", "bf16")}
    for precision, base in product(("int8", "fp8", "int4"), ("fp16", "bf16")):
        config = QuantizeConfig(Precision(precision), data="demo:train")
        graphs[f"{precision} on {base}"] = subject.quantized(config, base).path
    for block_size in (32, 16):
        config = QuantizeConfig(Precision.INT4, block_size=block_size)
        graphs[f"int4 in blocks of {block_size} on fp16"] = subject.quantized(config, "fp16").path
    for name, path in graphs.items():
        with tempfile.TemporaryDirectory() as out:
            started = time.perf_counter()
            built = build_engine(path, Path(out))
            row = {
                "bytes": built.bytes,
                "fused": built.fusion.fused,
                "attentions": built.fusion.expected,
                "seconds": round(time.perf_counter() - started, 2),
                "tensorrt": f"{built.flavour} {built.version}",
            }
        append({"kind": "engine", "model": subject.name, "graph": name, **row})


def speed(subject: Subject) -> None:
    """Time every candidate of the search that this CPU runs, in alternation, one thread, a batch of 1 and of 8."""
    graphs = {}
    for candidate in CANDIDATES:
        base = str(candidate.base)
        if candidate.base is Precision.BF16:
            continue  # no kernels
        if candidate.precision in FLOATS:
            graphs[candidate.name] = subject.folder / f"{base}.onnx"
        else:
            config = QuantizeConfig(candidate.precision, candidate.calibration, data="demo:train")
            graphs[candidate.name] = subject.quantized(config, base).path
    for batch in (1, 8):
        with ExitStack() as stack:
            inputs = random_input(subject.info, batch)
            runners = [stack.enter_context(open_onnxruntime(path, RunnerOptions(threads=1))) for path in graphs.values()]
            jobs = [runner.bind(inputs) for runner in runners]
            limits = TimingLimits(max_runs=160, max_seconds=30.0)
            for run in jobs:
                warm_up(run, limits)
            timed = time_rounds(jobs, limits)
        reference = np.array(timed[0].rounds_ms)
        for name, one in zip(graphs, timed, strict=True):
            low, high = np.quantile(reference / np.array(one.rounds_ms), (0.1, 0.9))
            row = {
                "batch": batch,
                "runs": len(one.samples_ms),
                "median_ms": statistics.median(one.samples_ms),
                "ratio": statistics.median(timed[0].samples_ms) / statistics.median(one.samples_ms),
                "ratio_low": float(low),
                "ratio_high": float(high),
            }
            append({"kind": "speed", "model": subject.name, "graph": name, **row})


def tools(subject: Subject, modelopt: str | None) -> None:
    """The same precisions by onnxruntime's quantize_static and by NVIDIA Model Optimizer: do they load, and how well."""
    config = QuantizeConfig(data="demo:train")
    inputs = np.concatenate(list(read_calibration_inputs(subject.info, config).batches()))
    jobs = [("quantize_static", precision, base) for precision, base in product(("int8", "fp8"), ("fp32", "fp16"))]
    if modelopt:
        jobs += [("Model Optimizer", precision, base) for precision, base in product(("int8", "fp8", "int4"), ("fp32", "fp16"))]
    np.save(subject.folder / "inputs.npy", inputs)
    for tool, precision, base in jobs:
        source, out = subject.folder / f"{base}.onnx", subject.folder / "tool.onnx"
        out.unlink(missing_ok=True)
        python = sys.executable if tool == "quantize_static" else str(modelopt)
        words = [tool, precision, str(source), str(out), str(subject.folder / "inputs.npy")]
        started = time.perf_counter()
        script = Path(__file__).with_name("quantization_tools.py")
        done = subprocess.run([python, str(script), *words], capture_output=True, text=True, check=False)
        row = {"tool": tool, "precision": precision, "base": base, "seconds": round(time.perf_counter() - started, 2)}
        if done.returncode:
            append({"kind": "tool", "model": subject.name, **row, "status": "failed", "reason": _last(done.stderr)})
            continue
        row |= {"version": _last(done.stdout), "bytes": out.stat().st_size, "weights_bytes": _weights_bytes(out)}
        row |= {"named_nodes": _nodes_with_module(out), "nodes": _nodes(out)}
        try:
            check = subject.check(out, precision, base)
        except shallowvit_failures() as err:
            append({"kind": "tool", "model": subject.name, **row, "status": "does not load", "reason": _last(str(err))})
        else:
            append({"kind": "tool", "model": subject.name, **row, "status": "ok", "check": check})


def shallowvit_failures() -> tuple[type[Exception], ...]:
    """What a graph that onnxruntime refuses ends in."""
    from shallowvit.errors import ShallowvitError
    from shallowvit_bench.errors import BenchError

    return BenchError, ShallowvitError


def _last(text: str) -> str:
    """The last line, without the path of a file of this run."""
    line = text.strip().splitlines()[-1] if text.strip() else ""
    return " ".join(Path(word).name if word.startswith("/") else word for word in line.split())


def _nodes(path: Path) -> int:
    import onnx

    return len(onnx.load(path, load_external_data=False).graph.node)


def _nodes_with_module(path: Path) -> int:
    """How many nodes still say which module they are of."""
    import onnx

    return sum(bool(node.metadata_props) for node in onnx.load(path, load_external_data=False).graph.node)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modelopt", metavar="PYTHON", help="another Python with nvidia-modelopt[onnx] in it")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; may be given several times")
    options = parser.parse_args()
    parts = options.part or PARTS
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            subject = Subject(name, Path(folder))
            if "check" in parts:
                checks(subject)
            if "engine" in parts:
                engines(subject)
            if "speed" in parts:
                speed(subject)
            if "tools" in parts and MODELS[name] is None:
                tools(subject, options.modelopt)


if __name__ == "__main__":
    main()
