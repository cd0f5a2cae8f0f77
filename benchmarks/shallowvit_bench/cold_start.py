"""Measure load, first inference and peak memory in a fresh process, as a deployment sees them.

A newcomer's trap: memory is the peak of the whole process (Python, the runtime's libraries and the model), read from
``VmHWM``; ``ru_maxrss`` would start from the parent's.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .feeding import Batch
    from .runners import Runner

__all__ = ["ColdStart", "measure_cold_start"]

_INFERENCES = 3
_MARK = "cold start: "


@dataclass(frozen=True)
class ColdStart:
    """Loading includes importing the runtime. ``peak_mib`` is None where the system doesn't tell (no ``/proc``)."""

    load_ms: float
    first_ms: float
    peak_mib: float | None


def measure_cold_start(
    opener: Callable[[], Runner], batch: Batch, failures: tuple[type[Exception], ...] = (BenchError,)
) -> ColdStart:
    """Load a model and run it three times in a new interpreter.

    Args:
        opener: Must be picklable, as a ``functools.partial`` of a module's function is.
        batch: What to run it on.
        failures: What the opener raises for reasons that the user can fix.

    Raises:
        BenchError: loading or running failed there, or the process was killed.
    """
    job = pickle.dumps((opener, batch, failures))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-c", "from shallowvit_bench.cold_start import _serve; _serve()"]
    done = subprocess.run(command, input=job, capture_output=True, env=environment, check=False)
    answer = _answer(done.stdout.decode(errors="replace"))
    if answer is None:  # with one, it did what it should, whatever a runtime's end made of its exit code
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise BenchError(f"measure_cold_start: the process that loaded the model died: {last[0]}")
    if "error" in answer:
        raise BenchError(answer["error"])
    return ColdStart(**answer)


def _answer(printed: str) -> dict[str, Any] | None:
    """The last line that is an answer, among all that runtimes print."""
    for line in reversed(printed.splitlines()):
        if line.startswith(_MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            return found
    return None


def _serve() -> None:
    """The child's side: job on stdin, one line of JSON on stdout."""
    opener, batch, failures = pickle.loads(sys.stdin.buffer.read())  # written by our own parent process
    try:
        start = perf_counter()
        runner = opener()
        loaded = perf_counter()
        runner.infer(batch)
        first = perf_counter()
        for _ in range(_INFERENCES - 1):
            runner.infer(batch)
    except failures as err:
        _tell({"error": str(err)})
        return
    result = ColdStart((loaded - start) * 1e3, (first - loaded) * 1e3, _peak_mib(Path("/proc/self/status")))
    _tell(asdict(result))


def _tell(answer: dict[str, Any]) -> None:
    """Print the answer on a line of its own, now: a runtime may crash while the process ends."""
    sys.stdout.write(f"\n{_MARK}{json.dumps(answer)}\n")
    sys.stdout.flush()


def _peak_mib(status: Path) -> float | None:
    if not status.is_file():
        return None
    line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
    return int(line.split()[1]) / 1024 if line else None
