import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import save_file

from shallowvit import ShallowvitError, load

from .small_models import Block, redraw
from .test_saved import _file_source
from .test_surgery import TIMM_CONVNEXT, TIMM_VIT

HEAD = "import torch\nfrom tests.optimizer.small_models import Block, Stacked, redraw\n"


def _write_source(path, lines):
    path.write_text(HEAD + "def build():\n" + "".join(f"    {line}\n" for line in lines))
    return f"{path}:build"


def test_load_video_folder_describes_input_blocks_and_labels(video_model, video_folder):
    assert video_model.origin.architecture == "VideoMAEForVideoClassification"
    assert (video_model.input_spec.name, video_model.input_spec.layout) == ("pixel_values", "NTCHW")
    assert video_model.input_spec.shape == (4, 3, 16, 16)
    assert [block.path for block in video_model.blocks] == [f"videomae.encoder.layer.{index}" for index in range(4)]
    assert video_model.labels == ("up", "down", "left", "right", "still")
    assert video_model.folder == video_folder
    assert not video_model.module.training


def test_load_video_folder_reads_its_own_preprocessing(video_model):
    settings = video_model.input_spec.preprocessing
    assert settings.frame_shape == (4, 16, 16, 3)
    assert (settings.mean, settings.std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert (settings.resize, settings.crop) == ({"shortest_edge": 16}, {"height": 16, "width": 16})


def test_load_folder_without_prefix_is_the_same_model(video_model, video_folder):
    assert load(video_folder).sha256 == load(str(video_folder)).sha256 == video_model.sha256


def test_load_bf16_checkpoint_is_computed_in_fp32(video_folder, tmp_path):
    import transformers

    module = transformers.VideoMAEForVideoClassification.from_pretrained(video_folder).to(torch.bfloat16)
    module.save_pretrained(tmp_path / "bf16")
    assert {parameter.dtype for parameter in load(tmp_path / "bf16").module.parameters()} == {torch.float32}


def test_load_timm_query_builds_that_size():
    model = load(TIMM_VIT)
    assert model.input_spec.shape == (3, 32, 32)
    assert model.input_spec.preprocessing.frame_shape == (32, 32, 3)
    assert (len(model.blocks), model.module.embed_dim, model.module.num_classes) == (4, 48, 5)


def test_load_timm_without_weights_is_the_same_each_time():
    before = torch.random.get_rng_state()
    assert load(TIMM_CONVNEXT).sha256 == load(TIMM_CONVNEXT).sha256
    assert torch.equal(torch.random.get_rng_state(), before)


def test_load_timm_other_channels_has_no_preprocessing():
    spec = load(TIMM_VIT + "&in_chans=1").input_spec
    assert (spec.shape, spec.preprocessing) == ((1, 32, 32), None)


def test_load_torchvision_describes_input_and_blocks(torchvision_model):
    assert (torchvision_model.stacks[0].path, len(torchvision_model.blocks)) == ("features.5", 9)
    assert torchvision_model.input_spec.preprocessing.crop == {"height": 224, "width": 224}
    assert torchvision_model.labels is None  # three classes of ours, not the thousand it was trained on


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm:vit_nothing", r"timm .* has no model vit_nothing"),
        (TIMM_VIT + "&no_such=1", r"timm can't build it: .*no_such"),
        (TIMM_VIT + "&num_heads=5", "timm can't build it: .*num_heads"),
        ("torchvision:nothing", r"torchvision .* has no model nothing"),
        ("torchvision:resnet18?no_such=1", "torchvision can't build it: .*no_such"),
        ("torchvision:raft_small", "isn't an image classifier"),
        ("demo:other", "choose demo or demo:pretrained"),
        ("nonsense", "'nonsense' is no known source; give demo, hf:FOLDER_OR_ID"),
        ("hf:", "is no known source"),
        (":build", "is no known source"),
        ("some/model.onnx", r"no file or folder some/model\.onnx"),
        ("hf:/no/such/folder", "no folder /no/such/folder"),
        ("hf:./no", r"no folder no|no folder \./no"),
        ("no_such_module:build", "no module no_such_module"),
        ("no_such.py:build", r"no file no_such\.py"),
        ("json:no_such", "json has no function no_such"),
        ("json:dumps", "dumps"),
    ],
)
def test_load_wrong_source_raises_and_says_why(source, message):
    error = TypeError if source == "json:dumps" else ShallowvitError  # the user's own function fails: his own traceback
    with pytest.raises(error, match=message):
        load(source)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("arch", ["hf", "timm", "file"])
def test_load_state_dict_with_arch_equals_the_source(tmp_path, video_model, video_folder, suffix, arch):
    if arch == "hf":
        model, spec = video_model, f"hf:{video_folder}"
    else:
        spec = TIMM_VIT if arch == "timm" else _file_source(tmp_path)
        model = load(spec)
        redraw(model.module, 9)
    state, path = model.module.state_dict(), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, path)
    again = load(path, arch=spec)
    found = again.module.state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert again.input_spec == model.input_spec
    assert (again.origin.spec, again.origin.arch) == (str(path), spec)


def test_load_state_dict_without_arch_raises(tmp_path):
    torch.save(Block().state_dict(), tmp_path / "w.pt")
    with pytest.raises(ShallowvitError, match=r"w\.pt holds weights without a model. Say which with --arch"):
        load(tmp_path / "w.pt")


def test_load_missing_file_is_told_before_the_model_is_built(tmp_path):
    with pytest.raises(ShallowvitError, match=r"no file .*w\.pt"):
        load(tmp_path / "w.pt", arch="timm:no_such_model")


def test_load_state_dict_of_another_model_raises(tmp_path):
    torch.save(Block().state_dict(), tmp_path / "w.pt")
    with pytest.raises(ShallowvitError, match=r"the weights of .*w\.pt don't fit Stacked: \d+ missing, 6 without a place"):
        load(tmp_path / "w.pt", arch=_file_source(tmp_path))


def test_load_arch_with_a_model_raises():
    with pytest.raises(ShallowvitError, match="--arch timm:x goes with a state-dict file or a pruned folder"):
        load(TIMM_VIT, arch="timm:x")


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "Inf")])
def test_load_nan_or_inf_weight_raises_and_names_it(tmp_path, value, kind):
    source = _file_source(tmp_path)
    state = load(source).module.state_dict()
    state["blocks.2.fc1.weight"][0, 0] = value
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ShallowvitError, match=rf"w\.pt: blocks\.2\.fc1\.weight holds 1 of 128.*{kind}"):
        load(tmp_path / "w.pt", arch=source)


def test_load_file_function_returns_the_models_example(tmp_path):
    source = _write_source(
        tmp_path / "made.py",
        ["blocks = torch.nn.ModuleList(Block() for _ in range(2))", "return Stacked(blocks), {'x': torch.ones(1, 4, 8)}"],
    )
    model = load(source)
    assert (model.input_spec.name, model.input_spec.shape, model.origin.family) == ("x", (4, 8), "module")


def test_load_module_function_is_found_beside_the_user(tmp_path, monkeypatch):
    _write_source(
        tmp_path / "beside_the_user.py",
        ["return Stacked(torch.nn.ModuleList(Block() for _ in range(2))), torch.ones(1, 4, 8)"],
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    assert len(load("beside_the_user:build").blocks) == 2


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("Block()", r"returned Block, expected \(module, example inputs\)"),
        ("torch.ones(1), Block()", r"returned tuple, expected \(module, example inputs\)"),
        ("Stacked(torch.nn.ModuleList([Block(), Block()])), torch.ones(2, 4, 8)", "needs a batch of 1 in front"),
        ("Stacked(torch.nn.ModuleList([Block(), Block()])), torch.ones(8)", "needs a batch of 1 in front"),
        (
            "Stacked(torch.nn.ModuleList([Block(), Block()])), (torch.ones(1, 8), 3)",
            r"the example doesn't fit Stacked\.forward",
        ),
        ("Stacked(torch.nn.ModuleList([Block(), Block()])), torch.ones(1, 4, 7)", r"one forward of Stacked with x \(1, 4, 7\)"),
        ("Block(), torch.ones(1, 4, 8)", "no removable blocks found in Block"),
    ],
)
def test_load_file_function_returning_something_else_raises(tmp_path, returned, message):
    with pytest.raises(ShallowvitError, match=message):
        load(_write_source(tmp_path / "made.py", [f"return {returned}"]))


def test_load_blocks_names_the_stack(tmp_path):
    import transformers

    from tests.conftest import VIDEO

    transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(**VIDEO)).save_pretrained(tmp_path / "model")
    found = load(tmp_path / "model")
    assert [stack.path for stack in found.stacks] == ["videomae.encoder.layer", "decoder.decoder_layers"]
    chosen = load(tmp_path / "model", blocks=["decoder.decoder_layers"])
    assert [block.path for block in chosen.blocks] == ["decoder.decoder_layers.0", "decoder.decoder_layers.1"]
    assert chosen.origin.blocks == ("decoder.decoder_layers",)


def test_load_a_folder_called_demo_is_not_the_demo(tmp_path, monkeypatch, video_folder, video_model):
    shutil.copytree(video_folder, tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    assert load("./demo").sha256 == video_model.sha256
    monkeypatch.setattr(sys.modules["shallowvit.models.load"], "_DEMO", tmp_path / "shipped")
    with pytest.raises(ShallowvitError, match=r"no folder .*shipped/finetuned"):
        load("demo")


def test_block_that_does_not_exist_raises(video_model):
    with pytest.raises(ShallowvitError, match=r"no block 4 in .*; it has blocks 0 to 3"):
        video_model.block(4)


@pytest.fixture
def broken(video_folder, tmp_path):
    shutil.copytree(video_folder, tmp_path / "broken")
    return tmp_path / "broken"


@pytest.mark.parametrize("prefix", ["hf:", ""])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_load_folder_with_truncated_weights_raises(broken, prefix, share):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(weights.stat().st_size * share)])
    with pytest.raises(ShallowvitError, match=r"model\.safetensors .* is truncated or not a safetensors file"):
        load(f"{prefix}{broken}")


@pytest.mark.parametrize("prefix", ["hf:", ""])
def test_load_folder_without_config_raises(broken, prefix):
    (broken / "config.json").unlink()
    with pytest.raises(ShallowvitError, match=r"no config\.json in "):
        load(f"{prefix}{broken}")


@pytest.mark.parametrize("prefix", ["hf:", ""])
def test_load_folder_with_damaged_config_raises(broken, prefix):
    (broken / "config.json").write_text('{"model_type": "videomae"')
    with pytest.raises(ShallowvitError, match=r"not JSON|not a valid JSON"):
        load(f"{prefix}{broken}")


def test_load_folder_without_weights_raises(broken):
    (broken / "model.safetensors").unlink()
    with pytest.raises(ShallowvitError, match="transformers can't load it"):
        load(broken)


def test_load_folder_lacking_a_weight_raises_and_names_it(broken):
    from safetensors.torch import load_file

    state = load_file(broken / "model.safetensors")
    del state["classifier.weight"]
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ShallowvitError, match=r"no fitting weights for 1 parameters .*first: classifier\.weight"):
        load(broken)


def test_load_folder_of_another_size_raises(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(ShallowvitError, match=r"transformers can't load it|no fitting weights"):
        load(broken)


def test_load_folder_of_an_unknown_class_raises(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"architectures": ["VideoMAEForNothing"]}))
    with pytest.raises(ShallowvitError, match=r"names the class VideoMAEForNothing, which transformers .* doesn't have"):
        load(broken)


def test_load_folder_with_code_of_its_own_raises_and_runs_nothing(broken, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask, and a user may agree
    marker = broken / "ran"
    (broken / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Config: pass\n")
    auto = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (broken / "config.json").write_text(json.dumps(json.loads((broken / "config.json").read_text()) | auto))
    with pytest.raises(ShallowvitError, match="transformers finds no configuration there"):
        load(broken)
    assert not marker.exists()


def test_load_folder_with_a_pickle_of_code_raises_and_runs_nothing(broken):
    from .test_weights import _Evil

    (broken / "model.safetensors").unlink()
    torch.save({"classifier.weight": _Evil(broken / "ran")}, broken / "pytorch_model.bin")
    with pytest.raises(ShallowvitError, match="transformers can't load it"):
        load(broken)
    assert not (broken / "ran").exists()


def test_load_demo_is_a_video_classifier_of_twelve_blocks(demo_source):
    model = load(demo_source)
    assert (model.origin.architecture, len(model.blocks)) == ("VideoMAEForVideoClassification", 12)
    assert model.input_spec.preprocessing is not None
    assert model.labels
