"""Other image sizes and frame counts: against the libraries' own interpolation, and what a saved folder knows of them."""

import json
import re

import pytest
import torch
import transformers

import shallowvit
from shallowvit import Changes, PlanConfig, ShallowvitError
from shallowvit.models.changes import parse_image_size
from shallowvit.models.positions import Grid, resampled

from ..conftest import save_video_model
from .test_heads import answer

WIDTHS = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
PICTURES = WIDTHS | {"image_size": 32, "patch_size": 8}
TIMM = "timm:vit_tiny_patch16_224?img_size=64&depth=3&embed_dim=48&num_heads=3&num_classes=5"


def save(folder, cls, config, seed=1):
    """A checkpoint whose tables of positions are not flat."""
    torch.manual_seed(seed)
    module = cls(config)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "position" in name or "pos_embed" in name:
                weight.normal_(0, 0.5)
    module.save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    config = transformers.ViTConfig(**PICTURES, num_labels=5)
    return save(tmp_path_factory.mktemp("vit"), transformers.ViTForImageClassification, config)


def sized(source, image_size=None, frames=None):
    return shallowvit.load(source, changes=Changes(image_size=image_size, frames=frames))


def difference(one, other):
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("240x320", (240, 320)), ("48X64", (48, 64))])
def test_parse_image_size_reads_height_and_width(text, size):
    assert parse_image_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "240x", "a", "1.5", "-32", "1x2x3"])
def test_parse_image_size_of_anything_else_is_refused(text):
    with pytest.raises(ShallowvitError, match="write 224 or 240x320"):
        parse_image_size(text)


def test_changes_of_no_pixels_or_frames_are_refused():
    with pytest.raises(ShallowvitError, match="--image-size 0x32 has no pixels"):
        Changes(image_size=(0, 32))
    with pytest.raises(ShallowvitError, match="--frames 0 is out of range"):
        Changes(frames=0)


@pytest.mark.parametrize("source", ["vit", TIMM, "video"])
def test_load_at_the_size_it_has_changes_nothing(source, vit, video_folder):
    source = {"vit": vit, "video": f"hf:{video_folder}"}.get(source, source)
    before = shallowvit.load(source)
    after = sized(source, before.input_spec.shape[-2:])
    assert after.sha256 == before.sha256
    assert torch.equal(answer(after), answer(before))


@pytest.mark.parametrize("size", [(96, 96), (32, 96), (64, 48), (128, 16)])
def test_load_of_timm_at_another_size_answers_as_its_dynamic_size(size):
    model = sized(TIMM, size)
    dynamic = shallowvit.load(f"{TIMM}&dynamic_img_size=true").module
    pictures = torch.randn(2, 3, *size)
    assert difference(model.module(pictures), dynamic(pictures)) < 1e-5
    assert difference(answer(model), answer(sized(TIMM, tuple(reversed(size))), 1)) > 1e-3


LIBRARY = {
    "vit": (transformers.ViTForImageClassification, transformers.ViTConfig, {}),
    "dinov2": (transformers.Dinov2ForImageClassification, transformers.Dinov2Config, {}),
    "dinov2-registers": (transformers.Dinov2WithRegistersModel, transformers.Dinov2WithRegistersConfig, {}),
    "deit": (transformers.DeiTForImageClassification, transformers.DeiTConfig, {}),
    "clip": (transformers.CLIPVisionModel, transformers.CLIPVisionConfig, {}),
    "siglip": (transformers.SiglipVisionModel, transformers.SiglipVisionConfig, {}),
    "ijepa": (transformers.IJepaModel, transformers.IJepaConfig, {}),
    "msn": (transformers.ViTMSNForImageClassification, transformers.ViTMSNConfig, {}),
    "beit-absolute": (transformers.BeitModel, transformers.BeitConfig, {"use_absolute_position_embeddings": True}),
}


@pytest.mark.parametrize("size", [(48, 48), (24, 64)])
@pytest.mark.parametrize("name", LIBRARY)
def test_load_of_transformers_at_another_size_answers_as_the_library_interpolates(name, size, tmp_path):
    cls, config, extra = LIBRARY[name]
    source = save(tmp_path, cls, config(**PICTURES, **extra))
    pictures = torch.randn(2, 3, *size)
    with torch.no_grad():
        model = sized(source, size)
        ours = model.module(**(model.example | {"pixel_values": pictures}))[0]
        theirs = shallowvit.load(source).module(pictures, interpolate_pos_encoding=True)[0]
    assert difference(ours, theirs) < 1e-5
    assert theirs.std() > 0.05


def test_load_of_beit_at_another_size_resamples_its_relative_biases_as_the_library(tmp_path):
    config = transformers.BeitConfig(**PICTURES, use_relative_position_bias=True, use_absolute_position_embeddings=False)
    source = save(tmp_path, transformers.BeitForImageClassification, config)
    pictures = torch.randn(2, 3, 48, 48)
    with torch.no_grad():  # it resamples its bias to whatever it is given
        ours, theirs = (model.module(pictures)[0] for model in (sized(source, (48, 48)), shallowvit.load(source)))
    assert difference(ours, theirs) < 1e-5


def test_load_of_video_model_at_another_size_has_the_sinusoid_of_that_size(video_folder, tmp_path):
    model = sized(f"hf:{video_folder}", (24, 32), 8)
    fresh = save_video_model(tmp_path / "fresh", image_size=[24, 32], num_frames=8)
    expected = shallowvit.load(f"hf:{fresh}").module
    expected.load_state_dict(model.module.state_dict())
    assert model.input_spec.shape == (8, 3, 24, 32)
    clips = torch.randn(1, 8, 3, 24, 32)
    assert torch.equal(model.module(clips).logits, expected(clips).logits)


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (transformers.VivitForVideoClassification, transformers.VivitConfig(**PICTURES, num_frames=4, tubelet_size=[2, 8, 8])),
        (transformers.TimesformerForVideoClassification, transformers.TimesformerConfig(**PICTURES, num_frames=4)),
    ],
    ids=["vivit", "timesformer"],
)
def test_load_of_video_model_with_a_table_resamples_it_and_stays_stock(cls, config, tmp_path):
    source = save(tmp_path / "source", cls, config)
    model = sized(source, (48, 32), 8)
    with torch.no_grad():
        logits = model.module(torch.randn(2, 8, 3, 48, 32)).logits
    assert logits.shape == (2, 2)
    pruned = shallowvit.prune(model, shallowvit.plan(model, config=PlanConfig(remove="1")))
    assert shallowvit.save_pruned(pruned, tmp_path / "out").stock


def test_resampled_table_over_time_height_and_width_keeps_its_prefix_and_a_linear_ramp():
    frames, rows, columns = torch.meshgrid(torch.arange(2.0), torch.arange(4.0), torch.arange(6.0), indexing="ij")
    ramp = torch.stack([frames, rows, columns], -1).reshape(1, 48, 3)
    table = torch.cat([torch.full((1, 1, 3), 9.0), ramp], 1)
    found = resampled("pos", table, (1, 1 + 4 * 8 * 6, 3), Grid(2, 4, 6), Grid(4, 8, 6))
    assert torch.equal(found[:, :1], table[:, :1])
    cells = found[0, 1:].reshape(4, 8, 6, 3)
    assert torch.allclose(cells[:, 0, 0, 0], torch.tensor([0, 0.25, 0.75, 1]))
    assert torch.allclose(cells[0, 3:5, 0, 1], torch.tensor([1.25, 1.75]), atol=0.05)
    assert torch.allclose(cells[0, 0, :, 2], torch.arange(6.0))


def test_resampled_table_of_relative_offsets_keeps_its_extra_rows():
    table = torch.randn(7 * 7 + 3, 2)
    found = resampled("bias", table, (11 * 11 + 3, 2), Grid(1, 4, 4), Grid(1, 6, 6))
    assert torch.equal(found[-3:], table[-3:])
    assert torch.allclose(found[11 * 5 + 5], table[7 * 3 + 3])  # no offset stays no offset


def test_resampled_table_of_rows_and_columns_apart():
    table = torch.randn(1, 2, 4, 4)
    found = resampled("pos", table, (1, 2, 4, 8), Grid(1, 4, 4), Grid(1, 4, 8))
    expected = torch.nn.functional.interpolate(table, (4, 8), mode="bicubic")
    assert torch.allclose(found, expected, atol=1e-6)


def test_resampled_table_of_another_shape_is_refused():
    with pytest.raises(ShallowvitError, match=r"pos has shape \(1, 20, 8\) and would need \(1, 30, 8\), which no resampling"):
        resampled("pos", torch.zeros(1, 20, 8), (1, 30, 8), Grid(1, 4, 4), Grid(1, 6, 6))


def test_load_of_model_that_takes_squares_only_interpolates_in_forward_and_says_so(tmp_path):
    source = save(tmp_path / "clip", transformers.CLIPVisionModel, transformers.CLIPVisionConfig(**PICTURES))
    model = sized(source, (24, 64))
    assert model.example["interpolate_pos_encoding"] is True
    assert model.notes == ("CLIPVisionModel can't be built for 24x64, so it interpolates its positions for 32x32 in forward",)
    saved = shallowvit.save_pruned(shallowvit.prune(model, shallowvit.plan(model)), tmp_path / "out")
    again = shallowvit.load(saved.path)
    assert saved.stock
    assert again.example["pixel_values"].shape == (1, 3, 24, 64)
    assert torch.equal(again.module(**again.example)[0], model.module(**model.example)[0])
    square = sized(source, (64, 64))
    assert list(square.example) == ["pixel_values"]
    assert square.notes == ()


def test_load_with_height_and_width_swapped_turns_the_table(vit, tmp_path):
    wide = sized(vit, (16, 64))
    assert wide.module.config.image_size == [16, 64]
    wide.module.save_pretrained(tmp_path)
    tall = sized(f"hf:{tmp_path}", (64, 16))
    tables = [model.module.vit.embeddings.position_embeddings for model in (wide, tall)]
    assert tables[0].shape == tables[1].shape
    assert not torch.allclose(*tables, atol=0.1)


@pytest.mark.parametrize("kind", ["vit", "timm", "video"])
def test_save_pruned_of_resized_model_stays_stock(kind, vit, video_folder, tmp_path):
    source, size = {"vit": (vit, (48, 32)), "timm": (TIMM, (48, 32)), "video": (f"hf:{video_folder}", (24, 24))}[kind]
    model = sized(source, size)
    pruned = shallowvit.prune(model, shallowvit.plan(model, config=PlanConfig(remove="1")))
    saved = shallowvit.save_pruned(pruned, tmp_path / "out")
    again = shallowvit.load(saved.path)
    assert saved.stock
    assert again.input_spec == model.input_spec
    assert torch.equal(answer(again), answer(pruned.model))
    assert json.loads((saved.path / "shallowvit.json").read_text())["source"]["image_size"] == list(size)


@pytest.mark.parametrize(
    "name",
    [
        "convnext_atto?num_classes=5&dims=(16,16,16,16)&depths=(1,1,2,1)",
        "swin_tiny_patch4_window7_224?img_size=64&window_size=4&embed_dim=8&depths=[1,1,2,1]&num_heads=[1,1,1,1]&num_classes=5",
        "beit_base_patch16_224?img_size=64&depth=3&embed_dim=48&num_heads=3&num_classes=5",
        "eva02_tiny_patch14_224?img_size=56&depth=3&embed_dim=48&num_heads=3&num_classes=5",
        "hiera_tiny_224?img_size=64&embed_dim=24&num_heads=1&stages=(1,1,3,1)&num_classes=5&abs_win_pos_embed=false",
    ],
    ids=lambda name: name.partition("?")[0],
)
def test_save_pruned_of_resized_timm_model_reloads(name, tmp_path):
    size = (112, 112) if "eva" in name else (128, 128)
    model = sized(f"timm:{name}", size)
    unchanged = shallowvit.prune(model, shallowvit.plan(model))
    saved = shallowvit.save_pruned(unchanged, tmp_path / "out")
    again = shallowvit.load(saved.path)
    assert saved.stock
    assert again.input_spec.shape == (3, *size)
    assert torch.equal(answer(again), answer(model))


def test_load_of_torchvision_vit_at_another_size_resamples_its_table(tmp_path, monkeypatch):
    import torchvision

    small = {"patch_size": 16, "num_layers": 3, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}

    def tiny(**arguments):
        return torchvision.models.VisionTransformer(**(small | {"image_size": 224} | arguments))

    monkeypatch.setattr(torchvision.models, "get_model", lambda _name, **arguments: tiny(**arguments))
    before, after = shallowvit.load("torchvision:vit_b_16"), sized("torchvision:vit_b_16", (96, 96))
    assert after.input_spec.shape == (3, 96, 96)
    assert after.module.encoder.pos_embedding.shape == (1, 37, 32)
    assert torch.equal(after.module.encoder.pos_embedding[:, 0], before.module.encoder.pos_embedding[:, 0])
    pruned = shallowvit.prune(after, shallowvit.plan(after, config=PlanConfig(remove="0")))
    saved = shallowvit.save_pruned(pruned, tmp_path / "out")
    again = shallowvit.load(saved.path, arch="torchvision:vit_b_16")
    assert again.sha256 == pruned.model.sha256
    assert again.input_spec.shape == (3, 96, 96)
    with pytest.raises(ShallowvitError, match="takes squares only, not 96x64"):
        sized("torchvision:vit_b_16", (96, 64))


def test_load_of_convolutional_model_takes_the_size_as_it_is(torchvision_model):
    model = sized("torchvision:convnext_tiny?num_classes=3", (64, 96))
    assert model.sha256 == torchvision_model.sha256
    assert model.input_spec.shape == (3, 64, 96)
    assert model.flops < torchvision_model.flops / 4


def test_load_at_another_size_scales_the_preprocessing(video_folder):
    settings = sized(f"hf:{video_folder}", (32, 24)).input_spec.preprocessing
    assert settings.frame_shape == (4, 32, 24, 3)
    assert settings.crop == {"height": 32, "width": 24}
    assert settings.resize == {"shortest_edge": 32}


def test_load_at_no_multiple_of_the_patch_says_both(vit, video_folder):
    with pytest.raises(ShallowvitError, match="--image-size: 36x32 is no multiple of the patch size 8x8"):
        sized(vit, (36, 32))
    with pytest.raises(ShallowvitError, match="--frames: 3x16x16 is no multiple of the patch size 2x4x4"):
        sized(f"hf:{video_folder}", None, 3)
    with pytest.raises(ShallowvitError, match="--image-size: 70x64 is no multiple of the patch size 16x16"):
        sized(TIMM, (70, 64))


def test_load_with_frames_of_a_picture_model_is_refused(vit):
    with pytest.raises(ShallowvitError, match="--frames 8: ViTForImageClassification takes pictures, not clips"):
        sized(vit, None, 8)


def test_load_of_own_module_at_a_size_it_was_not_built_for_is_refused(tmp_path):
    (tmp_path / "own.py").write_text(
        "import timm, torch\ndef model():\n"
        "    return timm.create_model('vit_tiny_patch16_224', img_size=32, depth=2, embed_dim=24, num_heads=2), "
        "torch.zeros(1, 3, 32, 32)\n"
    )
    with pytest.raises(ShallowvitError, match=re.escape("it was built for (3, 32, 32)")):
        sized(f"{tmp_path / 'own.py'}:model", (64, 64))


def test_load_of_neither_pictures_nor_clips_is_refused(tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\nfrom tests.optimizer.small_models import Block, Stacked\n"
        "def model():\n    return Stacked(torch.nn.ModuleList(Block() for _ in range(2))), torch.zeros(1, 5, 8)\n"
    )
    with pytest.raises(ShallowvitError, match="neither pictures nor clips"):
        sized(f"{tmp_path / 'own.py'}:model", (64, 64))
