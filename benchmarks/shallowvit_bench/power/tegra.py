"""Sample a Jetson by the tools that come with it: the process tegrastats, or jtop where jetson-stats is installed.

A newcomer's trap: tegrastats prints when it likes, so a line's time is when it arrived, and the last line before the end of
what is measured doesn't cover it: one more is waited for.
"""

from __future__ import annotations

import subprocess
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..errors import BenchError
from .rails import rails_of_total, rails_remark, total_power_mw
from .sampling import PollingSampler, PowerSource, Unavailable
from .tegrastats import Tegrastats, parse_tegrastats
from .trace import Reading, Trace

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TegrastatsSampler", "find_jtop", "find_tegrastats", "reading_from_tegrastats"]

_NAME = "tegrastats"
_JTOP = "jtop"
_PERIOD_S = 0.1
_JTOP_PERIOD_S = 0.5
_PATIENCE_S = 3.0


def find_tegrastats(board: str | None, command: Sequence[str] = ("tegrastats",)) -> PowerSource | Unavailable:
    """Start tegrastats for one line and return it as a source, or why it isn't one.

    Args:
        board: The board's key; None where its name isn't known.
        command: Starts it, without the interval.
    """
    trial = TegrastatsSampler(board, command)
    try:
        trial.start()
    except BenchError as err:
        return Unavailable(_NAME, str(err))
    trial.stop()
    rails = trial.last.rails if trial.last else {}
    names = rails_of_total(rails, board)
    if names is None:
        return Unavailable(_NAME, f"of power it prints {', '.join(rails) or 'nothing'}, which isn't the board's total")

    def make(source: PowerSource) -> TegrastatsSampler:
        return TegrastatsSampler(board, command, source)

    return PowerSource(f"{_NAME} {rails_remark(names)}", make, _PERIOD_S)


def reading_from_tegrastats(line: Tegrastats, board: str | None, moment: float, since: float) -> Reading:
    """Return a line as a reading; clocks of CPU and GPU are the mean over their parts that are on."""
    total = total_power_mw(line, board)
    clocks = {
        "cpu": [clock for load in line.cpus if load.on for clock in load.clocks_mhz],
        "gpu": list(line.gpus["GR3D"].clocks_mhz) if "GR3D" in line.gpus else [],
        "memory": list(line.memory_load.clocks_mhz) if line.memory_load else [],
    }
    return Reading(
        time_s=moment,
        since_s=since,
        watts=None if total is None else total / 1e3,
        temperatures_c=line.temperatures_c,
        clocks_mhz={name: sum(values) / len(values) for name, values in clocks.items() if values},
        ram_mib=line.ram.used_mib if line.ram else None,
    )


class TegrastatsSampler:
    """A tegrastats process and the thread that reads its lines.

    Args:
        board: The board's key; None where its name isn't known.
        command: Starts it, without the interval.
        source: What the trace says of the source; None while it is tried out.
    """

    def __init__(self, board: str | None, command: Sequence[str] = ("tegrastats",), source: PowerSource | None = None) -> None:
        self._board, self._source = board, source
        self._command = (*command, "--interval", str(round(_PERIOD_S * 1e3)))
        self.last: Tegrastats | None = None
        self._readings: list[Reading] = []
        self._said = ""
        self._arrived = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, name="sampling tegrastats", daemon=True)

    def start(self) -> None:
        """Start it and wait for the first line.

        Raises:
            BenchError: there is no such program, or it printed no line with a figure.
        """
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as err:
            raise BenchError(f"{self._command[0]} can't be started ({err.strerror})") from err
        self._thread.start()
        if not self._wait_for(1, _PATIENCE_S):
            self._end()
            said = f"; it said: {self._said[:120]}" if self._said else ""
            raise BenchError(f"{self._command[0]} printed no line of figures within {_PATIENCE_S:g} s{said}")

    def stop(self) -> Trace:
        """Wait for one more line, end the process and return what it printed."""
        alive = self._wait_for(len(self._readings) + 1, 5 * _PERIOD_S)
        problems: tuple[str, ...] = ()
        if not alive and self._ended:
            seconds = self._readings[-1].time_s - self._readings[0].time_s
            problems = (f"{_NAME} ended by itself after {seconds:.1f} s with exit code {self._process.wait()}",)
        self._end()
        if self._source is None:
            return Trace(tuple(self._readings), problems=problems)
        return Trace(tuple(self._readings), self._source.name, self._source.period_s, problems=problems)

    def _wait_for(self, count: int, seconds: float) -> bool:
        with self._arrived:
            self._arrived.wait_for(lambda: len(self._readings) >= count or self._ended, seconds)
            return len(self._readings) >= count

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()
        if self._process.stdout:
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            moment = time.perf_counter()
            text = raw.decode(errors="replace").strip()
            line = parse_tegrastats(text)
            with self._arrived:
                if line.ram is None and not line.rails:  # a warning, or an error before it ends
                    self._said = text or self._said
                    continue
                since = self._readings[-1].time_s if self._readings else moment
                self.last = line
                self._readings.append(reading_from_tegrastats(line, self._board, moment, since))
                self._arrived.notify_all()
        with self._arrived:
            self._ended = True
            self._arrived.notify_all()


def find_jtop(board: str | None, stack: ExitStack) -> PowerSource | Unavailable:
    """Connect to the service of jetson-stats and return it as a source, or why it isn't one.

    Args:
        board: The board's key; None where its name isn't known.
        stack: Closes the connection.
    """
    try:
        from jtop import JtopException, jtop
    except ImportError:
        return Unavailable(_JTOP, "the package jetson-stats is not installed")
    try:
        service = stack.enter_context(jtop(interval=_JTOP_PERIOD_S))
        rails = service.power["rail"] if service.ok() else {}
    except (JtopException, OSError) as err:
        return Unavailable(_JTOP, f"its service doesn't answer ({err})")
    names = rails_of_total(rails, board)
    if names is None:
        # its own total isn't taken: on a Thor it leaves out the rail of the whole board
        return Unavailable(_JTOP, f"it shows {', '.join(rails) or 'no rails'}, which don't make up the board's total")
    covers = f"{_JTOP} {rails_remark(names)}"
    return PowerSource(covers, lambda source: _jtop_sampler(service, names, source), _JTOP_PERIOD_S)


def _jtop_sampler(service: Any, names: tuple[str, ...], source: PowerSource) -> PollingSampler:
    def look() -> Reading:
        if not service.ok():  # waits for the next figures
            raise BenchError("the service of jetson-stats ended")
        moment = time.perf_counter()
        return Reading(moment, moment, watts=sum(service.power["rail"][name]["power"] for name in names) / 1e3)

    return PollingSampler(_JTOP, look, _JTOP_PERIOD_S, source)
