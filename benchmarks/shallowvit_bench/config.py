"""The configuration of the stage *bench*, with its defaults; the command line reads them from here."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import BenchError

__all__ = ["BenchConfig"]


@dataclass(frozen=True)
class BenchConfig:
    """How to measure. ``max_runs`` and ``max_seconds`` count timed runs of each side; ``threads`` None: the runtime chooses."""

    batch: int = 1
    max_runs: int = 1000
    max_seconds: float = 20.0
    threads: int | None = None
    accuracy_batch: int = 8

    def __post_init__(self) -> None:
        for name in ("batch", "max_runs", "max_seconds", "threads", "accuracy_batch"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BenchError(f"bench: {name} is {value}; it must be above 0")
