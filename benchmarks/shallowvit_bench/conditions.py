"""Describe the machine and the software a measurement was taken on. What can't be read is None, never a guess."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["Conditions", "read_conditions", "usable_cores"]

_PACKAGES = ("numpy", "onnxruntime", "torch", "shallowvit")


@dataclass(frozen=True)
class Conditions:
    """Where, when and with what. ``load_average`` is the minute before the start: above 0, something else may have run."""

    time_utc: str
    device: str | None
    cores: int
    threads: int | None
    governor: str | None
    load_average: float | None
    os: str
    python: str
    packages: dict[str, str]
    commit: str | None
    command: str


def read_conditions(threads: int | None, root: Path = Path("/")) -> Conditions:
    """Read the conditions of this moment; ``root`` is where ``proc`` and ``sys`` are found."""
    return Conditions(
        time_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        device=_device(root),
        cores=usable_cores(),
        threads=threads,
        governor=_first_line(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        load_average=_load_average(root),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages={name: version for name in _PACKAGES if (version := _version(name))},
        commit=_commit(),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )


def usable_cores() -> int:
    """Return how many cores this process may use, which a container makes fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device(root: Path) -> str | None:
    """The board's name where there is a device tree (Jetson, Raspberry Pi), else the CPU's."""
    if board := _first_line(root / "proc/device-tree/model"):
        return board.rstrip("\0")
    cpuinfo = root / "proc/cpuinfo"
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def _load_average(root: Path) -> float | None:
    line = _first_line(root / "proc/loadavg")
    return float(line.split()[0]) if line else None


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().splitlines()[0]
    except (OSError, IndexError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the working tree around the current folder, ``-dirty`` when it was changed; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
