"""The official list files of Kinetics, Something-Something V2, UCF101 and HMDB51: which videos there are, and their classes.

A newcomer's trap: a video that a list names and the disk lacks (many of Kinetics are gone from where they came from) is still
an item, so it shows up as unreadable in every result instead of making the set smaller and the accuracy better.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import BenchError
from .classes import read_classes, read_text
from .images import split_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .dataset import Taker
    from .specs import DataSpec

__all__ = ["VideoList", "read_video_list"]

_KINETICS = ("label", "youtube_id", "time_start", "time_end")
_HMDB51_PARTS = {"train": "1", "test": "2"}  # 0 is in neither
_LOOKED_FOR = 100  # files of a list that are looked for before it is believed that the folder is the wrong one


@dataclass(frozen=True)
class VideoList:
    """Videos with the names of their classes (a number is the class itself), and the classes where the data set says so."""

    paths: tuple[Path, ...]
    names: tuple[str | int, ...]
    own_classes: Mapping[str, int] | None = None


def read_video_list(spec: DataSpec, taker: Taker) -> VideoList:
    """Read the list file of a specification.

    Raises:
        BenchError: it isn't in the official form, it is empty, or none of its first files is there.
    """
    found = _READERS[spec.form](spec, taker)
    if not found.paths:
        raise BenchError(f"open_dataset: {spec.path} lists no videos; give the official list of {spec.form}")
    first = found.paths[:_LOOKED_FOR]
    if not any(path.exists() for path in first):
        raise BenchError(
            f"open_dataset: none of the first {len(first)} videos of {spec.path} is there, as {first[0]}; say where they "
            f"are: {spec.form}:{spec.path}?root=DIR"
        )
    return found


def _read_kinetics(spec: DataSpec, taker: Taker) -> VideoList:
    """``label,youtube_id,time_start,time_end,split`` (some test lists have no label), or VideoMAE's ``path label``."""
    lines = [line for line in read_text(spec.path).splitlines() if line.strip()]
    header = next(csv.reader(lines[:1]), [])
    if "youtube_id" not in header:
        return _read_paths(spec, lines)
    if missing := [name for name in _KINETICS if name not in header]:
        raise BenchError(
            f"open_dataset: {spec.path} has no column {', '.join(missing)}; expected {','.join(_KINETICS)}, as in lists "
            "with labels"
        )
    paths, names = [], []
    for number, row in enumerate(csv.DictReader(lines), 2):
        try:
            file = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4"
        except (TypeError, ValueError) as err:
            raise BenchError(
                f"open_dataset: line {number} of {spec.path} has no whole seconds in time_start, time_end ({err}); correct it"
            ) from err
        label = row["label"]
        # the usual downloads are flat, or have a folder a class
        nested = spec.root / label / file
        paths.append(nested if nested.exists() else spec.root / file)
        names.append(label)
    return VideoList(tuple(paths), tuple(names))


def _read_paths(spec: DataSpec, lines: list[str]) -> VideoList:
    pairs = [split_line(line, spec.path) for line in lines]
    return VideoList(tuple(spec.root / path for path, _ in pairs), tuple(label for _, label in pairs))


def _read_ssv2(spec: DataSpec, taker: Taker) -> VideoList:
    """A JSON list of ``{"id": "74225", "template": "Spinning [something] that ..."}``; VideoMAE's ``path label`` too."""
    text = read_text(spec.path)
    if not text.lstrip().startswith("["):
        return _read_paths(spec, [line for line in text.splitlines() if line.strip()])
    try:
        entries = [(str(entry["id"]), str(entry["template"])) for entry in json.loads(text)]
    except (ValueError, KeyError, TypeError) as err:
        raise BenchError(
            f"open_dataset: {spec.path} is no JSON list of videos with id and template ({err!r}); give validation.json, since "
            "the test list has no classes"
        ) from err
    names = tuple(template.replace("[", "").replace("]", "") for _id, template in entries)
    # the original files are .webm; VideoMAE's preparation makes them .mp4
    suffix = next((kind for kind in (".webm", ".mp4") if _any_exists(spec.root, entries, kind)), ".webm")
    paths = tuple(spec.root / f"{name}{suffix}" for name, _template in entries)
    return VideoList(paths, names, _beside(spec, taker, "labels.json", "something-something-v2-labels.json"))


def _any_exists(root: Path, entries: list[tuple[str, str]], suffix: str) -> bool:
    return any((root / f"{name}{suffix}").exists() for name, _template in entries[:_LOOKED_FOR])


def _read_ucf101(spec: DataSpec, taker: Taker) -> VideoList:
    """``ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi`` a line, with the number of the class behind it in training lists."""
    files = [line.split()[0] for line in read_text(spec.path).splitlines() if line.strip()]
    if odd := next((file for file in files if "/" not in file), None):
        raise BenchError(f"open_dataset: {odd} in {spec.path} has no class folder; give testlist01.txt as it comes with UCF101")
    names = tuple(file.partition("/")[0] for file in files)
    return VideoList(tuple(spec.root / file for file in files), names, _beside(spec, taker, "classInd.txt"))


def _read_hmdb51(spec: DataSpec, taker: Taker) -> VideoList:
    """A folder of ``<class>_test_split1.txt`` with lines ``name.avi 0|1|2``."""
    split, part = spec.options.get("split", "1"), spec.options.get("part", "test")
    if split not in ("1", "2", "3") or part not in _HMDB51_PARTS:
        raise BenchError(
            f"open_dataset: split={split}, part={part}; HMDB51 has the splits 1, 2, 3 and the parts train and test"
        )
    ending = f"_test_split{split}.txt"
    files = sorted(spec.path.glob(f"*{ending}"))
    classes = [file.name[: -len(ending)] for file in files]
    paths, names = [], []
    for file, label in zip(files, classes, strict=True):
        for line in read_text(file).splitlines():
            # the names themselves hold no spaces, but some lines end in one
            name, _space, use = line.strip().rpartition(" ")
            if use and use not in ("0", "1", "2"):
                raise BenchError(
                    f"open_dataset: the line {line!r} of {file} is no 'name.avi 0', 1 or 2; give the official files"
                )
            if use == _HMDB51_PARTS[part]:
                paths.append(spec.root / label / name.strip())
                names.append(label)
    return VideoList(tuple(paths), tuple(names), {name: index for index, name in enumerate(classes)})


def _beside(spec: DataSpec, taker: Taker, *names: str) -> dict[str, int] | None:
    """The data set's own file of classes, where it lies beside the list and the model's labels don't decide."""
    file = next((spec.path.parent / name for name in names if (spec.path.parent / name).is_file()), None)
    return read_classes(file, taker) if file is not None and not taker.labels else None


_READERS: Mapping[str, Any] = {
    "kinetics": _read_kinetics,
    "ssv2": _read_ssv2,
    "ucf101": _read_ucf101,
    "hmdb51": _read_hmdb51,
}
