"""Decode videos with PyAV into the clips that a model is tested on.

A newcomer's trap: frames are counted by what the file holds, then decoded in order, with no seeking; seeking is where decoders
disagree about which frame is number 100. Only the frames of the clips are turned into pixels, which is where the time goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BenchError
from .classes import labels_from_names, read_classes
from .dataset import UnreadableError, called
from .fitting import crops_of_frame
from .images import file_stamp, relative_name
from .sampling import clip_indices
from .video_lists import read_video_list

if TYPE_CHECKING:
    from pathlib import Path

    from .dataset import Settings, Taker
    from .sampling import Views
    from .specs import DataSpec

__all__ = ["VideoItems", "open_videos", "read_clips"]

_LEAST_SHARE = 0.9  # of the frames that the container promises; a file with fewer was cut off
_LARGEST_SHIFT = 8  # frames that decoders hold back or drop at a file's end without it being broken


class VideoItems:
    """Video files, each an item of several views."""

    in_memory = False

    def __init__(self, paths: tuple[Path, ...], settings: Settings, views: Views, root: Path) -> None:
        self._paths, self._settings, self._views, self._root = paths, settings, views, root

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, item: int) -> np.ndarray[Any, Any]:
        """Return uint8 [views, T, H, W, 3]."""
        return read_clips(self._paths[item], self._settings, self._views)

    def name(self, item: int) -> str:
        """Return the path below the folder of the videos."""
        return relative_name(self._paths[item], self._root)

    def stamp(self, item: int) -> int:
        """Return when the file was changed."""
        return file_stamp(self._paths[item])


def open_videos(
    spec: DataSpec, taker: Taker, settings: Settings, labelled: bool
) -> tuple[VideoItems, np.ndarray[Any, Any], Views]:
    """List the videos of a specification with their classes; nothing is decoded yet."""
    if len(settings.frame_shape) != 4 or settings.frame_shape[-1] != 3:
        raise BenchError(
            f"open_dataset: {spec.path} lists videos, but {called(taker)} takes {list(settings.frame_shape)}; give images"
        )
    views = spec.views()
    listed = read_video_list(spec, taker)
    file = spec.option_path("classes")
    classes = read_classes(file, taker) if file else None if taker.labels else listed.own_classes
    labels = labels_from_names(listed.names, taker, classes, labelled, spec)
    return VideoItems(listed.paths, settings, views, spec.root), labels, views


def read_clips(path: Path, settings: Settings, views: Views) -> np.ndarray[Any, Any]:
    """Decode the clips of a video as uint8 [views, T, H, W, 3]: the first segment's crops, then the next segment's.

    Raises:
        UnreadableError: the file isn't there, has no video, is broken, or was cut off.
    """
    length = settings.frame_shape[0]
    frames = _count_frames(path)
    for _attempt in range(2):
        clips = clip_indices(frames, length, views)
        wanted = sorted({index for clip in clips for index in clip})
        crops, decoded = _decode(path, wanted, settings, views.crops)
        if len(crops) == len(wanted):
            break
        # the decoder gives fewer frames than there are packets, as in AVI files with packed B-frames: count what it gives
        if not decoded or frames - decoded > max(_LARGEST_SHIFT, (1 - _LEAST_SHARE) * frames):
            raise UnreadableError(
                f"read_clips: {path} holds {frames} frames and only {decoded} can be decoded; replace it, it is broken"
            )
        frames = decoded
    by_index = dict(zip(wanted, crops, strict=True))
    return np.stack([np.stack([by_index[index][crop] for index in clip]) for clip in clips for crop in range(views.crops)])


def _count_frames(path: Path) -> int:
    """Count the frames that are shown, without decoding them."""
    import av

    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.video:
                raise UnreadableError(f"read_clips: {path} has no video stream; remove it from the list or replace it")
            stream = container.streams.video[0]
            frames = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
            promised = stream.frames
    except (av.FFmpegError, OSError) as err:
        raise _unreadable(path, err) from err
    if not frames:
        raise UnreadableError(f"read_clips: {path} holds no frames; replace it")
    if frames < _LEAST_SHARE * promised:
        raise UnreadableError(f"read_clips: {path} holds {frames} of its {promised} frames; replace it, it was cut off")
    return frames


def _decode(path: Path, wanted: list[int], settings: Settings, crops: int) -> tuple[list[list[np.ndarray[Any, Any]]], int]:
    """Decode up to the last wanted frame; return the crops of those wanted, and how many frames were seen."""
    import av

    found: list[list[np.ndarray[Any, Any]]] = []
    seen = 0
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = container.streams.video[0]
            # videos are decoded side by side, so threads within one would only get in each other's way
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if seen == wanted[len(found)]:
                    found.append(crops_of_frame(_image(frame), settings, crops, path))
                seen += 1
                if len(found) == len(wanted):
                    break
    except (av.FFmpegError, OSError) as err:
        raise _unreadable(path, err) from err
    return found, seen


def _image(frame: Any) -> Any:
    """The frame as it is shown: phones store which way up they were held."""
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _unreadable(path: Path, err: Exception) -> UnreadableError:
    if isinstance(err, FileNotFoundError):
        return UnreadableError(f"read_clips: no file {path}; correct the list or add it")
    reason = getattr(err, "strerror", None) or err
    return UnreadableError(f"read_clips: {path} can't be decoded ({reason}); replace it or remove it from the list")
