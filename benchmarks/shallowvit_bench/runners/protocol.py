"""What every runtime looks like to the harness: a loaded model that takes a batch, and a bound batch that is run again and
again.

A newcomer's trap: ``infer`` may return a buffer that the next call overwrites; copy what you keep.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np

    from ..feeding import Batch

__all__ = ["Bound", "Runner", "RunnerFacts", "RunnerOptions"]


@dataclass(frozen=True)
class RunnerOptions:
    """How to load a model. What a runtime can't do is an error there, never ignored.

    Args:
        threads: Of the CPU; None: the runtime chooses.
        copies: Whether a GPU's timed run copies the input to the device and the output back.
        cuda_graph: Whether a GPU's run is captured once and replayed.
        profile: The optimisation profile of an engine; None: the first whose range holds the batch.
    """

    threads: int | None = None
    copies: bool = True
    cuda_graph: bool = True
    profile: int | None = None


@dataclass(frozen=True)
class RunnerFacts:
    """What runs, as the runtime says, for the row of results; read it after the last ``bind``, which may add a remark.

    Args:
        backend: The runtime: onnxruntime, tensorrt, rtx, torch, torch-compile.
        provider: The key in ``RUNNERS``, or the same as ``backend`` outside of that table.
        precision: What it computes in, which may be less than the graph's: OpenVINO takes bf16 where the CPU has it.
        device: What it runs on, as ``cpu`` or a GPU's name.
        copies: Whether a run's time holds the copies to and from a GPU; None where there are none.
        cuda_graph: Whether a captured graph is replayed; None where there is no such thing.
        version: Of the runtime.
        options: Anything else that was set and matters for the figures.
        remarks: Sentences the user must see, as that another provider took part of the graph.
        engine_sha256: Of the engine's file; None where a graph is run.
        batches: Least and most items of a run, a pair for each of an engine's profiles; empty: any number.
    """

    backend: str
    provider: str
    precision: str
    device: str = "cpu"
    copies: bool | None = None
    cuda_graph: bool | None = None
    version: str | None = None
    options: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    engine_sha256: str | None = None
    batches: tuple[tuple[int, int], ...] = ()


class Bound(Protocol):
    """A batch in place: calling it runs the model once, and everything is complete when it returns.

    Nothing is allocated by our side of a call. ``device_ms`` is the last run's time by the device's own clock, without copies;
    None where there is no such clock.
    """

    @property
    def device_ms(self) -> float | None:
        """Milliseconds of the last run by the device's own clock."""

    def __call__(self) -> None:
        """Run once."""

    def output(self) -> np.ndarray[Any, Any]:
        """Return the first output of the last run; the next run overwrites it."""

    def outputs(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return every output of the last run by its name; the next run overwrites them."""


class Runner(Protocol):
    """A loaded model.

    ``errors`` are what a bound run raises of its own when the runtime or the device fails in its midst.
    """

    facts: RunnerFacts
    errors: tuple[type[Exception], ...]

    def bind(self, batch: Batch) -> Bound:
        """Put a batch where the runtime reads it, with place for the outputs, to be run any number of times.

        The batch is an array, or a dict of arrays by name for a graph of several inputs.
        """

    def infer(self, batch: Batch) -> np.ndarray[Any, Any]:
        """Run one batch and return the first output, complete; the next call may overwrite it."""

    def close(self) -> None:
        """Free the model and its threads."""

    def __enter__(self) -> Runner: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
