"""Read what the kernel shows under ``/sys``: numbers, hwmon chips, the GPU's entry in devfreq.

A newcomer's trap: a file that is there may still refuse, since a sensor without power answers with an error; that is None here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .probes import read_text

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["gpu_devfreq", "hwmon_chips", "read_int"]

# Ends of names in /sys/class/devfreq: of JetPack 6 and of the first boards, then by chip (Orin, Xavier, TX2, Nano).
_GPU_ENDS = (".gpu", ".ga10b", ".gv11b", ".gp10b", ".gm20b")


def read_int(path: Path) -> int | None:
    """Return the whole number in a file, or None where it can't be read or holds something else."""
    text = (read_text(path) or "").strip()
    return int(text) if text.removeprefix("-").isdecimal() and text.isascii() and len(text) < 25 else None


def hwmon_chips(root: Path) -> tuple[tuple[str, Path], ...]:
    """Return the name and folder of each hwmon chip, in order of their numbers."""
    folders = sorted((root / "sys/class/hwmon").glob("hwmon*"), key=lambda folder: (len(folder.name), folder.name))
    return tuple((name, folder) for folder in folders if (name := read_text(folder / "name")))


def gpu_devfreq(root: Path) -> tuple[Path, ...]:
    """Return a Jetson GPU's folders in devfreq; a Thor has one for each of its clusters."""
    folders = sorted((root / "sys/class/devfreq").glob("*"))
    return tuple(folder for folder in folders if folder.name.endswith(_GPU_ENDS) or folder.name.startswith("gpu-gpc-"))
