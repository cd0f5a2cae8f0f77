"""Resize and crop a decoded frame to what the bundle takes, by the bundle's own settings.

A newcomer's trap: one crop is exactly the checkpoint's own preprocessing. Several crops slide a window of the same size along
the longer side after the same resize; a bundle that resizes to an exact size leaves nothing to slide along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BenchError
from ..preprocessing import crop_corner, resized_shape
from .sampling import slid_corner

if TYPE_CHECKING:
    from PIL.Image import Image

    from .dataset import Settings

__all__ = ["crops_of_frame", "fit_image"]


def fit_image(image: Image, settings: Settings, name: object) -> np.ndarray[Any, Any]:
    """Return the image as uint8 [H, W, 3], resized and cropped as the checkpoint says unless it has the right size.

    Raises:
        BenchError: the settings don't lead to the size the bundle takes.
    """
    frame = _frame_size(settings)
    if (image.height, image.width) == frame:
        return np.asarray(image)
    found = image.size
    if settings.resize:
        image = _resized(image, resized_shape((image.height, image.width), settings.resize), settings)
    if crop := settings.crop:
        top, left = crop_corner((image.height, image.width), crop, settings.crop_rounding)
        image = image.crop((left, top, left + crop["width"], top + crop["height"]))
    if (image.height, image.width) != frame:
        raise BenchError(
            f"open_dataset: {name} is {found[1]} x {found[0]} and the bundle's resize and crop make it "
            f"{image.height} x {image.width}, but it takes {frame[0]} x {frame[1]}; resize the images first"
        )
    return np.asarray(image)


def crops_of_frame(image: Image, settings: Settings, crops: int, name: object) -> list[np.ndarray[Any, Any]]:
    """Return the crops of a video's frame, each uint8 [H, W, 3].

    A bundle without a resize gets the shorter side at its own size, as VideoMAE's test does.

    Raises:
        BenchError: the settings don't lead to the size the bundle takes, or leave nothing to slide several crops along.
    """
    if crops == 1 and settings.resize:
        return [fit_image(image, settings, name)]
    frame, found = _frame_size(settings), (image.height, image.width)
    shape = resized_shape(found, settings.resize) if settings.resize else _covering(found, frame)
    if settings.resize and "height" in settings.resize:
        raise BenchError(
            f"open_dataset: the bundle resizes to exactly {shape[0]} x {shape[1]}, so there is nothing to slide {crops} crops "
            "along; ask for one, as views=5x1"
        )
    if shape[0] < frame[0] or shape[1] < frame[1]:
        raise BenchError(
            f"open_dataset: {name} is {found[0]} x {found[1]} and the bundle's resize makes it {shape[0]} x {shape[1]}, "
            f"smaller than the {frame[0]} x {frame[1]} it takes; resize the videos first"
        )
    image = _resized(image, shape, settings)
    if crops == 1:
        size = {"height": frame[0], "width": frame[1]}
        corners = [crop_corner(shape, size, settings.crop_rounding)]
    else:
        corners = [slid_corner(shape, frame, crop, crops) for crop in range(crops)]
    return [np.asarray(image.crop((left, top, left + frame[1], top + frame[0]))) for top, left in corners]


def _frame_size(settings: Settings) -> tuple[int, int]:
    return settings.frame_shape[-3], settings.frame_shape[-2]


def _covering(shape: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """The smallest size of the same proportions that the frame fits in; in whole numbers, as ``resized_shape``."""
    (height, width), (rows, columns) = shape, frame
    if rows * width >= columns * height:
        return rows, max(columns, width * rows // height)
    return max(rows, height * columns // width), columns


def _resized(image: Image, shape: tuple[int, int], settings: Settings) -> Image:
    from PIL import Image as Pillow

    if shape == (image.height, image.width):
        return image
    return image.resize((shape[1], shape[0]), Pillow.Resampling[settings.resample.upper()])
