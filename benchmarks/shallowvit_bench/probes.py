"""Read files of a machine and run its tools, and parse what they print.

Every function takes the root of the file system or the text itself, so captured text of boards tests it. A newcomer's trap:
a tool that isn't there, one that refuses and one that hangs are three answers, and none of them is an error here.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "GPU_QUERY",
    "GpuInfo",
    "JetsonClocks",
    "Output",
    "Runner",
    "memory_gib",
    "parse_gpus",
    "parse_jetson_clocks",
    "parse_l4t_package",
    "parse_nv_tegra_release",
    "parse_power_mode",
    "parse_power_modes",
    "read_text",
    "run_command",
]

GPU_QUERY = ("name", "driver_version", "memory.total", "compute_cap", "power.limit")


@dataclass(frozen=True)
class Output:
    """What a command printed; ``code`` is negative where a signal ended it, None where it ran out of time."""

    code: int | None
    out: str
    err: str

    @property
    def first_line(self) -> str:
        """The first line it printed, of its errors if there are any."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[0].strip() if lines else ""


Runner = Callable[[Sequence[str]], Output | None]


def run_command(words: Sequence[str], timeout_s: float = 8.0) -> Output | None:
    """Run a command without a shell and return what it printed, or None where there is no such command."""
    try:
        done = subprocess.run(words, capture_output=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Output(None, "", f"it did not end within {timeout_s:g} s")
    except OSError:
        return None
    return Output(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def read_text(path: Path) -> str | None:
    """Return a file's text without its last NUL and line end, or None where it can't be read."""
    try:
        return path.read_bytes().decode(errors="replace").rstrip("\0\n")
    except OSError:
        return None


def memory_gib(root: Path = Path("/"), field: str = "MemTotal") -> float | None:
    """Return a field of ``/proc/meminfo`` in GiB, or None."""
    found = re.search(rf"^{field}:\s+(\d{{1,15}}) kB", read_text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) / 2**20 if found else None


def parse_nv_tegra_release(text: str) -> str | None:
    """Return the L4T version (``36.4.4``) in the text of ``/etc/nv_tegra_release``, or None."""
    found = re.search(r"^# R(\d+) \(release\), REVISION: ([\d.]+)", text, re.MULTILINE)
    return f"{found[1]}.{found[2].strip('.')}" if found else None


def parse_l4t_package(text: str) -> str | None:
    """Return the L4T version in the version of the package nvidia-l4t-core (``36.4.4-2025...``), or None."""
    found = re.match(r"\s*(\d+\.\d+(?:\.\d+)*)-", text)
    return found[1] if found else None


def parse_power_mode(text: str) -> tuple[str, int | None] | None:
    """Return the name and number of the mode that ``nvpmodel -q`` prints, or None."""
    number = r"[ \t]*/[ \t]*(\d{1,3})|\s*\n[ \t]*(\d{1,3})[ \t]*$"  # behind a slash, or alone on the next line
    found = re.search(rf"NV Power Mode:[ \t]*([^\s/]+)(?:{number})?", text, re.MULTILINE)
    if not found:
        return None
    digits = found[2] or found[3]
    return found[1], int(digits) if digits else None


def parse_power_modes(text: str) -> dict[int, str]:
    """Return the modes in ``nvpmodel -p --verbose`` or ``/etc/nvpmodel.conf`` by number."""
    rows = re.findall(r"(?:^<[ \t]*POWER_MODEL|POWER_MODEL:)[ \t]+ID=(\d{1,3})[ \t]+NAME=([^\s>]+)", text, re.MULTILINE)
    return {int(number): name for number, name in rows}


@dataclass(frozen=True)
class JetsonClocks:
    """What ``jetson_clocks --show`` says, clocks in Hz. None was not printed. ``locked`` is of the GPU and the memory."""

    machine: str | None
    governors: tuple[str, ...]
    gpu_min_hz: int | None
    gpu_max_hz: int | None
    gpu_current_hz: int | None
    emc_max_hz: int | None
    emc_current_hz: int | None
    emc_override: bool | None
    gpu_tpcs: int | None

    @property
    def locked(self) -> bool | None:
        """Whether the clocks of GPU and memory are fixed, None where that wasn't printed."""
        if self.gpu_min_hz is None or self.gpu_max_hz is None:
            return None
        if self.gpu_min_hz != self.gpu_max_hz:
            return False
        if self.emc_override or (self.emc_current_hz is not None and self.emc_current_hz == self.emc_max_hz):
            return True
        return None if self.emc_override is None and self.emc_current_hz is None else False


def parse_jetson_clocks(text: str) -> JetsonClocks | None:
    """Parse what ``jetson_clocks --show`` prints; None where it is none of that, such as the demand for root."""
    gpu, emc = _line(text, "GPU "), _line(text, "EMC ")
    machine = re.search(r"^SOC family:\S+[ \t]+Machine:(.+)$", text, re.MULTILINE)
    if not (gpu or emc or machine):
        return None
    tpcs = re.search(r"^Active GPU TPCs:[ \t]*(\d{1,6})", text, re.MULTILINE)
    override = _number(emc, "FreqOverride")
    return JetsonClocks(
        machine=machine[1].strip() if machine else None,
        governors=tuple(dict.fromkeys(re.findall(r"^cpu\d+:.*\bGovernor=(\S+)", text, re.MULTILINE))),
        gpu_min_hz=_number(gpu, "MinFreq"),
        gpu_max_hz=_number(gpu, "MaxFreq"),
        gpu_current_hz=_number(gpu, "CurrentFreq"),
        emc_max_hz=_number(emc, "MaxFreq"),
        emc_current_hz=_number(emc, "CurrentFreq"),
        emc_override=None if override is None else override != 0,
        gpu_tpcs=int(tpcs[1]) if tpcs else None,
    )


def _line(text: str, start: str) -> str:
    return next((line for line in text.splitlines() if line.startswith(start) and "Freq=" in line), "")


def _number(line: str, name: str) -> int | None:
    found = re.search(rf"\b{name}=(\d{{1,15}})\b", line)
    return int(found[1]) if found else None


@dataclass(frozen=True)
class GpuInfo:
    """A line of nvidia-smi. None is a field that the driver doesn't give, as on a Jetson."""

    name: str
    driver: str | None
    memory_mib: float | None
    sm: int | None
    power_limit_w: float | None


def parse_gpus(text: str) -> tuple[GpuInfo, ...]:
    """Parse ``nvidia-smi --query-gpu=...`` of ``GPU_QUERY`` as CSV without header and units; other lines are left out."""
    gpus = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(GPU_QUERY) or not cells[0]:
            continue
        capability = re.fullmatch(r"(\d{1,3})\.(\d)", cells[3])
        gpus.append(
            GpuInfo(
                name=cells[0],
                driver=cells[1] if re.fullmatch(r"[\d.]+", cells[1]) else None,
                memory_mib=_decimal(cells[2]),
                sm=int(capability[1]) * 10 + int(capability[2]) if capability else None,
                power_limit_w=_decimal(cells[4]),
            )
        )
    return tuple(gpus)


def _decimal(cell: str) -> float | None:
    return float(cell) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", cell) else None
