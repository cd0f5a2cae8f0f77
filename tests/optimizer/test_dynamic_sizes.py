"""Graphs of many sizes: what they answer against the library at each, what the manifest says, and what can't be had."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

import shallowvit
from shallowvit import ExportConfig, PlanConfig, ShallowvitError
from shallowvit.exporting.dynamic_sizes import checked_shapes
from shallowvit.exporting.records import GraphInput
from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.preprocessing import random_input

from .test_sizes import PICTURES, TIMM, save


def run(path, pictures):
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {session.get_inputs()[0].name: pictures.numpy()})[0]


def exported(source, out, remove=None, **settings):
    model = shallowvit.load(source)
    pruned = shallowvit.prune(model, shallowvit.plan(model, config=PlanConfig(remove=remove)))
    return pruned, shallowvit.export(pruned, out, ExportConfig(**settings))


def test_export_of_timm_with_dynamic_size_answers_as_its_dynamic_size(tmp_path):
    pruned, bundle = exported(TIMM, tmp_path / "out", remove="1", dynamic_size=(32, 96))
    dynamic = shallowvit.load(f"{TIMM}&dynamic_img_size=true&depth=2").module
    dynamic.load_state_dict(pruned.model.module.state_dict())
    for size in ((32, 32), (64, 64), (48, 80), (96, 32)):
        pictures = torch.randn(2, 3, *size)
        assert np.allclose(run(bundle.path / "model.onnx", pictures), dynamic(pictures).numpy(), atol=1e-5)
    entry = json.loads((bundle.path / "manifest.json").read_text())["graph"]["inputs"][0]
    assert entry["shape"] == [3, "height", "width"]
    assert entry["ranges"] == {"height": [32, 96, 16], "width": [32, 96, 16]}
    assert entry["native"] == [3, 64, 64]
    info = read_bundle(bundle.path)
    assert random_input(info, 2).shape == (2, 3, 64, 64)
    assert shallowvit.verify(bundle.path).manifest.parity.inputs == 32 + 4 * 4


def test_export_of_transformers_with_dynamic_size_interpolates_inside(tmp_path):
    source = save(tmp_path / "vit", transformers.ViTForImageClassification, transformers.ViTConfig(**PICTURES, num_labels=5))
    pruned, bundle = exported(source, tmp_path / "out", dynamic_size=(16, 48), opset=18)
    for size in ((16, 16), (32, 32), (24, 40)):
        pictures = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = pruned.model.module(pictures, interpolate_pos_encoding=True).logits
        assert np.allclose(run(bundle.path / "model.onnx", pictures), expected.numpy(), atol=1e-4)


def test_export_of_convolutional_model_takes_sizes_without_positions(tmp_path):
    source = "timm:convnext_atto?num_classes=5&dims=(16,16,16,16)&depths=(1,1,2,1)"
    pruned, bundle = exported(source, tmp_path / "out", dynamic_size=(64, 128))
    pictures = torch.randn(2, 3, 96, 68)
    assert np.allclose(run(bundle.path / "model.onnx", pictures), pruned.model.module(pictures).numpy(), atol=1e-5)


def test_export_with_dynamic_size_of_model_of_one_size_advises(tmp_path, video_folder):
    with pytest.raises(ShallowvitError, match=r"--dynamic-size 8-32: VideoMAE.* doesn't run at 4x3x8x32 .*--image-size"):
        exported(f"hf:{video_folder}", tmp_path / "out", dynamic_size=(8, 32))


def test_export_with_dynamic_size_that_a_trace_fixes_advises(tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\nfrom tests.optimizer.small_models import Block\n"
        "class Own(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.patches = torch.nn.Conv2d(3, 8, 4, 4)\n"
        "        self.blocks = torch.nn.ModuleList(Block() for _ in range(2))\n"
        "    def forward(self, x):\n"
        "        x = self.patches(x).flatten(2).transpose(1, 2)\n"
        "        x = x + torch.ones(int(x.shape[1]) % 7 if x.shape[1] % 2 else 1, 1)[:1]\n"
        "        for block in self.blocks:\n"
        "            x = block(x)\n"
        "        return x.mean(1) * float(torch.tensor(x.shape[1]))\n"
        "def model():\n    return Own(), torch.zeros(1, 3, 16, 16)\n"
    )
    with pytest.raises(
        ShallowvitError,
        match=r"isn't possible with Own; .*its height became 12 in the trace",
    ):
        exported(f"{tmp_path / 'own.py'}:model", tmp_path / "out", dynamic_size=(8, 32))


def test_export_with_dynamic_size_of_no_multiple_says_the_step(tmp_path):
    with pytest.raises(ShallowvitError, match="height goes by 16, the patch of VisionTransformer"):
        exported(TIMM, tmp_path / "out", dynamic_size=(32, 100))


def test_export_with_dynamic_frames_of_pictures_is_refused(tmp_path):
    with pytest.raises(ShallowvitError, match="--dynamic-frames 2-8: VisionTransformer takes pictures, not clips"):
        exported(TIMM, tmp_path / "out", dynamic_frames=(2, 8))


def test_export_with_dynamic_frames_of_model_without_positions_takes_them(tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\nfrom tests.optimizer.small_models import Block, redraw\n"
        "class Clips(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.tubes = torch.nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4))\n"
        "        self.blocks = torch.nn.ModuleList(Block() for _ in range(2))\n"
        "    def forward(self, x):\n"
        "        x = self.tubes(x.transpose(1, 2)).flatten(2).transpose(1, 2)\n"
        "        for block in self.blocks:\n"
        "            x = block(x)\n"
        "        return x.mean(1)\n"
        "def model():\n    return redraw(Clips(), 0), torch.zeros(1, 4, 3, 8, 8)\n"
    )
    pruned, bundle = exported(f"{tmp_path / 'own.py'}:model", tmp_path / "out", dynamic_frames=(2, 8))
    clips = torch.randn(2, 6, 3, 8, 8)
    assert bundle.manifest.graph.inputs[0].ranges == {"frames": (2, 8, 2)}
    assert np.allclose(run(bundle.path / "model.onnx", clips), pruned.model.module(clips).numpy(), atol=1e-5)


def test_export_with_dynamic_size_of_no_pictures_is_refused(tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\nfrom tests.optimizer.small_models import Block, Stacked\n"
        "def model():\n    return Stacked(torch.nn.ModuleList(Block() for _ in range(2))), torch.zeros(1, 5, 8)\n"
    )
    with pytest.raises(ShallowvitError, match="Stacked cuts no pictures into patches"):
        exported(f"{tmp_path / 'own.py'}:model", tmp_path / "out", dynamic_size=(8, 16))


def test_export_config_of_no_range_is_refused():
    with pytest.raises(ShallowvitError, match="--dynamic-size 64-32 is no range"):
        ExportConfig(dynamic_size=(64, 32))
    with pytest.raises(ShallowvitError, match="--dynamic-size and --embed-preprocessing exclude each other"):
        ExportConfig(dynamic_size=(32, 64), embed_preprocessing=True)


def test_checked_shapes_are_the_own_the_greatest_and_two_rectangles():
    ranges = {"height": (32, 96, 16), "width": (32, 96, 16)}
    main = GraphInput("x", "float32", "NCHW", (3, "height", "width"), ranges, native=(3, 64, 64))
    assert checked_shapes(main) == ((3, 64, 64), (3, 96, 96), (3, 32, 96), (3, 96, 32))
    assert checked_shapes(GraphInput("x", "float32", "NCHW", (3, 32, 32))) == ()
