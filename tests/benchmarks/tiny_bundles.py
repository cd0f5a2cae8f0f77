"""Tiny real bundles: a linear classifier over pixels as an ONNX graph, with the manifest that the harness reads."""

import hashlib
import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from shallowvit_bench.demo_clips import LABELS


def write_graph(path, shape, classes, *, seed=0, dtype=TensorProto.FLOAT):
    """A graph [batch, *shape] -> [batch, classes]; uint8 input is cast first."""
    size = int(np.prod(shape))
    weights = np.random.default_rng(seed).standard_normal((size, classes)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", dtype, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(weights, "weights")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def make_manifest(name, **changes):
    """A manifest of a bundle for the clips of ``demo``; keyword arguments replace whole entries."""
    manifest = {
        "schema_version": 1,
        "name": name,
        "files": {},
        "source": {
            "spec": "demo",
            "family": "transformers",
            "architecture": "VideoMAE",
            "weights_sha256": "ab" * 32,
            "arch": None,
        }
        | {"blocks": [], "parent": None},
        "scores": {
            "criterion": "entropy",
            "needs": "nothing",
            "unit": "bits",
            "settings": {"mantissa_bits": 7},
            "blocks": [{"block": i, "path": f"layer.{i}", "score": 7.1 + 0.1 * i, "weights": 9} for i in range(4)],
        },
        "plan": {"removed": [1, 3], "kept": [0, 2], "reason": "lowest entropy", "paths": [f"layer.{i}" for i in range(4)]}
        | {"parameters_before": 4, "parameters_after": 2, "flops_before": 400, "flops_after": 200},
        "graph": {"opset": 18, "precision": "fp32", "attention_nodes": 2, "outputs": []}
        | {"input": {"name": "x", "dtype": "float32", "layout": "NTCHW", "shape": [8, 3, 16, 16]}},
        "preprocessing": {"in_graph": False, "frame_shape": [8, 16, 16, 3], "rescale": 1 / 255, "mean": [0.5, 0.4, 0.3]}
        | {"std": [0.2, 0.3, 0.4], "resize": None, "crop": None, "resample": "bilinear", "crop_rounding": "down"},
        "labels": list(LABELS),
        "parity": {"precision": "fp32", "inputs": 32, "max_abs_error": 1e-6, "relative_error": 1e-7, "tolerance": 1e-4}
        | {"top1_agreement": 1.0},
        "metrics": {},
        "tools": {"shallowvit": "0.1.0"},
    }
    return manifest | changes


def write_bundle(folder, *, seed=0, dtype=TensorProto.FLOAT, **changes):
    """Write a bundle that ``read_bundle`` accepts."""
    folder.mkdir()
    manifest = make_manifest(**({"name": folder.name} | changes))
    write_graph(
        folder / "model.onnx", manifest["graph"]["input"]["shape"], len(manifest["labels"] or range(40)), seed=seed, dtype=dtype
    )
    graph = (folder / "model.onnx").read_bytes()
    manifest["files"]["model.onnx"] = {"sha256": hashlib.sha256(graph).hexdigest(), "bytes": len(graph)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


IMAGE = {
    "graph": {"opset": 18, "precision": "fp32", "attention_nodes": 2, "outputs": []}
    | {"input": {"name": "x", "dtype": "float32", "layout": "NCHW", "shape": [3, 8, 8]}},
    "preprocessing": {"in_graph": False, "frame_shape": [8, 8, 3], "rescale": 1 / 255, "mean": [0, 0, 0], "std": [1, 1, 1]}
    | {"resize": {"shortest_edge": 10}, "crop": {"height": 8, "width": 8}, "resample": "bicubic", "crop_rounding": "down"},
    "labels": ["cat", "dog"],
}
