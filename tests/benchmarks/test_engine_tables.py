"""The tables of engines say what the rows say, and what is measured is what the rows are called."""

import json

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine_tables import latest, tables_from_rows
from engines import Bench, Graphs, Subject, build, described, gate_probabilities
from shallowvit import ShallowvitError

CONDITIONS = {"device": "a CPU", "cores": 2, "load_average": 1.5, "packages": {"tensorrt_rtx_cu13": "1.7.1"}}


def _row(kind="cell", **changes):
    row = {"kind": kind, "model": "ViT (timm)", "opset": 23, "precision": "fp16", "batches": "1:1:8", "status": "fused"}
    row |= {"fused": 12, "expected": 12, "reasons": {}, "activation_mib": 20.4, "engine_mib": 43.6, "conditions": CONDITIONS}
    return row | changes


def _line(text, start):
    return next(line for line in text.splitlines() if line.startswith(start))


def test_latest_of_a_row_taken_again_is_the_second():
    rows = [_row(fused=1), _row(opset=18), _row(fused=2)]
    assert [(row["opset"], row["fused"]) for row in latest(rows)] == [(23, 2), (18, 12)]


def test_tables_both_opsets_stand_in_a_cell_where_they_differ():
    text = tables_from_rows([_row(), _row(opset=18, fused=3, status="unfused", reasons={"has a soft cap": 9})])
    assert _line(text, "| ViT (timm)") == "| ViT (timm) | 12 of 12 / 3 of 12 |"
    assert "| fp16 | ViT (timm), opset 18 | has a soft cap |" in text
    assert "| ViT (timm) | 20 |" in text  # activation memory, the same in both


def test_tables_a_failed_cell_shows_its_reason_and_one_that_is_missing_is_not_built():
    failed = {key: value for key, value in _row(status="failed", reason="export: no").items() if key != "activation_mib"}
    text = tables_from_rows([failed])
    assert _line(text, "| ViT (timm)") == "| ViT (timm) | failed / not built |"
    assert "| fp16 | ViT (timm), opset 23 | export: no |" in text


def test_tables_what_fusion_saves_is_over_the_fused_fp16_pattern():
    unfused = _row("unfused", opset=18, activation_mib=204.0, fused=0, queries=[1568])
    rows = [_row(opset=18), _row(opset=18, precision="fp32", activation_mib=408.0), unfused]
    assert "| ViT (timm) | 1,568 | 20 | 204 | 408 | 10.0x | 20.0x |" in tables_from_rows(rows)


def test_tables_equal_bytes_are_counted_and_others_named():
    text = tables_from_rows([_row(identical=True), _row(opset=18, identical=False)])
    assert "the same bytes for 1 of 2 graphs; not for ViT (timm), fp16, opset 18." in text


def test_bench_take_skips_what_is_there_and_writes_what_fails(tmp_path):
    taken = []

    def fail():
        taken.append(1)
        raise ShallowvitError("build: no")

    for again in (False, False, True):
        Bench(tmp_path / "rows.jsonl", tmp_path, again=again).take({"kind": "cell", "model": "m"}, fail)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(taken) == len(rows) == 2
    assert (rows[0]["status"], rows[0]["reason"]) == ("failed", "build: no")


def _pattern(path, heads=2, tokens=64, size=16):
    """One fp16 attention as MatMul and Softmax."""
    kind, shape = TensorProto.FLOAT16, ["batch", heads, tokens, size]
    nodes = [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["products"]),
        helper.make_node("Mul", ["products", "scale"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], "softmax", axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["out"]),
    ]
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name in "qkv"]
    weights = [helper.make_tensor_value_info("weights", kind, ["batch", heads, tokens, tokens])]
    scale = numpy_helper.from_array(np.float16(0.25), "scale")
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info("out", kind, shape)], [scale], value_info=weights
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_gate_probabilities_leaves_the_answer_and_takes_the_fused_kernel_away(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="builds engines; pip install 'shallowvit[tensorrt]'")
    onnxruntime = pytest.importorskip("onnxruntime")
    plain, gated = _pattern(tmp_path / "plain.onnx"), tmp_path / "gated.onnx"
    model = onnx_ir.load(plain)
    assert gate_probabilities(model) == 1
    onnx_ir.save(model, gated)
    feed = {name: np.random.default_rng(0).standard_normal((2, 2, 64, 16)).astype(np.float16) for name in "qkv"}
    found = [onnxruntime.InferenceSession(str(path)).run(None, feed)[0] for path in (plain, gated)]
    np.testing.assert_array_equal(*found)
    fused, unfused = (described(build(path)[0]) for path in (plain, gated))
    assert (fused["status"], unfused["status"]) == ("fused", "unfused")
    assert unfused["activation_mib"] > fused["activation_mib"]
    assert all("changed by gated_0" in reason for reason in unfused["reasons"])


def test_graphs_fp16_and_its_int8_are_built_and_fused(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="builds engines; pip install 'shallowvit[tensorrt]'")
    pytest.importorskip("timm")
    graphs = Graphs(Subject("ViT", "timm", "vit_tiny_patch16_224?depth=2&img_size=32"), tmp_path)
    rows = [described(build(graphs.path(precision, 23))[0]) for precision in ("fp16", "int8")]
    assert [(row["fused"], row["expected"]) for row in rows] == [(2, 2), (2, 2)]
    assert rows[1]["engine_mib"] < rows[0]["engine_mib"]
