"""Inputs to try a model on: random ones, and pictures of handwritten digits where the model takes pictures or clips.

A newcomer's trap: whole numbers and masks are taken from the example as they are, since a token id or a mask drawn at random
may be one that the model doesn't take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .records import InputSpec

__all__ = ["probe_inputs", "random_like"]


def random_like(example: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """Return the example with its floating-point tensors drawn from a normal distribution; masks of 0 and 1 stay."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _drawn(value, generator) for name, value in example.items()}


def probe_inputs(spec: InputSpec, example: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs of a batch of 2: a random item, and a real one where the main input is a picture or a clip."""
    items = [random_like(example, 1), random_like(example, 2)]
    real = _digits(spec)
    if real is not None:
        items[1][spec.name] = real
    return {name: torch.cat([value, items[1][name]]) if _batched(value) else value for name, value in items[0].items()}


def _batched(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == 1


def _drawn(value: Any, generator: torch.Generator) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    if value.numel() > 1 and bool(((value == 0) | (value == 1)).all()) and bool((value == 1).any()):
        return value
    return torch.randn(value.shape, generator=generator, dtype=value.dtype)


def _digits(spec: InputSpec) -> torch.Tensor | None:
    """One clip of the demo's digits, resized to the main input's shape and normalised: [1, (T,) C, H, W]."""
    if spec.layout not in ("NTCHW", "NCHW"):
        return None
    from shallowvit_bench.demo_clips import demo_clips

    *frames, channels, height, width = spec.shape
    clip = torch.from_numpy(demo_clips("test", 1).frames[0]).float().permute(0, 3, 1, 2) / 255  # [8, 3, 16, 16]
    count = frames[0] if frames else 1
    clip = clip[torch.linspace(0, len(clip) - 1, count).round().long()]
    clip = torch.nn.functional.interpolate(clip, (height, width), mode="bilinear")
    clip = clip if channels == 3 else clip.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    clip = (clip - 0.5) / 0.25
    return clip[None] if frames else clip
