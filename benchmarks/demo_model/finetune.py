"""Finetune the demo model on labelled clips, from the pretrained encoder or from scratch, with the same settings and seeds.

    python benchmarks/demo_model/finetune.py --start pretrained|scratch --seed 0

Ends by writing the model to ``runs/demo/START-SEED`` and a row with its accuracy to
``benchmarks/results/demo_finetuning.jsonl``. Killed, it resumes at the last finished epoch.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from transformers import VideoMAEForVideoClassification
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from training import RUNS, FinetuneConfig, accuracy, append_row, demo_config, finetune

if TYPE_CHECKING:
    from pathlib import Path

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


def classifier(start: str, seed: int) -> VideoMAEForVideoClassification:
    """Return a classifier with a new head on the pretrained encoder, or all new."""
    torch.manual_seed(seed)
    if start == "scratch":
        return VideoMAEForVideoClassification(demo_config())
    return VideoMAEForVideoClassification.from_pretrained(RUNS / "pretrained", config=demo_config())


def save(model: VideoMAEForVideoClassification, folder: Path) -> None:
    """Save the model with the settings of its preprocessing."""
    import json

    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=2) + "\n")


def main() -> None:
    """Finetune once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", choices=("pretrained", "scratch"), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=FinetuneConfig.epochs)
    parser.add_argument("--clips", type=int, default=FinetuneConfig.clips)
    parser.add_argument("--learning-rate", type=float, default=FinetuneConfig.learning_rate)
    arguments = parser.parse_args()
    config = FinetuneConfig(arguments.seed, arguments.clips, arguments.epochs, learning_rate=arguments.learning_rate)
    model = classifier(arguments.start, arguments.seed)
    losses = finetune(model, config, RUNS / f"{arguments.start}-{arguments.seed}.pt")
    found = accuracy(model)
    save(model, RUNS / f"{arguments.start}-{arguments.seed}")
    append_row("demo_finetuning", {"start": arguments.start, **asdict(config), "losses": losses, "test_top1": found})
    print(f"{arguments.start} seed {arguments.seed}: top-1 {found:.4f}; losses {[round(loss, 3) for loss in losses]}")


if __name__ == "__main__":
    main()
