"""Attention nodes, Gaussian and linear attention, layouts, and the way back: each with the answers of before."""

import numpy as np
import onnx_ir
import pytest

from shallowvit.engines.sites import find_attentions
from shallowvit.plugins.rewriting import inline_plugins, plugins_of, rewrite_attention
from shallowvit.plugins.survey import survey_graph
from shallowvit_kernels.errors import KernelError
from shallowvit_kernels.records import FeatureMap, Kernel, Layout

from .pattern_graphs import answers, feeds_of, kinds, left, parsed, pattern, relative, rewritten


def _graph(inputs, body, *, opset=18, extra="", kind="float", output="y"):
    return parsed(
        f'<ir_version: 11, opset_import: ["": {opset}]>\nagraph ({inputs}) => ({kind}[B,X,Y,Z] {output}) {extra} {{\n{body}\n}}'
    )


def _node(attributes="", more="", *, inputs="q, k, v", extra="", kind="float", body=None):
    """An Attention node of four dimensions."""
    head = f"{kind}[B,2,5,16] q, {kind}[B,2,7,16] k, {kind}[B,2,7,12] v{more}"
    text = body or f"y = Attention{f'<{attributes}>' if attributes else ''}({inputs})"
    return _graph(head, text, opset=23, extra=extra, kind=kind)


NODES = {
    "plain": ("", "", "q, k, v", ""),
    "scale": ("scale=0.3", "", "q, k, v", ""),
    "mask": ("", ", float[B,1,5,7] m", "q, k, v, m", "bias:h"),
    "mask-of-two-dimensions": ("", ", float[5,7] m", "q, k, v, m", "bias:bh"),
    "boolean": ("", ", bool[B,1,5,7] m", "q, k, v, m", "bias:h"),
    "cap": ("softcap=1.5", "", "q, k, v", "cap"),
    "causal": ("is_causal=1", "", "q, k, v", "bias:bh"),
}


@pytest.mark.parametrize("case", NODES)
def test_rewrite_attention_of_an_attention_node_gives_the_same_answers(case):
    attributes, more, inputs, described = NODES[case]
    variant = rewritten(_node(attributes, more, inputs=inputs))
    words = [f"{one.modifier}:{one.broadcast}" for one in variant.operands] + (["cap"] if variant.soft_cap else [])
    assert " ".join(words) == described
    assert variant.scale == (pytest.approx(0.3) if case == "scale" else 0.25)
    assert variant.value_size == 12


def test_rewrite_attention_of_a_boolean_mask_that_hides_all_keys_answers_as_before():
    model = _node("", ", bool[B,1,5,7] m", inputs="q, k, v, m")
    feeds = feeds_of(model)
    feeds["m"] = np.zeros_like(feeds["m"])
    assert not answers(model, feeds).any()
    rewrite_attention(model, "plugin")
    assert not answers(model, feeds).any()


def test_rewrite_attention_of_a_causal_node_with_a_boolean_mask_that_hides_all_keys_answers_as_before():
    model = _node("is_causal=1", ", bool[1,1,5,7] m", inputs="q, k, v, m")
    feeds = feeds_of(model)
    feeds["m"] = np.ones((1, 1, 5, 7), bool)
    feeds["m"][..., 0] = False  # the first query may see no other
    expected = answers(model, feeds)
    assert not expected[:, :, 0].any()
    assert rewritten(model, feeds=feeds).operands[0].broadcast == "bh"


def test_rewrite_attention_of_a_node_with_three_dimensions_reshapes_into_tokens_first():
    inputs = "float[B,5,32] q, float[B,7,32] k, float[B,7,24] v, float[2,5,7] m"
    text = f'<ir_version: 11, opset_import: ["": 23]>\nagraph ({inputs}) => (float[B,5,24] y) {{\n'
    model = parsed(text + "y = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v, m) }")
    variant = rewritten(model)
    assert (variant.layout, variant.output_layout) == (Layout.TOKENS_FIRST, Layout.TOKENS_FIRST)
    assert (variant.head_size, variant.value_size) == (16, 12)
    assert kinds(model).count("Transpose") == 0


NODES_LEFT = {
    "cap-and-mask": ("softcap=2.0", ", float[5,7] m", "q, k, v, m", None, "has a soft cap and a mask"),
    "past": (
        "", ", float[B,2,3,16] a, float[B,2,3,12] b", "",
        "z, c, d = Attention(q, k, v, , a, b) r = ReduceSum(c) t = ReduceSum(d) u = Add(z, r) y = Add(u, t)",
        "it takes past keys",
    ),
    "scores-out": (
        "", "", "", "z, , , s = Attention(q, k, v) r = ReduceSum(s) y = Add(z, r)", "gives its keys, values or scores",
    ),
    "groups": (
        "", ", float[B,4,5,16] q4, float[B,2,7,16] k2, float[B,2,7,16] v2", "", "y = Attention(q4, k2, v2)",
        "don't have the same known batch, heads",
    ),
    "large-head": (
        "", ", float[B,2,5,600] q4, float[B,2,7,600] k2, float[B,2,7,16] v2", "", "y = Attention(q4, k2, v2)",
        "a head size of 600",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NODES_LEFT)
def test_rewrite_attention_leaves_a_node_of_another_form_and_says_why(case):
    attributes, more, inputs, body, reason = NODES_LEFT[case]
    assert reason in left(_node(attributes, more, inputs=inputs, body=body))


# --- softmax-free attention ---

QKV = "float[B,2,5,16] q, float[B,2,7,16] k, float[B,2,7,12] v"
NUMBERS = (
    "<float two = {2}, float half = {-0.2}, float plus = {0.2}, int64[1] last = {-1}, int64[1] before = {-2}, float zero = {0}>"
)
SUMS = "qq = Mul(q, q) kk = Pow(k, two) a = ReduceSum<keepdims=1>(qq, last) "
KT = "kt = Transpose<perm=[0,1,3,2]>(k) "
GAUSSIAN = {
    "sums": SUMS + KT + "b0 = ReduceSum<keepdims=0>(kk, last) b = Unsqueeze(b0, before) c = MatMul(q, kt) c2 = Mul(c, two)"
                        " ab = Add(a, b) d = Sub(ab, c2) e = Mul(d, half) p = Exp(e)",
    "transposed-keys": SUMS + KT + "kt2 = Mul(kt, kt) b = ReduceSum<keepdims=1>(kt2, before) c = MatMul(q, kt) c2 = Mul(two, c)"
                                   " ac = Sub(a, c2) d = Add(ac, b) e = Mul(d, half) p = Exp(e)",
    "turned-sums": SUMS + KT + "b0 = ReduceSumSquare<keepdims=1>(k, last) b = Transpose<perm=[0,1,3,2]>(b0) c = MatMul(q, kt)"
                               " c2 = Mul(c, two) ab = Add(a, b) d = Sub(c2, ab) e = Mul(d, plus) p = Exp(e)",
    "cdist": SUMS + KT + "b0 = ReduceSum<keepdims=0>(kk, last) b = Unsqueeze(b0, before) c = MatMul(q, kt) c2 = Mul(c, two)"
                         " ab = Add(a, b) d = Sub(ab, c2) d1 = Clip(d, zero) d2 = Sqrt(d1) d3 = Pow(d2, two) e = Mul(d3, half)"
                         " p = Exp(e)",
    "spread": "q1 = Unsqueeze(q, before) k0 = Transpose<perm=[0,1,2,3]>(k) k1 = Unsqueeze(k0, three) d0 = Sub(q1, k1)"
              " d1 = Pow(d0, two) d = ReduceSum<keepdims=0>(d1, last) e = Mul(d, half) p = Exp(e)",
}  # fmt: skip


@pytest.mark.parametrize("case", GAUSSIAN)
def test_rewrite_attention_of_gaussian_attention_however_written(case):
    extra = NUMBERS.replace(">", ", int64[1] three = {2}>")
    model = _graph(QKV, GAUSSIAN[case] + " y = MatMul(p, v)", extra=extra)
    variant = rewritten(model, within=1e-5)
    assert variant.kernel is Kernel.GAUSSIAN
    assert variant.scale == pytest.approx(0.4)
    assert kinds(model) == ["shallowvit"] or case == "spread"


def test_rewrite_attention_of_soft_written_with_ones_gives_the_same_answers():
    o, u = (",".join("1" * count) for count in (16 * 7, 5 * 16))
    ones = f"<float two = {{2}}, float minus = {{-0.5}}, float[16,7] o = {{{o}}}, float[5,16] u = {{{u}}}>"
    body = KT + "qq = Pow(q, two) kk = Pow(kt, two) a = MatMul(qq, o) b = MatMul(u, kk) c = MatMul(q, kt) c2 = Mul(two, c)"
    model = _graph(QKV, body + " ab = Add(a, b) d = Sub(ab, c2) e = Mul(d, minus) p = Exp(e) y = MatMul(p, v)", extra=ones)
    assert rewritten(model, within=1e-5).scale == pytest.approx(1.0)


def test_rewrite_attention_auto_takes_gaussian_attention_and_leaves_linear_to_tensorrt():
    model = _graph(QKV, GAUSSIAN["sums"] + " y = MatMul(p, v)", extra=NUMBERS)
    assert len(rewrite_attention(model, "auto").replaced) == 1
    model = _graph(QKV, LINEAR["sum"][0], extra=LINEAR_NUMBERS)
    result = rewrite_attention(model, "auto")
    assert (result.found, result.replaced, result.left) == (1, (), ())


@pytest.mark.parametrize(
    ("body", "numbers", "kernel", "said"),
    [
        (GAUSSIAN["sums"] + " y = MatMul(p, v)", "NUMBERS", Kernel.GAUSSIAN, "weights, tokens times tokens, are written"),
        ("sum", "LINEAR_NUMBERS", Kernel.LINEAR, "none of them tokens times tokens"),
    ],
)
def test_survey_graph_lists_attention_without_a_softmax_too(tmp_path, body, numbers, kernel, said):
    body = LINEAR[body][0] if body in LINEAR else body
    onnx_ir.save(_graph(QKV, body, extra=globals()[numbers]), tmp_path / "graph.onnx")
    (found,) = survey_graph(tmp_path / "graph.onnx")
    assert found.variant.kernel is kernel
    assert said in found.site.obstacle
    assert (found.site.kind, found.reason) == ("pattern", None)


GAUSSIAN_LEFT = {
    "used": (GAUSSIAN["sums"] + " r = ReduceSum(p) z = MatMul(p, v) y = Mul(z, r)", "used by more than the product"),
    "changed": (GAUSSIAN["sums"] + " t = Tanh(p) y = MatMul(t, v)", "Tanh changes the exponentials"),
    "growing": (
        GAUSSIAN["sums"].replace("p = Exp(e)", "m = Neg(e) p = Exp(m)") + " y = MatMul(p, v)",
        "grows with the distance",
    ),
}


@pytest.mark.parametrize("case", GAUSSIAN_LEFT)
def test_rewrite_attention_leaves_gaussian_attention_it_cannot_do(case):
    body, reason = GAUSSIAN_LEFT[case]
    assert reason in left(_graph(QKV, body, extra=NUMBERS))


NOT_GAUSSIAN = {
    "other-factor": GAUSSIAN["sums"].replace("c2 = Mul(c, two)", "c2 = Mul(c, half)"),
    "other-keys": GAUSSIAN["sums"].replace("kk = Pow(k, two)", "kr = Relu(k) kk = Pow(kr, two)"),
    "other-queries": GAUSSIAN["sums"].replace("qq = Mul(q, q)", "qr = Relu(q) qq = Mul(qr, qr)"),
    "distance-itself": GAUSSIAN["cdist"].replace("d3 = Pow(d2, two)", "d3 = Identity(d2)"),
}


@pytest.mark.parametrize("case", NOT_GAUSSIAN)
def test_rewrite_attention_does_not_touch_other_exponentials(case):
    model = _graph(QKV, NOT_GAUSSIAN[case] + " y = MatMul(p, v)", extra=NUMBERS)
    before = kinds(model)
    result = rewrite_attention(model, "plugin")
    assert (result.found, result.replaced, kinds(model)) == (0, (), before)


LINEAR_NUMBERS = (
    "<float eps = {0.00001}, float one = {1}, int64[1] last = {-1}, int64[1] before = {-2}, int64[1] start = {0},"
    " int64[1] end = {-1}, int64[1] far = {9999}, int64[8] pads = {0, 0, 0, 0, 0, 0, 0, 1}>"
)
RELU = "f = Relu(q) g = Relu(k) gt = Transpose<perm=[0,1,3,2]>(g) "
ELU = "f0 = Elu(q) f = Add(f0, one) g0 = Elu(k) g = Add(one, g0) gt = Transpose<perm=[0,1,3,2]>(g) "
SHARE = "s = MatMul(gt, v) z = MatMul(f, s) t0 = ReduceSum<keepdims=1>(g, before) "
SHARE += "t = Transpose<perm=[0,1,3,2]>(t0) r = MatMul(f, t) "
LINEAR = {
    "sum": (RELU + SHARE + "r1 = Add(r, eps) y = Div(z, r1)", FeatureMap.RELU, 1e-5),
    "elu": (ELU + SHARE + "r1 = Add(eps, r) y = Div(z, r1)", FeatureMap.ELU_PLUS_ONE, 1e-5),
    "no-epsilon": (ELU + SHARE + "y = Div(z, r)", FeatureMap.ELU_PLUS_ONE, 0.0),
    "reciprocal": (ELU + SHARE + "r1 = Reciprocal(r) y = Mul(z, r1)", FeatureMap.ELU_PLUS_ONE, 0.0),
    "one-over": (ELU + SHARE + "r1 = Div(one, r) y = Mul(r1, z)", FeatureMap.ELU_PLUS_ONE, 0.0),
    "summed-products": (
        RELU + "s = MatMul(gt, v) z = MatMul(f, s) t = ReduceSum<keepdims=1>(g, before) m = Mul(f, t)"
        " r = ReduceSum<keepdims=1>(m, last) r1 = Add(r, eps) y = Div(z, r1)", FeatureMap.RELU, 1e-5,
    ),
    "column": (
        RELU + "w = Pad(v, pads, one) s = MatMul(gt, w) z = MatMul(f, s) a = Slice(z, start, end, last)"
        " b = Slice(z, end, far, last) r = Add(b, eps) y = Div(a, r)", FeatureMap.RELU, 1e-5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LINEAR)
def test_rewrite_attention_of_linear_attention_however_written(case):
    body, feature_map, epsilon = LINEAR[case]
    model = _graph(QKV, body, extra=LINEAR_NUMBERS)
    variant = rewritten(model)
    assert (variant.kernel, variant.feature_map) == (Kernel.LINEAR, feature_map)
    assert variant.epsilon == pytest.approx(epsilon)
    assert kinds(model) == ["shallowvit"]


def test_rewrite_attention_leaves_linear_attention_with_two_feature_maps():
    body = (RELU + SHARE + "y = Div(z, r)").replace("g = Relu(k)", "g = Sigmoid(k)")
    assert "don't go through one feature map" in left(_graph(QKV, body, extra=LINEAR_NUMBERS))


def test_rewrite_attention_leaves_linear_attention_whose_epsilon_adds_a_dimension():
    body = RELU + SHARE + "r1 = Add(r, five) y5 = Div(z, r1) y = Squeeze(y5, start)"
    numbers = LINEAR_NUMBERS.replace("<", "<float[1,1,1,1,1] five = {0.00001}, ")
    assert "makes 5 dimensions of the 4 of the queries" in left(_graph(QKV, body, extra=numbers))


NOT_LINEAR = {
    "other-sum": RELU + SHARE.replace("ReduceSum<keepdims=1>(g, before)", "ReduceSum<keepdims=1>(k, before)") + "y = Div(z, r)",
    "other-column": LINEAR["column"][0].replace("Slice(z, start, end, last)", "Slice(z, last, far, last)"),
    "other-pad": LINEAR["column"][0].replace("Pad(v, pads, one)", "Pad(v, pads, eps)"),
}


@pytest.mark.parametrize("case", NOT_LINEAR)
def test_rewrite_attention_does_not_touch_what_is_no_linear_attention(case):
    model = _graph(QKV, NOT_LINEAR[case], extra=LINEAR_NUMBERS)
    before = kinds(model)
    result = rewrite_attention(model, "plugin")
    assert (result.found, result.replaced, kinds(model)) == (0, (), before)


# --- layouts ---

FLAT = "float[B,T,96] x"
LAYOUT_NUMBERS = (
    "<int64[5] packed = {0, 0, 3, 2, 16}, int64[4] heads = {0, 0, 2, 16}, int64[3] flat = {0, 0, 32}, int64 i0 = {0},"
    " int64 i1 = {1}, int64 i2 = {-1}, int64[1] zero = {0}, int64[3] ones = {1, 1, 1}, int64[3] thirds = {32, 32, 32}>"
)
PACKED = "r = Reshape(x, packed) t = Transpose<perm=[2,0,3,1,4]>(r) "
CORE = "kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) p = Softmax(s) o = MatMul(p, v) "
BACK = "o1 = Transpose<perm=[0,2,1,3]>(o) y = Reshape(o1, flat)"
LAYOUTS = {
    "gathered": (
        PACKED + "q = Gather<axis=0>(t, i0) k = Gather<axis=0>(t, i1) v = Gather<axis=0>(t, i2) " + CORE + BACK,
        "bn3hd bnhd", ["Reshape", "shallowvit", "Reshape"],
    ),
    "split": (
        PACKED + "a, b, c = Split<axis=0>(t, ones) q = Squeeze(a, zero) k = Squeeze(b, zero) v = Squeeze(c, zero) "
        + CORE + BACK,
        "bn3hd bnhd", ["Reshape", "shallowvit", "Reshape"],
    ),
    "split-flat": (
        "a, b, c = Split<axis=-1>(x, thirds) a1 = Reshape(a, heads) b1 = Reshape(b, heads) c1 = Reshape(c, heads)"
        " q = Transpose<perm=[0,2,1,3]>(a1) k = Transpose<perm=[0,2,1,3]>(b1) v = Transpose<perm=[0,2,1,3]>(c1) " + CORE + BACK,
        "bn3hd bnhd", ["Reshape", "shallowvit", "Reshape"],
    ),
    "keys-and-queries-swapped": (
        PACKED + "q = Gather<axis=0>(t, i1) k = Gather<axis=0>(t, i0) v = Gather<axis=0>(t, i2) " + CORE + BACK,
        "bnhd bnhd", ["Reshape", "Gather", "Gather", "Gather", "shallowvit", "Reshape"],
    ),
    "keys-transposed-at-once": (
        "a, b, c = Split<axis=-1>(x, thirds) a1 = Reshape(a, heads) b1 = Reshape(b, heads) c1 = Reshape(c, heads) c2 = Relu(c1)"
        " q = Transpose<perm=[0,2,1,3]>(a1) kt = Transpose<perm=[0,2,3,1]>(b1) v = Transpose<perm=[0,2,1,3]>(c2)"
        " s = MatMul(q, kt) p = Softmax(s) o = MatMul(p, v) " + BACK,
        "bnhd bnhd", ["Split", "Reshape", "Reshape", "Reshape", "Relu", "shallowvit", "Reshape"],
    ),
    "queries-normalised": (
        PACKED + "q0 = Gather<axis=0>(t, i0) q = Relu(q0) k = Gather<axis=0>(t, i1) v = Gather<axis=0>(t, i2) " + CORE + BACK,
        "bhnd bnhd", ["Reshape", "Transpose", "Gather", "Relu", "Gather", "Gather", "shallowvit", "Reshape"],
    ),
    "output-used-twice": (
        PACKED + "q = Gather<axis=0>(t, i0) k = Gather<axis=0>(t, i1) v = Gather<axis=0>(t, i2) " + CORE
        + "o1 = Transpose<perm=[0,2,1,3]>(o) o2 = Transpose<perm=[0,2,1,3]>(o) o3 = Add(o1, o2) y = Reshape(o3, flat)",
        "bn3hd bhnd", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_rewrite_attention_takes_transpositions_into_the_node_where_that_is_exact(case):
    body, layouts, expected = LAYOUTS[case]
    text = f'<ir_version: 10, opset_import: ["": 18]>\nagraph ({FLAT}) => (float[B,T,32] y) {LAYOUT_NUMBERS} {{\n{body}\n}}'
    model = parsed(text)
    variant = rewritten(model)
    assert f"{variant.layout} {variant.output_layout}" == layouts
    assert expected is None or kinds(model) == expected
    assert answers(model, feeds_of(model, batch=1, size=9)).shape == (1, 9, 32)


# --- back again ---


@pytest.mark.parametrize("opset", [18, 23])
def test_inline_plugins_gives_plain_operators_with_the_same_answers(opset):
    model = pattern({"s": "a = MatMul(q, kt) s = Add(a, m)"}, ", float[1,2,5,1] m", opset=opset)
    feeds = feeds_of(model)
    expected = answers(model, feeds)
    ((name, variant),) = rewrite_attention(model, "plugin").replaced
    assert plugins_of(model) == ((name, variant),)
    assert inline_plugins(model) == 1
    assert plugins_of(model) == ()
    assert "shallowvit" not in model.graph.opset_imports
    assert dict(model.functions) == {}
    assert relative(answers(model, feeds), expected) < 2e-6
    (site,) = find_attentions(model)
    assert (site.anchor, site.kind, site.heads, site.head_size) == (name, "Attention" if opset == 23 else "pattern", 2, 20)
    assert inline_plugins(model) == 0


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("scores", ["a = MatMul(q, kt)", "b = MatMul(q, kt) a = Tanh(b)"])
def test_inline_plugins_of_a_guarded_mask_gives_zeros_to_queries_that_see_no_key(opset, scores):
    steps = {"s": f"{scores} s = Where(m, a, c)", "y": "n = IsNaN(p) d = Where(n, z, p) y = MatMul(d, v)"}
    model = pattern(steps, ", bool[B,1,5,7] m", extra="<float z = {0}, float c = {-1}>", opset=opset)
    model.graph.initializers["c"].const_value = onnx_ir.tensor(np.array(-np.inf, np.float32), name="c")
    feeds = feeds_of(model)
    feeds["m"] = feeds["m"].copy()
    feeds["m"][1, 0, 2] = False
    expected = answers(model, feeds)
    assert not expected[1, :, 2].any()
    assert len(rewrite_attention(model, "plugin").replaced) == 1
    inline_plugins(model)
    assert relative(answers(model, feeds), expected) < 2e-6


def test_inline_plugins_of_half_precision_multiplies_in_it_so_that_tensorrt_fuses():
    model = pattern({}, kind="float16")
    rewrite_attention(model, "plugin")
    inline_plugins(model)
    assert {node.outputs[0].dtype for node in model.graph if node.op_type == "MatMul"} == {onnx_ir.DataType.FLOAT16}
    assert [site.obstacle for site in find_attentions(model)] == [None]


def test_inline_plugins_of_some_operators_keeps_the_others():
    body = GAUSSIAN["sums"] + " y0 = MatMul(p, v) ss = MatMul(q, kt) pp = Softmax(ss) y1 = MatMul(pp, v) y = Add(y0, y1)"
    model = _graph(QKV, body, extra=NUMBERS)
    feeds = feeds_of(model)
    expected = answers(model, feeds)
    names = {variant.kernel: variant.name for _, variant in rewrite_attention(model, "plugin").replaced}
    assert inline_plugins(model, operators={names[Kernel.GAUSSIAN]}) == 1
    assert [variant.name for _, variant in plugins_of(model)] == [names[Kernel.ATTENTION]]
    assert [key[1] for key in model.functions] == [names[Kernel.ATTENTION]]
    assert relative(answers(model, feeds), expected) < 1e-5


def test_rewrite_attention_of_a_rewritten_graph_finds_nothing_more():
    model = pattern({})
    rewrite_attention(model, "plugin")
    before = onnx_ir.to_proto(model).SerializeToString(deterministic=True)
    assert rewrite_attention(model, "plugin").found == 0
    assert onnx_ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_plugins_of_a_damaged_node_says_so():
    model = pattern({})
    rewrite_attention(model, "plugin")
    node = next(node for node in model.graph if node.domain == "shallowvit")
    node.attributes["variant"] = onnx_ir.AttrString("variant", "{}")
    with pytest.raises(KernelError, match="variant: damaged"):
        plugins_of(model)


def test_rewrite_attention_at_other_sizes_answers_as_before():
    text = """<ir_version: 10, opset_import: ["": 18]>
    agraph (float[B,2,N,8] q, float[B,2,M,8] k, float[B,2,M,8] v, float[B,1,N,M] m) => (float[B,2,N,8] y) {
        kt = Transpose<perm=[0,1,3,2]>(k) a = MatMul(q, kt) s = Add(a, m) p = Softmax(s) y = MatMul(p, v) }"""
    generator = np.random.default_rng(2)
    before, after = parsed(text), parsed(text)
    assert len(rewrite_attention(after, "plugin").replaced) == 1
    for batch, queries, keys in ((1, 1, 9), (4, 6, 3)):
        shapes = {
            "q": (batch, 2, queries, 8),
            "k": (batch, 2, keys, 8),
            "v": (batch, 2, keys, 8),
            "m": (batch, 1, queries, keys),
        }
        feeds = {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
        assert relative(answers(after, feeds), answers(before, feeds)) < 2e-6
