"""Real models of several families, their attentions as nodes of our own: how many, which, and the answers of before."""

import numpy as np
import onnx_ir
import pytest
import torch
from torch import nn

from shallowvit import ExportConfig
from shallowvit.exporting.fusing import fuse_attention
from shallowvit.exporting.graph import trace
from shallowvit.exporting.parity import TOLERANCES, float_types, run_graph
from shallowvit.exporting.records import GraphInput, Precision
from shallowvit.plugins.rewriting import inline_plugins, rewrite_attention
from shallowvit_kernels.records import Kernel, Layout

from .pattern_graphs import answers, kinds, relative

PICTURE = (3, 32, 32)


def _timm(name, **settings):
    import timm
    from timm.layers import set_fused_attn

    set_fused_attn(False)
    try:
        return timm.create_model(name, num_classes=5, **settings)
    finally:
        set_fused_attn(True)


def _convit():
    return _timm("convit_tiny", img_size=32, patch_size=8, embed_dim=32, num_heads=4, depth=3, local_up_to_layer=2)


def _vit_of_small_heads():
    return _timm("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=4)


def _swin():
    return _timm(
        "swin_tiny_patch4_window7_224", img_size=32, patch_size=2, window_size=4, depths=(2,), embed_dim=40, num_heads=(2,)
    )


def _deit():
    return _timm("deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=2)


def _videomae():
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return VideoMAEForVideoClassification(
        VideoMAEConfig(**sizes, image_size=16, patch_size=8, num_frames=4, num_channels=3, num_labels=5)
    )


class Masked(nn.Module):
    """Two layers of what papers put between queries and values: a soft cap, a mask of distances, a gate of each head."""

    def __init__(self, tokens=9, heads=2, size=12):
        super().__init__()
        self.heads, self.size = heads, size
        self.qkv = nn.ModuleList(nn.Linear(heads * size, 3 * heads * size) for _ in range(2))
        places = torch.arange(tokens).float()
        self.distance = nn.Buffer((places[:, None] - places[None]).square())
        self.width, self.gate = nn.Parameter(torch.rand(heads, 1, 1) + 1), nn.Parameter(torch.rand(1, heads, 1, 1) + 0.5)

    def forward(self, x):
        gaussian = torch.exp(-self.distance / (2 * self.width**2))
        for number, layer in enumerate(self.qkv):
            b, n, _ = x.shape
            q, k, v = layer(x).reshape(b, n, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
            scores = q @ k.transpose(-2, -1) * self.size**-0.5
            scores = 5 * torch.tanh(scores / 5) if number else scores * gaussian
            weights = scores.softmax(-1)
            weights = weights * self.gate if number else weights * gaussian / (weights * gaussian).sum(-1, keepdim=True)
            x = x + (weights @ v).transpose(1, 2).reshape(b, n, -1)
        return x


class Soft(nn.Module):
    """Attention by exp(-|q - k|^2 / 2), then one that crosses to fewer tokens."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (2, 12)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        squares = (q**2).sum(-1, keepdim=True) + (k**2).sum(-1).unsqueeze(-2) - 2 * q @ k.transpose(-2, -1)
        x = torch.exp(-0.5 * 12**-0.5 * squares) @ v
        few = x[:, :, ::2]
        return ((x @ few.transpose(-2, -1)) * 0.3).softmax(-1) @ few


class ReluLinear(nn.Module):
    """EfficientViT's global attention."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(24, 72)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 12)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = q.relu(), k.relu()
        v = nn.functional.pad(v, (0, 1), value=1.0)
        out = q @ (k.transpose(-1, -2) @ v)
        return out[..., :-1] / (out[..., -1:] + 1e-5)


PACKED, TOKENS, HEADS = Layout.PACKED, Layout.TOKENS_FIRST, Layout.HEADS_FIRST
# the model, a picture's shape, and of each node the modifiers, the layout and the layout of the output
FAMILIES = {
    "convit": (_convit, PICTURE, [("positions", TOKENS, TOKENS)] * 2 + [("", PACKED, TOKENS)]),
    "heads-of-8": (_vit_of_small_heads, PICTURE, [("", PACKED, TOKENS)] * 2),
    "swin": (_swin, PICTURE, [("bias", PACKED, TOKENS)] * 2),
    "deit-distilled": (_deit, PICTURE, [("", PACKED, TOKENS)] * 2),
    "videomae": (_videomae, (4, 3, 16, 16), [("", TOKENS, TOKENS)] * 2),
    "masked": (
        Masked,
        (9, 24),
        [("score_mask probability_mask renormalised", PACKED, TOKENS), ("probability_mask cap", PACKED, TOKENS)],
    ),
    "soft": (Soft, (9, 24), [("", TOKENS, HEADS), ("", HEADS, HEADS)]),
    "relu-linear": (ReluLinear, (9, 24), [("", PACKED, HEADS)]),
}
CASES = [*((family, 18) for family in FAMILIES), ("convit", 23), ("videomae", 23), ("heads-of-8", 23)]


class Output(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        output = self.model(x)
        return output.logits if hasattr(output, "logits") else output


@pytest.fixture(scope="module")
def traced():
    made = {}

    def graph(family, opset):
        if (family, opset) not in made:
            torch.manual_seed(0)
            model = FAMILIES[family][0]().eval()
            for parameter in model.parameters():  # far from the library's start, so that every block shows in the output
                nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else nn.init.uniform_(parameter, 0.3, 1.0)
            inputs = (GraphInput("x", "float32", "N", FAMILIES[family][1]),)
            model, _steps = trace(Output(model), inputs, ("y",), ExportConfig(opset=opset))
            if opset >= 23:
                fuse_attention(model)
            made[family, opset] = onnx_ir.to_proto(model)
        return onnx_ir.from_proto(made[family, opset])

    return graph


def _pictures(family, count=3):
    return {"x": np.random.default_rng(0).standard_normal((count, *FAMILIES[family][1]), dtype=np.float32)}


def _described(variant):
    words = [str(one.modifier) for one in variant.operands]
    words += (["renormalised"] if variant.renormalise else []) + (["cap"] if variant.soft_cap else [])
    return " ".join(words), variant.layout, variant.output_layout


@pytest.mark.parametrize(("family", "opset"), CASES)
def test_rewrite_attention_of_a_real_model_gives_one_node_each_and_the_same_answers(traced, family, opset):
    model = traced(family, opset)
    scopes = {node.name: node.metadata_props for node in model.graph}
    expected = [answers(model, _pictures(family, count)) for count in (3, 1)]
    result = rewrite_attention(model, "plugin")
    assert result.left == ()
    assert [_described(variant) for _, variant in result.replaced] == FAMILIES[family][2]
    ours = [node for node in model.graph if node.domain == "shallowvit"]
    assert [(node.name, node.metadata_props) for node in ours] == [(name, scopes[name]) for name, _ in result.replaced]
    assert not {"Softmax", "Attention", "Exp"} & set(kinds(model))
    for count, one in zip((3, 1), expected, strict=True):
        assert relative(answers(model, _pictures(family, count)), one) < 1e-5


def test_rewrite_attention_of_convit_leaves_no_positions_of_every_item(traced):
    model = traced("convit", 18)
    result = rewrite_attention(model, "auto")
    assert len(result.replaced) == 3
    tokens = 16
    shapes = [value.shape for node in model.graph for value in node.outputs]
    assert all(list(shape)[-2:] != [tokens, tokens] for shape in shapes if shape is not None)
    positions = [node.inputs[3] for node in model.graph if node.domain == "shallowvit" and len(node.inputs) > 3]
    assert [tuple(one.const_value.shape) for one in positions] == [(1, 4, tokens, tokens)] * 2


@pytest.mark.parametrize("family", ["swin", "videomae"])
def test_rewrite_attention_of_fp16_answers_as_before_to_its_precision(traced, family, tmp_path):
    from shallowvit.exporting.islands import cast_attention

    model = traced(family, 18)
    cast_attention(model, Precision.FP16)
    onnx_ir.save(model, tmp_path / "before.onnx")
    result = rewrite_attention(model, "plugin")
    assert [str(variant.dtype) for _, variant in result.replaced] == ["fp16", "fp16"]
    assert [_described(variant) for _, variant in result.replaced] == FAMILIES[family][2]
    onnx_ir.save(model, tmp_path / "after.onnx")
    found = [
        run_graph(path, [_pictures(family)], float_types(tmp_path / "before.onnx"))[0][0][0]
        for path in (tmp_path / "before.onnx", tmp_path / "after.onnx")
    ]
    assert relative(found[1], found[0]) < TOLERANCES[Precision.FP16]


@pytest.mark.parametrize(("family", "opset"), [("convit", 18), ("masked", 18), ("videomae", 23), ("soft", 18)])
def test_inline_plugins_of_a_real_model_answers_as_before(traced, family, opset):
    model = traced(family, opset)
    expected = answers(model, _pictures(family))
    count = len(rewrite_attention(model, "plugin").replaced)
    assert inline_plugins(model) == count
    assert "shallowvit" not in kinds(model)
    assert relative(answers(model, _pictures(family)), expected) < 1e-5


def test_rewrite_attention_of_soft_finds_both_kernels(traced):
    result = rewrite_attention(traced("soft", 18), "plugin")
    assert [variant.kernel for _, variant in result.replaced] == [Kernel.GAUSSIAN, Kernel.ATTENTION]
