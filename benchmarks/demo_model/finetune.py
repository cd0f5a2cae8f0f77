"""Finetune the demo model on labelled clips, from the pretrained encoder or from scratch, with the same settings and seeds.

    python benchmarks/demo_model/finetune.py --start pretrained|scratch --seed 0 [--encoder 0]

The encoder of seed 0 is the one that ships; another is what ``pretrain.py --seed`` wrote. Ends by writing the model to
``runs/demo/START-SEED`` and a row with its accuracy to ``benchmarks/results/demo_finetuning.jsonl``. Killed, it resumes at the
last finished epoch.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

import torch
from transformers import VideoMAEForVideoClassification

from training import ROOT, RUNS, FinetuneConfig, accuracy, append_row, demo_config, finetune_on_clips, save

CLIPS = 40_000  # the whole train split
DEMO = ROOT / "optimizer/shallowvit/models/demo/pretrained"


def classifier(start: str, seed: int, encoder: int) -> VideoMAEForVideoClassification:
    """Return a classifier with a new head on the pretrained encoder, or all new."""
    torch.manual_seed(seed)
    if start == "scratch":
        return VideoMAEForVideoClassification(demo_config())
    return VideoMAEForVideoClassification.from_pretrained(
        DEMO if encoder == 0 else RUNS / f"encoder-{encoder}", config=demo_config()
    )


def main() -> None:
    """Finetune once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", choices=("pretrained", "scratch"), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--encoder", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=FinetuneConfig.epochs)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--learning-rate", type=float, default=FinetuneConfig.learning_rate)
    arguments = parser.parse_args()
    config = FinetuneConfig(arguments.seed, arguments.epochs, learning_rate=arguments.learning_rate)
    model = classifier(arguments.start, arguments.seed, arguments.encoder)
    losses = finetune_on_clips(model, arguments.clips, config, RUNS / f"{arguments.start}-{arguments.seed}.pt")
    found = accuracy(model)
    save(model, RUNS / f"{arguments.start}-{arguments.seed}")
    settings = {"start": arguments.start, "encoder": arguments.encoder, "clips": arguments.clips, **asdict(config)}
    append_row("demo_finetuning", {**settings, "losses": losses, "test_top1": found})
    print(f"{arguments.start} seed {arguments.seed}: top-1 {found:.4f}; losses {[round(loss, 3) for loss in losses]}")


if __name__ == "__main__":
    main()
