"""Run a model without a block, or without that block's attention or MLP alone, for criteria that measure what this costs."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from ..models.bypass import bypassing
from ..models.halves import find_halves, without_half

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..models import LoadedModel

__all__ = ["skipped"]


@contextmanager
def skipped(model: LoadedModel, granularity: str, *blocks: int, copied_from: LoadedModel | None = None) -> Iterator[None]:
    """Skip these blocks, or that half of them, in every forward inside the ``with``; gradients pass through.

    Args:
        model: The model in memory, changed until the end of the ``with``.
        granularity: ``block``, ``attention`` or ``mlp``.
        blocks: Numbers of blocks.
        copied_from: What ``model`` is a copy of, whose halves are known already.
    """
    with ExitStack() as stack:
        if granularity == "block":
            stack.enter_context(bypassing(model, *blocks))
        else:
            for half in find_halves(copied_from or model, granularity, blocks).values():
                stack.enter_context(without_half(model, half))
        yield
