"""Turn uint8 frames into the graph's input, in numpy, exactly as the manifest says.

A newcomer's trap: frames already have the bundle's ``frame_shape``, so resize and crop are done (``datasets`` does them for
image folders); what is left is rescale, mean and deviation, or nothing when the graph does that itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BenchError

if TYPE_CHECKING:
    from .bundles import BundleInfo

__all__ = ["input_from_frames", "random_input"]

_DTYPES = ("float32", "float16", "uint8")


def input_from_frames(frames: np.ndarray[Any, Any], bundle: BundleInfo) -> np.ndarray[Any, Any]:
    """Return the graph's input for uint8 frames [N, (T,) H, W, C].

    Raises:
        BenchError: the bundle says nothing about preprocessing, or the frames don't have its ``frame_shape``.
    """
    settings = bundle.preprocessing
    if settings is None:
        raise BenchError(
            f"input_from_frames: the bundle {bundle.name} has no preprocessing settings, so frames can't be fed to it"
        )
    if frames.dtype != np.uint8 or frames.shape[1:] != settings.frame_shape:
        raise BenchError(
            f"input_from_frames: items are {frames.dtype} {list(frames.shape[1:])}, the bundle {bundle.name} takes uint8 "
            f"{list(settings.frame_shape)}; resize the data or export with another --frame-size"
        )
    if settings.in_graph:
        return np.ascontiguousarray(frames)
    mean, std = np.asarray(settings.mean, np.float32), np.asarray(settings.std, np.float32)
    pixels = frames.astype(np.float32) * (np.float32(settings.rescale) / std) - mean / std
    return np.ascontiguousarray(np.moveaxis(pixels, -1, -3), dtype=_dtype(bundle))  # [N, (T,) C, H, W]


def random_input(bundle: BundleInfo, batch: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Return a batch of random frames, preprocessed; of normal numbers where the bundle has no preprocessing."""
    rng = np.random.default_rng(seed)
    if bundle.preprocessing is not None:
        return input_from_frames(rng.integers(0, 256, (batch, *bundle.preprocessing.frame_shape), np.uint8), bundle)
    dtype = _dtype(bundle)
    if dtype == np.uint8:
        return rng.integers(0, 256, (batch, *bundle.input.shape), np.uint8)
    return rng.standard_normal((batch, *bundle.input.shape), np.float32).astype(dtype)


def _dtype(bundle: BundleInfo) -> np.dtype[Any]:
    if bundle.input.dtype not in _DTYPES:
        raise BenchError(
            f"random_input: the bundle {bundle.name} takes {bundle.input.dtype}; the harness feeds {', '.join(_DTYPES)}"
        )
    return np.dtype(bundle.input.dtype)
