"""The reference is always the model whose named branch answers with zeros, by a hook that the test puts there itself."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import shallowvit
from shallowvit import PlanConfig, ScoreConfig, ShallowvitError, plan, prune, score
from shallowvit.cli.main import main
from shallowvit.models.halves import find_halves, halves_of
from shallowvit.models.outputs import tensors_in
from shallowvit.models.zero_branch import ZeroBranch
from shallowvit.pruning import save_pruned
from shallowvit.scoring import score_checkpoint
from shallowvit.scoring.records import Calibration

from . import half_models as kinds
from .small_models import redraw

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16}
SMALL |= {"patch_size": 8}
TIMM_VIT = "timm:vit_tiny_patch16_224?img_size=32&depth=3&embed_dim=48&num_heads=3&num_classes=5&init_values=1e-5"
SWIN = "img_size=64&window_size=4&depths=2,4,2,2&embed_dim=16&num_heads=1,2,4,8&num_classes=4"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Many forwards of very little: threads that wait for each other take far longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _stock(name):
    import transformers as tf

    torch.manual_seed(0)
    spread = {"initializer_range": 0.3}
    if name == "vit":
        return kinds.loaded_stock(tf.ViTModel(tf.ViTConfig(**SMALL, **spread)), 3, 16, 16)
    if name == "dinov2":
        return kinds.loaded_stock(tf.Dinov2Model(tf.Dinov2Config(**SMALL, **spread, mlp_ratio=2)), 3, 16, 16)
    if name == "videomae":
        return kinds.loaded_stock(tf.VideoMAEModel(tf.VideoMAEConfig(**SMALL, **spread, num_frames=4)), 4, 3, 16, 16)
    if name == "timesformer":
        return kinds.loaded_stock(tf.TimesformerModel(tf.TimesformerConfig(**SMALL, **spread, num_frames=2)), 2, 3, 16, 16)
    if name == "timm":
        return shallowvit.load(TIMM_VIT)
    model = shallowvit.load(f"timm:{name}?{SWIN}")
    redraw(model.module, 0)  # Swin v2 starts with norms of zeros
    return model


# Of a block's attention, then of its MLP: where zeros stand in the reference, and which modules' weights go.
STOCK = {
    "vit": (("attention", "attention layernorm_before"), ("mlp", "mlp layernorm_after")),
    "dinov2": (("attention", "attention norm1 layer_scale1"), ("mlp", "mlp norm2 layer_scale2")),
    "videomae": (("attention", "attention layernorm_before"), ("output.dense", "intermediate output layernorm_after")),
    "timesformer": (
        ("attention temporal_dense", "attention temporal_attention temporal_dense layernorm_before temporal_layernorm"),
        ("output", "intermediate output layernorm_after"),
    ),
    "timm": (("attn", "attn norm1 ls1"), ("mlp", "mlp norm2 ls2")),
    "swin_tiny_patch4_window7_224": (("attn", "attn norm1"), ("mlp", "mlp norm2")),
    "swinv2_tiny_window8_256": (("norm1", "attn norm1"), ("norm2", "mlp norm2")),
}


@pytest.mark.parametrize("part", ["attention", "mlp"])
@pytest.mark.parametrize("name", STOCK)
@torch.no_grad()
def test_prune_half_equals_zeros_in_the_branch(name, part):
    model = _stock(name)
    pruned = prune(model, plan(model, config=PlanConfig(remove="1", granularity=part)))
    sites, gone = map(str.split, STOCK[name][part == "mlp"])
    reference = kinds.without_part(model, [f"{model.blocks[1].path}.{site}" for site in sites])
    inputs = {key: torch.randn(2, *value.shape[1:]) for key, value in model.example.items()}
    found, expected, whole = (tensors_in(each(**inputs))[0] for each in (pruned.model.module, reference, model.module))
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.equal(found, whole)
    left = [name for name, _ in pruned.model.block(1).named_parameters()]
    assert left == [name for name, _ in model.block(1).named_parameters() if name.partition(".")[0] not in gone]
    assert pruned.plan.parameters_after == pruned.model.parameters < model.parameters
    assert pruned.plan.flops_after < model.flops


@pytest.mark.parametrize("kind", [kinds.Plain, kinds.ResPostNorm, kinds.Parallel])
@pytest.mark.parametrize(("part", "site"), [("attention", "attn"), ("mlp", "mlp")])
def test_prune_half_of_our_own_blocks_equals_zeros_in_the_branch(kind, part, site):
    model = kinds.blocks_of_kind(kind)
    site = {"attn": "norm1", "mlp": "norm2"}[site] if kind is kinds.ResPostNorm else site
    pruned = prune(model, plan(model, config=PlanConfig(remove="0,2", granularity=part)))
    reference = kinds.without_part(model, [f"blocks.0.{site}", f"blocks.2.{site}"])
    x = torch.randn(2, 5, kinds.WIDTH)
    assert torch.allclose(pruned.model.module(x), reference(x), atol=1e-6)


def test_find_halves_attention_inside_the_block_is_cut_at_its_layer():
    halves = find_halves(kinds.blocks_of_kind(kinds.InlineAttention), "attention")
    assert halves[0].weights == ("norm1.weight", "norm1.bias", "qkv.weight", "qkv.bias")


def test_find_halves_norm_before_the_branch_goes_with_it():
    (half, *_) = find_halves(kinds.blocks_of_kind(kinds.Plain), "mlp").values()
    assert {name.partition(".")[0] for name in half.weights} == {"norm2", "mlp"}
    assert half.parameters == 2 * 16 + (16 * 32 + 32) + (32 * 16 + 16)
    assert half.flops == 2 * 5 * 2 * 16 * 32


def test_find_halves_norm_of_both_branches_stays():
    model = kinds.blocks_of_kind(kinds.Parallel)
    for part in ("attention", "mlp"):
        assert not any(name.startswith("norm1") for name in find_halves(model, part)[0].weights)


def test_find_halves_second_layer_that_adds_the_state_is_cut_inside():
    model = kinds.blocks_of_kind(kinds.InnerResidual)
    pruned = prune(model, plan(model, config=PlanConfig(remove="1", granularity="mlp")))
    x = torch.randn(1, 5, kinds.WIDTH)
    assert torch.allclose(pruned.model.module(x), kinds.without_part(model, ["blocks.1.out.dense"])(x), atol=1e-6)
    assert "out.dense.weight" in find_halves(model, "mlp")[1].weights


def test_find_halves_layer_scale_at_zero_hides_nothing():
    model = kinds.loaded(kinds.Blocks(lambda: kinds.Plain(start=0.0)), torch.zeros(1, 5, kinds.WIDTH))
    assert any(name.startswith("attn.") for name in find_halves(model, "attention")[0].weights)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("part", "place"), [("attention", 0), ("mlp", 1)])
def test_prune_half_of_a_list_of_parts(residual, part, place):
    model = kinds.loaded(kinds.Lists(residual), torch.zeros(1, 5, kinds.WIDTH), seed=0)
    pruned = prune(model, plan(model, config=PlanConfig(remove="1", granularity=part)))
    x = torch.randn(2, 5, kinds.WIDTH)
    reference = kinds.without_part(model, [f"layers.1.{place}.branch"])
    assert torch.allclose(pruned.model.module(x), reference(x), atol=1e-6)
    assert not any(key.startswith(f"layers.1.{place}.branch") for key in pruned.model.module.state_dict())


@pytest.mark.parametrize(("part", "gone"), [("attention", "attn_out_proj"), ("mlp", "mlp_out_proj")])
def test_prune_half_of_fused_parallel_block(part, gone):
    """One layer makes queries, keys, values and the MLP's hidden states, so it stays."""
    from timm.models.vision_transformer import ParallelScalingBlock

    model = kinds.blocks_of_kind(lambda: ParallelScalingBlock(kinds.WIDTH, 2))
    pruned = prune(model, plan(model, config=PlanConfig(remove="1", granularity=part)))
    x = torch.randn(2, 5, kinds.WIDTH)
    assert torch.allclose(pruned.model.module(x), kinds.without_part(model, [f"blocks.1.{gone}"])(x), atol=1e-6)
    left = {name.partition(".")[0] for name, _ in pruned.model.block(1).named_parameters()}
    assert "in_proj" in left
    assert gone not in left


def test_prune_attention_of_torch_encoder_layer():
    """Its forward asks the attention for its settings."""
    model = kinds.blocks_of_kind(lambda: nn.TransformerEncoderLayer(kinds.WIDTH, 2, 32, batch_first=True, norm_first=True))
    pruned = prune(model, plan(model, config=PlanConfig(remove="1", granularity="attention")))
    x = torch.randn(2, 5, kinds.WIDTH)
    assert torch.allclose(pruned.model.module(x), kinds.without_part(model, ["blocks.1.dropout1"])(x), atol=1e-5)


def test_find_halves_code_that_reads_the_weights_refused():
    model = kinds.blocks_of_kind(lambda: nn.TransformerEncoderLayer(kinds.WIDTH, 2, 32, batch_first=True, norm_first=True))
    with pytest.raises(ShallowvitError, match="its code reaches into the modules of the branch"):
        find_halves(model, "mlp")


def test_find_halves_post_norm_refused():
    with pytest.raises(ShallowvitError, match=r"attention of block 0 .*normalise the sum \(post-norm\).*--granularity block"):
        find_halves(kinds.blocks_of_kind(kinds.PostNorm), "attention")


def test_find_halves_one_branch_refused():
    model = shallowvit.load("timm:convnext_atto?num_classes=3&depths=1,1,2,1&dims=8,16,16,16")
    for part in ("attention", "mlp"):
        with pytest.raises(ShallowvitError, match="adds one branch alone to its state"):
            find_halves(model, part)


def test_find_halves_two_mixers_refused():
    with pytest.raises(ShallowvitError, match="each of its branches mixes tokens"):
        find_halves(kinds.blocks_of_kind(kinds.TwoMixers), "mlp")


def test_halves_of_leaves_weights_and_modules_as_they_were():
    model = kinds.blocks_of_kind(kinds.Plain)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    modules = dict(model.module.named_modules())
    halves_of(model, "mlp")
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    assert dict(model.module.named_modules()) == modules
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())


def test_halves_of_a_block_without_attention_names_only_that_block():
    model = kinds.blocks_of_kind(kinds.Plain)
    cut = prune(model, plan(model, config=PlanConfig(remove="1", granularity="attention"))).model
    found = halves_of(cut, "attention")
    assert [isinstance(one, str) for one in found] == [False, True, False]
    again = prune(cut, plan(cut, config=PlanConfig(remove="2", granularity="attention")))  # the others can still go
    assert sum(isinstance(part, ZeroBranch) for part in again.model.module.modules()) > 2


def test_prune_half_whose_output_differs_refused(monkeypatch):
    """A record of a wrong place must not pass."""
    from shallowvit.models.zero_branch import HalfRemoval, Zeroed

    model = kinds.blocks_of_kind(kinds.Plain)
    right = find_halves(model, "mlp")
    wrong = {
        number: replace(half, removal=HalfRemoval("mlp", half.removal.block_path, (Zeroed("mlp"),), (Zeroed("attn"),)))
        for number, half in right.items()
    }
    monkeypatch.setattr("shallowvit.pruning.halves.find_halves", lambda *_: {1: wrong[1]})
    with pytest.raises(ShallowvitError, match=r"without the mlp of blocks.1 isn't the model in which that adds zeros"):
        prune(model, plan(model, config=PlanConfig(remove="1", granularity="mlp")))


def test_save_pruned_half_reloads_bit_identical(tmp_path):
    model = _stock("timm")
    pruned = prune(model, plan(model, config=PlanConfig(remove="0", granularity="attention")))
    saved = save_pruned(pruned, tmp_path / "cut")
    assert not saved.stock
    again = shallowvit.load(saved.path, arch=TIMM_VIT)
    assert again.sha256 == pruned.model.sha256
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.module(x), pruned.model.module(x))
    # what was cut earlier stays known when blocks go later
    later = save_pruned(prune(again, plan(again, config=PlanConfig(remove="1"))), tmp_path / "later")
    last = shallowvit.load(later.path, arch=TIMM_VIT)
    assert len(last.blocks) == 2
    assert [isinstance(part, ZeroBranch) for part in last.block(0).children()].count(True) > 0


def test_load_half_pruned_folder_of_another_model_refused(tmp_path):
    pruned_folder = tmp_path / "cut"
    model = _stock("timm")
    save_pruned(prune(model, plan(model, config=PlanConfig(remove="2", granularity="mlp"))), pruned_folder)
    with pytest.raises(
        ShallowvitError, match=r"lacks the mlp of blocks.2, which VisionTransformer doesn't have .*Check --arch"
    ):
        shallowvit.load(pruned_folder, arch=TIMM_VIT.replace("depth=3", "depth=2"))


def test_score_half_counts_its_matrices_alone():
    model = kinds.blocks_of_kind(kinds.Plain)
    whole, attention, mlps = (
        score(model, ScoreConfig("l1", granularity=part)).blocks for part in ("block", "attention", "mlp")
    )
    for one, two, both in zip(attention, mlps, whole, strict=True):
        assert one.weights == 4 * 16 * 16
        assert two.weights == 4 * 16 * 16
        assert one.score + two.score == pytest.approx(both.score)
    by_hand = sum(float(model.block(1).get_parameter(name).abs().sum()) for name in ("attn.qkv.weight", "attn.proj.weight"))
    assert attention[1].score == pytest.approx(by_hand, rel=1e-5)


class Pooled(kinds.Blocks):
    def forward(self, x):
        return super().forward(x).mean(1)


@pytest.fixture(scope="module")
def classifier():
    return kinds.loaded(Pooled(kinds.Plain), torch.zeros(1, 5, kinds.WIDTH), seed=0)


@pytest.fixture(scope="module")
def labelled():
    generator = torch.Generator().manual_seed(0)
    return Calibration("random", torch.randn(12, 5, kinds.WIDTH, generator=generator), torch.arange(12) % 3)


@pytest.mark.parametrize(("part", "site"), [("attention", "attn"), ("mlp", "mlp")])
@torch.no_grad()
def test_score_bypass_of_a_half_is_the_loss_with_zeros_there(classifier, labelled, part, site):
    found = score(classifier, ScoreConfig("bypass", granularity=part), labelled)
    loss = torch.nn.functional.cross_entropy
    whole = loss(classifier.module(labelled.inputs), labelled.labels)
    for row in found.blocks:
        cut = kinds.without_part(classifier, [f"blocks.{row.block}.{site}"])
        assert row.score == pytest.approx(float(loss(cut(labelled.inputs), labelled.labels) - whole), abs=1e-5)
    assert not any(isinstance(part, ZeroBranch) for part in classifier.module.modules())


def test_score_taylor_weight_of_halves_sums_to_less_than_the_block(classifier, labelled):
    whole, one, two = (
        score(classifier, ScoreConfig("taylor-weight", granularity=part), labelled).blocks
        for part in ("block", "attention", "mlp")
    )
    for both, attention, other in zip(whole, one, two, strict=True):
        assert 0 < attention.score < both.score
        assert attention.score + other.score < both.score  # the layer scale is of neither
        assert attention.score + other.score == pytest.approx(both.score, rel=0.2)


def test_score_oracle_of_a_half_leaves_the_model_whole(classifier, labelled):
    config = ScoreConfig("oracle", granularity="mlp", finetune_items=6, batch=3)
    assert len(score(classifier, config, labelled).blocks) == 3
    assert not any(isinstance(part, ZeroBranch) for part in classifier.module.modules())


def test_score_criterion_that_watches_blocks_refuses_halves(classifier, labelled):
    message = r"block-influence watches whole blocks, not their mlp alone; .* use reconstruction, taylor-weight, bypass, oracle"
    with pytest.raises(ShallowvitError, match=message):
        score(classifier, ScoreConfig("block-influence", granularity="mlp"), labelled)


def test_score_checkpoint_of_halves_refused(video_folder):
    with pytest.raises(ShallowvitError, match="which of a block's weights are its mlp is known by running the model"):
        score_checkpoint(video_folder, ScoreConfig(granularity="mlp"))


def test_plan_scores_of_another_granularity_refused():
    model = kinds.blocks_of_kind(kinds.Plain)
    scores = score(model, ScoreConfig("l1", granularity="attention"))
    assert scores.settings["granularity"] == "attention"
    with pytest.raises(ShallowvitError, match="the scores are of the blocks' attention, and --granularity block removes whole"):
        plan(model, scores, PlanConfig(prune_ratio=0.5))
    chosen = plan(model, scores, PlanConfig(prune_ratio=0.34, granularity="attention"))
    assert chosen.reason.endswith("; of each the attention alone")
    assert chosen.standing == (0, 1, 2)
    assert chosen.gone == ()


def test_plan_config_unknown_granularity_refused():
    with pytest.raises(ShallowvitError, match=r"plan: unknown --granularity 'head'; choose from block, attention, mlp"):
        PlanConfig(granularity="head")
    with pytest.raises(ShallowvitError, match=r"score: unknown --granularity 'head'"):
        ScoreConfig(granularity="head")


def test_plan_config_iterative_halves_refused():
    with pytest.raises(ShallowvitError, match="--select iterative scores whole blocks"):
        PlanConfig(prune_ratio=0.5, select="iterative", granularity="mlp")


def _json_of(monkeypatch, capsys, *words):
    """What a command prints, run in this process."""
    monkeypatch.setattr("sys.argv", ["shallowvit", *words, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    return json.loads(capsys.readouterr().out)


def test_prune_command_half_of_a_checkpoint(video_folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "cut"
    words = ("prune", f"hf:{video_folder}", "-o", str(out), "--prune-ratio", "0.5", "--granularity", "mlp")
    record = _json_of(monkeypatch, capsys, *words)
    assert record["plan"]["granularity"] == "mlp"
    assert record["plan"]["scores"]["settings"]["granularity"] == "mlp"
    again = shallowvit.load(out, arch=f"hf:{video_folder}")
    assert len(again.blocks) == 4
    assert again.parameters == record["plan"]["parameters_after"]


def test_score_command_half_marks_what_would_go(video_folder, monkeypatch, capsys):
    words = ("score", f"hf:{video_folder}", "--granularity", "attention", "--prune-ratio", "0.25")
    record = _json_of(monkeypatch, capsys, *words)
    assert len(record["would_remove"]) == 1
    assert {row["weights"] for row in record["blocks"]} == {4 * 32 * 32}


def test_prune_command_granularity_alone_removes_nothing_and_says_so(video_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["shallowvit", "prune", f"hf:{video_folder}", "-o", str(tmp_path / "x"), "--granularity", "mlp"]
    )
    with pytest.raises(SystemExit):
        main()
    assert "nothing to remove" in capsys.readouterr().err
