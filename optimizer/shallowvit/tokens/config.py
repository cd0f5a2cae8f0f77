"""Which share of the tokens stays behind which blocks, and what scores them; light enough for the command line.

A newcomer's trap: every share is of the tokens that the model starts with, not of those that the last reduction left, so that
``3:0.7,6:0.5`` leaves a half behind block 6; and blocks are numbered as in the unpruned model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from ..errors import ShallowvitError

__all__ = ["TokenConfig", "TokenScorer", "count_from_share"]


class TokenScorer(StrEnum):
    """What says which tokens stay; the highest scores do.

    ``MEAN`` is a token's distance from the mean of all, ``NORM`` its length, ``CLASS`` its cosine with the class token,
    ``EVEN`` keeps evenly spaced ones, whatever they hold, which is what the others have to beat. ``LEARNED`` is ``MEAN`` and a
    linear score on top, zero at first, which a training moves.
    """

    MEAN = "mean"
    NORM = "norm"
    CLASS = "class"
    EVEN = "even"
    LEARNED = "learned"


@dataclass(frozen=True)
class TokenConfig:
    """How tokens are reduced.

    Args:
        keep: ``BLOCK:SHARE`` with commas: behind the block, this share of the tokens the model starts with stays.
        scorer: One of ``TokenScorer``.
        prefix: Tokens in front that always stay (class, distillation, registers) and count in no share; found by default.
    """

    keep: str
    scorer: str = TokenScorer.MEAN.value
    prefix: int | None = None

    def __post_init__(self) -> None:
        if self.scorer not in list(TokenScorer):
            raise ShallowvitError(f"tokens: unknown scorer {self.scorer!r}; choose from {', '.join(TokenScorer)}")
        if self.prefix is not None and self.prefix < 0:
            raise ShallowvitError(f"tokens: {self.prefix} tokens in front; give 0 or more")
        for (block, share), (later, larger) in pairwise(self.shares):
            if larger > share:
                raise ShallowvitError(
                    f"tokens: {self.keep}: behind block {later} a share of {larger:g} would stay, and {share:g} is left behind "
                    f"block {block}; shares are of all tokens, so give falling ones"
                )

    @property
    def shares(self) -> tuple[tuple[int, float], ...]:
        """Each block and the share that stays behind it, in the order of the blocks."""
        found: dict[int, float] = {}
        for part in self.keep.split(","):
            block, colon, text = part.strip().partition(":")
            share = _number(text)
            if not (colon and block.isdecimal() and share is not None):
                raise ShallowvitError(f"tokens: {self.keep!r} isn't a list of blocks and shares; write 3:0.7,6:0.5")
            if not 0 < share <= 1:
                raise ShallowvitError(f"tokens: {self.keep}: a share of {share:g}; give one above 0 and up to 1")
            if int(block) in found:
                raise ShallowvitError(f"tokens: {self.keep} names block {int(block)} twice; give one share")
            found[int(block)] = share
        return tuple(sorted(found.items()))


def count_from_share(share: float, tokens: int) -> int:
    """Return how many of the tokens a share is: the nearest number, a half rounded up, and one at least."""
    return max(1, math.floor(share * tokens + 0.5))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
