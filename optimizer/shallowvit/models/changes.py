"""What ``load`` changes about a model before it looks for blocks: its image size, its number of frames, its head.

A newcomer's trap: a folder that ``prune`` wrote in our own form is built again from its source, so the changes that it was
pruned with stand in its lineage and are made again first.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .raw import RawModel

__all__ = ["Changes", "changed", "changes_from_lineage", "parse_image_size"]


@dataclass(frozen=True)
class Changes:
    """None leaves a thing as it is.

    Args:
        head: ``none`` or ``linear:N``.
        image_size: Height and width in pixels; one number is both.
        frames: Of a video model: how many it takes.
    """

    head: str | None = None
    image_size: tuple[int, int] | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.image_size, int):
            object.__setattr__(self, "image_size", (self.image_size, self.image_size))
        if self.image_size is not None and min(self.image_size) < 1:
            raise ShallowvitError(f"load: --image-size {_text(self.image_size)} has no pixels; give height and width above 0")
        if self.frames is not None and self.frames < 1:
            raise ShallowvitError(f"load: --frames {self.frames} is out of range; give 1 or more")
        if self.head is not None:
            from .heads import parse_head

            parse_head(self.head)

    def over(self, earlier: Changes) -> Changes:
        """Return these on top of earlier ones."""
        own = {name: value for name, value in vars(self).items() if value is not None}
        return replace(earlier, **own)


def parse_image_size(text: str) -> tuple[int, int]:
    """Turn ``240x320`` or ``224`` into height and width.

    Raises:
        ShallowvitError: it is neither.
    """
    height, cross, width = text.lower().partition("x")
    if not height.isdecimal() or (cross and not width.isdecimal()):
        raise ShallowvitError(f"load: --image-size {text!r} isn't a size in pixels; write 224 or 240x320 (height x width)")
    return int(height), int(width or height)


def changed(raw: RawModel, changes: Changes) -> RawModel:
    """Return the model with the changes made; without any it is handed back as it is.

    Raises:
        ShallowvitError: the model can't be changed so.
    """
    if changes.image_size or changes.frames:
        from .sizes import with_size

        raw = with_size(raw, changes.image_size, changes.frames)
    if changes.head:
        from .heads import with_head

        raw = with_head(raw, changes.head)
    return raw


def changes_from_lineage(source: Mapping[str, Any]) -> Changes:
    """Read the changes off a recorded ``Origin``."""
    recorded = {field.name: source.get(field.name) for field in fields(Changes)}
    if recorded["image_size"]:
        recorded["image_size"] = tuple(recorded["image_size"])
    return Changes(**recorded)


def _text(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))
