"""Skip blocks of a model in memory for a while: they hand on what they are given.

A newcomer's trap: the block stays in its place and of its class, since transformers finds the states to return by the class;
only the ``forward`` of this one object is replaced, and put back at the end, also after an error.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError
from .outputs import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .records import LoadedModel

__all__ = ["bypassing"]


@contextmanager
def bypassing(model: LoadedModel, *blocks: int) -> Iterator[None]:
    """Skip these blocks in every forward inside the ``with``; gradients pass through them.

    A block whose output is more than a tensor (a state and its attention, say) still computes, and only its first tensor, the
    state, is replaced by the block's main input.

    Raises:
        ShallowvitError: the model has no such block.
    """
    with ExitStack() as stack:
        for block in dict.fromkeys(blocks):
            stack.enter_context(_skipped(model.block(block), model.blocks[block].path))
        yield


@contextmanager
def _skipped(block: torch.nn.Module, path: str) -> Iterator[None]:
    own = vars(block).get("forward")  # another tool's patch of this object, not the class's method
    block.forward = _passing(block.forward, path)
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own


def _passing(forward: Callable[..., Any], path: str) -> Callable[..., Any]:
    """Return a forward that hands on its first tensor, in the structure that the real one answers in."""
    plain = False  # until one call has shown that the answer is a tensor alone

    def passing(*args: Any, **kwargs: Any) -> Any:
        nonlocal plain
        given = tensors_in((args, kwargs))
        if not given:
            raise ShallowvitError(f"score: the block {path} is called without a tensor, so it can't be skipped; choose another")
        if plain:
            return given[0]
        # the block may change its input in place
        state = given[0].clone()
        answer = forward(*args, **kwargs)
        plain = isinstance(answer, torch.Tensor)
        return _with_first(answer, state)

    return passing


def _with_first(answer: Any, state: torch.Tensor) -> Any:
    """Return the answer with its first tensor replaced."""
    if isinstance(answer, torch.Tensor):
        return state
    if isinstance(answer, dict):
        key = next(key for key, value in answer.items() if tensors_in(value))
        changed = type(answer)(**answer)
        changed[key] = _with_first(answer[key], state)
        return changed
    place = next(index for index, value in enumerate(answer) if tensors_in(value))
    values = [_with_first(value, state) if index == place else value for index, value in enumerate(answer)]
    return type(answer)(*values) if hasattr(answer, "_fields") else type(answer)(values)
