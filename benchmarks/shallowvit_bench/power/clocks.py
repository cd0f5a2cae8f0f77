"""Say what would fix the clocks of a device, and how they are now. Nothing here runs any of it.

A newcomer's trap: fixed clocks are for comparing, not for the highest figure, since a clock that is fixed too high is throttled
all the same; and jetson_clocks fixes the highest clock of the power mode, so the mode is set first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..boards import read_board
from ..probes import Runner, read_text, run_command

if TYPE_CHECKING:
    from ..boards import Board

__all__ = ["ClockAdvice", "advise_clocks"]

_BEST_MODES = ("MAXN_SUPER", "MAXN")
_CARD_QUERY = ("name", "clocks.max.sm", "clocks.max.memory", "clocks.sm", "clocks.mem", "persistence_mode")


@dataclass(frozen=True)
class ClockAdvice:
    """What would fix the clocks.

    Args:
        now: How things are, a sentence each.
        commands: To be run by the user, in this order; empty where nothing can be fixed or all is.
        undo: What takes it back, in this order.
    """

    now: tuple[str, ...]
    commands: tuple[str, ...]
    undo: tuple[str, ...]

    def text(self) -> str:
        """Return it as lines to print."""
        lines = [f"now: {sentence}" for sentence in self.now]
        lines += ["to fix the clocks, run yourself:", *(f"  {command}" for command in self.commands)] if self.commands else []
        lines += ["and afterwards:", *(f"  {command}" for command in self.undo)] if self.undo else []
        return "\n".join(lines)


def advise_clocks(root: Path = Path("/"), run: Runner = run_command) -> ClockAdvice:
    """Return what would fix the clocks of this device's CPU, GPU and memory.

    Args:
        root: Where ``proc``, ``sys`` and ``etc`` are found.
        run: Runs what asks: ``nvidia-smi`` and, on a Jetson, ``nvpmodel -q``, ``jetson_clocks --show`` and ``dpkg-query``.
    """
    if board := read_board(root, run):
        return _of_board(board)
    card, cpu = _of_card(run), _of_cpu(root)
    return ClockAdvice(card.now + cpu.now, card.commands + cpu.commands, card.undo + cpu.undo)


def _of_board(board: Board) -> ClockAdvice:
    now, commands, undo = [], [], []
    name, number = board.mode or (None, None)
    if name is None:
        now.append("the power mode can't be read (sudo nvpmodel -q tells it)")
    else:
        now.append(f"power mode {name}" if number is None else f"power mode {name} ({number})")
    best = next((n for wanted in _BEST_MODES for n, mode in board.modes.items() if mode == wanted), None)
    if best is not None and board.modes[best] != name:
        # by name: mode 0 is 15W on an Orin Nano
        commands.append(f"sudo nvpmodel -m {best}  # {board.modes[best]}; leave it out to measure the mode you ship")
        undo += [f"sudo nvpmodel -m {number}  # {name}"] if number is not None else []
    locked = board.clocks.locked if board.clocks else None
    if locked:
        now.append("clocks of GPU and memory are fixed")
        if not commands:
            return ClockAdvice(tuple(now), (), ())
    else:
        unknown = f"whether the clocks are fixed isn't known: {board.clocks_refused or 'jetson_clocks says nothing of them'}"
        now.append("clocks of GPU and memory follow the load" if locked is False else unknown)
    commands += ["sudo jetson_clocks --store  # keeps the clocks as they are, for afterwards", "sudo jetson_clocks"]
    return ClockAdvice(tuple(now), tuple(commands), ("sudo jetson_clocks --restore", *undo))


def _of_card(run: Runner) -> ClockAdvice:
    output = run(("nvidia-smi", f"--query-gpu={','.join(_CARD_QUERY)}", "--format=csv,noheader,nounits"))
    lines = output.out.splitlines() if output and output.code == 0 else []
    cells = [cell.strip() for cell in lines[0].split(",")] if lines else []
    if len(cells) != len(_CARD_QUERY):
        return ClockAdvice(("no NVIDIA GPU on a card is seen",), (), ())
    name, most_sm, most_memory, sm, memory, persistent = cells
    now = (
        f"{name} at {sm} MHz of at most {most_sm}, its memory at {memory} of {most_memory}; nvidia-smi doesn't say if fixed",
    )
    commands = [] if persistent == "Enabled" else ["sudo nvidia-smi -pm 1  # else the settings go with the last process"]
    undo = []
    if most_sm.isdecimal():
        lower = "lower it if the run is throttled"
        commands.append(f"sudo nvidia-smi -lgc {most_sm},{most_sm}  # {lower}: nvidia-smi -q -d SUPPORTED_CLOCKS")
        undo.append("sudo nvidia-smi -rgc")
    if most_memory.isdecimal():
        commands.append(f"sudo nvidia-smi -lmc {most_memory},{most_memory}")
        undo.append("sudo nvidia-smi -rmc")
    return ClockAdvice(now, tuple(commands), tuple(undo))


def _of_cpu(root: Path) -> ClockAdvice:
    governor = read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor is None:
        return ClockAdvice(("the CPU's clocks can't be set from here, as in a virtual machine",), (), ())
    if governor == "performance":
        return ClockAdvice(("CPU governor performance",), (), ())
    setter = "sudo cpupower frequency-set -g"
    return ClockAdvice((f"CPU governor {governor}",), (f"{setter} performance",), (f"{setter} {governor}",))
