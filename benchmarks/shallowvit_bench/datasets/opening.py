"""Open what ``--data`` names, and check that it fits the bundle or the model.

A newcomer's trap: labels are the model's classes. What has other classes is refused where labels are needed, and is opened
without labels where they aren't.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import BenchError
from .arrays import open_arrays, open_demo
from .audio import open_audio
from .dataset import NO_LABELS, Dataset, Settings, Taker, called
from .images import open_images
from .retrieval import open_market1501
from .specs import DEMO, DataSpec, check_spec
from .videos import open_videos

if TYPE_CHECKING:
    import numpy as np

__all__ = ["check_dataset", "open_dataset"]


def check_dataset(spec: str) -> None:
    """Check that data exists, and its options are right, before anything slow is done.

    Raises:
        BenchError: there is none, an option is wrong, or a package that it needs is missing.
    """
    check_spec(spec)


def open_dataset(spec: str, taker: Taker, *, labelled: bool = True, enough: int | None = None) -> Dataset:
    """Open data for a bundle or a model; docs/accuracy.md describes each form and its options.

    Args:
        spec: ``demo`` (its test clips) or ``demo:train``; a ``.npz`` file with ``frames`` uint8 [N, (T,) H, W, C] or ``inputs``
            [N, ...] as the graph takes them, and ``labels`` int [N], with a graph's other inputs by their names; a folder of
            such files; a folder with one folder of images per class; or a form with a path: ``images:``, ``kinetics:``,
            ``ssv2:``, ``ucf101:``, ``hmdb51:``, ``market1501:``, ``audio:``; ``binary:`` in front of any of these measures one
            score of two classes.
        taker: Says what an item looks like and which classes there are.
        labelled: Whether labels are needed. Without, a ``.npz`` may lack them, images may stand in the folder itself, and
            labels of other classes than the taker's are left out.
        enough: Make no more clips of ``demo`` than these, the first ones; all of the split by default.

    Raises:
        BenchError: nothing there, nothing in it, or it doesn't fit the bundle.
    """
    parsed = check_spec(spec)
    dataset = _open(parsed, taker, labelled, enough)
    if parsed.binary:
        return _with_two_labels(replace(dataset, kind="binary"), labelled)
    return dataset if dataset.kind == "retrieval" else _with_known_labels(dataset, taker, labelled)


def _open(spec: DataSpec, taker: Taker, labelled: bool, enough: int | None) -> Dataset:
    if spec.form == "audio":
        audio, labels = open_audio(spec, taker, labelled)
        return Dataset(spec.path.name, len(audio), labels, audio, preprocessed=True)
    files = [spec.path] if spec.path.is_file() else sorted(spec.path.glob("*.npz"))
    if not spec.form and files:
        read = open_arrays(files, taker, labelled)
        return Dataset(spec.path.name, len(read.items), read.labels, read.items, preprocessed=read.inputs, beside=read.beside)
    settings = _settings(taker)
    if spec.form == "demo":
        arrays, labels = open_demo(DEMO[str(spec.path)], taker, labelled, enough)
        _check_demo(arrays.read(0), taker, settings)
        return Dataset(str(spec.path), len(arrays), labels, arrays)
    if spec.form in ("", "images"):
        images, labels = open_images(spec, taker, settings, labelled)
        return Dataset(spec.path.name, len(images), labels, images)
    if spec.form == "market1501":
        images, people, cameras, queries = open_market1501(spec, taker, settings)
        return Dataset(spec.path.name, len(images), people, images, "retrieval", cameras=cameras, queries=queries)
    videos, labels, views = open_videos(spec, taker, settings, labelled)
    return Dataset(f"{spec.path.name}, {views}", len(videos), labels, videos, views=views.count)


def _settings(taker: Taker) -> Settings:
    if taker.preprocessing is None:
        raise BenchError(
            f"open_dataset: {called(taker)} has no preprocessing settings, so it can't be measured on frames; export again "
            "with preprocessor_config.json beside the checkpoint, or give a .npz with inputs, as the graph takes them"
        )
    return taker.preprocessing


def _check_demo(clip: np.ndarray[Any, Any], taker: Taker, settings: Settings) -> None:
    if clip.shape[1:] != settings.frame_shape:
        raise BenchError(
            f"open_dataset: items of demo are {list(clip.shape[1:])}, {called(taker)} takes {list(settings.frame_shape)}; give "
            "its own data"
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
        return replace(dataset, labels=NO_LABELS)
    known = f"classes 0 to {classes - 1}" if classes else "no labels below 0"
    raise BenchError(f"open_dataset: labels of {dataset.name} are {lowest} to {highest}, {called(taker)} has {known}")


def _with_two_labels(dataset: Dataset, labelled: bool) -> Dataset:
    found = sorted(set(dataset.labels.tolist()))
    if found == [0, 1]:
        return dataset
    if not labelled:
        return replace(dataset, labels=NO_LABELS)
    listed = ", ".join(map(str, found[:5])) or "missing"
    raise BenchError(f"open_dataset: labels of {dataset.name} are {listed}; binary: takes both 0 and 1, and nothing else")
