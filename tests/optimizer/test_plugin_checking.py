"""Whether a rewritten graph's answers are held against those of the graph it came from: same, other numbers, other shapes."""

import numpy as np
import onnx
import onnx_ir
import pytest

from shallowvit.errors import ParityError
from shallowvit.plugins.checking import check_same_answers, random_inputs
from shallowvit.plugins.rewriting import rewrite_attention

from .pattern_graphs import parsed, pattern

GRAPH = '<ir_version: 10, opset_import: ["": 18]>\nagraph (float[B,4] x) => (float{shape} y) {extra} {{ {body} }}'


def _saved(model, path):
    onnx.save(onnx_ir.to_proto(model), path)
    return path


def _graph(path, body, shape="[B,4]", extra=""):
    return _saved(parsed(GRAPH.format(body=body, shape=shape, extra=extra)), path)


def test_check_same_answers_of_the_same_numbers_in_another_shape_says_so(tmp_path):
    before = _graph(tmp_path / "before.onnx", "y = Relu(x)")
    after = _graph(tmp_path / "after.onnx", "a = Relu(x) y = Unsqueeze(a, first)", "[1,B,4]", "<int64[1] first = {0}>")
    with pytest.raises(ParityError, match=r"output y differs by inf of the largest, above .*; use --attention native"):
        check_same_answers(before, after, {})


def test_check_same_answers_of_other_numbers_says_by_how_much(tmp_path):
    before, after = (_graph(tmp_path / f"{kind}.onnx", f"y = {kind}(x)") for kind in ("Relu", "Abs"))
    with pytest.raises(ParityError, match=r"output y differs by \d\.\d+ of the largest"):
        check_same_answers(before, after, {})
    assert check_same_answers(before, before, {}) == 0


def test_check_same_answers_of_a_boolean_mask_hides_some_keys_and_not_all(tmp_path):
    model = pattern({"s": "a = MatMul(q, kt) s = Where(m, a, c)"}, ", bool[B,1,1,7] m", extra="<float c = {-1}>")
    model.graph.initializers["c"].const_value = onnx_ir.tensor(np.array(-np.inf, np.float32), name="c")
    before = _saved(model, tmp_path / "before.onnx")
    assert random_inputs(before, {})["m"].tolist() == [[[[True, False] * 3 + [True]]]] * 2
    assert len(rewrite_attention(model, "plugin").replaced) == 1
    assert check_same_answers(before, _saved(model, tmp_path / "after.onnx"), {}) < 1e-5
