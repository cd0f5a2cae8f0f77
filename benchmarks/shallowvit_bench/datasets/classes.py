"""Which class a name stands for: by the bundle's own labels, or by a file that lists the classes in the model's order.

A newcomer's trap: the order of classes is the model's, not the folder's. Names are looked up in the bundle's labels; a file
takes their place, and one that contradicts the labels is refused, since then every item would count as wrong.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BenchError
from .dataset import NO_LABELS, called

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .dataset import Taker
    from .specs import DataSpec

__all__ = ["labels_from_names", "read_classes", "read_text"]

_WNID = re.compile(r"(n\d{8})\s+(.+)")
_NUMBERED = re.compile(r"(\d+)\s+(\S.*)")


def labels_from_names(
    names: Sequence[str | int], taker: Taker, classes: Mapping[str, int] | None, labelled: bool, spec: DataSpec
) -> np.ndarray[Any, Any]:
    """Return the class of each name, which a whole number already is; none at all where names are unknown but not needed.

    Args:
        names: Of the items' classes.
        taker: Its labels are looked in unless ``classes`` are given.
        classes: Name to class, from a file.
        labelled: Whether an unknown name is an error.
        spec: Where the names are from, for the message.
    """
    table = dict(classes) if classes is not None else {name: index for index, name in enumerate(taker.labels or ())}
    unknown = sorted({name for name in names if isinstance(name, str)} - set(table))
    if unknown and labelled:
        source = "classes of the data's class file" if classes is not None else f"labels of {called(taker)}"
        begin = f"its {'classes' if classes is not None else 'labels'} begin {', '.join(list(table)[:3]) or '(it has none)'}"
        raise BenchError(
            f"open_dataset: the classes {', '.join(unknown[:3])} of {spec.path} are no {source}; {begin}; a file with one "
            f"class a line in the model's order says which they are: {spec.form or 'images'}:{spec.path}?classes=FILE"
        )
    if unknown:
        return NO_LABELS
    return np.array([table[name] if isinstance(name, str) else name for name in names], np.int64)


def read_classes(file: Path, taker: Taker) -> dict[str, int]:
    """Read name -> class from a file: one name a line in the model's order; ``n01440764 tench, Tinca tinca`` in that order
    (ImageNet's synset_words.txt); ``1 ApplyEyeMakeup`` counted from 1 (UCF101's classInd.txt); or JSON of name -> class
    (Something-Something's labels.json).

    Raises:
        BenchError: it holds no classes, or has them in another order than the bundle's labels.
    """
    text = read_text(file)
    described: dict[str, int] = {}
    if file.suffix == ".json":
        classes = _classes_from_json(file, text)
    else:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        classes, described = _classes_from_lines(file, lines)
    if not classes:
        raise BenchError(f"open_dataset: {file} holds no classes; give a file with one class a line")
    _check_order(file, {**classes, **described}, taker)
    return classes


def _classes_from_json(file: Path, text: str) -> dict[str, int]:
    try:
        return {str(name): int(index) for name, index in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as err:
        raise BenchError(f"open_dataset: {file} is no JSON object of name to number ({err}); give labels.json") from err


def _classes_from_lines(file: Path, lines: list[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Name -> class, and what ImageNet's lines describe the class as -> class."""
    if all(_WNID.fullmatch(line) for line in lines):
        pairs = [_WNID.fullmatch(line).groups() for line in lines]  # type: ignore[union-attr]
        described = [text for _name, text in pairs]
        words = {text.partition(",")[0]: index for index, text in enumerate(described)}
        # two classes are called crane and two maillot, so a first word that isn't unique says nothing
        firsts = [text.partition(",")[0] for text in described]
        unique = {word: index for word, index in words.items() if firsts.count(word) == 1}
        return {name: index for index, (name, _text) in enumerate(pairs)}, unique | dict(
            zip(described, range(len(described)), strict=True)
        )
    if all(_NUMBERED.fullmatch(line) for line in lines):
        numbered = [_NUMBERED.fullmatch(line).groups() for line in lines]  # type: ignore[union-attr]
        first = min((int(number) for number, _name in numbered), default=1)
        return {name: int(number) - first for number, name in numbered}, {}
    if len(set(lines)) < len(lines):
        twice = next(line for line in lines if lines.count(line) > 1)
        raise BenchError(f"open_dataset: {file} names the class {twice} twice; give each class one line, in the model's order")
    return {name: index for index, name in enumerate(lines)}, {}


def _check_order(file: Path, classes: Mapping[str, int], taker: Taker) -> None:
    own = {name: index for index, name in enumerate(taker.labels or ())}
    for name, index in classes.items():
        if own.get(name, index) != index:
            raise BenchError(
                f"open_dataset: {file} has {name} as class {index}, {called(taker)} has it as class {own[name]}; give a file "
                "in the model's order, or none where the names are its labels"
            )


def read_text(file: Path) -> str:
    """Read a list file.

    Raises:
        BenchError: it can't be read as text.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise BenchError(f"open_dataset: {file} can't be read as a text file ({err}); give the list itself") from err
