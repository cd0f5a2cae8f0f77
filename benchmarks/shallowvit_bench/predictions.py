"""The file of a model's outputs, one JSON object a line: what they are of, then batches as they come, so that nothing is lost.

A newcomer's trap: an item can stand in it twice, after a file was replaced and read again; the last one counts. Outputs are
float32 in base64, since a line of numbers would be five times as long.
"""

from __future__ import annotations

import base64
import json
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BenchError
from .metrics import Truth

if TYPE_CHECKING:
    from pathlib import Path

    from .datasets import Dataset

__all__ = ["Predictions", "PredictionsFile", "read_predictions"]

_FORMAT = 1
_SYNC_SECONDS = 5.0  # a power cut loses no more work than this; a kill loses none
_ABOUT = ("format", "model_sha256", "provider", "precision", "version", "engine_sha256", "data", "dataset_sha256", "views")


@dataclass(frozen=True)
class Predictions:
    """Outputs of the items that could be read, in order, what they are compared with, and what couldn't be read."""

    about: dict[str, Any]
    names: tuple[str, ...] = field(repr=False)
    items: np.ndarray[Any, Any] = field(repr=False)  # their numbers in the data set
    outputs: np.ndarray[Any, Any] = field(repr=False)  # [items, ...]; averaged over views
    truth: Truth = field(repr=False)  # of these items
    unreadable: tuple[tuple[str, str], ...] = ()


def read_predictions(path: Path) -> Predictions:
    """Read what ``measure_accuracy`` saved, whether or not it came to its end.

    Raises:
        BenchError: there is no such file, or it is none of these.
    """
    lines, _whole = _read_lines(path)
    if not lines or lines[0].get("format") != _FORMAT:
        raise BenchError(f"read_predictions: {path} is no file of saved outputs (format {_FORMAT}); give one that bench wrote")
    try:
        return _predictions_from_lines(*lines)
    except (KeyError, TypeError, ValueError, IndexError) as err:
        raise BenchError(f"read_predictions: {path} is damaged ({err!r}); measure the accuracy again") from err


def _predictions_from_lines(about: dict[str, Any], *rest: dict[str, Any]) -> Predictions:
    outputs, _stamps, reasons = _contents(list(rest))
    items = np.array(sorted(outputs), np.int64)
    names = tuple(about.pop("names"))
    every = {key: about.pop(key) for key in ("labels", "cameras", "queries")}
    labels, cameras, queries = (
        None if every[key] is None else np.array(every[key], kind)[items if len(every[key]) else []]
        for key, kind in (("labels", np.int64), ("cameras", np.int64), ("queries", bool))
    )
    assert labels is not None
    return Predictions(
        about=about,
        names=names,
        items=items,
        outputs=np.stack([outputs[item] for item in items.tolist()]) if len(items) else np.zeros((0, 0), np.float32),
        truth=Truth(about["kind"], labels, cameras, queries),
        unreadable=tuple((names[item], reason) for item, reason in sorted(reasons.items())),
    )


class PredictionsFile:
    """An open file of outputs, to be added to; what it already held for the same model and data is in ``outputs``.

    Args:
        path: Written anew when it holds outputs of something else, which ``started_anew`` then says.
        about: The model and how it is run.
        dataset: Items whose file has changed since are not taken from the file.
    """

    def __init__(self, path: Path, about: dict[str, Any], dataset: Dataset) -> None:
        self.path = path
        self.started_anew: str | None = None
        header = _header(about, dataset)
        lines, whole = _read_lines(path) if path.exists() else ([], 0)
        if lines and (other := [key for key in _ABOUT if lines[0].get(key) != header[key]]):
            self.started_anew = f"{path} held outputs of another {' and '.join(other)}, so it is started anew"
            lines = []
        outputs, stamps, _reasons = _contents(lines[1:])
        # what couldn't be read is tried again, since someone may have repaired it
        self.outputs = {item: row for item, row in outputs.items() if stamps[item] == dataset.items.stamp(item)}
        try:
            self._file = path.open("r+b" if lines else "wb")
            if lines:
                self._file.truncate(whole)  # what a kill left half written
                self._file.seek(whole)
            else:
                self._write(header)
        except OSError as err:
            raise BenchError(f"measure_accuracy: {path} can't be written ({err.strerror}); choose another place") from err
        self._synced = time.monotonic()

    def add(self, items: list[int], stamps: list[int], outputs: np.ndarray[Any, Any]) -> None:
        """Append the outputs float32 [items, ...]."""
        packed = base64.b64encode(np.ascontiguousarray(outputs, "<f4").tobytes()).decode("ascii")
        self._write({"items": items, "stamps": stamps, "width": outputs.shape[1], "outputs": packed})

    def skip(self, item: int, reason: str) -> None:
        """Append that an item can't be read."""
        self._write({"unreadable": item, "reason": reason})

    def close(self) -> None:
        """Wait until the disk has everything."""
        try:
            os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
            if time.monotonic() - getattr(self, "_synced", 0.0) > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as err:
            raise BenchError(
                f"measure_accuracy: {self.path} can't be written ({err.strerror}); make room and run it again, it goes "
                "on where it stopped"
            ) from err


def _header(about: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    arrays = {key: getattr(dataset, key) for key in ("labels", "cameras", "queries")}
    return {
        "format": _FORMAT,
        **about,
        "data": dataset.name,
        "dataset_sha256": dataset.digest(),
        "kind": dataset.kind,
        "views": dataset.views,
        "names": [dataset.items.name(item) for item in range(dataset.count)],
        **{key: None if array is None else array.tolist() for key, array in arrays.items()},
    }


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a file, and how many bytes they are."""
    try:
        content = path.read_bytes()
    except OSError as err:
        raise BenchError(f"read_predictions: {path} can't be read ({err.strerror}); give a file that bench wrote") from err
    lines, whole = [], 0
    for line in content.splitlines(keepends=True):
        try:
            parsed = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            break
        lines.append(parsed)
        whole += len(line)
    return lines, whole


def _contents(lines: list[dict[str, Any]]) -> tuple[dict[int, np.ndarray[Any, Any]], dict[int, int], dict[int, str]]:
    """Outputs and stamps by item, and why others can't be read."""
    outputs: dict[int, np.ndarray[Any, Any]] = {}
    stamps: dict[int, int] = {}
    reasons: dict[int, str] = {}
    for line in lines:
        if "unreadable" in line:
            reasons[line["unreadable"]] = line["reason"]
            outputs.pop(line["unreadable"], None)
            continue
        rows = np.frombuffer(base64.b64decode(line["outputs"]), "<f4").reshape(-1, line["width"])
        for item, stamp, row in zip(line["items"], line["stamps"], rows, strict=True):
            outputs[item], stamps[item] = row, stamp
            reasons.pop(item, None)
    return outputs, stamps, reasons
