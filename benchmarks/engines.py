"""Measure the engines that TensorRT-RTX builds here: attentions fused, memory, size, seconds, and whether two builds are equal.

    python benchmarks/engines.py [--only cells unfused tokens capabilities build-times] [--again] [--quick]

No GPU is needed and nothing is run: memory is what the builder says the engine will take at the largest batch of its profile.
Weights are random, so no accuracy is taken: attention fuses, or doesn't, whatever the weights are. The graphs go through the
steps of ``export_onnx`` without its comparison with torch, which takes most of its time and is tested elsewhere. A newcomer's
trap: an fp32 graph has larger tensors as well as unfused attention, so fused attention is also held against the same fp16
graph with a gate of ones on its probabilities, which nothing but the fused kernel minds. Rows go to
``benchmarks/results/engines.jsonl``; one that is there is not taken again without ``--again``.
"""

from __future__ import annotations

import argparse
import functools
import gc
import hashlib
import importlib.metadata
import json
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shallowvit import ExportConfig, ShallowvitError, load
from shallowvit.engines import BuildConfig, Flavour, build_engine
from shallowvit.engines.flavours import check_precision, choose
from shallowvit.engines.graph_check import check_graph
from shallowvit.engines.targets import RTX_COMPUTE_CAPABILITIES
from shallowvit.exporting.records import FLOATS, GraphInput, Precision
from shallowvit_bench.conditions import read_conditions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import onnx_ir

    from shallowvit.engines import EngineBuild
    from shallowvit.models import LoadedModel

RESULTS = Path(__file__).parent / "results" / "engines.jsonl"
KINDS = ("cells", "unfused", "tokens", "capabilities", "build-times")
ISLAND = "fp32, attention fp16"
PRECISIONS = ("fp32", ISLAND, "fp16", "bf16", "int8", "fp8", "int4")
FEWER = ("fp32", "fp16", "int8")  # of the B models, whose graphs take longest, and of variants
TIMED = (("fp16", 23), ("int8", 23))
TIMED_BUILDS = 3
CALIBRATION_INPUTS = 2  # ranges of random weights mean nothing; that there are some decides what is in the graph
BATCHES = "1:1:8"
MIB = 2**20


@dataclass(frozen=True)
class Subject:
    """A model with random weights of seed 0: a timm name, or a family of transformers with its settings."""

    name: str
    library: str
    source: str
    settings: dict[str, Any] = field(default_factory=dict)
    precisions: tuple[str, ...] = PRECISIONS
    opsets: tuple[int, ...] = (23, 18)

    @property
    def label(self) -> str:
        """Name and library, as a row knows it."""
        return f"{self.name} ({self.library})"


_SMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
_SMALL_14 = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 224, "patch_size": 14}
SUBJECTS = (
    Subject("VideoMAE-S", "transformers", "VideoMAE", _SMALL),
    Subject("ViT-S/16", "timm", "vit_small_patch16_224"),
    Subject("ViT-S/16", "transformers", "ViT", _SMALL),
    Subject("DINOv2-S/14", "timm", "vit_small_patch14_dinov2"),
    Subject("DINOv2-S/14, registers", "timm", "vit_small_patch14_reg4_dinov2?img_size=224", {}, FEWER),
    Subject("DINOv2-S/14", "transformers", "Dinov2", _SMALL_14),
    Subject("DINOv2-S/14, registers", "transformers", "Dinov2WithRegisters", _SMALL_14, FEWER),
    Subject("Swin-T", "timm", "swin_tiny_patch4_window7_224"),
    Subject("Swin-T", "transformers", "Swin"),
    Subject("VideoMAE-B", "transformers", "VideoMAE", {}, FEWER),
    Subject("ViT-B/16", "timm", "vit_base_patch16_224", {}, FEWER),
    Subject("ViT-B/16", "transformers", "ViT", {}, FEWER),
)
_TINY = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128, "num_hidden_layers": 2, "image_size": 32}
QUICK = (
    Subject("ViT, 2 blocks", "transformers", "ViT", _TINY, ("fp16", "int8"), (23,)),
    Subject("ViT, 2 blocks", "timm", "vit_tiny_patch16_224?depth=2&img_size=64", {}, ("fp16",), (18,)),
)
# frames and side of the pictures behind each number of tokens: tubes of 2 x 16 x 16
TOKENS = {98: (4, 112), 196: (8, 112), 392: (16, 112), 784: (8, 224), 1568: (16, 224), 3136: (32, 224)}


class Bench:
    """The rows so far, and the folder in which models, graphs and engines are made."""

    def __init__(self, results: Path, work: Path, *, again: bool) -> None:
        self.results, self.work = results, work
        text = results.read_text() if results.is_file() and not again else ""
        self._known = {_key(json.loads(line)) for line in text.splitlines()}

    def take(self, row: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Measure and append, unless such a row is there; what fails is a row with its reason."""
        if _key(row) in self._known:
            return
        conditions = asdict(read_conditions(None))  # the load before, not by the measurement itself
        conditions["packages"] |= {name: importlib.metadata.version(name) for name in _PACKAGES}
        started = time.perf_counter()
        try:
            row |= measure()
        except ShallowvitError as err:
            row |= {"status": "failed", "reason": str(err)}
        row["wall_s"] = round(time.perf_counter() - started, 1)
        sys.stdout.write(f"{json.dumps(row)[:300]}\n")
        sys.stdout.flush()
        row |= {"device": "no GPU: builds only, nothing was run", "machine": platform.machine(), "conditions": conditions}
        with self.results.open("a") as file:
            file.write(json.dumps(row) + "\n")


_PACKAGES = ("tensorrt_rtx_cu13", "onnx", "onnx-ir", "onnxscript", "timm", "transformers")


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("kind", "model", "opset", "precision", "batches", "tokens", "compute_capability"))


class Graphs:
    """The graphs of one model, each made when it is first asked for, and kept in a folder of the model's."""

    def __init__(self, subject: Subject, work: Path) -> None:
        self.subject = subject
        self.folder = work / "".join(letter if letter.isalnum() else "-" for letter in subject.label)
        self.folder.mkdir(parents=True, exist_ok=True)

    @functools.cached_property
    def model(self) -> LoadedModel:
        """The loaded model."""
        if self.subject.library == "timm":
            return load(f"timm:{self.subject.source}")
        folder = self.folder / "model"
        if not folder.is_dir():
            save_random(self.subject, folder)
        return load(f"hf:{folder}")

    @property
    def input(self) -> GraphInput:
        """What the graphs take."""
        spec = self.model.input_spec
        return GraphInput(spec.name, "float32", spec.layout, spec.shape)

    def path(self, precision: str, opset: int) -> Path:
        """Return the graph in a precision, made from the one it follows from where that isn't torch."""
        path = self.folder / f"{precision.replace(', ', '-').replace(' ', '-')}-{opset}.onnx"
        beside = path.with_suffix(".partial")
        if not path.is_file():
            self._write(beside, precision, opset)
            beside.replace(path)  # none passes the 2 GB from which weights stand in a file of their own
        return path

    def _write(self, path: Path, precision: str, opset: int) -> None:
        import onnx_ir

        from shallowvit.exporting.graph import write_graph
        from shallowvit.exporting.islands import cast_attention
        from shallowvit.exporting.quantization import quantize_graph
        from shallowvit.exporting.quantize_records import QuantizeConfig

        if precision == ISLAND:
            graph = onnx_ir.load(self.path("fp32", opset))
            cast_attention(graph, Precision.FP16)
            write_graph(graph, path, {})
        elif precision == "gated":
            graph = onnx_ir.load(self.path("fp16", opset))
            gate_probabilities(graph)
            write_graph(graph, path, {})
        elif precision in FLOATS:
            self._trace(path, Precision(precision), opset)
        else:
            config = QuantizeConfig(Precision(precision))
            quantize_graph(self.path("fp16", opset), path, config, None if precision == "int4" else self._inputs())

    def _trace(self, path: Path, precision: Precision, opset: int) -> None:
        """What ``export_onnx`` does, but for the comparison with torch."""
        from shallowvit.exporting import deployable
        from shallowvit.exporting.fusing import fuse_attention
        from shallowvit.exporting.graph import trace, write_graph

        graph, _steps = trace(deployable(self.model, precision), (self.input,), ("output",), ExportConfig(precision, opset))
        if opset >= 23:
            fuse_attention(graph)
        write_graph(graph, path, {})
        del graph
        gc.collect()  # the traced program holds the weights a second time

    def _inputs(self) -> Iterable[np.ndarray[Any, Any]]:
        """One input at a time, since the ranges of all activations are taken together."""
        from shallowvit.exporting.parity import real_inputs

        inputs = real_inputs(self.input, self.model.input_spec, CALIBRATION_INPUTS)[0]
        return (inputs[place : place + 1] for place in range(len(inputs)))


def save_random(subject: Subject, folder: Path) -> None:
    """Save a classifier of transformers with random weights, seed 0."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{subject.source}Config")(**subject.settings)
    kind = "Video" if subject.source == "VideoMAE" else "Image"
    getattr(transformers, f"{subject.source}For{kind}Classification")(config).save_pretrained(folder)


def gate_probabilities(graph: onnx_ir.Model) -> int:
    """Multiply the probabilities of each attention by ones, one a head, in place; return how many there are."""
    import onnx_ir

    softmaxes = [node for node in graph.graph if node.op_type == "Softmax"]
    for place, node in enumerate(softmaxes):
        weights = node.outputs[0]
        assert weights.dtype is not None and weights.shape is not None
        heads = weights.shape[-3]
        assert isinstance(heads, int)  # the model's own number, though batch and windows may be dynamic
        ones = onnx_ir.Tensor(np.ones((heads, 1, 1), weights.dtype.numpy()), name=f"gate_{place}")
        gate = onnx_ir.Value(name=ones.name, type=onnx_ir.TensorType(ones.dtype), shape=ones.shape, const_value=ones)
        graph.graph.register_initializer(gate)
        product = onnx_ir.node("Mul", [weights, gate], name=f"gated_{place}")
        product.outputs[0].dtype, product.outputs[0].shape = weights.dtype, weights.shape
        weights.replace_all_uses_with(product.outputs[0])
        product.replace_input_with(0, weights)
        graph.graph.insert_after(node, product)
    return len(softmaxes)


def build(graph: Path, compute_capabilities: tuple[int, ...] = ()) -> tuple[EngineBuild, str]:
    """Build with RTX into a folder that goes again; return the record and the engine's sha256."""
    config = BuildConfig(Flavour.RTX, compute_capabilities=compute_capabilities, allow_unfused=True)
    with tempfile.TemporaryDirectory(dir=graph.parent) as name:
        built = build_engine(graph, Path(name), config)
        return built, hashlib.sha256(built.path.read_bytes()).hexdigest()


def described(built: EngineBuild) -> dict[str, Any]:
    """The part of a row that says what is in an engine."""
    attentions = built.fusion.attentions
    reasons = Counter(row.reason for row in attentions if not row.fused)
    return {
        "status": "fused" if built.fusion.whole else "unfused",
        "fused": built.fusion.fused,
        "expected": built.fusion.expected,
        "reasons": dict(reasons),
        "kernels": len(built.fusion.kernels or ()),
        "dtypes": sorted({row.dtype for row in attentions}),
        "heads": sorted({row.heads for row in attentions if row.heads}),
        "head_sizes": sorted({row.head_size for row in attentions if row.head_size}),
        "queries": sorted({row.queries for row in attentions if row.queries}),
        "keys": sorted({row.keys for row in attentions if row.keys}),
        "activation_mib": _mib(built.activation_bytes),
        "weights_mib": _mib(built.weights_bytes),
        "engine_mib": _mib(built.bytes),
    }


def _mib(count: int | None) -> float | None:
    return None if count is None else round(count / MIB, 2)


def measure_cell(graphs: Graphs, precision: str, opset: int) -> dict[str, Any]:
    """One graph, built twice."""
    graph = graphs.path(precision, opset)
    (one, first), (other, second) = build(graph), build(graph)
    return described(one) | {
        "graph_opset": check_graph(graph).opset,
        "graph_mib": _mib(graph.stat().st_size),
        "engine_sha256": first,
        "identical": first == second,
        "build_s": [round(built.build_s, 2) for built in (one, other)],
    }


def measure_once(graphs: Graphs, precision: str, opset: int) -> dict[str, Any]:
    """One graph, built once."""
    return described(build(graphs.path(precision, opset))[0])


def measure_cells(bench: Bench, subjects: Iterable[Subject]) -> None:
    """Every model at each opset in each precision, and the fp16 pattern with a gate on its probabilities."""
    for subject in subjects:
        graphs = Graphs(subject, bench.work)
        for opset in subject.opsets:
            for precision in subject.precisions:
                row = {"kind": "cell", "model": subject.label, "opset": opset, "precision": precision, "batches": BATCHES}
                bench.take(row, functools.partial(measure_cell, graphs, precision, opset))


def measure_unfused(bench: Bench, subjects: Iterable[Subject]) -> None:
    """The fp16 pattern of each model with a gate of ones on its probabilities: the same engine but for fusion."""
    for subject in subjects:
        graphs = Graphs(subject, bench.work)
        row = {"kind": "unfused", "model": subject.label, "opset": 18, "precision": "fp16", "batches": BATCHES}
        bench.take(row, functools.partial(measure_once, graphs, "gated", 18))


def measure_tokens(bench: Bench) -> None:
    """Four blocks as wide as ViT-S over more and more tokens: fused, gated, and in fp32."""
    for tokens, (frames, side) in TOKENS.items():
        settings = _SMALL | {"num_hidden_layers": 4, "num_frames": frames, "image_size": side}
        graphs = Graphs(Subject(f"VideoMAE-S, 4 blocks, {tokens} tokens", "transformers", "VideoMAE", settings), bench.work)
        for precision, opset in (("fp16", 23), ("fp16", 18), ("gated", 18), ("fp32", 18)):
            row = {"kind": "tokens", "tokens": tokens, "opset": opset, "precision": precision, "batches": BATCHES}
            bench.take(row, functools.partial(measure_once, graphs, precision, opset))


def measure_capabilities(bench: Bench, subject: Subject) -> None:
    """Each compute capability that RTX takes, and none of them, in each precision: built, or refused before the build."""
    graphs = Graphs(subject, bench.work)

    def measure(precision: str, capabilities: tuple[int, ...]) -> dict[str, Any]:
        graph = graphs.path(precision, 23)
        config = BuildConfig(Flavour.RTX, compute_capabilities=capabilities)
        try:
            check_precision(choose(config), check_graph(graph), None)
        except ShallowvitError as err:
            return {"status": "refused", "reason": str(err)}
        return described(build(graph, capabilities)[0])

    for number in (*RTX_COMPUTE_CAPABILITIES, None):
        for precision in PRECISIONS:
            row = {"kind": "capability", "model": subject.label, "compute_capability": number or "portable"}
            row |= {"opset": 23, "precision": precision, "batches": BATCHES}
            capabilities = (number,) if number else ()
            bench.take(row, functools.partial(measure, precision, capabilities))


def measure_build_times(bench: Bench, subjects: Iterable[Subject], builds: int) -> None:
    """The median of builds of the same graph, with nothing else of ours running."""

    def measure(graphs: Graphs, precision: str, opset: int) -> dict[str, Any]:
        graph = graphs.path(precision, opset)
        conditions = read_conditions(None)  # behind the making of the graph
        made = [build(graph) for _ in range(builds)]
        seconds = [built.build_s for built, _ in made]
        return {
            "status": "built",
            "builds": builds,
            "median_s": round(statistics.median(seconds), 2),
            "min_s": round(min(seconds), 2),
            "max_s": round(max(seconds), 2),
            "identical": len({sha256 for _, sha256 in made}) == 1,
            "load_average": conditions.load_average,
        }

    for subject in subjects:
        graphs = Graphs(subject, bench.work)
        for precision, opset in TIMED:
            if precision in subject.precisions and opset in subject.opsets:
                row = {"kind": "build-time", "model": subject.label, "opset": opset, "precision": precision}
                bench.take(row | {"batches": BATCHES}, functools.partial(measure, graphs, precision, opset))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--models", help="only those whose name holds this text")
    parser.add_argument("--again", action="store_true", help="take rows that are there once more; the tables read the last")
    parser.add_argument("--quick", action="store_true", help="two models of two blocks, into a file of the work folder")
    parser.add_argument("--work", type=Path, help="keep models and graphs in this folder, and use those that are there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = given.work or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        results = work / "engines.jsonl" if given.quick else RESULTS
        subjects = [one for one in (QUICK if given.quick else SUBJECTS) if (given.models or "").lower() in one.label.lower()]
        bench = Bench(results, work, again=given.again)
        if "cells" in given.only:
            measure_cells(bench, subjects)
        if "unfused" in given.only:
            measure_unfused(bench, subjects)
        if not given.quick and "tokens" in given.only:
            measure_tokens(bench)
        if not given.quick and "capabilities" in given.only:
            measure_capabilities(bench, next(one for one in SUBJECTS if one.label == "ViT-S/16 (timm)"))
        if "build-times" in given.only:
            measure_build_times(bench, subjects, 1 if given.quick else TIMED_BUILDS)


if __name__ == "__main__":
    main()
