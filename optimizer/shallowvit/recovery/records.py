"""What the stage *recover* returns: the recovered model, and what each of its steps did and took."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .settings import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..pruning import PrunedModel
    from .closed_form import Repair
    from .settings import RecoverConfig

__all__ = ["Epoch", "Recovered", "Training", "Workplace", "line_of"]


@dataclass(frozen=True)
class Epoch:
    """An epoch: the mean loss and its parts (hidden, output, labels), what validation said (higher is better), the time.

    ``validation`` is top-1 where there are labels, else minus the loss on the items held out; None where nothing was.
    """

    loss: float
    parts: dict[str, float]
    validation: float | None
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Training:
    """A training: its method, its epochs, which one's weights were kept, and what it took.

    ``items`` were trained on, ``inputs_seen`` counts each as often as it was seen; ``stopped`` says why it ended early, and
    ``changes`` what was made gentler on the way after it had diverged, each as a sentence.
    """

    method: str
    epochs: tuple[Epoch, ...]
    kept: int
    items: int
    inputs_seen: int
    seconds: float
    stopped: str | None = None
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Workplace:
    """Where a training keeps its checkpoints and logs (nowhere by default), and whom it tells how far it is.

    ``progress`` is given the steps done, the steps there are, and a line of figures.
    """

    folder: Path | None = None
    progress: Callable[[int, int, str], None] = lambda _done, _all, _line: None


@dataclass(frozen=True)
class Recovered:
    """A recovered copy, and its steps in order."""

    pruned: PrunedModel
    steps: tuple[Repair | Training, ...]

    @property
    def seconds(self) -> float:
        """What all steps took."""
        return sum(step.seconds for step in self.steps)

    @property
    def lines(self) -> tuple[dict[str, Any], ...]:
        """What was done and what it took, a JSON object a step; lineage and manifest carry it."""
        return self.pruned.recovery


def line_of(step: Repair | Training, method: str, config: RecoverConfig) -> dict[str, Any]:
    """Return a step as a JSON object: method, data, seed, settings where they aren't the default, and what came of it."""
    line: dict[str, Any] = {"method": method, "data": config.data, "seed": config.seed}
    if isinstance(step, Training):
        changed = {k: v for k, v in asdict(config.training).items() if v != getattr(TrainConfig(), k)}
        record = asdict(step) | {"validation": config.validation, "settings": changed}
        return line | {"inputs": record.pop("items")} | record
    return line | {"inputs": step.inputs, "gaps": [asdict(gap) for gap in step.gaps], "seconds": step.seconds}
