import copy

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import nn

from shallowvit import ExportConfig, ShallowvitError
from shallowvit.engines.build import build_engine
from shallowvit.errors import ParityError
from shallowvit.exporting.bf16 import emulated_bf16
from shallowvit.exporting.fusing import fuse_attention
from shallowvit.exporting.graph import trace
from shallowvit.exporting.islands import cast_attention
from shallowvit.exporting.masks import drop_neutral_masks
from shallowvit.exporting.parity import TOLERANCES, check_parity
from shallowvit.exporting.records import GraphInput, Precision
from shallowvit.exporting.upcast import upcast_blocks, upcast_nodes

HEADS, SIZE, TOKENS = 2, 20, 5  # a head size whose root is no power of two, so that a wrong scale shows


class VideoMAEAttention(nn.Module):
    """As the original code has it: packed projections without a bias of the keys, queries scaled first."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.dropout, self.proj = nn.Dropout(0.1), nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, _ = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = nn.functional.linear(x, self.qkv.weight, bias).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        weights = self.dropout((q @ k.transpose(-2, -1)).softmax(dim=-1))
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, -1))


class VideoMAEBlocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(VideoMAEAttention(40, 2) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


class Deployed(nn.Module):
    """fp32 in, fp32 out, as ``deployable`` wraps a model."""

    def __init__(self, model, dtype=torch.float32):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, x):
        output = self.model(x.to(self.dtype))
        return (output.logits if hasattr(output, "logits") else output).float()


def _timm(name, **settings):
    import timm
    from timm.layers import set_fused_attn

    set_fused_attn(False)
    try:
        return timm.create_model(name, num_classes=5, img_size=32, **settings)
    finally:
        set_fused_attn(True)


def _timm_vit():
    return _timm("vit_tiny_patch16_224", patch_size=8, depth=2, embed_dim=40, num_heads=2, qk_norm=True)


def _timm_swin():
    return _timm("swin_tiny_patch4_window7_224", patch_size=2, window_size=4, depths=(2,), embed_dim=40, num_heads=(2,))


def _beit():
    return _timm("beit_base_patch16_224", patch_size=8, depth=2, embed_dim=40, num_heads=2)


def _vit(attention="sdpa"):
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    config = ViTConfig(**small, image_size=32, patch_size=8, num_labels=5)
    config._attn_implementation = attention
    return ViTForImageClassification(config)


FAMILIES = {
    "timm-vit-qk-norm": (_timm_vit, (3, 32, 32)),
    "timm-swin": (_timm_swin, (3, 32, 32)),
    "original-videomae": (VideoMAEBlocks, (7, 40)),
    "timm-beit": (_beit, (3, 32, 32)),
    "transformers-vit-sdpa": (_vit, (3, 32, 32)),
}


def _model(family):
    torch.manual_seed(0)
    model = FAMILIES[family][0]().eval()
    for parameter in model.parameters():  # far from the library's start, so that every block shows in the output
        nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else nn.init.uniform_(parameter, 0.3, 1.0)
    return model


def _trace(model, shape, opset, dtype=torch.float32):
    graph, _steps = trace(Deployed(model, dtype), (GraphInput("x", "float32", "N", shape),), ("y",), ExportConfig(opset=opset))
    return graph


@pytest.fixture(scope="module")
def traced():
    """A family's graph in fp32 as torch exports it: the same bytes read anew each time."""
    made = {}

    def graph(family, opset):
        if (family, opset) not in made:
            made[family, opset] = onnx_ir.to_proto(_trace(_model(family), FAMILIES[family][1], opset))
        return onnx_ir.from_proto(made[family, opset])

    return graph


def _answers(model, feeds):
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def _pictures(family, count=3):
    return np.random.default_rng(0).standard_normal((count, *FAMILIES[family][1]), dtype=np.float32)


def _kinds(model):
    return [node.op_type for node in model.graph]


def _relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def _fused(model, tmp_path):
    """(fused, attentions) of the engine that is built from the graph."""
    onnx_ir.save(model, tmp_path / "m.onnx")
    report = build_engine(tmp_path / "m.onnx", tmp_path).fusion
    return report.fused, report.expected


CASES = [*((family, 18) for family in FAMILIES), ("original-videomae", 23)]


@pytest.mark.parametrize(("family", "opset"), CASES)
def test_fuse_attention_of_a_real_model_gives_one_node_a_block_and_the_same_answers(traced, family, opset):
    model = traced(family, opset)
    expected = _answers(model, {"x": _pictures(family)})
    result = fuse_attention(model)
    assert (result.found, result.rewritten, result.left) == (2, 2, ())
    assert (_kinds(model).count("Attention"), _kinds(model).count("Softmax")) == (2, 0)
    assert model.graph.opset_imports[""] == 23
    assert _relative(_answers(model, {"x": _pictures(family)}), expected) < 2e-6
    assert _answers(model, {"x": _pictures(family, 1)}).shape[0] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_fuse_attention_keeps_which_block_a_node_is_of(traced, family):
    model = traced(family, 18)
    before = {node.name: node.metadata_props for node in model.graph if node.op_type == "Softmax"}
    fuse_attention(model)
    after = {node.name: node.metadata_props for node in model.graph if node.op_type == "Attention"}
    assert after == before
    assert all("name_scopes" in " ".join(props) for props in after.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_cast_attention_of_a_rewritten_model_builds_with_all_attention_fused(traced, family, tmp_path):
    model = traced(family, 18)
    expected = _answers(model, {"x": _pictures(family)})
    fuse_attention(model)
    assert cast_attention(model, Precision.FP16) == 2
    assert cast_attention(model, Precision.FP16) == 0
    assert 0 < _relative(_answers(model, {"x": _pictures(family)}), expected) < 2e-3
    assert _fused(model, tmp_path) == (2, 2)


def test_cast_attention_of_the_pattern_builds_with_all_attention_fused(traced, tmp_path):
    model = traced("timm-swin", 18)
    named = [(node.name, node.metadata_props) for node in model.graph if node.op_type == "Softmax"]
    assert cast_attention(model, Precision.BF16) == 2
    assert [(node.name, node.metadata_props) for node in model.graph if node.op_type == "Softmax"] == named
    assert model.graph.opset_imports[""] == 18
    kinds = {node.outputs[0].dtype for node in model.graph if node.op_type == "Softmax"}
    assert kinds == {onnx_ir.DataType.BFLOAT16}
    assert _fused(model, tmp_path) == (2, 2)


# --- patterns a few nodes long ---

HEADER = (
    '<ir_version: 8, opset_import: ["": {opset}]>\nagraph ({kind}[B,2,5,20] q, {kind}[B,2,5,20] k, {kind}[B,2,5,20] v{more})'
)
PLAIN = {
    "k": "kt = Transpose<perm=[0,1,3,2]>(k)",
    "s": "s = MatMul(q, kt)",
    "p": "p = Softmax<axis=-1>(s)",
    "y": "y = MatMul(p, v)",
}
BIAS = ", float[1,2,5,5] m"
TO32, TO16 = "Cast<to=1>", "Cast<to=10>"


def _pattern(steps, more="", *, opset=18, kind="float", outputs=("y",), extra=""):
    """A graph of the plain attention with some of its lines replaced."""
    types = {"y": f"{kind}[B,H,N,20]", "p": f"{kind}[B,2,5,5]", "s": f"{kind}[B,2,5,5]"}
    head = HEADER.format(opset=opset, kind=kind, more=more)
    result = ", ".join(f"{types[name]} {name}" for name in outputs)
    body = "\n".join((PLAIN | steps).values())
    proto = onnx.parser.parse_model(f"{head} => ({result}) {extra} {{\n{body}\n}}")
    onnx.checker.check_model(proto, full_check=True)
    return onnx_ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def _feeds(model, batch=3):
    """Normal numbers; of boolean masks every second key is True, so that each query sees some whichever way it is meant."""
    generator = np.random.default_rng(1)
    feeds = {}
    for value in model.graph.inputs:
        numbers = generator.standard_normal([dim if isinstance(dim, int) else batch for dim in value.shape], dtype=np.float32)
        seen = np.broadcast_to(np.arange(numbers.shape[-1]) % 2 == 0, numbers.shape)
        feeds[value.name] = numbers.astype(value.dtype.numpy()) if value.dtype.is_floating_point() else seen
    return feeds


NUMBER = "<float c = {NUMBER}>"
REWRITTEN = {
    "plain": ({}, "", ""),
    "queries-scaled": ({"s": "a = Mul(q, c) s = MatMul(a, kt)"}, "", NUMBER),
    "constant-first": ({"s": "a = Mul(c, q) s = MatMul(a, kt)"}, "", NUMBER),
    "scores-multiplied": ({"s": "a = MatMul(q, kt) s = Mul(a, c)"}, "", NUMBER),
    "scores-divided": ({"s": "a = MatMul(q, kt) s = Div(a, c)"}, "", NUMBER),
    "queries-and-keys-scaled": ({"s": "a = Mul(q, c) b = Div(kt, c) d = Mul(b, c) s = MatMul(a, d)"}, "", NUMBER),
    "keys-scaled-before": ({"k": "b = Mul(k, c) kt = Transpose<perm=[0,1,3,2]>(b)"}, "", NUMBER),
    "keys-of-another-layout": ({"k": "b = Transpose<perm=[0,2,1,3]>(k) kt = Transpose<perm=[0,2,3,1]>(b)"}, "", ""),
    "keys-by-three-dimensions": (
        {"k": "b = Reshape(k, f) d = Transpose<perm=[0,2,1]>(b) kt = Reshape(d, g)"}, "",
        "<int64[3] f = {-1, 5, 20}, int64[4] g = {-1, 2, 20, 5}>",
    ),
    "keys-gathered": (
        {"k": "b = Transpose<perm=[2,0,1,3,4]>(w) kt = Gather<axis=0>(b, i)"}, ", float[B,2,3,20,5] w", "<int64 i = {1}>"
    ),
    "dropout-and-identity": ({"y": "a, b = Dropout(p) d = Identity(a) y = MatMul(d, v)"}, "", ""),
    "bias": ({"s": "a = MatMul(q, kt) s = Add(a, m)"}, BIAS, ""),
    "bias-first": ({"s": "a = MatMul(q, kt) s = Add(m, a)"}, BIAS, ""),
    "bias-before-the-scale": ({"s": "a = MatMul(q, kt) b = Add(a, m) s = Mul(b, c)"}, BIAS, NUMBER),
    "two-masks": ({"s": "a = MatMul(q, kt) b = Add(a, m) s = Add(b, n)"}, BIAS + ", float[B,1,5,5] n", ""),
    "mask-without-batch": ({"s": "a = MatMul(q, kt) s = Add(a, m)"}, ", float[5,5] m", ""),
    "mask-of-keys": ({"s": "a = MatMul(q, kt) s = Add(a, m)"}, ", float[B,1,1,5] m", ""),
    "masked-fill": ({"s": "a = MatMul(q, kt) s = Where(m, a, c)"}, ", bool[1,2,5,5] m", "<float c = {-1e9}>"),
    "masked-fill-turned": ({"s": "a = MatMul(q, kt) s = Where(m, c, a)"}, ", bool[1,2,5,5] m", "<float c = {-1e9}>"),
    "scale-of-each-head": ({"s": "a = MatMul(q, kt) b = Mul(a, h) s = Add(b, m)"}, ", float[2,1,1] h" + BIAS, ""),
    "windows": (
        {"s": "a = MatMul(q, kt) b = Reshape(a, f) d = Add(b, w) s = Reshape(d, g)"}, ", float[1,3,1,5,5] w",
        "<int64[5] f = {-1, 3, 2, 5, 5}, int64[4] g = {-1, 2, 5, 5}>",
    ),
    "grids": (
        {"s": "a = MatMul(q, kt) b = Reshape(a, f) d = Add(b, w) e = Add(d, u) s = Reshape(e, g)"},
        ", float[B,2,5,1,5,1] w, float[1,5,1,1,1] u",
        "<int64[6] f = {-1, 2, 5, 1, 5, 1}, int64[4] g = {-1, 2, 5, 5}>",
    ),
    "five-dimensions": (
        {"k": "t = Transpose<perm=[0,1,2,4,3]>(k5)", "s": "s = MatMul(q5, t)", "y": "z = MatMul(p, v5) y = Reshape(z, f)"},
        ", float[B,3,2,7,20] q5, float[B,3,2,5,20] k5, float[B,3,2,5,20] v5", "<int64[4] f = {0, 6, 7, 20}>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REWRITTEN)
def test_fuse_attention_of_a_variant_answers_as_before(case):
    steps, more, extra = REWRITTEN[case]
    model = _pattern(steps, more, extra=extra.replace("NUMBER", "0.31"))
    feeds = _feeds(model)
    expected = _answers(model, feeds)
    assert fuse_attention(model) == fuse_attention_result(1, 1)
    assert (_kinds(model).count("Attention"), "Softmax" in _kinds(model)) == (1, False)
    assert model.graph.outputs[0].name == "y"
    assert _relative(_answers(model, feeds), expected) < 2e-6


def fuse_attention_result(found, rewritten, *left):
    from shallowvit.exporting.fusing import FusedAttention

    return FusedAttention(found, rewritten, left)


@pytest.mark.parametrize("case", REWRITTEN)
def test_cast_attention_of_a_variant_answers_nearly_as_before(case):
    steps, more, extra = REWRITTEN[case]
    model = _pattern(steps, more, extra=extra.replace("NUMBER", "0.31"))
    feeds = _feeds(model)
    expected = _answers(model, feeds)
    assert cast_attention(model, Precision.FP16) == 1
    assert next(node for node in model.graph if node.op_type == "Softmax").outputs[0].dtype == onnx_ir.DataType.FLOAT16
    assert _relative(_answers(model, feeds), expected) < 3e-3


def test_fuse_attention_of_fp16_with_a_softmax_in_fp32_drops_the_casts():
    steps = {"p": f"a = {TO32}(s) b = Softmax<axis=-1>(a) p = {TO16}(b)"}
    model = _pattern(steps, kind="float16")
    feeds = _feeds(model)
    expected = _answers(model, feeds)
    assert fuse_attention(model).rewritten == 1
    assert "Cast" not in _kinds(model)
    assert _relative(_answers(model, feeds).astype("f4"), expected.astype("f4")) < 2e-3


def test_fuse_attention_of_fp16_casts_a_wider_mask_without_infinities():
    steps = {"p": f"a = {TO32}(s) d = Add(a, m) b = Softmax<axis=-1>(d) p = {TO16}(b)"}
    model = _pattern(steps, BIAS, kind="float16")
    mask = np.zeros((1, 2, 5, 5), "f4")
    mask[:, :, 0], mask[:, :, 1:, :3] = np.finfo("f4").min, np.finfo("f4").min  # the first query sees no key at all
    feeds = _feeds(model) | {"m": mask}
    expected = _answers(model, feeds)
    assert fuse_attention(model).rewritten == 1
    found = _answers(model, feeds)
    assert np.isfinite(found).all()
    assert _relative(found[:, :, 1:].astype("f4"), expected[:, :, 1:].astype("f4")) < 2e-3


def test_fuse_attention_of_one_batched_product_a_head_keeps_three_dimensions():
    text = """<ir_version: 8, opset_import: ["": 18]>
    agraph (float[H,5,20] q, float[H,5,20] k, float[H,5,20] v, float[H,5,5] m) => (float[H,5,20] y) {
        kt = Transpose<perm=[0,2,1]>(k) a = MatMul(q, kt) s = Add(a, m) p = Softmax(s) y = MatMul(p, v) }"""
    model = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    feeds = _feeds(model)
    expected = _answers(model, feeds)
    assert fuse_attention(model).rewritten == 1
    assert _relative(_answers(model, feeds), expected) < 2e-6


def test_fuse_attention_of_one_head_with_a_mask_builds_fused(tmp_path):
    """TensorRT-RTX refuses the node with one head and a mask, so the batch takes the place of the heads."""
    text = """<ir_version: 8, opset_import: ["": 18]>
    agraph (float[B,1,5,20] q, float[B,1,5,20] k, float[B,1,5,20] v, float[B,1,5,5] m) => (float[B,1,5,20] y) {
        kt = Transpose<perm=[0,1,3,2]>(k) a = MatMul(q, kt) s = Add(a, m) p = Softmax(s) z = MatMul(p, v) y = Relu(z) }"""
    model = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    feeds = _feeds(model)
    expected = _answers(model, feeds)
    assert fuse_attention(model).rewritten == 1
    assert _relative(_answers(model, feeds), expected) < 2e-6
    cast_attention(model, Precision.FP16)
    assert _fused(model, tmp_path) == (1, 1)


LEFT = {
    "output": ({}, "", "", ("y", "p"), "the probabilities are an output of the graph"),
    "scores-out": ({}, "", "", ("y", "s"), "the scores are an output of the graph"),
    "used": ({"y": "a = ReduceSum(p) b = MatMul(p, v) y = Mul(b, a)"}, "", "", ("y",), "used by more than the product"),
    "scores-used": ({"y": "a = ReduceSum(s) b = MatMul(p, v) y = Mul(b, a)"}, "", "", ("y",), "scores are used elsewhere: Red"),
    "gate": ({"y": "a = Mul(p, m) y = MatMul(a, v)"}, BIAS, "", ("y",), "Mul changes the probabilities between softmax and"),
    "cap": ({"s": "a = MatMul(q, kt) s = Tanh(a)"}, "", "", ("y",), "Tanh changes the scores before the softmax"),
    "quantised": (
        {"y": "a = QuantizeLinear(p, c, z) b = DequantizeLinear(a, c, z) y = MatMul(b, v)"}, "",
        "<float c = {0.01}, int8 z = {0}>", ("y",), "QuantizeLinear changes the probabilities between softmax and values",
    ),
    "quantised-scores": (
        {"s": "a = MatMul(q, kt) b = QuantizeLinear(a, c, z) s = DequantizeLinear(b, c, z)"}, "",
        "<float c = {0.01}, int8 z = {0}>", ("y",), "DequantizeLinear changes the scores before the softmax",
    ),
    "axis": ({"p": "p = Softmax<axis=1>(s)"}, "", "", ("y",), "the softmax is over axis 1, not over the keys"),
    "negative": ({"s": "a = Mul(q, c) s = MatMul(a, kt)"}, "", NUMBER, ("y",), "scaled by -0.31, and an Attention node"),
    "matrix-scale": ({"s": "a = MatMul(q, kt) s = Mul(a, m)"}, BIAS, "", ("y",), "more than a constant scale or one number"),
    "mixed-heads": (
        {"s": "a = MatMul(q, kt) b = MatMul(t, a) s = Add(a, b)"}, ", float[5,5] t", "", ("y",),
        "the scores are used elsewhere",
    ),
    "broadcast": ({"y": "y = MatMul(p, w)"}, ", float[1,2,5,20] w", "", ("y",), "don't have the same known batch, heads"),
    "where": ({"s": "a = MatMul(q, kt) s = Where(m, a, c)"}, ", bool[1,2,5,5] m", "<float c = {0}>", ("y",), "other numbers"),
    "mask-of-more-dimensions": (
        {"k": "kt = Transpose<perm=[0,2,1]>(k3)", "s": "a = MatMul(q3, kt) s = Add(a, m)", "y": "y = MatMul(p, k3)"},
        ", float[B,5,20] q3, float[B,5,20] k3, float[1,1,5,5] m", "", ("y",), "makes 4 dimensions of the 3 of the queries",
    ),
    "view": (
        {"s": "a = MatMul(q, kt) b = Reshape(a, f) s = Softmax(b)", "p": "p = Reshape(s, g)"}, "",
        "<int64[3] f = {-1, 5, 5}, int64[4] g = {-1, 2, 5, 5}>", ("y",), "Reshape changes the probabilities",
    ),
    "guard": (
        {"s": "a = MatMul(q, kt) s = Add(a, m)", "y": "a0 = IsNaN(p) b = Where(a0, z, p) y = MatMul(b, v)"}, BIAS,
        "<float z = {0}>", ("y",), "queries that see no key give zeros here",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_fuse_attention_leaves_what_one_node_cannot_do_and_says_why(case):
    steps, more, extra, outputs, reason = LEFT[case]
    model = _pattern(steps, more, extra=extra.replace("NUMBER", "-0.31"), outputs=outputs)
    before = onnx_ir.to_proto(model)
    result = fuse_attention(model)
    assert (result.found, result.rewritten) == (1, 0)
    ((name, why),) = result.left
    assert name in {
        node.outputs[0].name for node in model.graph if node.op_type == "Softmax"
    }  # the parser's nodes have no names
    assert reason in why
    assert _kinds(onnx_ir.from_proto(before)) == _kinds(model)


def test_fuse_attention_takes_no_classifiers_softmax_for_an_attention():
    text = """<ir_version: 8, opset_import: ["": 18]>
    agraph (float[B,8] x) => (float[B,3] y) <float[8,3] w = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}> {
        a = MatMul(x, w) y = Softmax(a) }"""
    model = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    assert fuse_attention(model) == fuse_attention_result(0, 0)
    assert model.graph.opset_imports[""] == 18  # nothing to rewrite, nothing converted


def test_fuse_attention_drops_a_guard_where_every_query_provably_sees_a_key(traced):
    model = traced("transformers-vit-sdpa", 18)
    assert _kinds(model).count("IsNaN") == 2
    fuse_attention(model)
    assert "IsNaN" not in _kinds(model)
    assert {len(node.inputs) for node in model.graph if node.op_type == "Attention"} == {3}  # the mask hid nothing


def test_drop_neutral_masks_takes_away_only_a_mask_that_hides_nothing():
    """The mask is made as in transformers' ViT at opset 23."""
    text = """<ir_version: 11, opset_import: ["": 23]>
    agraph (float[B,2,5,20] q, float[B,2,5,20] k, float[B,2,5,20] v) => (float[B,2,5,20] y)
    <bool[1,1,5,1] c = {1,1,1,1,1}, int64[3] l = {1,5,5}> {
        b = Shape<start=0, end=1>(q) f = Concat<axis=0>(b, l) m = Expand(c, f) y = Attention(q, k, v, m) }"""
    model = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    feeds = _feeds(model)
    expected = _answers(model, feeds)
    assert drop_neutral_masks(model) == 1
    assert _kinds(model) == ["Attention"]
    assert _relative(_answers(model, feeds), expected) < 2e-6

    biased = _pattern({"s": "a = MatMul(q, kt) s = Add(a, c)"}, extra="<float[1,5] c = {0, 0, 0, 0, -1}>")
    fuse_attention(biased)
    assert drop_neutral_masks(biased) == 0


def test_cast_attention_of_a_whole_row_hidden_stays_finite():
    model = _pattern({"s": "a = MatMul(q, kt) s = Add(a, m)"}, BIAS)
    feeds = _feeds(model) | {"m": np.full((1, 2, 5, 5), np.finfo("f4").min, "f4")}
    cast_attention(model, Precision.FP16)
    assert np.isfinite(_answers(model, feeds)).all()


def test_cast_attention_scales_scores_before_they_can_overflow():
    model = _pattern({"s": "a = MatMul(q, kt) s = Mul(a, c)"}, extra="<float c = {0.0001}>")
    feeds = _feeds(model) | {"q": np.full((3, 2, 5, 20), 90, "f4"), "k": np.full((3, 2, 5, 20), 90, "f4")}  # 162,000 unscaled
    cast_attention(model, Precision.FP16)
    order = [node.op_type for node in model.graph if node.op_type in ("Mul", "MatMul", "Softmax")]
    assert order == ["Mul", "MatMul", "Softmax", "MatMul"]
    assert np.isfinite(_answers(model, feeds)).all()


def test_cast_attention_leaves_a_pattern_that_is_no_attention_node():
    model = _pattern({"s": "a = MatMul(q, kt) s = Tanh(a)"})
    assert cast_attention(model, Precision.FP16) == 0
    assert "Cast" not in _kinds(model)


def test_cast_attention_to_fp32_raises():
    with pytest.raises(
        ShallowvitError, match=r"attention in fp32 has no fused kernel .* choose --attention-precision fp16 or bf16"
    ):
        cast_attention(_pattern({}), Precision.FP32)


def test_cast_attention_of_the_other_half_type_raises():
    with pytest.raises(ShallowvitError, match="computes in float16, and --attention-precision bf16 is for fp32; leave it out"):
        cast_attention(_pattern({}, kind="float16"), Precision.BF16)


# --- blocks and nodes in fp32 ---


def test_upcast_blocks_computes_them_in_fp32_with_whole_weights_and_fused_attention(tmp_path):
    family, path = "timm-vit-qk-norm", "blocks.1"
    model = _model(family)
    lower = copy.deepcopy(model).half()
    assert upcast_blocks(lower, model, [path, f"{path}.mlp"]) == 1
    kept = lower.get_submodule(path).state_dict()
    assert all(torch.equal(tensor, model.get_submodule(path).state_dict()[name]) for name, tensor in kept.items())
    graph = _trace(lower, FAMILIES[family][1], 23, torch.float16)
    kinds = {
        (f"'model.{path}'" in node.metadata_props["pkg.torch.onnx.name_scopes"], node.outputs[0].dtype.name)
        for node in graph.graph
        if node.op_type == "LayerNormalization"
    }
    assert {kind for kind in kinds if kind[0]} == {(True, "FLOAT")}
    assert (False, "FLOAT16") in kinds
    fuse_attention(graph)
    assert cast_attention(graph, Precision.FP16) == 1  # the kept block's; the other is in fp16 already
    assert _fused(graph, tmp_path) == (2, 2)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_check_parity_of_a_mixed_graph_takes_the_tolerance_of_its_lowest_type(traced, tmp_path, precision):
    family = "timm-swin"
    graph = traced(family, 18)
    cast_attention(graph, precision)
    onnx_ir.save(graph, tmp_path / "m.onnx")
    module, spec = Deployed(_model(family)), GraphInput("x", "float32", "NCHW", (3, 32, 32))
    parity = check_parity(tmp_path / "m.onnx", module, spec, _pictures(family, 5), "noise", Precision.FP32)
    assert parity.tolerance == TOLERANCES[Precision(precision)]
    assert 1e-5 < parity.relative_error <= parity.tolerance  # rounding that onnxruntime alone wouldn't do for fp16
    assert f"{precision} emulated" in parity.computed_by

    with torch.no_grad():
        next(parameter for name, parameter in module.named_parameters() if name.endswith("qkv.weight")).mul_(2)
    with pytest.raises(ParityError, match=f"in fp32 with {precision} in it the graph's outputs differ"):
        check_parity(tmp_path / "m.onnx", module, spec, _pictures(family, 5), "noise", Precision.FP32)


def test_check_parity_of_bf16_with_a_block_in_fp32_is_nearer_than_without(tmp_path):
    family, errors = "original-videomae", []
    model, spec = _model("original-videomae"), GraphInput("x", "float32", "ND", FAMILIES["original-videomae"][1])
    for paths in ([], ["blocks.0", "blocks.1"]):
        lower = copy.deepcopy(model).bfloat16()
        upcast_blocks(lower, model, paths)
        onnx_ir.save(_trace(lower, spec.shape, 23, torch.bfloat16), tmp_path / "m.onnx")
        parity = check_parity(tmp_path / "m.onnx", Deployed(model), spec, _pictures(family, 4), "noise", Precision.BF16)
        errors.append(parity.relative_error)
    assert 0 < errors[1] < errors[0] / 1.5


def test_upcast_blocks_unknown_path_names_near_ones():
    model = _model("timm-vit-qk-norm")
    with pytest.raises(
        ShallowvitError, match=r"--keep-precise 'block\.1': no module of the model has that name; near it are .*blocks\.1"
    ):
        upcast_blocks(copy.deepcopy(model).half(), model, ["block.1"])


def test_upcast_blocks_of_a_model_in_fp32_raises():
    model = VideoMAEBlocks()
    with pytest.raises(
        ShallowvitError, match=r"--keep-precise blocks\.0: the model is in fp32 as a whole; use it with --precision fp16"
    ):
        upcast_blocks(copy.deepcopy(model), model, ["blocks.0"])


def test_upcast_blocks_that_share_weights_with_the_rest_raises():
    model = VideoMAEBlocks()
    model.blocks[1].proj.weight = model.blocks[0].proj.weight
    with pytest.raises(ShallowvitError, match=r"shares the weight blocks\.1\.proj\.weight with the rest; keep its module too"):
        upcast_blocks(copy.deepcopy(model).half(), model, ["blocks.0"])


# w is 0.5, written in bits
HALF = """<ir_version: 8, opset_import: ["": 18]>
agraph (float[B,2] x) => (float[B,2] y) <float16[2] w = {14336, 14336}> {
    [zero] h = Cast<to=10>(x) [one] a = Mul(h, w) [two] b = Exp(a) [three] c = Mul(b, b) [four] d = Log(c)
    [five] y = Cast<to=1>(d) }"""


def _half():
    return onnx_ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(HALF)))


def _on_device(model, inputs, path):
    onnx_ir.save(model, path)
    session = onnxruntime.InferenceSession(emulated_bf16(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": inputs})[0].tolist()


def test_upcast_nodes_rounds_nothing_between_kept_nodes(tmp_path):
    x = np.array([[12, 2]], "f4")
    assert _on_device(_half(), x, tmp_path / "m.onnx") == [[np.inf, 2]]  # the square of exp(6) is 162,755
    model = _half()
    assert upcast_nodes(model, ["one", "two", "three", "four"]) == 4
    kinds = [(node.op_type, node.outputs[0].dtype.name) for node in model.graph]
    assert kinds[1:6] == [("Cast", "FLOAT"), ("Mul", "FLOAT"), ("Exp", "FLOAT"), ("Mul", "FLOAT"), ("Log", "FLOAT")]
    assert _on_device(model, x, tmp_path / "m.onnx") == [[12, 2]]


def test_check_parity_of_fp16_shows_an_overflow_inside(tmp_path):
    """onnxruntime alone computes this graph in fp32 and answers 12."""
    onnx_ir.save(_half(), tmp_path / "m.onnx")
    inputs = np.full((4, 2), 12, "f4")
    with pytest.raises(ParityError, match="in fp16 the graph's outputs differ from torch by inf"):
        check_parity(
            tmp_path / "m.onnx", nn.Identity(), GraphInput("x", "float32", "ND", (2,)), inputs, "twelves", Precision.FP16
        )


def test_upcast_nodes_unknown_name_names_near_ones():
    with pytest.raises(ShallowvitError, match="--keep-precise 'thre': no node of the graph has that name; near it are three"):
        upcast_nodes(_half(), ["thre"])


def test_upcast_nodes_of_a_cast_raises():
    with pytest.raises(
        ShallowvitError, match="--keep-precise five: Cast has no precision of its own; name a node that computes"
    ):
        upcast_nodes(_half(), ["five"])
