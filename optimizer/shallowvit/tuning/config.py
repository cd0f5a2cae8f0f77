"""What to search, how far, on what data and for which device.

Light enough for the command line to read its defaults here. A newcomer's trap: ``data`` is measured at the end alone; what
the search goes by is ``validation``, or a part of ``train`` that nothing is trained on, which the model may have seen before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ShallowvitError
from ..recovery.settings import CLOSED_FORM, TrainConfig, methods_from_text
from ..scoring.criteria import CRITERIA, check_criterion
from .budgets import Budgets

__all__ = ["PRECISIONS", "SELECTS", "TuneConfig"]

SELECTS = ("prefix", "interval", "gaps")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")
_LEFT_OUT = ("oracle", "auto")  # the first trains a model a block, the second is one of the others


@dataclass(frozen=True)
class TuneConfig:
    """How to tune.

    Args:
        data: Labelled items that accuracy is reported on, measured once for the finalists.
        train: Labelled items to repair and train on; none of ``data``.
        budgets: What the bundle must keep to.
        out: The folder for state, bundles, table and plot; a search that is there goes on.
        validation: Labelled items that judge candidates, preferably ones that the model wasn't trained on; by default some are
            held out of ``train``.
        target: A device of ``shallowvit targets``, whose recipe goes into the bundles; without ``device`` or ``latencies`` its
            roofline stands for its latency.
        device: Where latency and accuracy are measured over SSH; by default on this machine.
        provider: What runs the bundles where they are measured; see ``BenchConfig``.
        latencies: Rows that ``bench`` wrote on the device, of some depths, in place of measuring.
        batches: Items an inference, each a point of its own.
        precisions: Of the graph, likewise.
        depths: Numbers of blocks that may be kept; all by default.
        criteria: Whose rankings say which blocks go.
        selects: How a ranking becomes a choice.
        keep_tokens: Shares of tokens that are kept behind the chosen block; 1 for all.
        trials: Candidates that are repaired and measured at most; a smaller space is tried whole.
        generation: Candidates that are asked for at a time, whatever the number of workers.
        method: Of the recovery: a closed form for every candidate, trainings for the survivors.
        training: Of the survivors in the last rung; earlier rungs have fewer epochs.
        eta: By which rungs grow in epochs and shrink in models.
        trained: Models in the first rung at most.
        finalists: Models that are exported and measured at the end at most.
        samples: Items that closed forms fit on.
        items: Items of ``train`` to train on at most.
        holdout: Items that judge candidates: of ``validation`` at most so many, else of ``train`` so many.
        seed: Of all that is drawn.
        jobs: Workers, each of one thread; by default one a usable core.
        ray: Address of a Ray cluster, or ``auto``.
        measure_seconds: How long a bundle is timed at each batch at most.
        arch: Of a state dict, as ``load`` takes it.
        blocks: Module paths of the lists of blocks, likewise.
    """

    data: str
    train: str
    budgets: Budgets
    out: Path
    validation: str | None = None
    target: str | None = None
    device: str | None = None
    provider: str | None = None
    latencies: Path | None = None
    batches: tuple[int, ...] = (1,)
    precisions: tuple[str, ...] = ("fp32", "fp16")
    depths: tuple[int, ...] = ()
    criteria: tuple[str, ...] = ("entropy", "depth", "block-influence")
    selects: tuple[str, ...] = ("prefix",)
    keep_tokens: tuple[float, ...] = (1.0,)
    trials: int = 60
    generation: int = 8
    method: str = "projection,finetune"
    training: TrainConfig = field(default_factory=TrainConfig)
    eta: int = 3
    trained: int = 6
    finalists: int = 2
    samples: int = 256
    items: int = 8192
    holdout: int = 1000
    seed: int = 0
    jobs: int | None = None
    ray: str | None = None
    measure_seconds: float = 5.0
    arch: str | None = None
    blocks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.data == self.train:
            raise ShallowvitError(
                f"tune: --data and --train are both {self.data}; what accuracy is reported on must not be trained on"
            )
        if self.validation in (self.data, self.train):
            other = "--data" if self.validation == self.data else "--train"
            raise ShallowvitError(
                f"tune: --validation and {other} are both {self.validation}; what judges candidates must be neither reported "
                "on nor trained on"
            )
        self._check_choices()
        self._check_numbers()
        if self.device is not None and self.latencies is not None:
            raise ShallowvitError("tune: --device measures, --latencies were measured before; give one")
        if self.target is not None and self.provider is not None and self.device is None:
            raise ShallowvitError("tune: --provider is of what is measured, and a target alone is modelled; leave it out")
        methods = methods_from_text(self.method)
        if methods[0] not in CLOSED_FORM:
            raise ShallowvitError(
                f"tune: --method {self.method} has no closed form, which every candidate is repaired by first; write "
                f"projection,{self.method}"
            )

    def _check_choices(self) -> None:
        for name in self.criteria:
            check_criterion(name)
            if name in _LEFT_OUT:
                able = ", ".join(one for one in CRITERIA if one not in _LEFT_OUT)
                raise ShallowvitError(f"tune: --criteria {name} isn't a ranking to try; choose from {able}")
        for option, given, known in (
            ("--select", self.selects, SELECTS),
            ("--precision", self.precisions, PRECISIONS),
        ):
            for name in given:
                if name not in known:
                    raise ShallowvitError(f"tune: unknown {option} {name!r}; choose from {', '.join(known)}")
        for option, values in (
            ("--criteria", self.criteria),
            ("--select", self.selects),
            ("--precision", self.precisions),
            ("--batch", self.batches),
            ("--keep-tokens", self.keep_tokens),
        ):
            if not values or len(set(values)) < len(values):
                raise ShallowvitError(f"tune: {option} {','.join(map(str, values))}: give each once, and at least one")

    def _check_numbers(self) -> None:
        for name, least in (
            ("trials", 1), ("generation", 1), ("eta", 2), ("trained", 1), ("finalists", 1), ("samples", 2), ("items", 2),
            ("holdout", 1), ("jobs", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ShallowvitError(f"tune: --{name.replace('_', '-')} {value} is too few; give at least {least}")
        for option, values in (("--batch", self.batches), ("--depths", self.depths)):
            if any(value < 1 for value in values):
                raise ShallowvitError(f"tune: {option} {','.join(map(str, values))}: give numbers from 1 up")
        if any(not 0 < share <= 1 for share in self.keep_tokens):
            raise ShallowvitError(
                f"tune: --keep-tokens {','.join(f'{share:g}' for share in self.keep_tokens)}: give shares above 0, 1 for all"
            )
        if self.seed < 0:
            raise ShallowvitError(f"tune: --seed {self.seed}; give 0 or more")
        if not self.measure_seconds > 0:
            raise ShallowvitError(f"tune: --measure-seconds {self.measure_seconds:g} times nothing; give more than 0")

    @property
    def closed_form(self) -> str:
        """The step that every candidate is repaired by."""
        return str(methods_from_text(self.method)[0])

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs of each round of trainings, growing by ``eta`` to ``training.epochs``; none where nothing is trained."""
        if len(methods_from_text(self.method)) == 1:
            return ()
        epochs = [self.training.epochs]
        while epochs[0] // self.eta >= 1 and len(epochs) < 3:
            epochs.insert(0, epochs[0] // self.eta)
        return tuple(epochs)
