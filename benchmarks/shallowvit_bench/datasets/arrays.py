"""Items in memory: the clips of ``demo``, and ``.npz`` files with ``frames`` or with the graph's own ``inputs``.

Of a graph with several inputs a file holds each by its name, the main one under its own or as ``inputs`` or ``frames``.

A newcomer's trap: ``frames`` are uint8 and still go through the bundle's preprocessing; ``inputs`` are fed as they stand, so
what the model was trained with (mean, deviation, log-mel, point sampling) has been done to them already.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..demo_clips import LABELS, SPLITS, demo_clips
from ..errors import BenchError
from .dataset import NO_LABELS, called

if TYPE_CHECKING:
    from pathlib import Path

    from .dataset import Taker

__all__ = ["ArrayItems", "ReadArrays", "open_arrays", "open_demo"]


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
    size = SPLITS[split].clips
    clips = demo_clips(split, min(size, enough or size))
    return ArrayItems((clips.frames,), (split,)), clips.labels if taker.labels == LABELS else NO_LABELS


@dataclass(frozen=True)
class ReadArrays:
    """What ``.npz`` files hold: items with labels, whether they are the graph's input as it stands, and its other inputs."""

    items: ArrayItems
    labels: np.ndarray[Any, Any]
    inputs: bool
    beside: dict[str, np.ndarray[Any, Any]]


def open_arrays(files: list[Path], taker: Taker, labelled: bool) -> ReadArrays:
    """Read ``.npz`` files."""
    inputs = getattr(taker, "inputs", None) or (taker.input,)  # a model in memory tells its main input alone
    main, others = getattr(inputs[0], "name", ""), tuple(one for one in inputs[1:] if one.batch)
    parts = [_read_file(file, labelled, main, tuple(one.name for one in others)) for file in files]
    for file, part in zip(files, parts, strict=True):
        if part.is_input:
            _check_inputs(file, part.items, taker.input, taker)
        else:
            _check_frames(file, part.items, taker)
        for one in others:
            _check_inputs(file, part.beside[one.name], one, taker)
    kinds = [part.is_input for part in parts]
    if len(set(kinds)) > 1:
        other = files[kinds.index(not kinds[0])]
        raise BenchError(f"open_dataset: {files[0]} and {other} differ in holding frames or inputs; give one kind")
    return ReadArrays(
        ArrayItems(tuple(part.items for part in parts), tuple(file.name for file in files)),
        np.concatenate([part.labels for part in parts]),
        kinds[0],
        {one.name: np.concatenate([part.beside[one.name] for part in parts]).astype(one.dtype, copy=False) for one in others},
    )


@dataclass(frozen=True)
class _Part:
    items: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    is_input: bool
    beside: dict[str, np.ndarray[Any, Any]]


def _read_file(file: Path, labelled: bool, main: str, others: tuple[str, ...]) -> _Part:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            key = next((name for name in ("frames", "inputs", main) if name in arrays), "frames")
            is_input = key != "frames" or (main == "frames" and "inputs" in arrays)
            items = arrays[key]
            # -1 is no class, so they are left out if the other files have some
            missing = not labelled and "labels" not in arrays
            labels = np.full(len(items), -1) if missing else arrays["labels"]
            beside = {name: arrays[name] for name in others}
    except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile) as err:
        also = f", beside {', '.join(others)}" if others else ""
        raise BenchError(
            f"open_dataset: {file} can't be read as a .npz with frames and labels, or inputs and labels{also} ({err}); write "
            "one with numpy.savez"
        ) from err
    whole = np.issubdtype(labels.dtype, np.integer) and labels.shape == (len(items),)
    if (items.dtype != np.uint8 and not is_input) or not whole or not len(items):
        expected = "[N, ...]" if is_input else "uint8 [N, (T,) H, W, C]"
        raise BenchError(
            f"open_dataset: {file} has {'inputs' if is_input else 'frames'} {items.dtype} {list(items.shape)} and labels "
            f"{labels.dtype} {list(labels.shape)}; expected {expected} and integers [N], N at least 1"
        )
    unlike = next((name for name, array in beside.items() if len(array) != len(items)), None)
    if unlike:
        raise BenchError(f"open_dataset: {file} has {len(beside[unlike])} items of {unlike}, expected {len(items)} as of {key}")
    return _Part(items, labels.astype(np.int64), is_input, beside)


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


def _check_inputs(file: Path, inputs: np.ndarray[Any, Any], one: Any, taker: Taker) -> None:
    # a model in memory says nothing about types; a graph takes another width of the same kind, which the feeding casts
    dtype = np.dtype(getattr(one, "dtype", inputs.dtype))
    shape = tuple(one.shape)
    fits = len(inputs.shape) == len(shape) + 1 and all(
        not isinstance(size, int) or found == size for found, size in zip(inputs.shape[1:], shape, strict=True)
    )
    if not fits or inputs.dtype.kind != dtype.kind:
        raise BenchError(
            f"open_dataset: inputs of {file.name} are {inputs.dtype} {list(inputs.shape[1:])}, {called(taker)} takes {dtype} "
            f"{list(shape)}; save them as the graph takes them"
        )
