"""The data set ``demo``: labelled clips of moving handwritten digits, made from a seed with numpy alone.

A clip shows one digit that moves across a 16 x 16 torus in front of another, fainter digit that stands still; its label is
which digit moves and in which of four directions, so neither a single frame nor the motion alone gives it away. Train and
test clips draw from disjoint digit images: a model cannot score well on ``test`` by knowing the images. Who must choose by
one set and report on another takes ``validation`` and ``report``, which draw from a half of the test images each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

__all__ = ["CLIP_SHAPE", "LABELS", "SPLITS", "Clips", "demo_clips", "draw_clips"]

_FRAMES, _SIZE = 8, 16
CLIP_SHAPE = (_FRAMES, _SIZE, _SIZE, 3)
_DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (rows, columns) per frame
LABELS = tuple(f"{digit} moving {direction}" for digit in range(10) for direction in _DIRECTIONS)
_FIRST_TEST_IMAGE = 1400  # images from here on are seen by no training clip


@dataclass(frozen=True)
class Split:
    """How many clips a split holds, the seed they are drawn from, and which digit images they show."""

    clips: int
    seed: int
    images: slice


SPLITS = {
    "train": Split(40_000, 1, slice(_FIRST_TEST_IMAGE)),
    "test": Split(2_000, 2, slice(_FIRST_TEST_IMAGE, None)),
    "validation": Split(2_000, 3, slice(_FIRST_TEST_IMAGE, None, 2)),
    "report": Split(2_000, 4, slice(_FIRST_TEST_IMAGE + 1, None, 2)),
}


@dataclass(frozen=True)
class Clips:
    """Clips as uint8 frames [count, 8, 16, 16, 3] (NTHWC, RGB) with labels int64 [count], indices into ``LABELS``."""

    frames: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]


def demo_clips(split: str, count: int | None = None) -> Clips:
    """Return the first ``count`` clips (all by default) of a fixed split: ``train`` (40,000) or one of the others (2,000).

    Raises:
        ValueError: the split is unknown or holds fewer than ``count`` clips.
    """
    if split not in SPLITS:
        raise ValueError(f"demo_clips: no split {split!r}; choose from {', '.join(SPLITS)}")
    size, seed = SPLITS[split].clips, SPLITS[split].seed
    count = size if count is None else count
    if not 0 < count <= size:
        raise ValueError(f"demo_clips: {count} clips asked of the {split} split, which holds {size}; ask for 1 to {size}")
    # drawn 1,000 at a time from one stream, so the first clips are the same whatever the count
    rng = np.random.default_rng(seed)
    parts = [draw_clips(rng, 1000, split) for _ in range(-(-count // 1000))]
    return Clips(
        np.concatenate([part.frames for part in parts])[:count], np.concatenate([part.labels for part in parts])[:count]
    )


def draw_clips(rng: np.random.Generator, count: int, split: str = "train", part: slice = slice(None)) -> Clips:
    """Draw ``count`` random clips with the digit images of ``split``, or with a part of them."""
    images, image_labels = (array[part] for array in _digits(split))
    mover, stander = rng.integers(len(images), size=(2, count))
    direction = rng.integers(len(_DIRECTIONS), size=count)
    step = np.array(list(_DIRECTIONS.values()))[direction]  # [count, 2]
    speed = rng.uniform(0.75, 1.5, size=(count, 1))
    drift = rng.uniform(-0.2, 0.2, size=(count, 1))
    velocity = step * speed + step[:, ::-1] * drift
    start = rng.uniform(0, _SIZE, size=(count, 1, 2))
    path = start + velocity[:, None] * np.arange(_FRAMES)[:, None]  # [count, frames, 2]
    moving = _shift(images[mover], path)  # [count, frames, rows, columns]
    standing = _shift(images[stander], rng.uniform(0, _SIZE, size=(count, 1, 2)))
    contrast = rng.uniform(0.2, 0.5, size=(count, 1, 1, 1)).astype(np.float32)
    shape = np.maximum(moving, contrast * standing)[..., None]
    ink = rng.uniform(0.55, 1.0, size=(count, 1, 1, 1, 3)).astype(np.float32)
    paper = rng.uniform(0.0, 0.25, size=(count, 1, 1, 1, 3)).astype(np.float32)
    noise = rng.integers(-12, 13, size=(count, *CLIP_SHAPE), dtype=np.int8)
    pixels = (255 * (paper + shape * (ink - paper))).astype(np.int16) + noise
    labels = image_labels[mover].astype(np.int64) * len(_DIRECTIONS) + direction
    return Clips(np.clip(pixels, 0, 255).astype(np.uint8), labels)


@cache
def _digits(split: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The split's digit images, float32 in 0..1 on an empty 16 x 16 canvas, and which digits they are."""
    with (files("shallowvit_bench") / "data" / "digits.npz").open("rb") as file, np.load(file) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    chosen = SPLITS[split].images
    canvas = np.zeros((len(images[chosen]), _SIZE, _SIZE), np.float32)
    canvas[:, :8, :8] = images[chosen] / 16
    return canvas, labels[chosen]


def _shift(images: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Shift each image [count, rows, columns] round the torus by each of its offsets [count, frames, 2], bilinearly."""
    whole = np.floor(offsets).astype(np.int64)
    part = (offsets - whole).astype(np.float32)[..., None, None]
    clip = np.arange(len(images))[:, None, None, None]
    rows = (np.arange(_SIZE) - whole[..., :1]) % _SIZE  # [count, frames, rows]
    columns = (np.arange(_SIZE) - whole[..., 1:]) % _SIZE
    taken = images[clip, rows[..., :, None], columns[..., None, :]]  # [count, frames, rows, columns]
    down = part[:, :, 0]
    taken = (1 - down) * taken + down * np.roll(taken, 1, axis=2)
    right = part[:, :, 1]
    return (1 - right) * taken + right * np.roll(taken, 1, axis=3)
