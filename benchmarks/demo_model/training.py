"""What pretraining, finetuning and the study of the demo model share: its configuration, its batches and its rows.

The loop and its schedule are the library's own (``shallowvit.recovery.finetuning``).
"""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, VideoMAEConfig
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from shallowvit.recovery.checkpointing import save_atomically
from shallowvit.recovery.finetuning import (
    FinetuneConfig,
    cosine_with_warmup,
    evaluate,
    finetune,
    weight_decay_groups,
)
from shallowvit_bench.demo_clips import CLIP_SHAPE, LABELS, demo_clips

__all__ = [
    "RESULTS",
    "ROOT",
    "RUNS",
    "FinetuneConfig",
    "accuracy",
    "append_row",
    "cosine_with_warmup",
    "demo_config",
    "finetune_on_clips",
    "pixels_from_frames",
    "save_atomically",
    "weight_decay_groups",
]

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "runs" / "demo"
RESULTS = ROOT / "benchmarks" / "results"

_MEAN = torch.tensor(IMAGENET_DEFAULT_MEAN).view(1, 1, 3, 1, 1)
_STD = torch.tensor(IMAGENET_DEFAULT_STD).view(1, 1, 3, 1, 1)


PROCESSOR = {
    "image_processor_type": "VideoMAEImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 16},
    "resample": 2,
    "do_center_crop": True,
    "crop_size": {"height": 16, "width": 16},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": IMAGENET_DEFAULT_MEAN,
    "image_std": IMAGENET_DEFAULT_STD,
}


def demo_config() -> VideoMAEConfig:
    """Return the configuration: 12 blocks, width 64, 64 tokens of 2 frames x 4 x 4 pixels; a decoder of one block."""
    frames, size = CLIP_SHAPE[:2]
    return VideoMAEConfig(
        image_size=size,
        patch_size=4,
        num_frames=frames,
        tubelet_size=2,
        hidden_size=64,
        num_hidden_layers=12,
        num_attention_heads=4,
        intermediate_size=256,
        layer_norm_eps=1e-6,  # transformers' default of 1e-12 is zero in fp16
        decoder_hidden_size=64,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=256,
        norm_pix_loss=False,  # most patches are paper: normalised, their noise would be the target
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )


def pixels_from_frames(frames: np.ndarray[Any, Any] | torch.Tensor) -> torch.Tensor:
    """Turn uint8 clips [B, T, H, W, 3] into the model's input, float32 [B, T, 3, H, W], by ImageNet's mean and deviation."""
    return (torch.as_tensor(frames).permute(0, 1, 4, 2, 3).float() / 255 - _MEAN) / _STD


def append_row(name: str, row: dict[str, Any]) -> None:
    """Append a result with the conditions it was taken under to ``benchmarks/results/NAME.jsonl``."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    conditions = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or None,
        "device": platform.machine() + " CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(row | {"conditions": conditions}) + "\n")


def save(model: PreTrainedModel, folder: Path) -> None:
    """Save the model with the settings of its preprocessing."""
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=2) + "\n")


class FramesClassifier(torch.nn.Module):
    """From uint8 clips [B, T, H, W, 3] to logits, so that a set of clips stays small until its batch is due."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Preprocess and classify."""
        logits: torch.Tensor = self.model(pixel_values=pixels_from_frames(frames)).logits
        return logits


def finetune_on_clips(
    model: torch.nn.Module, clips: int, config: FinetuneConfig, checkpoint: Path | None = None
) -> list[float]:
    """Train all weights of a VideoMAE classifier in place on the first ``clips`` of the train split; return a loss an epoch."""
    train = demo_clips("train", clips)
    return finetune(FramesClassifier(model), torch.from_numpy(train.frames), torch.from_numpy(train.labels), config, checkpoint)


def accuracy(model: torch.nn.Module) -> float:
    """Return the top-1 accuracy on the 2,000 clips of the test split."""
    clips = demo_clips("test")
    return evaluate(FramesClassifier(model), torch.from_numpy(clips.frames), torch.from_numpy(clips.labels)).top1
