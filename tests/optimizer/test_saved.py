import json
import subprocess
import sys

import pytest
import torch

from shallowvit import PlanConfig, ShallowvitError, load, plan, prune, save_pruned

from .test_surgery import TIMM_CONVNEXT, TIMM_VIT, VIT, _outputs, _random_example, _saved

TIMM_SWIN = (
    "timm:swin_tiny_patch4_window7_224?img_size=32&patch_size=2&window_size=4&depths=(1,4,1)&embed_dim=16"
    "&num_heads=(2,2,2)&num_classes=4"
)

# Runs where nothing of this project can be imported, and leaves the outputs of each case in a file.
CLEAN = """
import copy, sys
for name in ("shallowvit", "shallowvit_bench", "shallowvit_kernels"):
    sys.modules[name] = None
import torch, transformers, timm

def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for item in values for tensor in tensors_in(item)]

asked, answers = torch.load(sys.argv[1]), {}
torch.set_num_threads(asked.pop("threads"))
for name, (reload, example) in asked.items():
    module = eval(reload).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        answers[name] = tensors_in(copy.deepcopy(module)(**example))
torch.save(answers, sys.argv[2])
"""


def _pruned(model, remove):
    return prune(model, plan(model, config=PlanConfig(remove=remove)))


def _transformers_models(name, folder):
    import transformers

    from tests.conftest import VIDEO

    torch.manual_seed(0)
    wide = {"initializer_range": 0.2}
    config = {
        "VideoMAEForVideoClassification": transformers.VideoMAEConfig(**VIDEO, **wide),
        "VideoMAEForPreTraining": transformers.VideoMAEConfig(**VIDEO, **wide),
        "ViTForImageClassification": transformers.ViTConfig(**VIT, **wide),
        "Dinov2Backbone": transformers.Dinov2Config(**VIT, out_indices=[2, 4], **wide),
        "SwinForImageClassification": transformers.SwinConfig(
            image_size=32, patch_size=2, embed_dim=16, depths=[1, 4, 1], num_heads=[2, 2, 2], window_size=4, **wide
        ),
    }[name]
    return _saved(getattr(transformers, name)(config), folder)


STOCK = [
    ("VideoMAEForVideoClassification", "0,3"),
    ("VideoMAEForPreTraining", "1"),
    ("ViTForImageClassification", "1,2"),
    ("Dinov2Backbone", "0"),
    ("SwinForImageClassification", "1,2"),  # keeps one unshifted and one shifted block
    (TIMM_VIT, "0,2"),
    (TIMM_CONVNEXT, "1"),
]


@pytest.fixture(scope="module")
def stock_outputs(tmp_path_factory):
    """Per case: whether it has a stock form, the pruned model's outputs, and those of the stock library in an interpreter of
    its own (one for all cases, since importing takes longest).
    """
    folder = tmp_path_factory.mktemp("stock")
    asked, ours = {}, {}
    for place, (name, remove) in enumerate(STOCK):
        model = load(name) if name.startswith("timm:") else _transformers_models(name, folder / f"model{place}")
        pruned = _pruned(model, remove)
        saved = save_pruned(pruned, folder / f"pruned{place}")
        example = _random_example(model)
        torch.manual_seed(0)
        ours[name] = (saved.stock, _outputs(pruned.model.module, example))
        asked[name] = (saved.reload, example)
    torch.save(asked | {"threads": torch.get_num_threads()}, folder / "asked.pt")
    (folder / "elsewhere").mkdir()
    command = [sys.executable, "-c", CLEAN, folder / "asked.pt", folder / "answers.pt"]
    done = subprocess.run(command, cwd=folder / "elsewhere", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = torch.load(folder / "answers.pt")
    return {name: (*ours[name], answers[name]) for name in ours}


@pytest.mark.parametrize("name", [name for name, _ in STOCK])
def test_save_pruned_reloads_with_the_stock_library_alone(stock_outputs, name):
    stock, expected, found = stock_outputs[name]
    assert stock
    assert len(found) == len(expected) > 0
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(("name", "remove"), [STOCK[0], STOCK[5]])
def test_save_pruned_stock_folder_loads_here_too(tmp_path, name, remove):
    model = load(name) if name.startswith("timm:") else _transformers_models(name, tmp_path / "model")
    pruned = _pruned(model, remove)
    save_pruned(pruned, tmp_path / "pruned")
    again = load(tmp_path / "pruned")
    assert again.sha256 == pruned.model.sha256
    assert len(again.blocks) == 2
    assert again.input_spec == model.input_spec
    assert again.labels == model.labels


@pytest.mark.parametrize("kind", ["timm", "transformers", "module"])
def test_save_pruned_without_stock_form_loads_with_arch(tmp_path, kind):
    if kind == "timm":
        model, remove = load(TIMM_SWIN), "1"  # two unshifted blocks in a row, which no Swin has
    elif kind == "transformers":
        _transformers_models("SwinForImageClassification", tmp_path / "model")
        model, remove = load(tmp_path / "model"), "1"  # a plain folder, without hf:
    else:
        model, remove = load(_file_source(tmp_path)), "2"
    pruned = _pruned(model, remove)
    saved = save_pruned(pruned, tmp_path / "pruned")
    assert not saved.stock
    assert sorted(path.name for path in (tmp_path / "pruned").iterdir()) == ["model.safetensors", "shallowvit.json"]
    again = eval(saved.reload, {"shallowvit": __import__("shallowvit")})
    assert again.sha256 == pruned.model.sha256
    example = _random_example(model)
    assert torch.equal(_outputs(again.module, example)[0], _outputs(pruned.model.module, example)[0])


def test_save_pruned_torchvision_loads_with_arch(tmp_path, torchvision_model):
    pruned = _pruned(torchvision_model, "0-2,4")
    saved = save_pruned(pruned, tmp_path / "pruned")
    assert (saved.stock, saved.blocks_removed) == (False, 4)
    again = load(tmp_path / "pruned", arch=torchvision_model.origin.spec)
    assert again.sha256 == pruned.model.sha256


def _file_source(tmp_path, count=5):
    (tmp_path / "made.py").write_text(
        "import torch\n"
        "from tests.optimizer.small_models import Block, Stacked, redraw\n"
        f"def build():\n"
        f"    blocks = torch.nn.ModuleList(Block() for _ in range({count}))\n"
        "    return redraw(Stacked(blocks), 0), torch.ones(1, 5, 8)\n"
    )
    return f"{tmp_path / 'made.py'}:build"


def test_save_pruned_twice_still_loads_with_arch(tmp_path):
    source = _file_source(tmp_path)
    save_pruned(_pruned(load(source), "1"), tmp_path / "once")
    once = load(tmp_path / "once", arch=source)
    twice = _pruned(once, "1,2")
    saved = save_pruned(twice, tmp_path / "twice")
    assert load(tmp_path / "twice", arch=source).sha256 == twice.model.sha256
    removals = json.loads((saved.path / "shallowvit.json").read_text())["removals"]
    assert [(one["path"], one["length"], one["gone"]) for one in removals] == [("blocks", 5, [1]), ("blocks", 4, [1, 2])]


def test_load_lineage_of_the_first_schema_is_read(tmp_path):
    source = _file_source(tmp_path)
    pruned = _pruned(load(source), "1,3")
    save_pruned(pruned, tmp_path / "pruned")
    file = tmp_path / "pruned/shallowvit.json"
    lineage = json.loads(file.read_text())
    del lineage["removals"]
    lineage |= {"schema_version": 1, "removed": {"blocks": {"length": 5, "kept": [0, 2, 4]}}}
    file.write_text(json.dumps(lineage))
    assert load(tmp_path / "pruned", arch=source).sha256 == pruned.model.sha256


def test_save_pruned_placeholders_load_with_arch(tmp_path):
    (tmp_path / "made.py").write_text(
        "import torch\n"
        "from tests.optimizer.small_models import Adds, Block, redraw\n"
        "def build():\n"
        "    return redraw(Adds(torch.nn.ModuleList(Block() for _ in range(5))), 0), torch.ones(1, 5, 8)\n"
    )
    source = f"{tmp_path / 'made.py'}:build"
    pruned = _pruned(load(source), "1,3")
    assert [one.way for one in pruned.removals] == ["placeholder"]
    save_pruned(pruned, tmp_path / "pruned")
    again = load(tmp_path / "pruned", arch=source)
    assert again.sha256 == pruned.model.sha256
    assert [block.path for block in again.blocks] == ["blocks.0", "blocks.2", "blocks.4"]
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        assert torch.equal(again.module(x), pruned.model.module(x))
    twice = _pruned(again, "1")
    save_pruned(twice, tmp_path / "twice")
    assert load(tmp_path / "twice", arch=source).sha256 == twice.model.sha256


def test_load_own_form_without_arch_raises(tmp_path):
    save_pruned(_pruned(load(_file_source(tmp_path)), "1"), tmp_path / "pruned")
    with pytest.raises(ShallowvitError, match=r"isn't stock\. Say how to build it with --arch"):
        load(tmp_path / "pruned")


def test_load_own_form_of_another_length_raises(tmp_path):
    save_pruned(_pruned(load(_file_source(tmp_path)), "1"), tmp_path / "pruned")
    with pytest.raises(ShallowvitError, match=r"was pruned from 5 blocks at blocks, Stacked has 6\. Check --arch"):
        load(tmp_path / "pruned", arch=_file_source(tmp_path, 6))


def test_load_own_form_of_another_model_raises(tmp_path):
    save_pruned(_pruned(load(_file_source(tmp_path)), "1"), tmp_path / "pruned")
    with pytest.raises(ShallowvitError, match="was pruned at blocks, which ConvNeXt doesn't have"):
        load(tmp_path / "pruned", arch=TIMM_CONVNEXT)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ('{"schema_version": 4}', "has schema 4, this version reads 3")]
)
def test_load_damaged_lineage_raises(tmp_path, text, message):
    save_pruned(_pruned(load(_file_source(tmp_path)), "1"), tmp_path / "pruned")
    (tmp_path / "pruned/shallowvit.json").write_text(text)
    with pytest.raises(ShallowvitError, match=message):
        load(tmp_path / "pruned", arch=_file_source(tmp_path))


def test_save_pruned_keeps_the_processor_and_the_lineage(pruned_video, video_folder, tmp_path):
    save_pruned(pruned_video, tmp_path / "pruned")
    name = "preprocessor_config.json"
    assert (tmp_path / "pruned" / name).read_bytes() == (video_folder / name).read_bytes()
    lineage = json.loads((tmp_path / "pruned/shallowvit.json").read_text())
    assert lineage["stock"] is True
    assert lineage["plan"]["removed"] == list(pruned_video.plan.removed)
    assert lineage["plan"]["weights_sha256"] == pruned_video.plan.weights_sha256
    assert lineage["source"]["architecture"] == "VideoMAEForVideoClassification"


def test_save_pruned_second_run_is_byte_identical(pruned_video, tmp_path):
    for name in ("one", "two"):
        save_pruned(pruned_video, tmp_path / name)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]


def test_save_pruned_existing_folder_needs_force(pruned_video, tmp_path):
    save_pruned(pruned_video, tmp_path / "pruned")
    (tmp_path / "pruned/extra").touch()
    with pytest.raises(ShallowvitError, match="exists; choose another --out"):
        save_pruned(pruned_video, tmp_path / "pruned")
    save_pruned(pruned_video, tmp_path / "pruned", force=True)
    assert not (tmp_path / "pruned/extra").exists()
