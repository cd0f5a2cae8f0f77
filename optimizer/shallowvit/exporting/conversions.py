"""What a forward asks of its tensors' values in Python (``int(x.max())``, ``while err > tol``), recorded and put in place.

A newcomer's trap: a value that is the same for every input is a constant, a loop until convergence may run as often as any
input needed, but a branch that went one way for one input and another way for another has no place in a graph.
"""

from __future__ import annotations

import ast
import linecache
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from ..errors import ShallowvitError
from .model_lines import ModelLine, is_of_model
from .settled import functionals_seen_through, settled_random

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import FrameType

    from torch import nn

__all__ = ["DataDependent", "FixedValues", "PutInPlace", "fixed_values"]

_ASKED = (
    "__bool__",
    "item",
    "__int__",
    "__float__",
    "__index__",
    "tolist",
    "numpy",
    "__array__",
    "is_nonzero",
    "equal",
    "allclose",
)
_MOST_VALUES = 10_000  # a loop that asked more often doesn't end
_SAME_ANSWER = 1e-3  # of the largest output; a converged loop stays where it is when it runs on
_Site = tuple[str, int, str]


class DataDependent(ShallowvitError):
    """The model decides by its input's values in a way no graph can."""


@dataclass(frozen=True)
class FixedValues:
    """Per place in the code the values to put there, in order; ``told`` says each in words, ``live`` are left to torch."""

    values: Mapping[_Site, tuple[Any, ...]]
    told: tuple[str, ...]
    live: Mapping[_Site, tuple[Any, ...]] = field(default_factory=dict)
    watched: frozenset[_Site] = frozenset()

    def refusal(self) -> str:
        """The sentence on a value that was left to torch and that torch can't trace."""
        site, values = next(iter(self.live.items()))
        return _decides(site, values)


def fixed_values(module: nn.Module, runs: Sequence[tuple[torch.Tensor, ...]]) -> FixedValues:
    """Run the module on every input of one batch size or several and settle what it asked of its tensors.

    Raises:
        DataDependent: inputs differ in more than how often a loop until convergence ran.
    """
    recorded, answers, watched = [], [], set()
    for run in runs:
        mode = _Recording()
        with settled_random(batch=len(run[0])), functionals_seen_through(), mode:
            answers.append(_tensors(module(*run)))
        recorded.append(mode.values)
        mode.frames.clear()
        watched |= mode.watched
    values: dict[_Site, tuple[Any, ...]] = {}
    told: list[str] = []
    live: dict[_Site, tuple[Any, ...]] = {}
    for site in dict.fromkeys(place for one in recorded for place in one):
        _settle(site, [one.get(site, _Asked()) for one in recorded], values, told, live)
    live = {site: seen for site, seen in live.items() if site not in watched}
    fixed = FixedValues(values, tuple(told), live, frozenset(watched - set(values)))
    _check_answers(module, runs, answers, fixed)
    return fixed


@dataclass
class _Asked:
    """The values asked for at one place in a run, in order, and of each which call of the function asked."""

    values: list[Any] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)

    def by_call(self) -> list[list[Any]]:
        """Return the values of one call after another."""
        pairs = list(zip(self.calls, self.values, strict=True))
        return [[value for number, value in pairs if number == call] for call in dict.fromkeys(self.calls)]


def _settle(
    site: _Site,
    asked: list[_Asked],
    values: dict[_Site, tuple[Any, ...]],
    told: list[str],
    live: dict[_Site, tuple[Any, ...]],
) -> None:
    line = ModelLine(site[0], site[1])
    seen = [tuple(one.values) for one in asked]
    longest = max(seen, key=len)
    decides = all(isinstance(value, bool) for one in seen for value in one)
    ends = _ends_a_loop(line) if decides else None
    loop = None if ends is None else _loop_by_call(asked, ends) or _loop(seen, ends)
    same = all(one == longest[: len(one)] for one in seen) and (
        len(set(map(repr, longest))) == 1 or len({*map(len, seen)}) == 1
    )
    if loop is not None:
        values[site], trips = loop
        told.append(f"{line.short} `{line.source}` runs {trips} times, the most that {len(seen)} inputs took")
    elif same:
        values[site] = longest
        kinds = tuple(dict.fromkeys(map(_short, longest)))
        told.append(f"{line.short} `{line.source}` fixed at {', '.join(kinds[:4])}{', ...' if len(kinds) > 4 else ''}")
    elif decides:
        raise DataDependent(_decides(site, tuple(value for one in seen for value in one)))
    else:
        live[site] = tuple(value for one in seen for value in one)


def _loop_by_call(asked: list[_Asked], last: bool) -> tuple[tuple[bool, ...], str] | None:
    """Return the longest loop of each call, and how often it ran; a loop may also have ended at a limit of its own."""
    runs = [one.by_call() for one in asked]
    if len({len(one) for one in runs}) != 1:
        return None
    for ends in (last, not last):
        if any(value == ends for one in runs for call in one for value in call[:-1]):
            continue
        longest = [max(calls, key=lambda call: sum(value != ends for value in call)) for calls in zip(*runs, strict=True)]
        trips = dict.fromkeys(str(sum(value != ends for value in call)) for call in longest)
        return tuple(value for call in longest for value in call), ", ".join(trips)
    return None


def _loop(seen: list[tuple[Any, ...]], last: bool) -> tuple[tuple[bool, ...], str] | None:
    """Return the longest of each loop that the test ended, one after another, and how often each ran."""
    for ends in (last, not last):
        loops = [_split(one, ends) for one in seen]
        if len({len(one) for one in loops}) == 1:
            trips = [max(counts) for counts in zip(*loops, strict=True)]
            runs = ", ".join(dict.fromkeys(map(str, trips)))
            return tuple(value for count in trips for value in (*([not ends] * count), ends)), runs
    return None


def _split(values: tuple[bool, ...], ends: bool) -> list[int]:
    """Count what stands before each ``ends``; what follows the last one is a loop that reached its limit."""
    counts, count = [], 0
    for value in values:
        if value == ends:
            counts.append(count)
            count = 0
        else:
            count += 1
    return [*counts, count] if count else counts


def _ends_a_loop(line: ModelLine) -> bool | None:
    """Return the value that ends the loop whose test stands on the line: of a ``while``, or of an ``if`` that leaves it."""
    try:
        tree = ast.parse("".join(linecache.getlines(line.file)))
    except SyntaxError:
        return None
    for loop in ast.walk(tree):
        if isinstance(loop, ast.While) and _covers(loop.test, line.number):
            return _is_negated(loop.test)
        if not isinstance(loop, ast.While | ast.For):
            continue
        for one in ast.walk(loop):
            if not isinstance(one, ast.If) or not _covers(one.test, line.number):
                continue
            if any(isinstance(inner, ast.Break | ast.Return) for inner in one.body):
                return not _is_negated(one.test)
    return None


def _is_negated(test: ast.expr) -> bool:
    return isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)


def _covers(node: ast.expr, number: int) -> bool:
    return node.lineno <= number <= (node.end_lineno or node.lineno)


def _check_answers(
    module: nn.Module, runs: Sequence[tuple[torch.Tensor, ...]], answers: list[list[torch.Tensor]], fixed: FixedValues
) -> None:
    """A loop that runs on for inputs that had converged has to leave their answers alone."""
    for run, expected in zip(runs, answers, strict=True):
        with settled_random(batch=len(run[0])), functionals_seen_through(), PutInPlace(fixed):
            found = _tensors(module(*run))
        for one, other in zip(found, expected, strict=True):
            error = float((one.double() - other.double()).abs().max() / other.double().abs().max().clamp(min=1e-12))
            if not error <= _SAME_ANSWER:
                told = next((text for text in fixed.told if "times" in text), "a value is fixed")
                raise DataDependent(f"{told}; that alters answers by {error:.2g} of the largest, so it isn't convergence")


def _tensors(answer: Any) -> list[torch.Tensor]:
    from torch.utils._pytree import tree_iter

    return [one for one in tree_iter(answer) if isinstance(one, torch.Tensor)]


def _decides(site: _Site, values: tuple[Any, ...]) -> str:
    kinds = list(dict.fromkeys(map(_short, values)))
    return (
        f"{ModelLine(site[0], site[1])} depends on its input's values ({kinds[0]} for one input, {kinds[-1]} for another), "
        "which a graph can't follow; write it with torch.where, or fix the value"
    )


def _short(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 40 else f"{text[:37]}..."


def _model_frame() -> FrameType:
    """The innermost call of the model's own code that is being run."""
    frame = sys._getframe(1)
    while frame.f_back is not None and not is_of_model(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def _site(kind: str) -> _Site:
    """The line of the model that is being run."""
    frame = _model_frame()
    return str(Path(frame.f_code.co_filename)), frame.f_lineno, kind


class _Recording(TorchFunctionMode):
    """Keeps what the forward asks of its tensors, by place."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[_Site, _Asked] = defaultdict(_Asked)
        self.frames: dict[FrameType, int] = {}  # held while the run lasts, or a later call could be taken for this one
        self.watched: set[_Site] = set()  # floats that were compared: the comparison decides, not the float
        self._asked = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        kind = getattr(func, "__name__", "")
        if kind not in _ASKED:
            return answer
        value = answer.tolist() if kind in ("numpy", "__array__") else answer
        site = _site(kind)
        self.keep(site, value)
        return _Watched(answer, self, site) if type(answer) is float else answer

    def keep(self, site: _Site, value: Any) -> None:
        """Note a value; raises where there is no end of them."""
        self._asked += 1
        if self._asked > _MOST_VALUES:
            line = ModelLine(site[0], site[1])
            raise DataDependent(f"{line} asked for its tensors' values {_MOST_VALUES} times without an end; does it converge?")
        self.values[site].values.append(value)
        self.values[site].calls.append(self.frames.setdefault(_model_frame(), len(self.frames)))

    def compared(self, origin: _Site, answer: bool) -> bool:
        """Note what a float was found to be against another."""
        self.watched.add(origin)
        self.keep(_site("compared"), answer)
        return answer


class _Watched(float):
    """A float of a tensor: what it is compared with decides, not the number itself."""

    mode: Any
    origin: _Site

    def __new__(cls, value: float, mode: Any, origin: _Site) -> _Watched:
        made = super().__new__(cls, value)
        made.mode, made.origin = mode, origin
        return made

    __hash__ = float.__hash__

    def __lt__(self, other: Any) -> Any:
        return self.mode.compared(self.origin, float(self) < other)

    def __le__(self, other: Any) -> Any:
        return self.mode.compared(self.origin, float(self) <= other)

    def __gt__(self, other: Any) -> Any:
        return self.mode.compared(self.origin, float(self) > other)

    def __ge__(self, other: Any) -> Any:
        return self.mode.compared(self.origin, float(self) >= other)

    def __abs__(self) -> _Watched:
        return _Watched(abs(float(self)), self.mode, self.origin)


class PutInPlace(TorchFunctionMode):
    """Answers what a forward asks of its tensors with the fixed values; what runs past them goes to torch."""

    def __init__(self, fixed: FixedValues) -> None:
        super().__init__()
        self._left = {site: list(values) for site, values in fixed.values.items()}
        self._watched = fixed.watched

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = getattr(func, "__name__", "")
        watched = next((one for one in args if isinstance(one, _Watched)), None)
        if watched is not None:
            raise DataDependent(_decides(watched.origin, ("one number", "another")))
        if kind not in _ASKED:
            return func(*args, **(kwargs or {}))
        site = _site(kind)
        if site in self._left:
            value = self._next(site)
            if kind in ("numpy", "__array__"):
                import numpy as np

                return np.array(value)
            return value
        if site in self._watched:
            return _Watched(float("nan"), self, site)
        return func(*args, **(kwargs or {}))

    def compared(self, origin: _Site, answer: bool) -> bool:
        """Answer a comparison as it was answered before."""
        return self._next(_site("compared"))

    def _next(self, site: _Site) -> Any:
        left = self._left.get(site)
        if not left:
            raise DataDependent(
                f"{ModelLine(site[0], site[1])} asks for its tensors' values more often than any input did before"
            )
        return left.pop(0)
