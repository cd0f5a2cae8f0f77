"""Pretrain the demo model by masking: a VideoMAE encoder learns to rebuild the hidden three quarters of unlabelled clips.

    python benchmarks/demo_model/pretrain.py [--seed 0] [--steps 8000]

About an hour on a core. Killed, it resumes from ``runs/demo/pretrain-SEED.pt``. Ends by writing the model to
``runs/demo/encoder-SEED`` and its losses to ``benchmarks/results/demo_pretraining.jsonl``. The package ships that of seed 0.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from transformers import VideoMAEForPreTraining

from shallowvit_bench.demo_clips import demo_clips, draw_clips
from training import (
    RUNS,
    append_row,
    cosine_with_warmup,
    demo_config,
    pixels_from_frames,
    save,
    save_atomically,
    weight_decay_groups,
)

BATCH, POOL, MASK_RATIO = 256, 100_000, 0.75
LEARNING_RATE, WEIGHT_DECAY, WARMUP_STEPS = 1.5e-3, 0.05, 400


def random_masks(rng: np.random.Generator, count: int, tokens: int) -> torch.Tensor:
    """Hide the same number of random space-time tokens in each clip: bool [count, tokens], true where hidden."""
    hidden = int(tokens * MASK_RATIO)
    return torch.from_numpy(rng.random((count, tokens)).argsort(axis=1) < hidden)


@torch.no_grad()
def reconstruction_loss(model: VideoMAEForPreTraining) -> float:
    """Return the mean squared error over the hidden patches (pixels in 0..1) of 2,000 test clips with fixed masks."""
    frames = demo_clips("test").frames
    rng = np.random.default_rng(0)
    losses = []
    for first in range(0, len(frames), 500):
        pixels = pixels_from_frames(frames[first : first + 500])
        masks = random_masks(rng, len(pixels), model.config.num_frames // 2 * 16)
        losses.append(model(pixels, bool_masked_pos=masks).loss.item())
    return float(np.mean(losses))


def main() -> None:
    """Run or resume the pretraining."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=8000)
    arguments = parser.parse_args()
    seed, steps = arguments.seed, arguments.steps
    torch.manual_seed(seed)
    model = VideoMAEForPreTraining(demo_config())
    optimizer = torch.optim.AdamW(weight_decay_groups(model, WEIGHT_DECAY), lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    checkpoint, first, losses = RUNS / f"pretrain-{seed}.pt", 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, losses = state["step"], state["losses"]
    pool = np.concatenate([draw_clips(np.random.default_rng([seed, i]), 1000).frames for i in range(POOL // 1000)])
    tokens = model.config.num_frames // 2 * 16
    started = time.monotonic()
    for step in range(first, steps):
        rng = np.random.default_rng([seed, POOL, step])
        pixels = pixels_from_frames(pool[rng.integers(POOL, size=BATCH)])
        loss = model(pixels, bool_masked_pos=random_masks(rng, BATCH, tokens)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine_with_warmup(step, WARMUP_STEPS, steps)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            losses.append(loss.item())
            print(
                f"step {step + 1} loss {loss.item():.5f} {(time.monotonic() - started) / (step + 1 - first):.3f} s/step",
                flush=True,
            )
        if (step + 1) % 500 == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1, "losses": losses}
            save_atomically(state, checkpoint)
    model.eval()
    save(model, RUNS / f"encoder-{seed}")
    settings = {"steps": steps, "batch": BATCH, "pool_clips": POOL, "mask_ratio": MASK_RATIO, "seed": seed}
    optimisation = {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "warmup_steps": WARMUP_STEPS}
    append_row(
        "demo_pretraining", settings | optimisation | {"train_loss_every_50": losses, "test_loss": reconstruction_loss(model)}
    )


if __name__ == "__main__":
    main()
