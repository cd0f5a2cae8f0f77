"""Turn uint8 frames into the graph's input, in numpy, exactly as the manifest says.

A newcomer's trap: frames already have the bundle's ``frame_shape``, so resize and crop are done (``datasets`` does them for
image folders); what is left is rescale, mean and deviation, or nothing when the graph does that itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BenchError
from .feeding import sample_batch

if TYPE_CHECKING:
    from .bundles import BundleInfo
    from .feeding import Batch

__all__ = ["crop_corner", "input_from_frames", "random_input", "resized_shape"]

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


def resized_shape(shape: tuple[int, int], resize: dict[str, int]) -> tuple[int, int]:
    """Return (height, width) after a checkpoint's resize: to an exact size, or so that one edge has a length.

    Raises:
        BenchError: the settings name neither.
    """
    height, width = shape
    if "height" in resize and "width" in resize:
        return resize["height"], resize["width"]
    for name, own in (("shortest_edge", min(shape)), ("longest_edge", max(shape))):
        if name in resize:
            # in whole numbers: 49 * (1 / 49) is below 1
            return height * resize[name] // own, width * resize[name] // own
    raise BenchError(
        f"resized_shape: the preprocessing settings resize by {', '.join(resize)}, expected height and width, shortest_edge or "
        "longest_edge; resize the data beforehand"
    )


def crop_corner(shape: tuple[int, int], crop: dict[str, int], rounding: str) -> tuple[int, int]:
    """Return (top, left) of a centre crop; half a pixel goes ``down`` (transformers) or to ``even`` (torchvision, timm)."""
    whole = round if rounding == "even" else int
    return whole((shape[0] - crop["height"]) / 2), whole((shape[1] - crop["width"]) / 2)


def random_input(bundle: BundleInfo, batch: int, seed: int = 0) -> Batch:
    """Return a batch of random frames, preprocessed; of normal numbers where the bundle has no preprocessing.

    Inputs beside the main one are the bundle's samples, again and again.
    """
    main = _random_main(bundle, batch, np.random.default_rng(seed))
    if len(bundle.inputs) == 1:
        return main
    return {bundle.input.name: main, **{one.name: sample_batch(bundle, one.name, batch) for one in bundle.inputs[1:]}}


def _random_main(bundle: BundleInfo, batch: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    if bundle.preprocessing is not None:
        return input_from_frames(rng.integers(0, 256, (batch, *bundle.preprocessing.frame_shape), np.uint8), bundle)
    if bundle.input.name in bundle.samples and bundle.input.dtype not in _DTYPES:
        return sample_batch(bundle, bundle.input.name, batch)
    dtype, shape = _dtype(bundle), bundle.input.measured_shape
    if dtype == np.uint8:
        return rng.integers(0, 256, (batch, *shape), np.uint8)
    return rng.standard_normal((batch, *shape), np.float32).astype(dtype)


def _dtype(bundle: BundleInfo) -> np.dtype[Any]:
    if bundle.input.dtype not in _DTYPES:
        raise BenchError(
            f"random_input: the bundle {bundle.name} takes {bundle.input.dtype}; the harness feeds {', '.join(_DTYPES)}"
        )
    return np.dtype(bundle.input.dtype)
