"""Augment training items: flips and timm's RandAugment, one draw a clip, so that all of its frames change alike.

A newcomer's trap: a flip changes what moves left into what moves right. Where labels are directions, as in ``demo``, train
without it; some RandAugment operations turn and shift, too.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import MissingDependencyError, ShallowvitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from PIL.Image import Image

    from ..models import InputSpec

__all__ = ["augment_frames", "check_augment", "flip_inputs", "seeded_globals"]

_COLOURS = 3  # timm's operations are those of RGB images


def check_augment(augment: str, spec: InputSpec, preprocessed: bool) -> None:
    """Refuse an augmentation that doesn't exist or doesn't fit the data.

    Raises:
        ShallowvitError: says which and what to give.
    """
    if augment == "none":
        return
    if augment == "flip":
        if not spec.layout.endswith("W"):
            raise ShallowvitError(f"recover: --augment flip: the input {spec.name} ({spec.layout}) is no image; give none")
        return
    if not augment.startswith("rand-"):
        raise ShallowvitError(
            f"recover: unknown --augment {augment!r}; give none, flip, or timm's RandAugment such as rand-m7-n4-mstd0.5-inc1"
        )
    if preprocessed:
        raise ShallowvitError(f"recover: --augment {augment} changes uint8 frames, the data holds prepared inputs; give frames")
    _rand_augment(augment)


def augment_frames(frames: np.ndarray, augment: str, seed: int) -> np.ndarray:
    """Return uint8 frames [B, (T,) H, W, C] after a draw an item; all frames of an item get the same one."""
    if augment == "none":
        return frames
    if augment == "flip":
        flipped = np.flip(frames, -2)
        return np.where(_tosses(seed, frames.ndim, len(frames)).numpy(), flipped, frames)
    if frames.shape[-1] != _COLOURS:
        raise ShallowvitError(
            f"recover: --augment {augment} takes frames of 3 colours, these have {frames.shape[-1]}; give flip"
        )
    from PIL.Image import fromarray

    change, done = _rand_augment(augment), np.empty_like(frames)
    for place in range(len(frames)):
        clip = frames[place].reshape(-1, *frames.shape[-3:])
        for frame, picture in enumerate(clip):
            with seeded_globals(seed + place):  # the same draw again for each frame
                clip_done = done[place].reshape(clip.shape)
                clip_done[frame] = np.asarray(change(fromarray(picture)))
    return done


def flip_inputs(inputs: torch.Tensor, seed: int) -> torch.Tensor:
    """Return prepared inputs [B, ..., W], about half of them mirrored."""
    return torch.where(_tosses(seed, inputs.ndim, len(inputs)), inputs.flip(-1), inputs)


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global draws of ``random`` and numpy, which timm's augmentations use, and give them back as they were."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def _tosses(seed: int, dimensions: int, items: int) -> torch.Tensor:
    heads = np.random.default_rng(seed).random(items) < 0.5
    return torch.from_numpy(heads).view(-1, *[1] * (dimensions - 1))


def _rand_augment(text: str) -> Callable[[Image], Image]:
    try:
        from timm.data.auto_augment import rand_augment_transform
    except ImportError as err:
        raise MissingDependencyError(f"recover: --augment {text}", "timm", "recover") from err
    try:
        return rand_augment_transform(text, {})
    except (AssertionError, ValueError, KeyError) as err:
        raise ShallowvitError(
            f"recover: --augment {text!r} is no RandAugment that timm knows ({err or 'unknown part'}); such as "
            "rand-m7-n4-mstd0.5-inc1"
        ) from err
