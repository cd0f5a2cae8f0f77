import argparse
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from torch import nn

from shallowvit import PlanConfig, ShallowvitError, load, plan, prune, save_pruned
from shallowvit.models.checkpoints import load_checkpoint, unchunked
from shallowvit.models.key_maps import CLASS_MAPS, LAYOUTS
from shallowvit.models.timm_models import parse_query
from shallowvit.models.weights import Checkpoint, read_checkpoint
from shallowvit.scoring import score_checkpoint
from shallowvit.scoring.weights import open_checkpoint

from . import original_models as original
from .small_models import redraw

SIZES = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 48, "image_size": 32}
SIZES |= {"patch_size": 8}
INNER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4}
INNER |= {"decoder_intermediate_size": 32}
VIDEO = SIZES | INNER | {"num_frames": 4}
PER_FRAME = {"use_mean_pooling": False}
DINOV2 = {key: value for key, value in SIZES.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
BEIT = SIZES | {"use_relative_position_bias": True}
TIMM = "?img_size=32&patch_size=8&embed_dim=24&depth=4&num_heads=3&mlp_ratio=2"


def _hf(folder, name, **settings):
    """A configuration alone, as ``--arch hf:DIR`` takes it."""
    cls = getattr(transformers, name)
    config = cls.config_class(**settings)
    config.architectures = [name]
    config.save_pretrained(folder)
    return f"hf:{folder}"


def _official(path, state, wrapper=None, prefix="", **beside):
    """Save as the training scripts do: under a key, with DistributedDataParallel's prefix, beside the script's arguments."""
    state = {prefix + name: value for name, value in state.items()}
    arguments = argparse.Namespace(arch="vit_small", lr=np.float64(0.1), device=torch.device("cuda"), epochs=np.int64(3))
    torch.save({wrapper: state, "optimizer": {"state": {}}, "epoch": 3, "args": arguments} | beside if wrapper else state, path)
    return path


def _into(path, target, **settings):
    """Build a stock class and load the file into it, as ``load`` does: the module and the notes."""
    if target.startswith("timm:"):
        name, arguments = parse_query(target.removeprefix("timm:") + TIMM)
        module = timm.create_model(name, **arguments | settings)
    else:
        cls = getattr(transformers, target)
        module = cls(cls.config_class(**settings))
    fit = load_checkpoint(module, read_checkpoint(path), str(path))
    return module.eval().requires_grad_(False), fit.notes


def _same(found, expected):
    assert expected.std() > 0.05  # an output near zero would prove nothing
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5), (found - expected).abs().max()


def _images(seed=0):
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def _ready(module, seed=5):
    return redraw(module, seed).eval().requires_grad_(False)


def _clip():
    return torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _mask():
    return (torch.randperm(32, generator=torch.Generator().manual_seed(1)) < 20).expand(2, 32)


@pytest.mark.parametrize(
    ("wrapper", "prefix"), [("module", ""), ("model", ""), (None, "module."), ("model", "module._orig_mod.")]
)
def test_load_videomae_classifier_gives_the_originals_logits(tmp_path, wrapper, prefix):
    model = _ready(original.VideoMAE())
    path = _official(tmp_path / "checkpoint.pth", model.state_dict(), wrapper, prefix)
    found = load(path, arch=_hf(tmp_path / "hf", "VideoMAEForVideoClassification", num_labels=5, **VIDEO))
    assert len(found.blocks) == 4
    assert found.notes == ()
    _same(found.module(_clip()).logits, model(_clip().transpose(1, 2)))


def test_load_videomae_classifier_into_the_encoder_leaves_out_head_and_norm(tmp_path):
    model = _ready(original.VideoMAE())
    path = _official(tmp_path / "checkpoint.pth", model.state_dict(), "module")
    module, notes = _into(path, "VideoMAEModel", **VIDEO)
    assert "left out 2 weights of the classifier, for which VideoMAEModel has no place (first: head.weight)" in notes[0]
    assert "left out 2 weights of the classifier with its norm" in notes[1]
    _same(module(_clip()).last_hidden_state, model.tokens(_clip().transpose(1, 2)))


def test_load_videomae_pretraining_gives_the_originals_pixels(tmp_path):
    model = _ready(original.VideoMAEPretraining())
    path = _official(tmp_path / "checkpoint-799.pth", model.state_dict(), "model")
    module, _ = _into(path, "VideoMAEForPreTraining", **VIDEO, **PER_FRAME, norm_pix_loss=False)
    logits = module(_clip(), bool_masked_pos=_mask()).logits
    _same(logits, model(_clip().transpose(1, 2), _mask()))


def test_load_videomae_pretraining_into_the_encoder_leaves_out_the_decoder(tmp_path):
    model = _ready(original.VideoMAEPretraining())
    path = _official(tmp_path / "checkpoint-799.pth", model.state_dict(), "model")
    module, notes = _into(path, "VideoMAEModel", **VIDEO, **PER_FRAME)
    (note,) = notes
    assert "of the decoder, for which VideoMAEModel has no place (first: mask_token)" in note
    expected = model.encoder(_clip().transpose(1, 2), _mask())
    _same(module(_clip(), bool_masked_pos=_mask()).last_hidden_state, expected)


def test_load_videomae_pretraining_into_a_mean_pooled_class_is_refused_with_the_setting(tmp_path):
    path = _official(tmp_path / "w.pth", original.VideoMAEPretraining().state_dict(), "model")
    arch = _hf(tmp_path / "hf", "VideoMAEForPreTraining", **VIDEO)
    with pytest.raises(
        ShallowvitError, match=r"0 missing, 2 without a place; the first: encoder\.norm\.bias.*use_mean_pooling"
    ):
        load(path, arch=arch)


@pytest.mark.parametrize("target", ["ViTMAEForPreTraining", "ViTMAEModel", "ViTModel", "timm"])
def test_load_mae_pretraining_gives_the_originals_outputs(tmp_path, target):
    model = _ready(original.MAE())
    path = _official(tmp_path / "mae_pretrain.pth", model.state_dict(), "model")
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    if target == "timm":
        module, notes = _into(path, "timm:vit_base_patch16_224", num_classes=0)
        whole = original.ViT()
        whole.load_state_dict(model.state_dict(), strict=False)
        _same(module.forward_features(_images()), whole.tokens(_images()))
    elif target == "ViTModel":
        module, notes = _into(path, target, **SIZES)
        whole = original.ViT()
        whole.load_state_dict(model.state_dict(), strict=False)
        _same(module(_images()).last_hidden_state, whole.tokens(_images()))
    else:
        module, notes = _into(path, target, **SIZES, **INNER)
        output = module(_images(), noise=noise)
        if target == "ViTMAEModel":
            _same(output.last_hidden_state, model.encode(_images(), noise)[0])
        else:
            _same(output.logits, model(_images(), noise))
    left = [note for note in notes if "left out 32 weights of the decoder" in note]
    assert len(left) == (target != "ViTMAEForPreTraining")


def test_load_mae_classifier_goes_into_timm_and_is_refused_by_vit(tmp_path):
    model = _ready(original.ViT(classes=5, pool="fc_norm"))
    path = _official(tmp_path / "mae_finetuned.pth", model.state_dict(), "model")
    found = load(path, arch=f"timm:vit_base_patch16_224{TIMM}&num_classes=5&global_pool=avg")
    _same(found.module(_images()), model(_images()))
    with pytest.raises(ShallowvitError, match=r"vit\.layernorm\.bias is missing; read as plain ViT"):
        load(path, arch=_hf(tmp_path / "hf", "ViTForImageClassification", num_labels=5, **SIZES))


def test_load_supervised_vit_gives_the_originals_logits(tmp_path):
    model = _ready(original.ViT(classes=5))
    path = _official(tmp_path / "deit.pth", model.state_dict(), "model", model_ema=original.ViT(classes=5).state_dict())
    found = load(path, arch=_hf(tmp_path / "hf", "ViTForImageClassification", num_labels=5, **SIZES))
    _same(found.module(_images()).logits, model(_images()))
    assert found.notes == (f"{path}: took model, left model_ema",)


def _dino(tmp_path, masked=None, prefix=""):
    """A DINO or iBOT training checkpoint: a teacher and another student, each with a projection head."""
    model, student = _ready(original.ViT(masked=masked)), _ready(original.ViT(masked=masked), 6)
    head = original.ProjectionHead(24, 16).state_dict()

    def state(backbone, prefix):
        named = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
        return {
            prefix + name: value for name, value in (named | {f"head.{name}": value for name, value in head.items()}).items()
        }

    beside = {"student": state(student, "module."), "dino_loss": {"center": torch.zeros(1, 16)}}
    return model, _official(tmp_path / "checkpoint.pth", state(model, prefix), "teacher", **beside)


@pytest.mark.parametrize(("masked", "prefix"), [(None, ""), (None, "module."), ("masked_embed", "module.")])
@pytest.mark.parametrize("target", ["hf", "timm"])
def test_load_dino_or_ibot_training_takes_the_teachers_backbone(tmp_path, masked, prefix, target):
    model, path = _dino(tmp_path, masked, prefix)
    if target == "hf":
        module, notes = _into(path, "ViTModel", **SIZES)
        output = module(_images()).last_hidden_state
    else:
        module, notes = _into(path, "timm:vit_base_patch16_224", num_classes=0)
        output = module.forward_features(_images())
    _same(output, model.tokens(_images()))
    notes = "\n".join(notes)
    assert "took teacher, left student" in notes
    assert re.search(r"left out \d weights of the projection head.*first: (module\.)?head\.mlp\.0", notes)
    assert ("left out 1 weight of the mask token" in notes) == (masked is not None)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "teacher"])
def test_load_backbone_alone_gives_the_originals_tokens(tmp_path, wrapper):
    model = _ready(original.ViT(masked="masked_embed"))
    path = _official(tmp_path / "pretrain.pth", model.state_dict(), wrapper, "module.backbone.")
    module, _ = _into(path, "ViTModel", **SIZES)
    _same(module(_images()).last_hidden_state, model.tokens(_images()))


def test_load_dino_into_vit_takes_the_pooler_out_and_survives_pruning(tmp_path):
    _, path = _dino(tmp_path)
    arch = _hf(tmp_path / "hf", "ViTModel", **SIZES)
    found = load(path, arch=arch)
    assert found.module.pooler is None
    assert any("has no weights for the pooler of ViTModel, which is taken out" in note for note in found.notes)
    pruned = prune(found, plan(found, config=PlanConfig(remove="1")))
    save_pruned(pruned, tmp_path / "pruned")
    again = load(tmp_path / "pruned", arch=arch)
    _same(again.module(_images()).last_hidden_state, pruned.model.module(_images()).last_hidden_state)


def test_load_folder_without_a_pooler_is_loaded_without(tmp_path):
    config = transformers.ViTConfig(**SIZES)
    module = _ready(transformers.ViTModel(config, add_pooling_layer=False))
    module.save_pretrained(tmp_path / "dino")
    found = load(f"hf:{tmp_path / 'dino'}")
    assert "has no weights for the pooler" in found.notes[0]
    assert torch.equal(found.module(_images()).last_hidden_state, module(_images()).last_hidden_state)


DINO_V2 = {"scale": "ls", "masked": "mask_token"}


@pytest.mark.parametrize(
    ("chunks", "registers", "mlp"),
    [(0, 0, original.Mlp), (2, 0, original.SwiGLU), (2, 3, original.Mlp), (0, 3, original.SwiGLU)],
)
def test_load_dinov2_gives_the_originals_tokens(tmp_path, chunks, registers, mlp):
    model = _ready(original.ViT(**DINO_V2, chunks=chunks, registers=registers, mlp=mlp))
    path = _official(tmp_path / "dinov2.pth", model.state_dict())
    swiglu = mlp is original.SwiGLU
    settings = DINOV2 | {"use_swiglu_ffn": swiglu} | ({"num_register_tokens": registers} if registers else {})
    module, notes = _into(path, "Dinov2WithRegistersModel" if registers else "Dinov2Model", **settings)
    _same(module(_images()).last_hidden_state, model.tokens(_images()))
    assert notes == ()


@pytest.mark.parametrize("registers", [0, 4])
def test_load_dinov2_goes_into_timm_with_the_class_tokens_position_folded(tmp_path, registers):
    model = _ready(original.ViT(**DINO_V2, chunks=2, registers=registers))
    path = _official(tmp_path / "dinov2.pth", model.state_dict())
    module, notes = _into(path, f"timm:vit_small_patch14_{'reg4_' if registers else ''}dinov2")
    _same(module.forward_features(_images()), model.tokens(_images()))
    assert "left out 1 weight of the mask token" in notes[0]


def test_load_dinov2_packed_swiglu_goes_into_timm(tmp_path):
    model = _ready(original.ViT(**DINO_V2, mlp=original.SwiGLU))
    path = _official(tmp_path / "dinov2.pth", model.state_dict())
    module, _ = _into(path, "timm:vit_giant_patch14_dinov2", mlp_ratio=2.6667)
    _same(module.forward_features(_images()), model.tokens(_images()))


def test_load_dinov2_training_checkpoint_leaves_out_both_heads(tmp_path):
    model = _ready(original.ViT(**DINO_V2, chunks=2))
    heads = original.ProjectionHead(24, 16).state_dict()
    state = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    state |= {f"{kind}_head.{name}": value for kind in ("dino", "ibot") for name, value in heads.items()}
    path = _official(tmp_path / "teacher_checkpoint.pth", state, "teacher")
    module, notes = _into(path, "Dinov2Model", **DINOV2)
    _same(module(_images()).last_hidden_state, model.tokens(_images()))
    assert f"left out {2 * len(heads)} weights of the projection head" in notes[0]


def test_load_dinov2_with_its_linear_head_gives_the_originals_logits(tmp_path):
    model, head = _ready(original.ViT(**DINO_V2)), _ready(nn.Linear(48, 5))
    state = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    state |= {f"linear_head.{name}": value for name, value in head.state_dict().items()}
    path = _official(tmp_path / "dinov2_lc.pth", state)
    module, _ = _into(path, "Dinov2ForImageClassification", num_labels=5, **DINOV2)
    tokens = model.tokens(_images())
    _same(module(_images()).logits, head(torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), dim=1)))


@pytest.mark.parametrize("target", ["BeitForImageClassification", "Data2VecVisionForImageClassification", "timm"])
def test_load_beit_or_data2vec_gives_the_originals_logits(tmp_path, target):
    model = _ready(original.BEiT())
    path = _official(tmp_path / "beit.pth", model.state_dict(), "model")
    if target == "timm":
        module, notes = _into(path, "timm:beit_base_patch16_224", num_classes=5)
        output = module(_images())
    else:
        module, notes = _into(path, target, num_labels=5, **BEIT)
        output = module(_images()).logits
    _same(output, model(_images()))
    assert "left out 4 weights of the table of indices" in notes[0]


POINTS = """
import torch
from tests.optimizer import original_models as original
from tests.optimizer.small_models import redraw

class Flat(torch.nn.Module):
    def __init__(self):
        super().__init__()
        whole = original.PointMAEEncoder()
        self.encoder, self.pos_embed, self.norm, self.blocks = whole.encoder, whole.pos_embed, whole.norm, whole.blocks.blocks

    def forward(self, groups, centers):
        x, places = self.encoder(groups), self.pos_embed(centers)
        for block in self.blocks:
            x = block(x + places)
        return self.norm(x)

class Wrapped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = original.PointMAEEncoder()

    def forward(self, groups, centers):
        return self.net(groups, centers)

def example():
    return torch.zeros(1, 6, 8, 3), torch.zeros(1, 6, 3)

def encoder():
    return original.PointMAEEncoder(), example()

def flat():
    return Flat(), example()

def wrapped():
    return Wrapped(), example()

def classifier():
    return original.PointClassifier(), example()
"""


def _cloud():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 6, 8, 3, generator=generator), torch.randn(2, 6, 3, generator=generator)


@pytest.mark.parametrize("function", ["encoder", "flat", "wrapped"])
def test_load_point_mae_pretraining_into_the_users_encoder(tmp_path, function):
    (tmp_path / "points.py").write_text(POINTS)
    model = _ready(original.PointMAE())
    beside = {"metrics": {"acc": np.float64(0.9)}, "best_metrics": {}}
    path = _official(tmp_path / "pretrain.pth", model.state_dict(), "base_model", "module.", **beside)
    found = load(path, arch=f"{tmp_path / 'points.py'}:{function}")
    _same(found.module(*_cloud()), model.MAE_encoder(*_cloud()))
    assert "of the decoder" in found.notes[0]


def test_load_point_mae_classifier_into_the_users_module(tmp_path):
    (tmp_path / "points.py").write_text(POINTS)
    model = _ready(original.PointClassifier())
    path = _official(tmp_path / "best.pth", model.state_dict(), "base_model", "module.")
    found = load(path, arch=f"{tmp_path / 'points.py'}:classifier")
    _same(found.module(*_cloud()), model(*_cloud()))
    with pytest.raises(
        ShallowvitError, match=r"2 without a place; the first: cls_pos has no place; read as Point-MAE classifier"
    ):
        load(path, arch=f"{tmp_path / 'points.py'}:encoder")  # the class token would be lost, and with it the features


def test_load_checkpoint_into_the_original_class_itself_is_as_named():
    model = _ready(original.VideoMAEPretraining())
    again = original.VideoMAEPretraining()
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    assert load_checkpoint(again, Checkpoint(state), "w.pth").map == "as named"
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


def test_load_checkpoint_reports_the_map_and_what_was_dropped():
    fit = load_checkpoint(original.ViT(), Checkpoint(original.MAE().state_dict()), "w.pth")
    assert fit.map == "MAE pretraining"
    assert {name.partition("_")[0] for name in fit.dropped} == {"decoder", "mask"}
    assert len(fit.dropped) == 32


def test_load_checkpoint_a_computed_table_need_not_be_in_the_file():
    class Computed(original.VideoMAE):
        def __init__(self, buffer):
            super().__init__()
            table = original.sinusoids(32, 24)
            if buffer:
                self.register_buffer("pos_embed", table)
            else:
                self.pos_embed = nn.Parameter(table)

    state = original.VideoMAE().state_dict()
    module = Computed(True)
    load_checkpoint(module, Checkpoint(state), "w.pth")
    assert torch.equal(module.pos_embed, original.sinusoids(32, 24))
    with pytest.raises(ShallowvitError, match="1 missing, 0 without a place; the first: pos_embed is missing"):
        load_checkpoint(Computed(False), Checkpoint(state), "w.pth")  # a learned table can't be made up


def _vit():
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, num_labels=5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("blocks.2.mlp.fc1.bias"),
            r"1 missing, 0 without a place; the first: vit\.layers\.2\.mlp\.fc1\.bias is missing; read as plain ViT\. Check",
        ),
        (lambda state: state.pop("blocks.1.attn.qkv.bias"), r"3 missing.*the first: vit\.layers\.1\.attention\.k_proj\.bias"),
        (
            lambda state: state.update({"blocks.4.norm1.weight": torch.ones(24)}),
            r"0 missing, 1 without a place; the first: blocks\.4\.norm1\.weight has no place",
        ),
        (
            lambda state: state.pop("head.bias"),
            r"1 missing.*classifier\.bias is missing.*with the classifier that the file has",
        ),
        (
            lambda state: state.update({"pos_embed": torch.ones(1, 197, 24)}),
            r"pos_embed in w\.pth has shape \(1, 197, 24\), but ViTForImageClassification's "
            r"vit\.embeddings\.position_embeddings has \(1, 17, 24\)\. Build the target for the file's image size",
        ),
        (
            lambda state: state.update({"blocks.0.attn.qkv.weight": torch.ones(71, 24)}),
            r"blocks\.0\.attn\.qkv\.weight in w\.pth has 71 rows, which don't split into 3 equal parts",
        ),
        (
            lambda state: state.update({"head.weight": torch.ones(7, 24)}),
            r"head\.weight in w\.pth has shape \(7, 24\), but ViTForImageClassification's classifier\.weight has \(5, 24\)",
        ),
    ],
)
def test_load_checkpoint_what_does_not_fit_is_refused_and_nothing_loaded(change, message):
    state, module = original.ViT(classes=5).state_dict(), _vit()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    change(state)
    with pytest.raises(ShallowvitError, match=message):
        load_checkpoint(module, Checkpoint(state), "w.pth")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_load_checkpoint_half_a_decoder_is_refused_not_dropped():
    state = original.MAE().state_dict()
    del state["decoder_pred.bias"]
    module = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SIZES, **INNER))
    with pytest.raises(
        ShallowvitError, match=r"1 missing, 0 without a place; the first: decoder\.decoder_pred\.bias is missing"
    ):
        load_checkpoint(module, Checkpoint(state), "w.pth")


def test_load_checkpoint_encoder_into_a_class_with_decoder_is_refused_with_the_encoders_class():
    module = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SIZES, **INNER))
    with pytest.raises(ShallowvitError, match=r"decoder\.\S+ is missing; read as plain ViT\. The file lacks the decoder"):
        load_checkpoint(module, Checkpoint(original.ViT().state_dict()), "w.pth")


def test_load_checkpoint_mask_token_that_the_file_lacks_is_refused_with_the_setting():
    module = transformers.Dinov2Model(transformers.Dinov2Config(**DINOV2))
    with pytest.raises(ShallowvitError, match=r"embeddings\.mask_token is missing.*Set use_mask_token to false"):
        load_checkpoint(module, Checkpoint(original.ViT(scale="ls").state_dict()), "w.pth")


def test_load_checkpoint_of_another_family_is_refused_with_the_classes_it_goes_into():
    message = (
        r"w\.pth is a VideoMAE classifier checkpoint, which doesn't go into ViTForImageClassification but into transformers\."
    )
    with pytest.raises(ShallowvitError, match=message):
        load_checkpoint(_vit(), Checkpoint(original.VideoMAE().state_dict()), "w.pth")


def test_load_checkpoint_point_mae_into_a_stock_class_is_refused():
    with pytest.raises(ShallowvitError, match=r"Point-MAE pretraining checkpoint.*but into a module of your own"):
        load_checkpoint(_vit(), Checkpoint(original.PointMAE().state_dict()), "w.pth")


def test_load_checkpoint_unknown_names_list_the_known_repositories():
    state = {"trunk.stem.weight": torch.ones(3, 3), "trunk.out.weight": torch.ones(2, 3)}
    with pytest.raises(ShallowvitError, match=r"of no known repository \(VideoMAE pretraining, .*Point-MAE classifier\)"):
        load_checkpoint(_vit(), Checkpoint(state), "w.pth")


def test_load_checkpoint_names_of_two_layouts_are_ambiguous():
    state = original.MAE().state_dict() | original.PointMAE().state_dict()
    with pytest.raises(ShallowvitError, match="could be those of MAE pretraining or Point-MAE pretraining"):
        load_checkpoint(_vit(), Checkpoint(state), "w.pth")


def test_load_checkpoint_two_weights_for_one_place_are_refused():
    state = original.ViT(**DINO_V2).state_dict() | original.ViT(**DINO_V2, chunks=2).state_dict()
    module = transformers.Dinov2Model(transformers.Dinov2Config(**DINOV2))
    with pytest.raises(ShallowvitError, match=r"and \S+ in w\.pth both go to encoder\.layer\.\d"):
        load_checkpoint(module, Checkpoint(state), "w.pth")


@pytest.mark.parametrize("heads", [6, 12])
def test_load_checkpoint_tells_of_another_number_of_heads_than_the_official(heads):
    config = transformers.ViTConfig(**SIZES | {"hidden_size": 384, "num_attention_heads": heads})
    state = original.ViT(width=384, heads=6).state_dict()
    state |= {name: torch.ones(48) for name in state if name.endswith("fc1.bias")}
    for name in [name for name in state if ".fc" in name and name.endswith("weight")]:
        state[name] = state[name][:48] if "fc1" in name else state[name][:, :48]
    fit = load_checkpoint(transformers.ViTModel(config), Checkpoint(state), "w.pth")
    told = [note for note in fit.notes if "ViTModel has 12, but plain ViT at width 384 officially 6" in note]
    assert len(told) == (heads == 12)


def test_load_checkpoint_tells_of_another_number_of_heads_in_the_decoder():
    model = original.MAE(inner=512, inner_heads=16)
    config = transformers.ViTMAEConfig(**SIZES, **INNER | {"decoder_hidden_size": 512, "decoder_num_attention_heads": 8})
    config.decoder_intermediate_size = 1024
    fit = load_checkpoint(transformers.ViTMAEForPreTraining(config), Checkpoint(model.state_dict()), "w.pth")
    assert (
        "heads of the decoder there are; ViTMAEForPreTraining has 8, but MAE pretraining at width 512 officially 16"
        in fit.notes[0]
    )


class _Runs:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_load_checkpoint_with_code_in_its_arguments_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": original.ViT().state_dict(), "args": argparse.Namespace(hook=_Runs())}, tmp_path / "w.pth")
    with pytest.raises(ShallowvitError, match="holds Python objects or code beside tensors, which is never run here"):
        read_checkpoint(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_read_checkpoint_says_what_it_took_and_left(tmp_path):
    state = {"a": torch.ones(2)}
    torch.save({"student": state, "teacher": state, "model_ema": {"rate": 0.9}}, tmp_path / "w.pth")
    found = read_checkpoint(tmp_path / "w.pth")
    assert (found.taken, found.others) == (("teacher",), ("student",))


def test_read_checkpoint_unwraps_again_and_again(tmp_path):
    torch.save({"state_dict": {"model": {"module.a": torch.ones(2)}}}, tmp_path / "w.pth")
    found = read_checkpoint(tmp_path / "w.pth")
    assert (list(found.state), found.taken) == (["a"], ("state_dict", "model"))


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_open_checkpoint_chunked_blocks_are_one_stack(tmp_path, prefix):
    state = {prefix + name: value for name, value in original.ViT(**DINO_V2, chunks=2).state_dict().items()}
    torch.save({"teacher": state, "student": state}, tmp_path / "w.pth")
    assert [block.path for block in open_checkpoint(tmp_path / "w.pth")] == [f"{prefix}blocks.{number}" for number in range(4)]


def test_open_checkpoint_official_files_are_read_by_their_encoder(tmp_path):
    _, path = _dino(tmp_path)
    assert [block.path for block in open_checkpoint(path)] == [f"backbone.blocks.{number}" for number in range(4)]
    path = _official(tmp_path / "points.pth", original.PointMAE().state_dict(), "base_model", "module.")
    assert open_checkpoint(path)[0].stack == "MAE_encoder.blocks.blocks"
    path = _official(tmp_path / "video.pth", original.VideoMAEPretraining().state_dict(), "model")
    assert len(score_checkpoint(path).blocks) == 4


def test_unchunked_stages_that_begin_anew_stay_as_they_are():
    stages = ["blocks.0.0.conv.weight", "blocks.1.0.conv.weight", "blocks.1.1.conv.weight"]
    assert unchunked(stages) == {name: name for name in stages}
    nested = ["blocks.0.0.fc.weight", "blocks.0.1.fc.weight"]
    assert unchunked(nested) == {name: name for name in nested}


def test_docs_name_every_layout_and_class():
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    for name in [layout.name for layout in LAYOUTS] + [name.rpartition(".")[2] for name in CLASS_MAPS]:
        assert f"`{name}`" in text or f"| {name} |" in text, name
    assert {name for class_map in CLASS_MAPS.values() for name in class_map.layouts} <= {layout.name for layout in LAYOUTS}
