"""How an adaptive bundle is made: on which items, what the mix may lose or cost, and how large the gate is.

Light enough for the command line to read its defaults here. A newcomer's trap: the data should be none that a depth was trained
on, since items it has seen look easier than they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ShallowvitError

__all__ = ["FEWEST", "AdaptConfig", "depths_from_text"]

FEWEST = 80  # items: half train the gate, a quarter sets the thresholds, a quarter judges the mix
_DEPTHS = (2, 3)


@dataclass(frozen=True)
class AdaptConfig:
    """How.

    Args:
        data: ``demo:train``, a ``.npz``, a folder, any form that ``open_dataset`` takes; with labels, depths are judged by
            them, without by whether they answer as the deepest does.
        max_drop: What the mix may lose against the deepest, a share of the items.
        budget: Instead: what an input may cost in the mean, as a share of the deepest's FLOPs.
        gate_blocks: Blocks of the shallowest model that the gate reads its features behind.
        gate_width: Of the gate's hidden layer; 0 for a linear gate.
        tradeoff: What the deepest model's cost weighs beside a wrong answer in what the gate learns.
        items: To draw from ``data`` at most.
        epochs: Of the gate's training; it sees pooled features, so each takes a fraction of a second.
        seed: Of all that is drawn.
        batch: Items a forward.
        samples: Of ``--depths``: items that each repair is fitted on.
    """

    data: str
    max_drop: float | None = None
    budget: float | None = None
    gate_blocks: int = 1
    gate_width: int = 64
    tradeoff: float = 0.05
    items: int = 8192
    epochs: int = 40
    seed: int = 0
    batch: int = 64
    samples: int = 256

    def __post_init__(self) -> None:
        if self.max_drop is not None and self.budget is not None:
            raise ShallowvitError("adapt: --max-drop and --budget exclude each other; give one")
        if self.max_drop is None and self.budget is None:
            object.__setattr__(self, "max_drop", 0.01)
        for name, right, expected in (
            ("max_drop", self.max_drop is None or 0 <= self.max_drop < 1, "0 or more and less than 1"),
            ("budget", self.budget is None or 0 < self.budget <= 1, "more than 0 and at most 1"),
            ("gate_blocks", self.gate_blocks >= 1, "at least 1"),
            ("gate_width", self.gate_width >= 0, "0 or more"),
            ("tradeoff", 0 <= self.tradeoff < 1, "0 or more and less than 1"),
            ("items", self.items >= FEWEST, f"at least {FEWEST}"),
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch", self.batch >= 1, "at least 1"),
            ("samples", self.samples >= 2, "at least 2"),
        ):
            if not right:
                raise ShallowvitError(f"adapt: {name.replace('_', ' ')} {getattr(self, name)}; give {expected}")


def depths_from_text(text: str) -> tuple[int, ...]:
    """Return the numbers of blocks that a text such as ``12,6,3`` names, the greatest first.

    Raises:
        ShallowvitError: these aren't two or three different numbers above 0.
    """
    parts = [part.strip() for part in text.split(",")]
    depths = tuple(int(part) for part in parts if part.isdecimal())
    if len(depths) != len(parts) or len(set(depths)) != len(depths) or len(depths) not in _DEPTHS or 0 in depths:
        raise ShallowvitError(f"adapt: --depths {text!r}: write two or three different numbers of blocks, such as 12,6,3")
    return tuple(sorted(depths, reverse=True))
