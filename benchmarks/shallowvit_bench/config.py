"""The configuration of the stage *bench*, with its defaults; the command line reads them from here."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import BenchError

__all__ = ["AUTO", "BenchConfig"]

AUTO = "auto"


@dataclass(frozen=True)
class BenchConfig:
    """How to measure.

    Args:
        batches: Items per inference; each is a measurement of its own.
        max_runs: Timed runs of each side at most.
        max_seconds: Timed seconds of each side at most.
        threads: Of the CPU; None: the runtime chooses.
        provider: A key of ``RUNNERS``; ``auto`` measures those that work here; None: an engine of the bundle that loads here,
            else ``cpu``.
        copies: Whether a GPU's timed run copies the input there and the output back.
        cuda_graph: Whether a GPU's run is captured once and replayed.
        power: Whether power, clocks and heat are sampled.
        idle_seconds: How long the idle power is taken for, before the first run.
        energy_seconds: How long each side runs while its power is sampled, at least.
        scenario: Of MLPerf LoadGen, run after the harness's own rounds; None: none.
        scenario_seconds: How long, at least; a submission takes 600.
        accuracy_batch: Items per inference when accuracy is measured.
    """

    batches: tuple[int, ...] = (1,)
    max_runs: int = 1000
    max_seconds: float = 20.0
    threads: int | None = None
    provider: str | None = None
    copies: bool = True
    cuda_graph: bool = True
    power: bool = True
    idle_seconds: float = 3.0
    energy_seconds: float = 12.0
    scenario: str | None = None
    scenario_seconds: float = 600.0
    accuracy_batch: int = 8

    def __post_init__(self) -> None:
        for name in (
            "max_runs",
            "max_seconds",
            "threads",
            "accuracy_batch",
            "idle_seconds",
            "energy_seconds",
            "scenario_seconds",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BenchError(f"bench: {name} is {value}; it must be above 0")
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise BenchError(f"bench: batches are {', '.join(map(str, self.batches))}; give different numbers above 0")
