"""Shared fixtures: tiny models on disk and what comes of them, made once a session. Nothing here needs a network."""

import os

# Kernels run on the CPU by Triton's interpreter, which is asked for before anything imports Triton. Compiling ahead of time
# isn't touched by it: that happens in processes that drop it.
os.environ["TRITON_INTERPRET"] = "1"

from pathlib import Path

import pytest
import torch

import shallowvit
from shallowvit import ExportConfig, PlanConfig
from shallowvit.exporting import Precision

# A network that is absent must fail at once, not after the retries of a hub's client.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

VIDEO = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
    "num_frames": 4,
    "tubelet_size": 2,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
    "id2label": {0: "up", 1: "down", 2: "left", 3: "right", 4: "still"},
    "label2id": {"up": 0, "down": 1, "left": 2, "right": 3, "still": 4},
}


@pytest.fixture(scope="session", autouse=True)
def _offline():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OFFLINE.items():
            patch.setenv(name, value)
        yield


def save_video_model(folder, *, seed=0, **settings):
    """A tiny VideoMAE classifier with its processor, as a user's checkpoint folder looks."""
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEImageProcessor

    torch.manual_seed(seed)
    # spread wider than the library's own start, so that blocks, scores and outputs differ by more than rounding
    VideoMAEForVideoClassification(VideoMAEConfig(**(VIDEO | {"initializer_range": 0.1} | settings))).save_pretrained(folder)
    VideoMAEImageProcessor(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.25, 0.3],
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory):
    return save_video_model(tmp_path_factory.mktemp("models") / "video")


@pytest.fixture(scope="session")
def video_model(video_folder):
    return shallowvit.load(f"hf:{video_folder}")


@pytest.fixture(scope="session")
def pruned_video(video_model):
    """The two blocks of four with the lowest entropy are gone."""
    scores = shallowvit.score(video_model)
    return shallowvit.prune(video_model, shallowvit.plan(video_model, scores, PlanConfig(prune_ratio=0.5)))


@pytest.fixture(scope="session")
def bundle(pruned_video, tmp_path_factory):
    """A bundle with the defaults. Copy it before changing anything in it."""
    return shallowvit.export(pruned_video, tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture(scope="session")
def image_bundle(tmp_path_factory):
    """A bundle of an image model in fp16 that takes uint8 frames of another size than the model's own."""
    model = shallowvit.load("timm:vit_tiny_patch16_224?img_size=32&depth=3&embed_dim=48&num_heads=3&num_classes=5")
    pruned = shallowvit.prune(model, shallowvit.plan(model, config=PlanConfig(remove="1")))
    config = ExportConfig(Precision.FP16, embed_preprocessing=True, frame_size=(48, 41))
    return shallowvit.export(pruned, tmp_path_factory.mktemp("bundles") / "image", config)


@pytest.fixture(scope="session")
def torchvision_model():
    """The smallest model there whose blocks are found (28 million parameters, so one for all tests)."""
    return shallowvit.load("torchvision:convnext_tiny?num_classes=3")


@pytest.fixture(scope="session")
def demo_source():
    """The name of the shipped demo model."""
    config = Path(shallowvit.__file__).parent / "models/demo/finetuned/config.json"
    if not config.is_file():
        pytest.skip(f"the demo model isn't trained yet: no {config}")
    return "demo"
