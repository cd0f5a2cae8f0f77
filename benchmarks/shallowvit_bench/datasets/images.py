"""Image folders: one folder a class, ImageNet's layout, or a flat folder with a list ``name.JPEG 65``.

A newcomer's trap: class folders are named as the bundle's labels, or by WordNet id with ``classes=synset_words.txt``; in a flat
folder's list the number is the model's class, as in Caffe's val.txt, not the id of the ILSVRC development kit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BenchError
from .classes import labels_from_names, read_classes, read_text
from .dataset import NO_LABELS, UnreadableError, called
from .fitting import fit_image

if TYPE_CHECKING:
    from pathlib import Path

    from .dataset import Settings, Taker
    from .specs import DataSpec

__all__ = ["ImageItems", "file_stamp", "open_images", "split_line"]

_IMAGES = (".png", ".jpg", ".jpeg")


class ImageItems:
    """Image files, each an item of one view."""

    in_memory = False

    def __init__(self, paths: tuple[Path, ...], settings: Settings, root: Path) -> None:
        self._paths, self._settings, self._root = paths, settings, root

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, item: int) -> np.ndarray[Any, Any]:
        """Return uint8 [1, H, W, 3]."""
        return _read_image(self._paths[item], self._settings)[None]

    def name(self, item: int) -> str:
        """Return the path below the folder."""
        return relative_name(self._paths[item], self._root)

    def stamp(self, item: int) -> int:
        """Return when the file was changed."""
        return file_stamp(self._paths[item])


def relative_name(path: Path, root: Path) -> str:
    """Return the path below ``root``, or whole where it is elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def file_stamp(path: Path) -> int:
    """Return when the file was changed; -1 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1


def open_images(spec: DataSpec, taker: Taker, settings: Settings, labelled: bool) -> tuple[ImageItems, np.ndarray[Any, Any]]:
    """List the images of a folder with their classes; nothing is decoded yet."""
    path = spec.path
    classes_file, list_file = spec.option_path("classes"), spec.option_path("list")
    classes = read_classes(classes_file, taker) if classes_file else None
    if list_file:
        lines = [split_line(line, list_file) for line in read_text(list_file).splitlines() if line.strip()]
        files = [path / name for name, _label in lines]
        names: list[str | int] = [label for _name, label in lines]
    else:
        folders = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
        pairs = [(file, folder.name) for folder in folders for file in _images(folder)]
        files, names = [file for file, _ in pairs], [name for _, name in pairs]
    flat = [] if labelled or files else _images(path)
    if not files and not flat:
        where = "class folders with .png or .jpg images" if labelled else ".png or .jpg images in it or in folders"
        raise BenchError(f"open_dataset: {path} holds no .npz files and no {where}; give another folder")
    if len(taker.input.layout) != 4:
        raise BenchError(
            f"open_dataset: {path} holds images, but {called(taker)} takes video ({taker.input.layout}); give clips or a list "
            "of videos"
        )
    if flat:
        return ImageItems(tuple(flat), settings, path), NO_LABELS
    labels = labels_from_names(names, taker, classes, labelled, spec)
    return ImageItems(tuple(files), settings, path), labels


def split_line(line: str, file: Path) -> tuple[str, str | int]:
    """Return path and label of a line ``path label`` or ``path,label``; a whole number is the class itself.

    Raises:
        BenchError: it has one field.
    """
    path, comma, label = (part.strip() for part in line.strip().rpartition(","))
    if not comma or (" " in label and label.split()[-1].isdecimal()):  # a comma of the path itself
        parts = line.strip().rsplit(None, 1)
        path, label = parts if len(parts) == 2 else ("", "")
    if not path or not label:
        raise BenchError(f"open_dataset: the line {line.strip()!r} of {file} is no 'path label'; give a list with both")
    return path, int(label) if label.isdecimal() else label


def _images(folder: Path) -> list[Path]:
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in found if file.suffix.lower() in _IMAGES]


def _read_image(path: Path, settings: Settings) -> np.ndarray[Any, Any]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except FileNotFoundError as err:
        raise UnreadableError(f"open_dataset: no file {path}; correct the list or add it") from err
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise UnreadableError(f"open_dataset: {path} can't be read as an image ({err}); remove it or replace it") from err
    return fit_image(image, settings, path)
