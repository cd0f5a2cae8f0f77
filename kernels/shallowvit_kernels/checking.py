"""What a launch's tensors must be, checked on shapes and types alone: no torch, no GPU.

A newcomer's trap: a launch's strides are those of contiguous tensors, so a view isn't refused by its shape but by its strides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .launches import Launch
    from .tensors import TensorSpec

__all__ = ["check_shapes", "numbers_of"]

_LARGEST_INT = 2**31 - 1
_WORDS = {"b": "batch", "h": "heads", "n": "queries", "m": "keys"}


def check_shapes(launch: Launch, shapes: Sequence[Sequence[int]]) -> None:
    """Refuse inputs that a launch can't take, by their shapes.

    Raises:
        KernelError: a number of axes or a size doesn't fit, or is 0.
    """
    if len(shapes) != len(launch.inputs):
        names = ", ".join(one.name for one in launch.inputs)
        raise KernelError(f"launch: {launch.kernel} takes {len(launch.inputs)} inputs ({names}), found {len(shapes)}")
    variant = launch.variant
    sizes = {"d": variant.head_size, "e": variant.value_size, "3": 3}
    first: dict[str, str] = {}
    packed = "3" in launch.inputs[0].axes
    for spec, shape in zip(launch.inputs, shapes, strict=True):
        if len(shape) != len(spec.axes):
            raise KernelError(f"launch: {_words(spec)} has {len(spec.axes)} axes, found the shape {_list(shape)}")
        for letter, size in zip(spec.axes, shape, strict=True):
            # of packed tensors, keys are as many as queries
            known = "n" if letter == "m" and packed else letter
            wanted = 1 if letter in spec.broadcast else sizes.setdefault(known, size)
            if size != wanted:
                of = f" as in {first[known]}" if known in first and letter not in spec.broadcast else ""
                raise KernelError(
                    f"launch: axis {letter} of {_words(spec)} is {size}, and {wanted}{of} is expected; found {_list(shape)}"
                )
            if size < 1:
                raise KernelError(f"launch: {spec.name} has {size} {_WORDS.get(letter, letter)}; there must be 1 or more")
            if letter not in spec.broadcast:
                first.setdefault(known, spec.name)


def numbers_of(launch: Launch, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """Return the whole numbers a launch passes, by name.

    Raises:
        KernelError: one doesn't fit into 32 bits.
    """
    found = {one.name: one.size.of(shapes) for one in launch.arguments if one.size is not None}
    grid = {"the grid": launch.grid.of(shapes)}
    for name, number in (found | grid).items():
        if number > _LARGEST_INT:
            raise KernelError(
                f"launch: {name} of {launch.kernel} is {number}, and {_LARGEST_INT} is the largest that is passed; "
                "use a smaller batch"
            )
    return found


def _words(spec: TensorSpec) -> str:
    broadcast = f", {', '.join(spec.broadcast)} being 1" if spec.broadcast else ""
    return f"{spec.name} [{', '.join(spec.axes)}]{broadcast}"


def _list(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"
