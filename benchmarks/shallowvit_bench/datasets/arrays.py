"""Items in memory: the clips of ``demo``, and ``.npz`` files with ``frames`` or with the graph's own ``inputs``.

A newcomer's trap: ``frames`` are uint8 and still go through the bundle's preprocessing; ``inputs`` are fed as they stand, so
what the model was trained with (mean, deviation, log-mel, point sampling) has been done to them already.
"""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from ..demo_clips import LABELS, SPLITS, demo_clips
from ..errors import BenchError
from .dataset import NO_LABELS, called

if TYPE_CHECKING:
    from pathlib import Path

    from .dataset import Taker

__all__ = ["ArrayItems", "open_arrays", "open_demo"]


class ArrayItems:
    """Rows of arrays that follow each other, each an item of one view."""

    in_memory = True

    def __init__(self, parts: tuple[np.ndarray[Any, Any], ...], names: tuple[str, ...]) -> None:
        self._parts, self._names = parts, names
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, item: int) -> np.ndarray[Any, Any]:
        """Return [1, ...]."""
        part, row = self._place(item)
        return self._parts[part][row : row + 1]

    def name(self, item: int) -> str:
        """Return the file's name and the row."""
        part, row = self._place(item)
        return f"{self._names[part]}[{row}]"

    def stamp(self, item: int) -> int:
        """Return 0: the data set's digest covers what is in memory."""
        return 0

    def _place(self, item: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._ends, item, side="right"))
        return part, int(item - self._ends[part] + len(self._parts[part]))


def open_demo(split: str, taker: Taker, labelled: bool, enough: int | None) -> tuple[ArrayItems, np.ndarray[Any, Any]]:
    """Make the clips of a split of ``demo``, or the first ``enough``."""
    if labelled and taker.labels != LABELS:
        raise BenchError(f"open_dataset: {called(taker)} doesn't have the labels of the data set demo; give its own data")
    size, _seed = SPLITS[split]
    clips = demo_clips(split, min(size, enough or size))
    return ArrayItems((clips.frames,), (split,)), clips.labels if taker.labels == LABELS else NO_LABELS


def open_arrays(files: list[Path], taker: Taker, labelled: bool) -> tuple[ArrayItems, np.ndarray[Any, Any], bool]:
    """Read ``.npz`` files; the last of what is returned says whether they hold the graph's inputs."""
    parts, labels, inputs = [], [], []
    for file in files:
        items, part_labels, is_input = _read_file(file, labelled)
        if is_input:
            _check_inputs(file, items, taker)
        else:
            _check_frames(file, items, taker)
        parts.append(items)
        labels.append(part_labels)
        inputs.append(is_input)
    if len(set(inputs)) > 1:
        other = files[inputs.index(not inputs[0])]
        raise BenchError(f"open_dataset: {files[0]} and {other} differ in holding frames or inputs; give one kind")
    return ArrayItems(tuple(parts), tuple(file.name for file in files)), np.concatenate(labels), inputs[0]


def _read_file(file: Path, labelled: bool) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], bool]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            is_input = "inputs" in arrays and "frames" not in arrays
            items = arrays["inputs" if is_input else "frames"]
            # -1 is no class, so they are left out if the other files have some
            missing = not labelled and "labels" not in arrays
            labels = np.full(len(items), -1) if missing else arrays["labels"]
    except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile) as err:
        raise BenchError(
            f"open_dataset: {file} can't be read as a .npz with frames and labels, or inputs and labels ({err}); write one "
            "with numpy.savez"
        ) from err
    whole = np.issubdtype(labels.dtype, np.integer) and labels.shape == (len(items),)
    if (items.dtype != np.uint8 and not is_input) or not whole or not len(items):
        expected = "[N, ...]" if is_input else "uint8 [N, (T,) H, W, C]"
        raise BenchError(
            f"open_dataset: {file} has {'inputs' if is_input else 'frames'} {items.dtype} {list(items.shape)} and labels "
            f"{labels.dtype} {list(labels.shape)}; expected {expected} and integers [N], N at least 1"
        )
    return items, labels.astype(np.int64), is_input


def _check_frames(file: Path, frames: np.ndarray[Any, Any], taker: Taker) -> None:
    settings = taker.preprocessing
    if settings is None:
        raise BenchError(
            f"open_dataset: {called(taker)} has no preprocessing settings, so it can't be measured on frames; export again "
            "with preprocessor_config.json beside the checkpoint, or give a .npz with inputs, as the graph takes them"
        )
    if frames.shape[1:] != settings.frame_shape:
        raise BenchError(
            f"open_dataset: items of {file.name} are {list(frames.shape[1:])}, {called(taker)} takes "
            f"{list(settings.frame_shape)}; resize the data first"
        )


def _check_inputs(file: Path, inputs: np.ndarray[Any, Any], taker: Taker) -> None:
    # a model in memory says nothing about types; a graph takes another width of the same kind, which the feeding casts
    dtype = np.dtype(getattr(taker.input, "dtype", inputs.dtype))
    if inputs.shape[1:] != tuple(taker.input.shape) or inputs.dtype.kind != dtype.kind:
        raise BenchError(
            f"open_dataset: inputs of {file.name} are {inputs.dtype} {list(inputs.shape[1:])}, {called(taker)} takes {dtype} "
            f"{list(taker.input.shape)}; save them as the graph takes them"
        )
