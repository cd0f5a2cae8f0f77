"""What pretraining, finetuning and the study of the demo model share: its configuration, its batches and its schedule.

Every random draw of a step comes from the seed and the step's number, so a run that was killed resumes with the same losses.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import VideoMAEConfig
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from shallowvit_bench.demo_clips import CLIP_SHAPE, LABELS, demo_clips

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "runs" / "demo"
RESULTS = ROOT / "benchmarks" / "results"

_MEAN = torch.tensor(IMAGENET_DEFAULT_MEAN).view(1, 1, 3, 1, 1)
_STD = torch.tensor(IMAGENET_DEFAULT_STD).view(1, 1, 3, 1, 1)


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


def pixels_from_frames(frames: np.ndarray[Any, Any]) -> torch.Tensor:
    """Turn uint8 clips [B, T, H, W, 3] into the model's input, float32 [B, T, 3, H, W], by ImageNet's mean and deviation."""
    return (torch.from_numpy(frames).permute(0, 1, 4, 2, 3).float() / 255 - _MEAN) / _STD


def cosine_with_warmup(step: int, warmup_steps: int, steps: int) -> float:
    """Return the factor of the learning rate at a step: a line up, then half a cosine down to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def weight_decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the parameters into matrices, which decay, and vectors (biases, norms), which do not."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def save_atomically(state: Any, path: Path) -> None:
    """Save beside the path and rename, so that a kill leaves the old checkpoint or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    torch.save(state, beside)
    os.replace(beside, path)


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


@dataclass(frozen=True)
class FinetuneConfig:
    """How a classifier is finetuned, from the pretrained encoder, from scratch, or again after pruning."""

    seed: int = 0
    clips: int = 40_000
    epochs: int = 3
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    label_smoothing: float = 0.1


def finetune(model: torch.nn.Module, config: FinetuneConfig, checkpoint: Path | None = None) -> list[float]:
    """Train all weights of a VideoMAE classifier in place on the first ``clips`` of the train split; return a loss an epoch.

    With a ``checkpoint`` path, an epoch that was finished is not run again after a kill.
    """
    clips = demo_clips("train", config.clips)
    optimizer = torch.optim.AdamW(weight_decay_groups(model, config.weight_decay), lr=config.learning_rate, fused=True)
    steps_an_epoch = config.clips // config.batch
    steps = steps_an_epoch * config.epochs
    first, losses = 0, []
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, losses = state["epoch"], state["losses"]
    model.train()
    for epoch in range(first, config.epochs):
        order = np.random.default_rng([config.seed, epoch]).permutation(config.clips)
        total = 0.0
        for step in range(steps_an_epoch):
            chosen = order[step * config.batch : (step + 1) * config.batch]
            logits = model(pixel_values=pixels_from_frames(clips.frames[chosen])).logits
            target = torch.from_numpy(clips.labels[chosen])
            loss = torch.nn.functional.cross_entropy(logits, target, label_smoothing=config.label_smoothing)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            factor = cosine_with_warmup(epoch * steps_an_epoch + step, int(steps * config.warmup_share) or 1, steps)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * factor
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item()
        losses.append(total / steps_an_epoch)
        if checkpoint:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1, "losses": losses}
            save_atomically(state, checkpoint)
    model.eval()
    return losses


@torch.no_grad()
def accuracy(model: torch.nn.Module) -> float:
    """Return the top-1 accuracy on the 2,000 clips of the test split."""
    clips = demo_clips("test")
    model.eval()
    right = 0
    for first in range(0, len(clips.labels), 250):
        logits = model(pixel_values=pixels_from_frames(clips.frames[first : first + 250])).logits
        right += int((logits.argmax(-1).numpy() == clips.labels[first : first + 250]).sum())
    return right / len(clips.labels)
