"""The layout of Market-1501: query images, and a gallery in which the same person is to be found on another camera.

A newcomer's trap: images named ``-1_...`` are junk (parts of people) that the protocol takes out of the gallery, while those
named ``0000_...`` are distractors that stay in it and make the task harder.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BenchError
from .dataset import called
from .images import ImageItems

if TYPE_CHECKING:
    from .dataset import Settings, Taker
    from .specs import DataSpec

__all__ = ["open_market1501"]

_NAME = re.compile(r"(-1|\d+)_c(\d+).*\.(?:jpe?g|png)", re.IGNORECASE)  # 0001_c1s1_001051_00.jpg
_QUERY, _GALLERY = "query", "bounding_box_test"


def open_market1501(
    spec: DataSpec, taker: Taker, settings: Settings
) -> tuple[ImageItems, np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """List the images, queries first, with who is on them, the camera, and which are queries.

    Raises:
        BenchError: a folder is missing or holds no images named as Market-1501's, or the model takes video.
    """
    if len(taker.input.layout) != 4:
        raise BenchError(
            f"open_dataset: {spec.path} holds images, but {called(taker)} takes video ({taker.input.layout}); give videos"
        )
    paths, people, cameras, queries = [], [], [], []
    for folder in (_QUERY, _GALLERY):
        where = spec.path / folder
        files = sorted(where.iterdir()) if where.is_dir() else []
        named = [(file, match) for file in files if (match := _NAME.fullmatch(file.name))]
        kept = [(file, match) for file, match in named if match[1] != "-1"]
        if not kept:
            raise BenchError(
                f"open_dataset: {where} holds no images named as 0001_c1s1_001051_00.jpg; give the folder that holds {_QUERY} "
                f"and {_GALLERY}"
            )
        for file, match in kept:
            paths.append(file)
            people.append(int(match[1]))
            cameras.append(int(match[2]))
            queries.append(folder == _QUERY)
    items = ImageItems(tuple(paths), settings, spec.path)
    return items, np.array(people, np.int64), np.array(cameras, np.int64), np.array(queries, bool)
