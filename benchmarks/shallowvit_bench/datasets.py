"""Open labelled data for the accuracy of a bundle: ``demo``, arrays in ``.npz`` files, or an image folder.

A newcomer's trap: nothing is dropped or adapted silently. An item of another size or a class the bundle doesn't know is an
error that says found and expected; only images of an image folder are resized, by the bundle's own settings.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .demo_clips import LABELS, demo_clips
from .errors import BenchError
from .preprocessing import crop_corner, resized_shape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .bundles import BundleInfo, Preprocessing

__all__ = ["Dataset", "check_dataset", "open_dataset"]

_IMAGES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Dataset:
    """Labelled items in parts that are read when asked for: arrays in memory, ``.npz`` files, or images."""

    name: str
    count: int
    labels: np.ndarray[Any, Any]  # int64 [count]
    _parts: tuple[Any, ...]
    _settings: Preprocessing

    def batches(self, size: int) -> Iterator[np.ndarray[Any, Any]]:
        """Yield uint8 frames [size or fewer, (T,) H, W, C] in order."""
        if isinstance(self._parts[0], Path):
            for start in range(0, self.count, size):
                yield np.stack([_read_image(path, self._settings) for path in self._parts[start : start + size]])
            return
        for frames in self._parts:
            for start in range(0, len(frames), size):
                yield frames[start : start + size]


def check_dataset(spec: str) -> None:
    """Check that ``spec`` is ``demo`` or exists, before anything slow is done.

    Raises:
        BenchError: it is neither.
    """
    if spec != "demo" and not Path(spec).exists():
        raise BenchError(
            f"open_dataset: no data at {spec}; give 'demo', a .npz file, or a folder of .npz files or class folders"
        )


def open_dataset(spec: str, bundle: BundleInfo) -> Dataset:
    """Open labelled data for a bundle.

    Args:
        spec: ``demo``; a ``.npz`` file with ``frames`` uint8 [N, (T,) H, W, C] and ``labels`` int [N]; a folder of such files;
            or a folder with one folder of .png or .jpg images per class, named as the bundle's labels.
        bundle: Says what an item looks like and which classes there are.

    Raises:
        BenchError: nothing there, nothing in it, or it doesn't fit the bundle.
    """
    check_dataset(spec)
    settings = bundle.preprocessing
    if settings is None:
        raise BenchError(
            f"open_dataset: the bundle {bundle.name} has no preprocessing settings, so it can't be measured on frames"
        )
    path = Path(spec)
    if spec == "demo":
        parts, labels = _open_demo(bundle)
    elif path.is_file():
        parts, labels = _open_arrays([path])
    elif files := sorted(path.glob("*.npz")):
        parts, labels = _open_arrays(files)
    else:
        parts, labels = _open_images(path, bundle)
    dataset = Dataset(spec if spec == "demo" else path.name, len(labels), labels, parts, settings)
    _check_fit(dataset, bundle, settings)
    return dataset


def _check_fit(dataset: Dataset, bundle: BundleInfo, settings: Preprocessing) -> None:
    for frames in dataset._parts:
        if not isinstance(frames, Path) and frames.shape[1:] != settings.frame_shape:
            raise BenchError(
                f"open_dataset: items of {dataset.name} are {list(frames.shape[1:])}, the bundle {bundle.name} takes "
                f"{list(settings.frame_shape)}; resize the data first"
            )
    classes = len(bundle.labels) if bundle.labels else None
    lowest, highest = int(dataset.labels.min()), int(dataset.labels.max())
    if lowest < 0 or (classes is not None and highest >= classes):
        raise BenchError(
            f"open_dataset: labels of {dataset.name} are {lowest} to {highest}, "
            f"the bundle {bundle.name} has classes 0 to {(classes or 0) - 1}"
        )


def _open_demo(bundle: BundleInfo) -> tuple[tuple[Any, ...], np.ndarray[Any, Any]]:
    if bundle.labels != LABELS:
        raise BenchError(
            f"open_dataset: the bundle {bundle.name} doesn't have the labels of the data set demo; give its own data"
        )
    clips = demo_clips("test")
    return (clips.frames,), clips.labels


def _open_arrays(files: list[Path]) -> tuple[tuple[Any, ...], np.ndarray[Any, Any]]:
    parts, labels = [], []
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                frames, part_labels = arrays["frames"], arrays["labels"]
        except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile) as err:
            raise BenchError(f"open_dataset: {file} can't be read as a .npz with frames and labels ({err})") from err
        whole = np.issubdtype(part_labels.dtype, np.integer) and part_labels.shape == (len(frames),)
        if frames.dtype != np.uint8 or not whole or not len(frames):
            raise BenchError(
                f"open_dataset: {file} has frames {frames.dtype} {list(frames.shape)} and labels {part_labels.dtype} "
                f"{list(part_labels.shape)}; expected uint8 [N, (T,) H, W, C] and integers [N], N at least 1"
            )
        parts.append(frames)
        labels.append(part_labels.astype(np.int64))
    return tuple(parts), np.concatenate(labels)


def _open_images(path: Path, bundle: BundleInfo) -> tuple[tuple[Any, ...], np.ndarray[Any, Any]]:
    folders = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
    files = [(file, folder.name) for folder in folders for file in sorted(folder.iterdir()) if file.suffix.lower() in _IMAGES]
    if not files:
        raise BenchError(f"open_dataset: {path} holds no .npz files and no class folders with .png or .jpg images")
    if len(bundle.input.layout) != 4:
        raise BenchError(f"open_dataset: {path} holds images, but the bundle {bundle.name} takes video ({bundle.input.layout})")
    classes = {name: index for index, name in enumerate(bundle.labels or ())}
    unknown = sorted({name for _, name in files} - set(classes))
    if unknown:
        raise BenchError(
            f"open_dataset: the class folders {', '.join(unknown[:3])} of {path} are no labels of the bundle {bundle.name}; "
            f"its labels begin {', '.join(list(classes)[:3]) or '(it has none)'}"
        )
    return tuple(file for file, _ in files), np.array([classes[name] for _, name in files], np.int64)


def _read_image(path: Path, settings: Preprocessing) -> np.ndarray[Any, Any]:
    """Read one image as uint8 [H, W, 3], resized and cropped as the checkpoint says unless it has the right size."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as err:
        raise BenchError(f"open_dataset: {path} can't be read as an image ({err}); remove it or replace it") from err
    if (image.height, image.width) == settings.frame_shape[:2]:
        return np.asarray(image)
    found = image.size
    if resize := settings.resize:
        height, width = resized_shape((image.height, image.width), resize)
        image = image.resize((width, height), Image.Resampling[settings.resample.upper()])
    if crop := settings.crop:
        top, left = crop_corner((image.height, image.width), crop, settings.crop_rounding)
        image = image.crop((left, top, left + crop["width"], top + crop["height"]))
    if (image.height, image.width) != settings.frame_shape[:2]:
        raise BenchError(
            f"open_dataset: {path} is {found[1]} x {found[0]} and the bundle's resize and crop make it "
            f"{image.height} x {image.width}, but it takes {settings.frame_shape[0]} x {settings.frame_shape[1]}; "
            "resize the images first"
        )
    return np.asarray(image)
