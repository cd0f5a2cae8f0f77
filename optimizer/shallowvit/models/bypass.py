"""Skip blocks of a model in memory for a while: they hand on what they are given.

This is what removing a block has to equal. A newcomer's trap: the block stays in its place and of its class, since transformers
finds the states to return by the class; only the ``forward`` of this one object is replaced, and put back at the end, also
after an error.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError
from .outputs import tensors_in, with_tensors
from .skeletons import skeleton

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .records import LoadedModel

__all__ = ["Route", "bypassing", "find_route", "hand_on", "skipping"]

_CLEARLY = 0.05  # of cosine similarity: an argument that isn't the first must be this much more like the answer
_CHANGE = 0.1  # of an argument's size, to see whether the answer follows


@dataclass(frozen=True)
class Route:
    """How a block hands on: for each tensor of its answer, the number of the argument it is taken from.

    ``None`` stands for a tensor that no argument has the shape of (attention weights, say). ``structure`` is an answer whose
    tensors are placeholders without numbers.
    """

    structure: Any
    sources: tuple[int | None, ...]


def find_route(
    arguments: Sequence[torch.Tensor], answer: Any, path: str, again: Callable[[Sequence[torch.Tensor]], Any] | None = None
) -> Route:
    """Find which argument of a call each tensor of the answer continues: by identity, by shape, by likeness, by response.

    Args:
        arguments: The tensors that the block was given.
        answer: What it gave.
        path: Its module path, for the error.
        again: Calls the block with other tensors, where likeness doesn't tell which of several it continues.

    Raises:
        ShallowvitError: no argument has the shape of the first tensor of the answer, so that nothing can be handed on.
    """
    leaves = tensors_in(answer)
    sources: list[int | None] = []
    for leaf in leaves:
        same = next((n for n, one in enumerate(arguments) if one is leaf), None)
        free = [
            n for n, one in enumerate(arguments) if n not in sources and one.shape == leaf.shape and one.dtype == leaf.dtype
        ]
        if same is None and len(free) > 1 and leaf.is_floating_point():
            same = _most_alike(arguments, free, leaf) or (
                again and _most_followed(arguments, free, len(sources), answer, again)
            )
        sources.append(same if same is not None else next(iter(free), None))
    if not leaves or sources[0] is None:
        raise ShallowvitError(
            f"score: the block {path} turns {[tuple(one.shape) for one in arguments]} into "
            f"{[tuple(one.shape) for one in leaves]}, so its input can't stand for its output; choose another"
        )
    empty = [torch.empty(0) for _ in leaves]
    return Route(with_tensors(answer, empty), tuple(sources))


def hand_on(route: Route, arguments: Sequence[torch.Tensor], computed: Sequence[torch.Tensor] | None = None) -> Any:
    """Answer as the route says; what no argument stands for is taken from ``computed``, or is None without it."""
    found = [
        arguments[source] if source is not None else (computed[place] if computed is not None else None)
        for place, source in enumerate(route.sources)
    ]
    return with_tensors(route.structure, found)


@contextmanager
def bypassing(model: LoadedModel, *blocks: int) -> Iterator[dict[str, Route]]:
    """Skip these blocks in every forward inside the ``with``; gradients pass through them.

    Yields the routes of the blocks by module path, filled by the forwards. A tensor of a block's answer that none of its
    arguments has the shape of (attention weights) is still computed.

    Raises:
        ShallowvitError: the model has no such block, or in a forward: a block isn't given what it would hand on.
    """
    paths = {model.blocks[block].path: model.modes_of(block) for block in blocks if model.block(block) is not None}
    with skipping(model.module, paths) as routes:
        yield routes


@contextmanager
def skipping(module: torch.nn.Module, paths: dict[str, dict[str, str]]) -> Iterator[dict[str, Route]]:
    """Skip the modules at these paths; each with its modes, which are empty for a block that is a module of its own.

    The parts of a composite block (``ModuleList([attn, ff])``) hand on their input (``pass``) or give zeros (``zero``).
    """
    routes: dict[str, Route] = {}
    with ExitStack() as stack:
        for path, modes in paths.items():
            block = module.get_submodule(path)
            for name, mode in modes.items():
                stack.enter_context(_replaced(block.get_submodule(name), _zeros if mode == "zero" else _first))
            if not modes:
                stack.enter_context(_replaced(block, _passing(block, path, routes)))
        yield routes


@contextmanager
def _replaced(block: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = vars(block).get("forward")  # another tool's patch of this object, not the class's method
    block.forward = forward
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own


def _first(x: Any, *_args: Any, **_kwargs: Any) -> Any:
    return x


def _zeros(x: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
    return torch.zeros_like(x)


def _passing(block: torch.nn.Module, path: str, routes: dict[str, Route]) -> Callable[..., Any]:
    """Return a forward that hands on, in the structure that the real one answers in, which its first call shows."""
    own = vars(block).get("forward")

    def passing(*args: Any, **kwargs: Any) -> Any:
        given = tensors_in((args, kwargs))
        route = routes.get(path)
        if route is not None and None not in route.sources and max(map(_number, route.sources)) < len(given):
            return hand_on(route, given)
        if not given:
            raise ShallowvitError(f"score: the block {path} is called without a tensor, so it can't be skipped; choose another")

        def called(tensors: Sequence[torch.Tensor]) -> Any:
            """A call that leaves nothing behind: not in the block, its arguments or what is drawn at random."""
            its_args, its_kwargs = with_tensors((args, kwargs), tensors)
            with torch.random.fork_rng(devices=[]):
                return _own_forward(block, own)(*its_args, **its_kwargs)

        copies = [tensor.clone() for tensor in given]
        answer = called(copies)
        route = find_route(copies, answer, path, lambda tensors: called([one.clone() for one in tensors]))
        routes[path] = route
        return hand_on(route, given, tensors_in(answer))

    return passing


def _own_forward(block: torch.nn.Module, own: Callable[..., Any] | None) -> Callable[..., Any]:
    """The forward that is replaced for now, of a copy of the block."""
    replacing = vars(block).pop("forward")
    try:
        if own is not None:
            vars(block)["forward"] = own
        copied = skeleton(block)
    finally:
        block.forward = replacing
    return copied.forward


def _number(source: int | None) -> int:
    return -1 if source is None else source


def _most_alike(arguments: Sequence[torch.Tensor], numbers: Sequence[int], leaf: torch.Tensor) -> int | None:
    """The argument that the leaf is clearly more like than the first of its shape: blocks called as ``blk(pos, x)``."""
    return _clearly_best({number: _cosine(arguments[number], leaf) for number in numbers})


def _most_followed(
    arguments: Sequence[torch.Tensor],
    numbers: Sequence[int],
    place: int,
    answer: Any,
    again: Callable[[Sequence[torch.Tensor]], Any],
) -> int | None:
    """The argument whose change the answer takes over: a residual stream arrives whole, a context only through weights."""
    generator = torch.Generator().manual_seed(0)
    before = tensors_in(answer)[place]
    followed = {}
    for number in numbers:
        value = arguments[number]
        change = torch.randn(value.shape, generator=generator).to(value) * value.abs().mean() * _CHANGE
        after = tensors_in(again([one + change if n == number else one for n, one in enumerate(arguments)]))[place]
        missed = (after - before - change).norm() / change.norm() if after.shape == before.shape else torch.tensor(torch.inf)
        followed[number] = 1 - float(missed)  # by size too: a tenth of a context may be added to the stream
    return _clearly_best(followed)


def _clearly_best(likeness: dict[int, float]) -> int | None:
    best, first = max(likeness, key=likeness.__getitem__), next(iter(likeness))
    return best if likeness[best] > likeness[first] + _CLEARLY else None


def _cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))
