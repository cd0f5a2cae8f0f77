"""Output heads dropped and drawn anew, on tiny models of each library, and what a saved folder knows of it."""

import pytest
import torch
import transformers
from torch import nn

import shallowvit
from shallowvit import Changes, PlanConfig, ShallowvitError
from shallowvit.exporting.outputs import default_output
from shallowvit.models import InputSpec
from shallowvit.models.heads import parse_head, with_head
from shallowvit.models.load import loaded_from_module
from shallowvit.models.raw import RawModel

from .small_models import Block, Stacked

TIMM = "timm:vit_tiny_patch16_224?img_size=32&depth=3&embed_dim=48&num_heads=3&num_classes=5"
WIDTHS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(**WIDTHS, image_size=32, patch_size=8, initializer_range=0.2, num_labels=5)
    torch.manual_seed(1)  # not that of the new head
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


def answer(model, seed=0):
    """The model's main output on random pictures."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {model.input_spec.name: torch.randn(2, *model.input_spec.shape, generator=generator)}
    with torch.no_grad():
        output = model.module(**inputs)
    return output if isinstance(output, torch.Tensor) else output[0]


def into(model, path):
    """What goes into the module at ``path`` on the same pictures."""
    seen = []
    handle = model.module.get_submodule(path).register_forward_hook(lambda _module, args, _output: seen.append(args[0]))
    answer(model)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("text", ["linear", "linear:0", "linear:-1", "linear:x", "", "None"])
def test_parse_head_of_anything_else_says_the_forms(text):
    with pytest.raises(ShallowvitError, match=r"is no head; write none, or linear:N"):
        parse_head(text)


@pytest.mark.parametrize(("kind", "head"), [("timm", "head"), ("hf", "classifier"), ("video", "classifier")])
def test_load_without_head_gives_what_went_into_it(kind, head, vit_folder, video_folder):
    source = {"timm": TIMM, "hf": f"hf:{vit_folder}", "video": f"hf:{video_folder}"}[kind]
    found = answer(shallowvit.load(source, changes=Changes(head="none")))
    assert torch.equal(found, into(shallowvit.load(source), head))
    assert found.std() > 0.05


@pytest.mark.parametrize("kind", ["timm", "hf"])
def test_load_with_new_head_draws_it_and_leaves_the_rest(kind, vit_folder):
    source = TIMM if kind == "timm" else f"hf:{vit_folder}"
    first, second = (shallowvit.load(source, changes=Changes(head="linear:7")) for _ in range(2))
    assert first.output_shapes[0] == (1, 7)
    assert first.sha256 == second.sha256
    assert first.notes == ("its head of 7 outputs is new and random: finetune before use",)
    before = shallowvit.load(source).module.state_dict()
    same = [name for name, value in first.module.state_dict().items() if torch.equal(value, before[name])]
    assert len(same) == len(before) - 2
    assert first.labels is None


@pytest.mark.parametrize("kind", ["timm", "hf"])
def test_default_output_without_head_is_features(kind, vit_folder, tmp_path):
    source = TIMM if kind == "timm" else f"hf:{vit_folder}"
    model = shallowvit.load(source, changes=Changes(head="none"))
    saved = shallowvit.save_pruned(shallowvit.prune(model, shallowvit.plan(model)), tmp_path / "out")
    assert default_output(shallowvit.load(source)).name == "logits"
    assert default_output(model).name == default_output(shallowvit.load(saved.path)).name == "features"


def test_load_with_as_many_outputs_as_before_draws_the_head_anew(vit_folder):
    before = shallowvit.load(f"hf:{vit_folder}")
    after = shallowvit.load(f"hf:{vit_folder}", changes=Changes(head="linear:5"))
    assert not torch.equal(before.module.classifier.weight, after.module.classifier.weight)
    assert torch.equal(into(before, "classifier"), into(after, "classifier"))


@pytest.mark.parametrize("kind", ["timm", "hf", "video"])
@pytest.mark.parametrize("head", ["none", "linear:7"])
def test_save_pruned_with_changed_head_stays_stock(kind, head, vit_folder, video_folder, tmp_path):
    source = {"timm": TIMM, "hf": f"hf:{vit_folder}", "video": f"hf:{video_folder}"}[kind]
    model = shallowvit.load(source, changes=Changes(head=head))
    pruned = shallowvit.prune(model, shallowvit.plan(model, config=PlanConfig(remove="1")))
    saved = shallowvit.save_pruned(pruned, tmp_path / "out")
    assert saved.stock
    assert torch.equal(answer(shallowvit.load(saved.path)), answer(pruned.model))


def test_load_folder_of_ours_makes_the_changes_it_was_pruned_with(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(
        "import torch\nfrom tests.optimizer.small_models import Block, Stacked, redraw\n"
        "def model():\n    blocks = torch.nn.ModuleList(Block() for _ in range(4))\n"
        "    return redraw(Stacked(blocks), 0), torch.zeros(1, 5, 8)\n"
    )
    model = shallowvit.load(f"{tmp_path / 'own.py'}:model", changes=Changes(head="linear:6"))
    pruned = shallowvit.prune(model, shallowvit.plan(model, config=PlanConfig(remove="2")))
    saved = shallowvit.save_pruned(pruned, tmp_path / "out")
    again = shallowvit.load(saved.path, arch=model.origin.spec)
    assert not saved.stock
    assert again.origin.head == "linear:6"
    assert again.sha256 == pruned.model.sha256
    without = shallowvit.load(saved.path, arch=model.origin.spec, changes=Changes(head="none"))
    assert answer(without).shape == (2, 5, 8)
    assert without.origin.head == "none"


def test_load_of_torchvision_without_head_gives_what_went_into_it(torchvision_model):
    found = shallowvit.load("torchvision:convnext_tiny?num_classes=3", changes=Changes(head="none"))
    assert torch.equal(answer(found), into(torchvision_model, "classifier.2"))


def test_load_of_pretraining_model_without_head_is_its_encoder(video_folder, tmp_path):
    config = transformers.AutoConfig.from_pretrained(video_folder)
    torch.manual_seed(0)
    transformers.VideoMAEForPreTraining(config).save_pretrained(tmp_path / "mae")
    encoder = shallowvit.load(f"hf:{tmp_path / 'mae'}", changes=Changes(head="none"))
    assert type(encoder.module) is transformers.VideoMAEModel
    assert list(encoder.example) == ["pixel_values"]
    classifier = shallowvit.load(f"hf:{tmp_path / 'mae'}", changes=Changes(head="linear:4"))
    assert type(classifier.module) is transformers.VideoMAEForVideoClassification
    ours, theirs = classifier.module.videomae.state_dict(), encoder.module.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_with_head_of_encoder_without_head_is_refused(vit_folder, tmp_path):
    transformers.ViTModel(transformers.AutoConfig.from_pretrained(vit_folder)).save_pretrained(tmp_path)
    with pytest.raises(ShallowvitError, match="ViTModel has no head; leave it out"):
        shallowvit.load(f"hf:{tmp_path}", changes=Changes(head="none"))
    with pytest.raises(ShallowvitError, match="VisionTransformer has no head; leave it out"):
        shallowvit.load(TIMM.replace("num_classes=5", "num_classes=0"), changes=Changes(head="none"))


def test_with_head_of_model_without_a_classifier_is_refused(tmp_path):
    config = transformers.ViTMAEConfig(
        **WIDTHS,
        image_size=32,
        patch_size=8,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
    )
    transformers.ViTMAEForPreTraining(config).save_pretrained(tmp_path)
    with pytest.raises(ShallowvitError, match="transformers has no classifier for ViTMAEConfig"):
        shallowvit.load(f"hf:{tmp_path}", changes=Changes(head="linear:3"))


class Doubled(Stacked):
    """Its last linear layer isn't its output."""

    def forward(self, x):
        return super().forward(x) * 2


def test_with_head_where_no_layer_is_the_output_is_refused():
    raw = RawModel(
        Doubled(nn.ModuleList([Block(), Block()])), "module", InputSpec("x", "NDD", (5, 8)), {"x": torch.zeros(1, 5, 8)}
    )
    with pytest.raises(ShallowvitError, match="no linear layer of Doubled gives the model's output; the last of its 5"):
        with_head(raw, "none")


def test_with_head_of_module_takes_the_last_linear_and_its_bias():
    module = Stacked(nn.ModuleList([Block(), Block()]))
    module.head = nn.Linear(8, 3, bias=False)
    raw = RawModel(module, "module", InputSpec("x", "NDD", (5, 8)), {"x": torch.zeros(1, 5, 8)})
    model = loaded_from_module(raw, "test:module", None, (), Changes(head="linear:9"))
    assert model.output_shapes == ((1, 5, 9),)
    assert model.module.head.bias is None


def test_with_head_where_forward_fails_says_so():
    raw = RawModel(
        Stacked(nn.ModuleList([Block(), Block()])), "module", InputSpec("x", "NDD", (5, 7)), {"x": torch.zeros(1, 5, 7)}
    )
    with pytest.raises(ShallowvitError, match="load: --head: one forward of Stacked failed"):
        with_head(raw, "none")
