"""Optimisation profiles: for which shapes of the graph's inputs an engine is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .records import BuildConfig

__all__ = ["Profile", "profiles_for"]

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]  # input -> min, opt, max


def profiles_for(inputs: Mapping[str, Shape], config: BuildConfig) -> tuple[Profile, ...]:
    """Return the profiles of a build: one a range of batches, and one of the shapes that were given whole.

    Args:
        inputs: The graph's inputs, -1 for a dynamic size.
        config: Its ``batches`` and ``shapes``.

    Raises:
        ShallowvitError: a shape names no input, has another rank or static size than it, or min <= opt <= max doesn't hold.
    """
    given = {name: (low, best, high) for name, low, best, high in config.shapes}
    unknown = sorted(set(given) - set(inputs))
    if unknown:
        raise ShallowvitError(f"build: the graph has no input {unknown[0]!r}; its inputs: {', '.join(inputs)}")
    for name, shapes in given.items():
        _check(name, inputs[name], shapes)
    if not any(-1 in shape for shape in inputs.values()):
        return ()
    open_inputs = [name for name, shape in inputs.items() if -1 in shape[1:] and name not in given]
    if open_inputs:
        name = open_inputs[0]
        raise ShallowvitError(
            f"build: input {name!r} has more dynamic sizes than its batch ({_text(inputs[name])}); give its smallest, usual "
            f"and largest shape with --shape {name}=MIN:OPT:MAX"
        )
    if given:
        rest = {name: shape for name, shape in inputs.items() if name not in given}
        return tuple(given | _with_batch(rest, batch.low, batch.best, batch.high) for batch in config.batches[:1])
    return tuple(_with_batch(inputs, batch.low, batch.best, batch.high) for batch in config.batches)


def _with_batch(inputs: Mapping[str, Shape], *batches: int) -> Profile:
    found = {}
    for name, shape in inputs.items():
        low, best, high = (tuple(batch if size == -1 else size for size in shape) for batch in batches)
        found[name] = (low, best, high)
    return found


def _check(name: str, declared: Shape, shapes: tuple[Shape, Shape, Shape]) -> None:
    for shape in shapes:
        if len(shape) != len(declared):
            raise ShallowvitError(
                f"build: shape {_text(shape)} has {len(shape)} sizes, but input {name!r} has {len(declared)} "
                f"({_text(declared)})"
            )
        for found, expected in zip(shape, declared, strict=True):
            if found < 1 or expected not in (-1, found):
                raise ShallowvitError(f"build: shape {_text(shape)} doesn't fit input {name!r}, which is {_text(declared)}")
    if not all(low <= best <= high for low, best, high in zip(*shapes, strict=True)):
        texts = ":".join(map(_text, shapes))
        raise ShallowvitError(f"build: shapes {texts} of input {name!r} aren't min <= opt <= max in every size")


def _text(shape: Shape) -> str:
    return "x".join("?" if size == -1 else str(size) for size in shape)
