"""Describe the machine and the software a measurement was taken on. What can't be read is None, never a guess.

A newcomer's trap: a board's power mode and clocks can change between two measurements, so they are read for each; what is
installed can't, and is asked once a process.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .boards import board_sm, read_board
from .probes import GPU_QUERY, GpuInfo, Runner, parse_gpus, read_text, run_command
from .sysfs import gpu_devfreq, hwmon_chips, read_int

if TYPE_CHECKING:
    from .boards import Board

__all__ = ["Conditions", "own_command", "read_conditions", "read_load_average", "usable_cores"]

_PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-openvino",
    "openvino",
    "torch",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "tensorrt-rtx-cu12",
    "tensorrt-rtx-cu13",
    "pycuda",
    "nvidia-cuda-runtime",
    "nvidia-cuda-runtime-cu12",
    "nvidia-ml-py",
    "shallowvit",
)


@dataclass(frozen=True)
class Conditions:
    """Where, when and with what.

    Args:
        load_average: The minute before the start: above 0, something else may have run.
        board: The key of a Jetson, as ``--target`` takes it.
        power_mode: Of nvpmodel, with its number.
        clocks_locked: Whether a Jetson's GPU and memory clocks are fixed; of a GPU on a card nothing says it.
        gpu_sm: Compute capability, 87 for 8.7.
        cuda: The system's toolkit; what pip brought stands in ``packages``.
        fan: Its drive, as ``pwm 88 of 255``.
        turbo: Whether the CPU may go above its base clock.
    """

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
    board: str | None = None
    jetpack: str | None = None
    l4t: str | None = None
    power_mode: str | None = None
    clocks_locked: bool | None = None
    gpu: str | None = None
    gpu_driver: str | None = None
    gpu_sm: int | None = None
    cuda: str | None = None
    fan: str | None = None
    turbo: bool | None = None


def read_conditions(threads: int | None, root: Path = Path("/"), run: Runner = run_command) -> Conditions:
    """Read the conditions of this moment.

    Args:
        threads: Of the CPU, as the measurement was told.
        root: Where ``proc``, ``sys``, ``etc`` and ``usr`` are found.
        run: Runs ``nvidia-smi``, and on a Jetson ``nvpmodel``, ``jetson_clocks`` and ``dpkg-query``.
    """
    board = read_board(root, run)
    gpu = _gpu(run)  # of a Jetson it knows little more than a name
    return Conditions(
        time_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        device=_device(root),
        cores=usable_cores(),
        threads=threads,
        governor=_first_line(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        load_average=read_load_average(root),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages=dict(_packages()),
        commit=_commit(os.getcwd()),
        command=own_command(),
        board=board.key if board else None,
        jetpack=board.jetpack.version if board and board.jetpack else None,
        l4t=board.l4t if board else None,
        power_mode=_power_mode(board),
        clocks_locked=_clocks_locked(board, root),
        gpu=gpu.name if gpu else None,
        gpu_driver=(gpu.driver if gpu else None) or _driver(root),
        gpu_sm=board_sm(board.key) if board and board.key else gpu.sm if gpu else None,
        cuda=_cuda(root),
        fan=_fan(root),
        turbo=_turbo(root),
    )


def usable_cores() -> int:
    """Return how many cores this process may use, which a container makes fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device(root: Path) -> str | None:
    """The board's name where there is a device tree (Jetson, Raspberry Pi), else the CPU's."""
    if board := _first_line(root / "proc/device-tree/model"):
        return board.rstrip("\0")
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    return next((line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), None)


def read_load_average(root: Path = Path("/")) -> float | None:
    """Return the load of the last minute; None where the system doesn't tell."""
    line = _first_line(root / "proc/loadavg")
    return float(line.split()[0]) if line else None


def _first_line(path: Path) -> str | None:
    return next(iter((read_text(path) or "").splitlines()), None)


def _power_mode(board: Board | None) -> str | None:
    if board is None or board.mode is None:
        return None
    name, number = board.mode
    return name if number is None else f"{name} ({number})"


def _clocks_locked(board: Board | None, root: Path) -> bool | None:
    """As ``jetson_clocks --show`` says; without root it doesn't, and a GPU that may change its clock is proof enough."""
    if board is None:
        return None
    if board.clocks is not None and board.clocks.locked is not None:
        return board.clocks.locked
    limits = [(read_int(folder / "min_freq"), read_int(folder / "max_freq")) for folder in gpu_devfreq(root)]
    return False if any(None not in pair and pair[0] != pair[1] for pair in limits) else None


@lru_cache(maxsize=8)
def _gpu(run: Runner) -> GpuInfo | None:
    """The first GPU that nvidia-smi shows; asked once a process, since it takes up to seconds."""
    output = run(("nvidia-smi", f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader,nounits"))
    return next(iter(parse_gpus(output.out)), None) if output else None


def _driver(root: Path) -> str | None:
    found = re.search(r"Kernel Module.*? ([0-9]+\.[0-9.]+)", read_text(root / "proc/driver/nvidia/version") or "")
    return found[1] if found else None


def _cuda(root: Path) -> str | None:
    text = read_text(root / "usr/local/cuda/version.json") or ""
    if found := re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([0-9.]+)"', text):
        return found[1]
    found = re.match(r"CUDA Version ([0-9.]+)", read_text(root / "usr/local/cuda/version.txt") or "")  # up to CUDA 10.2
    return found[1] if found else None


def _fan(root: Path) -> str | None:
    for chip, folder in hwmon_chips(root):
        if chip == "pwmfan" and (drive := read_int(folder / "pwm1")) is not None:
            return f"pwm {drive} of 255"
    drive = read_int(root / "sys/devices/pwm-fan/target_pwm")  # JetPack 4
    return None if drive is None else f"pwm {drive} of 255"


def _turbo(root: Path) -> bool | None:
    cpu = root / "sys/devices/system/cpu"
    no_turbo, boost = read_int(cpu / "intel_pstate/no_turbo"), read_int(cpu / "cpufreq/boost")
    if no_turbo is not None:
        return no_turbo == 0
    return None if boost is None else boost != 0


@lru_cache(maxsize=1)
def _packages() -> tuple[tuple[str, str], ...]:
    return tuple((name, version) for name in _PACKAGES if (version := _version(name)))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=8)
def own_command() -> str:
    """Return the command line of this process, as one would type it."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _commit(folder: str) -> str | None:
    """The commit of the working tree around a folder, ``-dirty`` when it was changed; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
