"""Which frames of a video make a clip, and which part of a frame: the test-time views of VideoMAE.

``segments x crops`` views are segments in time, each seen through crops in space. *Dense* clips take every ``stride``-th frame
of a stretch, and the segments' stretches start evenly spread over the video; *uniform* clips spread their frames over the whole
video, and segments are shifted against each other. Both for several segments, and the crops, are the rules of VideoMAE's
published test (github.com/MCG-NJU/VideoMAE, ssv2.py and kinetics.py); it has none for one segment, where ours take the middle.

A newcomer's trap: the rules count frames, not seconds, so a video of variable or of another frame rate is sampled by count too.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BenchError

__all__ = ["SAMPLINGS", "Views", "clip_indices", "slid_corner", "views_from_text"]

SAMPLINGS = ("dense", "uniform")


@dataclass(frozen=True)
class Views:
    """How many clips and crops of a video are seen, and how frames are chosen; ``stride`` is for dense sampling alone."""

    segments: int = 1
    crops: int = 1
    sampling: str = "dense"
    stride: int = 4

    @property
    def count(self) -> int:
        """Views of a video."""
        return self.segments * self.crops

    def __str__(self) -> str:
        every = f" every {self.stride}" if self.sampling == "dense" else ""
        return f"{self.segments}x{self.crops} views {self.sampling}{every}"


def views_from_text(views: str, sampling: str, stride: int) -> Views:
    """Return the views that ``5x3`` and the like name.

    Raises:
        BenchError: it names none, or the sampling or the stride is none.
    """
    segments, cross, crops = views.partition("x")
    if not cross or not segments.isdecimal() or not crops.isdecimal() or not int(segments) or not int(crops):
        raise BenchError(f"open_dataset: views={views} isn't segments x crops; give as 1x1, 5x3 (Kinetics) or 2x3 (SSv2)")
    if sampling not in SAMPLINGS:
        raise BenchError(f"open_dataset: sampling={sampling} is unknown; choose from {', '.join(SAMPLINGS)}")
    if stride < 1:
        raise BenchError(f"open_dataset: stride={stride} must be 1 or more; VideoMAE takes 4 for Kinetics")
    return Views(int(segments), int(crops), sampling, stride)


def clip_indices(frames: int, length: int, views: Views) -> list[list[int]]:
    """Return the frames of each segment's clip.

    Args:
        frames: In the video, at least 1.
        length: Of a clip.
        views: Says how they are chosen.
    """
    rule = _dense if views.sampling == "dense" else _uniform
    return rule(frames, length, views)


def _dense(frames: int, length: int, views: Views) -> list[list[int]]:
    kept = list(range(0, frames, views.stride))
    kept += [kept[-1]] * (length - len(kept))  # a short video stands still at its end
    room = len(kept) - length
    if views.segments == 1:
        starts = [room // 2]
    else:
        starts = [int(segment * (room / (views.segments - 1))) for segment in range(views.segments)]
    return [kept[start : start + length] for start in starts]


def _uniform(frames: int, length: int, views: Views) -> list[list[int]]:
    tick = frames / length
    if views.segments == 1:
        return [[int(tick / 2 + tick * part) for part in range(length)]]
    # two segments are VideoMAE's: the start and the middle of each part; more divide the part further
    shifts = [tick * segment / views.segments for segment in range(views.segments)]
    return [[int(shift + tick * part) for part in range(length)] for shift in shifts]


def slid_corner(shape: tuple[int, int], window: tuple[int, int], crop: int, crops: int) -> tuple[int, int]:
    """Return (top, left) of crop number ``crop`` of several, slid along the longer side and centred on the other."""
    (height, width), (rows, columns) = shape, window
    if height - rows >= width - columns:
        return int(crop * ((height - rows) / (crops - 1))), (width - columns) // 2
    return (height - rows) // 2, int(crop * ((width - columns) / (crops - 1)))
