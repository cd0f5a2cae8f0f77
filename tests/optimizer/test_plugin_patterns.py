"""Attention as MatMul, Softmax, MatMul with what TensorRT has no kernel for: what becomes a node of ours, and what doesn't."""

import numpy as np
import onnx_ir
import pytest

from shallowvit.plugins.rewriting import rewrite_attention
from shallowvit_kernels.records import Dtype, Modifier

from .pattern_graphs import answers, feeds_of, kinds, left, parsed, pattern, relative, rewritten

BIAS = ", float[1,2,5,7] m"
SCORES = "a = MatMul(q, kt) "
GATE = "<float[1,2,1,1] g = {0.3, 0.9}, float[1,2,1,1] r = {0.7, 0.1}, float one = {1}, int64[1] last = {-1}>"
MIXED = "a = Mul(p, r) b = Mul(w, g) d = Add(a, b) "
DIVIDED = "e = ReduceSum<keepdims=1>(d, last) f = Div(d, e) y = MatMul(f, v)"
TO32, TO16 = "Cast<to=1>", "Cast<to=10>"

UNDERSTOOD = {
    "plain": ({}, "", "", ""),
    "queries-scaled": ({"s": "a = Mul(q, c) s = MatMul(a, kt)"}, "", "<float c = {0.3}>", ""),
    "everything-scaled": (
        {"k": "d = Mul(k, c) kt = Transpose<perm=[0,1,3,2]>(d)", "s": "a = Mul(q, c) b = MatMul(a, kt) s = Div(b, c)"}, "",
        "<float c = {0.3}>", "",
    ),
    "bias": ({"s": SCORES + "s = Add(a, m)"}, BIAS, "", "bias:b"),
    "bias-of-queries": ({"s": SCORES + "s = Add(a, m)"}, ", float[B,1,5,1] m", "", "bias:hm"),
    "bias-of-two-dimensions": ({"s": SCORES + "s = Add(a, m)"}, ", float[5,7] m", "", "bias:bh"),
    "two-masks": ({"s": SCORES + "b = Add(m, a) s = Add(b, n)"}, BIAS + ", float[B,1,1,7] n", "", "bias:"),
    "bias-then-scale": ({"s": SCORES + "b = Add(a, m) s = Mul(b, c)"}, BIAS, "<float c = {0.3}>", "bias:b"),
    "boolean": ({"s": SCORES + "s = Where(m, a, c)"}, ", bool[B,1,1,7] m", "<float c = {-1e9}>", "bias:hn"),
    "head-scale": ({"s": SCORES + "s = Mul(a, m)"}, ", float[2,1,1] m", "", "score_mask:bnm"),
    "head-temperature": ({"s": SCORES + "s = Div(a, t)"}, "", "<float[1,2,1,1] t = {2.0, 0.7}>", "score_mask:bnm"),
    "head-temperature-of-all": ({"s": SCORES + "s = Div(a, t)"}, "", "<float[1,2,1,1] t = {2.0, 2.0}>", ""),
    "score-mask": ({"s": SCORES + "s = Mul(m, a)"}, ", float[B,1,5,7] m", "", "score_mask:h"),
    "score-mask-then-bias": (
        {"s": SCORES + "b = Mul(a, m) d = Mul(b, c) s = Add(d, n)"}, BIAS + ", float[5,7] n", "<float c = {0.3}>",
        "score_mask:b bias:bh",
    ),
    "cap": ({"s": SCORES + "b = Div(a, c) d = Tanh(b) s = Mul(d, c)"}, "", "<float c = {3}>", "cap:3"),
    "bare-tanh": ({"s": SCORES + "s = Tanh(a)"}, "", "", "cap:1"),
    "cap-of-other-numbers": ({"s": SCORES + "b = Div(a, c) d = Tanh(b) s = Mul(e, d)"}, "", "<float c = {3}, float e = {2}>",
                             "cap:2"),
    "cap-then-bias": ({"s": SCORES + "b = Div(a, c) d = Tanh(b) e = Mul(d, c) s = Add(e, m)"}, BIAS, "<float c = {3}>",
                      "bias:b cap:3"),
    "score-mask-then-cap": ({"s": SCORES + "b = Mul(a, m) d = Tanh(b) s = Mul(d, c)"}, BIAS, "<float c = {3}>",
                            "score_mask:b cap:3"),
    "probability-mask": ({"y": "a = Mul(p, m) y = MatMul(a, v)"}, BIAS, "", "probability_mask:b"),
    "gaussian-mask": ({"y": "a = Mul(m, p) b = Dropout(a) y = MatMul(b, v)"}, ", float[5,7] m", "", "probability_mask:bh"),
    "head-gate": ({"y": "a = Mul(p, m) y = MatMul(a, v)"}, ", float[1,2,1,1] m", "", "probability_mask:bnm"),
    "gate-and-mask": (
        {"y": "a = Mul(p, h) b = Mul(a, m) y = MatMul(b, v)"}, BIAS, "<float[1,2,1,1] h = {0.4, 0.8}>", "probability_mask:b"
    ),
    "boolean-on-probabilities": (
        {"y": "a = Where(m, z, p) y = MatMul(a, v)"}, ", bool[1,1,1,7] m", "<float z = {0}>", "probability_mask:bhn"
    ),
    "renormalised": (
        {"y": "g = Mul(m, m) d = Mul(p, g) " + DIVIDED}, BIAS, "<int64[1] last = {-1}>", "probability_mask:b renormalised"
    ),
    "divided-by-one": ({"y": "d = Identity(p) " + DIVIDED}, "", "<int64[1] last = {3}>", ""),
    "sum-unsqueezed": (
        {"y": "g = Abs(m) d = Mul(p, g) e = ReduceSum<keepdims=0>(d, last) h = Unsqueeze(e, last) f = Div(d, h) "
              "y = MatMul(f, v)"}, BIAS, "<int64[1] last = {-1}>", "probability_mask:b renormalised",
    ),
    "sum-in-a-wider-type": (
        {"y": "g = Abs(m) d = Mul(p, g) w = Cast<to=11>(d) e = ReduceSum<keepdims=1>(w, last) h = Cast<to=1>(e) f = Div(d, h) "
              "y = MatMul(f, v)"}, BIAS, "<int64[1] last = {-1}>", "probability_mask:b renormalised",
    ),
    "sum-and-a-number": (
        {"y": "g = Abs(m) d = Mul(p, g) e = ReduceSum<keepdims=1>(d, last) h = Add(e, c) f = Div(d, h) y = MatMul(f, v)"}, BIAS,
        "<int64[1] last = {-1}, float c = {0.01}>", "probability_mask:b renormalised",
    ),
    "dead-reader": ({"p": "p = Softmax<axis=-1>(s) dead = Identity(s) gone = Abs(p)"}, "", "", ""),
    "gate": ({"y": MIXED + "y = MatMul(d, v)"}, ", float[1,2,5,7] w", GATE, "positions:b"),
    "convit": (
        {"p": "p = Softmax<axis=-1>(s) w = Softmax<axis=-1>(w0)", "y": MIXED + DIVIDED}, ", float[B,2,5,7] w0", GATE,
        "positions:",
    ),
    "gate-computed": (
        {"y": "g = Sigmoid(u) g2 = Sigmoid(u) r = Sub(one, g2) a = Mul(r, p) b = Mul(g, w) d = Add(b, a) y = MatMul(d, v)"},
        ", float[1,2,5,7] w, float[1,2,1,1] u", "<float one = {1}>", "positions:b",
    ),
    "gate-of-all-heads": (
        {"y": MIXED + "y = MatMul(d, v)"}, ", float[1,2,5,7] w", "<float g = {0.3}, float r = {0.7}>", "positions:b"
    ),
    "mask-and-gate": (
        {"y": "p1 = Mul(p, m) a = Mul(p1, r) b = Mul(w, g) d = Add(a, b) y = MatMul(d, v)"}, BIAS + ", float[1,2,5,7] w", GATE,
        "probability_mask:b positions:b",
    ),
    "three-dimensions": (
        {
            "k": "t = Transpose<perm=[0,2,1]>(k3)", "s": "a = MatMul(q3, t) s = Add(a, m)",
            "y": "z = MatMul(p, v3) y = Unsqueeze(z, o)",
        },
        ", float[B,5,20] q3, float[B,7,20] k3, float[B,7,12] v3, float[B,5,7] m", "<int64[1] o = {1}>", "bias:h",
    ),
    "five-dimensions": (
        {"k": "t = Transpose<perm=[0,1,2,4,3]>(k5)", "s": "s = MatMul(q5, t)", "y": "z = MatMul(p, v5) y = Reshape(z, f)"},
        ", float[B,3,2,5,20] q5, float[B,3,2,7,20] k5, float[B,3,2,7,20] v5", "<int64[4] f = {0, 6, 5, 20}>", "",
    ),
    "windows": (
        {"s": SCORES + "b = Reshape(a, f) d = Add(b, w) s = Reshape(d, g)"}, ", float[1,3,1,5,7] w",
        "<int64[5] f = {-1, 3, 2, 5, 7}, int64[4] g = {-1, 2, 5, 7}>", "bias:h",
    ),
}  # fmt: skip


def _described(variant):
    words = [f"{one.modifier}:{one.broadcast}" for one in variant.operands]
    words += [f"cap:{variant.soft_cap:g}"] if variant.soft_cap else []
    return " ".join(words + (["renormalised"] if variant.renormalise else []))


@pytest.mark.parametrize("case", UNDERSTOOD)
def test_rewrite_attention_of_a_pattern_becomes_one_node_with_the_same_answers(case):
    steps, more, extra, described = UNDERSTOOD[case]
    model = pattern(steps, more, extra=extra)
    variant = rewritten(model)
    assert _described(variant) == described
    assert (variant.head_size, variant.dtype) == (20, Dtype.FP32)
    assert not {"Softmax", "Div", "Tanh"} & set(kinds(model)) or case in ("convit", "windows")


@pytest.mark.parametrize("kind", ["float16", "float"])
def test_rewrite_attention_of_a_softmax_in_fp32_drops_its_casts(kind):
    steps = {
        "p": f"a = {TO32}(s) b = Mul(a, c) d = Softmax<axis=-1>(b) e = Mul(d, m) p = {TO16 if kind != 'float' else TO32}(e)"
    }
    model = pattern(steps, ", float[1,1,5,7] m", kind=kind, extra="<float c = {0.2}>")
    variant = rewritten(model, within=2e-3 if kind == "float16" else 2e-6)
    assert variant.dtype is (Dtype.FP16 if kind == "float16" else Dtype.FP32)
    assert variant.operands[0].dtype is Dtype.FP32
    assert "Cast" not in kinds(model)


def test_rewrite_attention_of_bf16_answers_as_before_to_its_precision():
    from shallowvit.exporting.parity import TOLERANCES
    from shallowvit.exporting.records import Precision

    text = """<ir_version: 10, opset_import: ["": 18]>
    agraph (float[B,2,5,20] q0, float[B,2,7,20] k0, float[B,2,7,12] v0) => (float[B,H,N,W] y) {
        q = Cast<to=16>(q0) k = Cast<to=16>(k0) v = Cast<to=16>(v0) kt = Transpose<perm=[0,1,3,2]>(k)
        s = MatMul(q, kt) p = Softmax(s) o = MatMul(p, v) y = Cast<to=1>(o) }"""
    model = parsed(text)
    wide = parsed(text.replace("to=16", "to=1"))
    assert [variant.dtype for _, variant in rewrite_attention(model, "plugin").replaced] == [Dtype.BF16]
    feeds = feeds_of(model)
    assert relative(answers(model, feeds), answers(wide, feeds)) < TOLERANCES[Precision.BF16]


def test_rewrite_attention_takes_the_cast_back_to_the_type_of_the_queries():
    steps = {"y": f"a = {TO32}(p) b = {TO32}(v) d = MatMul(a, b) y = {TO16}(d)"}
    model = pattern(steps, kind="float16")
    assert rewritten(model, within=2e-3).dtype is Dtype.FP16
    assert "Cast" not in kinds(model)


EXPANDED = """<ir_version: 10, opset_import: ["": 18]>
agraph (float[B,2,4,20] q, float[B,2,4,20] k, float[B,2,4,12] v) => (float[B,2,4,12] y)
<float[1,4,4,1] places = {0,1,2,3, 1,0,1,2, 2,1,0,1, 3,2,1,0}, float[1,2] w = {-0.5, 0.2}, float[2] c = {0.1, 0.3},
 int64[3] ones = {1, 1, 1}, float[1,2,1,1] g = {0.3, 0.9}, float[1,2,1,1] r = {0.7, 0.1}, int64[1] last = {-1}> {
    kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) p = Softmax<axis=-1>(s)
    n = Shape<start=0, end=1>(q) shape = Concat<axis=0>(n, ones) all = Expand(places, shape)
    a = MatMul(all, w) b = Add(a, c) d = Transpose<perm=[0,3,1,2]>(b) e = Softmax<axis=-1>(d)
    x = Mul(r, p) z = Mul(g, e) both = Add(x, z) total = ReduceSum<keepdims=0>(both, last) t = Unsqueeze(total, last)
    f = Div(both, t) y = MatMul(f, v) }"""


def test_rewrite_attention_folds_positions_that_are_repeated_for_every_item():
    model = parsed(EXPANDED)
    variant = rewritten(model)
    assert [(one.modifier, one.broadcast) for one in variant.operands] == [(Modifier.POSITIONS, "b")]
    assert kinds(model) == ["shallowvit"]
    positions = model.graph[0].inputs[3].const_value
    assert tuple(positions.shape) == (1, 2, 4, 4)


def test_rewrite_attention_makes_axes_along_which_a_constant_repeats_one():
    extra = "<float[1,2,1,7] m = {0,1,2,3,4,5,6, 0,1,2,3,4,5,6}>"
    assert _described(rewritten(pattern({"s": SCORES + "s = Add(a, m)"}, extra=extra))) == "bias:bhn"


LEFT = {
    "output": ({}, "", "", ("y", "p"), "the probabilities are an output of the graph"),
    "scores-out": ({}, "", "", ("y", "s"), "the scores are an output of the graph"),
    "used": ({"y": "a = ReduceSum(p) b = MatMul(p, v) y = Mul(b, a)"}, "", "", ("y",), "used by more than the product"),
    "scores-used": ({"y": "a = ReduceSum(s) b = MatMul(p, v) y = Mul(b, a)"}, "", "", ("y",), "scores are used elsewhere"),
    "mask-of-probabilities": (
        {"y": "a = Relu(p) b = Mul(p, a) y = MatMul(b, v)"}, "", "", ("y",), "used by more than the product"
    ),
    "squared": ({"y": "a = Mul(p, p) y = MatMul(a, v)"}, "", "", ("y",), "it takes them twice"),
    "scores-squared": ({"s": "a = MatMul(q, kt) s = Mul(a, a)"}, "", "", ("y",), "multiplied by themselves"),
    "axis": ({"p": "p = Softmax<axis=1>(s)"}, "", "", ("y",), "the softmax is over axis 1, not over the keys"),
    "negative": ({"s": SCORES + "s = Mul(a, c)"}, "", "<float c = {-0.3}>", ("y",), "scaled by -0.3"),
    "not-convex": (
        {"y": MIXED + "y = MatMul(d, v)"}, ", float[1,2,5,7] w",
        "<float[1,2,1,1] g = {0.3, 0.9}, float[1,2,1,1] r = {0.7, 0.2}>", ("y",), "aren't a gate and what is left of 1",
    ),
    "ungated-sum": ({"y": "a = Add(p, w) y = MatMul(a, v)"}, ", float[1,2,5,7] w", "", ("y",), "isn't the mixture of a gate"),
    "gate-divided": (
        {"y": MIXED + DIVIDED}, ", float[1,2,5,7] w", GATE, ("y",), "divided by its sum, which isn't known to be 1"
    ),
    "gate-a-query": (
        {"y": "r = Sub(one, g) a = Mul(p, r) b = Mul(w, g) d = Add(a, b) y = MatMul(d, v)"},
        ", float[1,2,5,7] w, float[1,2,5,1] g", "<float one = {1}>", ("y",), "isn't one number a head",
    ),
    "mask-behind-the-sum": (
        {"y": "d = Mul(p, m) e = ReduceSum<keepdims=1>(d, last) f = Div(d, e) h = Mul(f, m) y = MatMul(h, v)"}, BIAS,
        "<int64[1] last = {-1}>", ("y",), "behind a division by their sum",
    ),
    "sum-over-queries": (
        {"y": "d = Mul(p, m) e = ReduceSum<keepdims=1>(d, ax) f = Div(d, e) y = MatMul(f, v)"}, BIAS,
        "<int64[1] ax = {2}>", ("y",), "used by more than the product",
    ),
    "large-epsilon": (
        {"y": "d = Mul(p, m) e = ReduceSum<keepdims=1>(d, ax) h = Add(e, c) f = Div(d, h) y = MatMul(f, v)"}, BIAS,
        "<int64[1] ax = {-1}, float c = {0.1}>", ("y",), "used by more than the product",
    ),
    "cap-behind-a-mask": ({"s": SCORES + "b = Add(a, m) s = Tanh(b)"}, BIAS, "", ("y",), "added before the soft cap"),
    "two-caps": ({"s": SCORES + "b = Tanh(a) s = Tanh(b)"}, "", "", ("y",), "two soft caps"),
    "sum-of-one-and-a-number": (
        {"y": "e = ReduceSum<keepdims=1>(p, last) h = Add(e, c) f = Div(p, h) y = MatMul(f, v)"}, "",
        "<int64[1] last = {-1}, float c = {0.01}>", ("y",), "divided by their sum and 0.01, which isn't known to be 1",
    ),
    "turned-gate": (
        {"y": "a = Where(c, z, p) b = Mul(w, g) d = Add(a, b) y = MatMul(d, v)"}, ", float[1,2,5,7] w",
        "<bool[1,2,1,1] c = {1, 0}, float[1,2,1,1] g = {0, 1}, float z = {0}>", ("y",), "isn't the mixture of a gate",
    ),
    "negative-cap": ({"s": SCORES + "b = Tanh(a) s = Mul(b, c)"}, "", "<float c = {-2}>", ("y",), "the soft cap is -2"),
    "cap-then-score-mask": ({"s": SCORES + "b = Tanh(a) s = Mul(b, m)"}, BIAS, "", ("y",), "behind the soft cap"),
    "bias-then-score-mask": (
        {"s": SCORES + "b = Add(a, m) s = Mul(b, n)"}, BIAS + ", float[5,7] n", "", ("y",),
        "added before the scores are multiplied by a tensor",
    ),
    "other-fill": (
        {"y": "a = Where(m, p, c) y = MatMul(a, v)"}, ", bool[5,7] m", "<float c = {0.5}>", ("y",), "other numbers than zero"
    ),
    "small-fill": ({"s": SCORES + "s = Where(m, a, c)"}, ", bool[5,7] m", "<float c = {0}>", ("y",), "other numbers than"),
    "exp": ({"y": "a = Exp(p) y = MatMul(a, v)"}, "", "", ("y",), "Exp changes the probabilities"),
    "guard": (
        {"s": SCORES + "s = Add(a, m)", "y": "a0 = IsNaN(p) b = Where(a0, z, p) y = MatMul(b, v)"}, BIAS,
        "<float z = {0}>", ("y",), "queries that see no key give zeros here",
    ),
    "broadcast": ({"y": "y = MatMul(p, w)"}, ", float[1,2,7,20] w", "", ("y",), "don't have the same known batch, heads"),
    "two-large-masks": (
        {"y": "a = Mul(p, m) b = Mul(a, n) y = MatMul(b, v)"}, BIAS + ", float[B,1,5,7] n", "", ("y",),
        "two masks together are larger",
    ),
    "unknown-mask": ({"s": SCORES + "s = Mul(a, m)"}, ", float[X,1,5,7] m", "", ("y",), "can't be held against scores of"),
    "mask-of-fp64": (
        {"s": SCORES + "b = Cast<to=11>(a) d = Mul(b, m) s = Cast<to=1>(d)"}, ", double[1,1,5,7] m", "", ("y",),
        "of the type DOUBLE",
    ),
    "five-with-a-mask": (
        {"k": "t = Transpose<perm=[0,1,2,4,3]>(k5)", "s": "s = MatMul(q5, t)",
            "y": "e = Mul(p, m) z = MatMul(e, v5) y = Reshape(z, f)"},
        ", float[B,3,2,5,20] q5, float[B,3,2,7,20] k5, float[B,3,2,7,20] v5, float[5,7] m", "<int64[4] f = {0, 6, 5, 20}>",
        ("y",), "five dimensions and are modified by a tensor",
    ),
    "large-head": (
        {"k": "t = Transpose<perm=[0,1,3,2]>(k6)", "s": "s = MatMul(q6, t)"}, ", float[B,2,5,600] q6, float[B,2,7,600] k6",
        "", ("y",), "a head size of 600, and kernels take up to",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_rewrite_attention_leaves_what_only_looks_alike_and_says_why(case):
    steps, more, extra, outputs, reason = LEFT[case]
    assert reason in left(pattern(steps, more, extra=extra, outputs=outputs))


def test_rewrite_attention_keeps_name_scopes_and_output_of_what_it_replaces():
    model = pattern({"y": "a = Mul(p, m) y = MatMul(a, v)"}, BIAS)
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    softmax.name = "block0/softmax"
    softmax.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'model.blocks.0', 'softmax']"
    ((name, variant),) = rewrite_attention(model, "plugin").replaced
    (node,) = model.graph
    assert (name, node.name, node.op_type, node.domain) == ("block0/softmax", "block0/softmax", variant.name, "shallowvit")
    assert node.metadata_props["pkg.torch.onnx.name_scopes"] == "['', 'model.blocks.0', 'softmax']"
    attributes = {key: node.attributes.get_string(key) for key in ("variant", "plugin_namespace", "plugin_version")}
    assert attributes == {"variant": variant.to_json(), "plugin_namespace": "shallowvit", "plugin_version": "1"}
    assert model.graph.opset_imports["shallowvit"] == 1
    assert [key[1] for key in model.functions] == [variant.name]


@pytest.mark.parametrize("turned", [False, True])
def test_rewrite_attention_of_a_guarded_mask_gives_zeros_to_queries_that_see_no_key(turned):
    chosen = "Where(m, c, a)" if turned else "Where(m, a, c)"
    steps = {"s": SCORES + f"s = {chosen}", "y": "n = IsNaN(p) b = Where(n, z, p) y = MatMul(b, v)"}
    model = pattern(steps, ", bool[B,1,5,7] m", extra="<float z = {0}, float c = {-1}>")
    low = model.graph.initializers["c"]
    low.const_value = onnx_ir.tensor(np.array(-np.inf, np.float32), name="c")
    feeds = feeds_of(model)
    feeds["m"] = feeds["m"].copy() if not turned else ~feeds["m"]
    feeds["m"][1, 0, 2] = turned
    expected = answers(model, feeds)
    assert not expected[1, :, 2].any()
    assert _described(rewritten(model, feeds=feeds)) == "bias:h"


def test_rewrite_attention_twice_gives_the_same_bytes():
    protos = []
    for _ in range(2):
        model = parsed(EXPANDED)
        rewrite_attention(model, "plugin")
        protos.append(onnx_ir.to_proto(model).SerializeToString(deterministic=True))
    assert protos[0] == protos[1]


def test_rewrite_attention_auto_takes_only_what_tensorrt_does_not_fuse():
    plain = pattern({}, kind="float16")
    next(node for node in plain.graph if node.op_type == "Softmax").name = "softmax"
    result = rewrite_attention(plain, "auto")
    assert (result.found, result.replaced, result.left) == (1, (), ())
    result = rewrite_attention(plain, "auto", unfused={"softmax"})
    assert [name for name, _ in result.replaced] == ["softmax"]
    masked = pattern({"y": "a = Mul(p, m) y = MatMul(a, v)"}, ", float16[5,7] m", kind="float16")
    next(node for node in masked.graph if node.op_type == "Softmax").name = "softmax"
    assert [name for name, _ in rewrite_attention(masked, "auto").replaced] == ["softmax"]


@pytest.mark.parametrize("steps", [
    {"s": "a = MatMul(q3, kt) s = Add(a, m)", "y": "y = MatMul(p, v3)"},
    {"s": "a = MatMul(q3, kt) s = Mul(a, m)", "y": "y = MatMul(p, v3)"},
    {"s": "s = MatMul(q3, kt)", "y": "d = Mul(p, m) y = MatMul(d, v3)"},
])  # fmt: skip
def test_rewrite_attention_leaves_a_mask_of_more_dimensions_than_the_scores(steps):
    steps |= {"k": "kt = Transpose<perm=[0,2,1]>(k3)"}
    inputs = ", float[B,5,20] q3, float[B,7,20] k3, float[B,7,12] v3, float[1,1,5,7] m"
    assert "a mask or a number makes 4 dimensions of the 3 of the queries" in left(pattern(steps, inputs))


def test_rewrite_attention_leaves_a_graph_whose_softmax_is_over_several_axes():
    reason = left(pattern({"p": "p = Softmax(s)"}, opset=12))
    assert reason == "the graph is of opset 12, and nodes of ours go into 13 and later"


def test_rewrite_attention_rounds_divided_whole_numbers_to_zero():
    divided = "i = Div(seven, two) t = Cast<to=1>(i) a = MatMul(q, kt) s = Mul(a, t)"
    extra = "<int64[1,2,1,1] seven = {-7, 7}, int64[1,2,1,1] two = {2, 2}>"
    assert _described(rewritten(pattern({"s": divided}, extra=extra))) == "score_mask:bnm"


def test_rewrite_attention_of_a_filled_mask_lets_a_query_without_keys_look_at_all_alike():
    model = pattern({"s": SCORES + "s = Where(m, a, c)"}, ", bool[B,1,5,7] m", extra="<float c = {-1e5}>")
    feeds = feeds_of(model)
    feeds["m"] = feeds["m"].copy()
    feeds["m"][1, 0, 2] = False
    assert _described(rewritten(model, feeds=feeds)) == "bias:h"
