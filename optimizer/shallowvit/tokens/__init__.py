"""Keep only some tokens behind chosen blocks: a second axis beside depth, with shapes that stay static."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .config import TokenConfig, TokenScorer
    from .stage import reduce_tokens

__all__ = ["TokenConfig", "TokenScorer", "reduce_tokens"]

__getattr__ = lazy_names(__name__, {"TokenConfig": "config", "TokenScorer": "config", "reduce_tokens": "stage"})
