"""Open data for a bundle's accuracy or a model's scores: ``demo``, arrays in ``.npz`` files, or an image folder.

A newcomer's trap: nothing is dropped or adapted silently. An item of another size or a class the bundle doesn't know is an
error that says found and expected; only images of an image folder are resized, by the bundle's own settings.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .bundles import BundleInfo
from .demo_clips import LABELS, SPLITS, demo_clips
from .errors import BenchError
from .preprocessing import crop_corner, resized_shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Dataset", "Taker", "check_dataset", "open_dataset"]

_IMAGES = (".png", ".jpg", ".jpeg")
_DEMO = {"demo": "test", "demo:train": "train"}  # accuracy is measured on clips that no training has seen
_NO_LABELS = np.zeros(0, np.int64)


class _Settings(Protocol):
    @property
    def frame_shape(self) -> tuple[int, ...]: ...
    @property
    def resize(self) -> dict[str, int] | None: ...
    @property
    def crop(self) -> dict[str, int] | None: ...
    @property
    def resample(self) -> str: ...
    @property
    def crop_rounding(self) -> str: ...


class _Input(Protocol):
    @property
    def layout(self) -> str: ...


class Taker(Protocol):
    """What takes the items, a bundle or a model in memory, as far as the data has to fit it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def input(self) -> _Input: ...  # noqa: D102
    @property
    def preprocessing(self) -> _Settings | None: ...  # noqa: D102
    @property
    def labels(self) -> tuple[str, ...] | None: ...  # noqa: D102


@dataclass(frozen=True)
class Dataset:
    """Items in parts that are read when asked for: arrays in memory or images.

    ``labels`` are int64 [count]; none [0] where the data was opened without a need for them and has none that fit.
    """

    name: str
    count: int
    labels: np.ndarray[Any, Any]
    _parts: tuple[Any, ...]
    _settings: _Settings

    def batches(self, size: int) -> Iterator[np.ndarray[Any, Any]]:
        """Yield uint8 frames [size or fewer, (T,) H, W, C] in order."""
        if isinstance(self._parts[0], Path):
            for start in range(0, self.count, size):
                yield np.stack([_read_image(path, self._settings) for path in self._parts[start : start + size]])
            return
        for frames in self._parts:
            for start in range(0, len(frames), size):
                yield frames[start : start + size]

    def take(self, items: Sequence[int]) -> np.ndarray[Any, Any]:
        """Return the uint8 frames of these items alone, in this order."""
        if isinstance(self._parts[0], Path):
            return np.stack([_read_image(self._parts[item], self._settings) for item in items])
        ends = np.cumsum([len(frames) for frames in self._parts])
        parts = np.searchsorted(ends, items, side="right")
        return np.stack([self._parts[part][item - ends[part]] for part, item in zip(parts, items, strict=True)])


def check_dataset(spec: str) -> None:
    """Check that ``spec`` is ``demo``, ``demo:train`` or exists, before anything slow is done.

    Raises:
        BenchError: it is neither.
    """
    if spec not in _DEMO and not Path(spec).exists():
        raise BenchError(
            f"open_dataset: no data at {spec}; give 'demo', 'demo:train', a .npz file, or a folder of .npz files or "
            "class folders"
        )


def open_dataset(spec: str, taker: Taker, *, labelled: bool = True, enough: int | None = None) -> Dataset:
    """Open data for a bundle or a model.

    Args:
        spec: ``demo`` (its test clips) or ``demo:train``; a ``.npz`` file with ``frames`` uint8 [N, (T,) H, W, C] and
            ``labels`` int [N]; a folder of such files; or a folder with one folder of .png or .jpg images per class, named as
            the taker's labels.
        taker: Says what an item looks like and which classes there are.
        labelled: Whether labels are needed. Without, a ``.npz`` may lack them, images may stand in the folder itself, and
            labels of other classes than the taker's are left out.
        enough: Make no more clips of ``demo`` than these, the first ones; all of the split by default.

    Raises:
        BenchError: nothing there, nothing in it, or it doesn't fit the bundle.
    """
    check_dataset(spec)
    settings = taker.preprocessing
    if settings is None:
        raise BenchError(f"open_dataset: {_called(taker)} has no preprocessing settings, so it can't be measured on frames")
    path = Path(spec)
    if spec in _DEMO:
        parts, labels = _open_demo(_DEMO[spec], taker, labelled, enough)
    elif path.is_file():
        parts, labels = _open_arrays([path], labelled)
    elif files := sorted(path.glob("*.npz")):
        parts, labels = _open_arrays(files, labelled)
    else:
        parts, labels = _open_images(path, taker, labelled)
    count = len(parts) if isinstance(parts[0], Path) else sum(len(frames) for frames in parts)
    dataset = Dataset(spec if spec in _DEMO else path.name, count, labels, parts, settings)
    _check_frames(dataset, taker, settings)
    return _with_known_labels(dataset, taker, labelled)


def _called(taker: Taker) -> str:
    return f"the {'bundle' if isinstance(taker, BundleInfo) else 'model'} {taker.name}"


def _check_frames(dataset: Dataset, taker: Taker, settings: _Settings) -> None:
    for frames in dataset._parts:
        if not isinstance(frames, Path) and frames.shape[1:] != settings.frame_shape:
            raise BenchError(
                f"open_dataset: items of {dataset.name} are {list(frames.shape[1:])}, {_called(taker)} takes "
                f"{list(settings.frame_shape)}; resize the data first"
            )


def _with_known_labels(dataset: Dataset, taker: Taker, labelled: bool) -> Dataset:
    """Refuse labels out of range, or leave them out where none are needed."""
    if not len(dataset.labels):
        return dataset
    classes = len(taker.labels) if taker.labels else None
    lowest, highest = int(dataset.labels.min()), int(dataset.labels.max())
    if lowest >= 0 and (classes is None or highest < classes):
        return dataset
    if not labelled:
        return replace(dataset, labels=_NO_LABELS)
    raise BenchError(
        f"open_dataset: labels of {dataset.name} are {lowest} to {highest}, {_called(taker)} has classes 0 to "
        f"{(classes or 0) - 1}"
    )


def _open_demo(split: str, taker: Taker, labelled: bool, enough: int | None) -> tuple[tuple[Any, ...], np.ndarray[Any, Any]]:
    if labelled and taker.labels != LABELS:
        raise BenchError(f"open_dataset: {_called(taker)} doesn't have the labels of the data set demo; give its own data")
    size, _seed = SPLITS[split]
    clips = demo_clips(split, min(size, enough or size))
    return (clips.frames,), clips.labels if taker.labels == LABELS else _NO_LABELS


def _open_arrays(files: list[Path], labelled: bool) -> tuple[tuple[Any, ...], np.ndarray[Any, Any]]:
    parts, labels = [], []
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                frames = arrays["frames"]
                # -1 is no class, so they are left out if the other files have some
                missing = not labelled and "labels" not in arrays
                part_labels = np.full(len(frames), -1) if missing else arrays["labels"]
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


def _open_images(path: Path, taker: Taker, labelled: bool) -> tuple[tuple[Any, ...], np.ndarray[Any, Any]]:
    folders = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
    files = [(file, folder.name) for folder in folders for file in _images(folder)]
    flat = [] if labelled or files else _images(path)
    if not files and not flat:
        where = "class folders with .png or .jpg images" if labelled else ".png or .jpg images in it or in folders"
        raise BenchError(f"open_dataset: {path} holds no .npz files and no {where}")
    if len(taker.input.layout) != 4:
        raise BenchError(f"open_dataset: {path} holds images, but {_called(taker)} takes video ({taker.input.layout})")
    if flat:
        return tuple(flat), _NO_LABELS
    classes = {name: index for index, name in enumerate(taker.labels or ())}
    unknown = sorted({name for _, name in files} - set(classes))
    if unknown and labelled:
        raise BenchError(
            f"open_dataset: the class folders {', '.join(unknown[:3])} of {path} are no labels of {_called(taker)}; "
            f"its labels begin {', '.join(list(classes)[:3]) or '(it has none)'}"
        )
    labels = _NO_LABELS if unknown else np.array([classes[name] for _, name in files], np.int64)
    return tuple(file for file, _ in files), labels


def _images(folder: Path) -> list[Path]:
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in found if file.suffix.lower() in _IMAGES]


def _read_image(path: Path, settings: _Settings) -> np.ndarray[Any, Any]:
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
