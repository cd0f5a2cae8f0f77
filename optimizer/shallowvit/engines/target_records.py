"""The record of a device, and of a figure with how well it is known.

A None was not read anywhere: it prints as "unknown", and nothing is computed from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from shallowvit_bench.boards import PART_NUMBERS
from shallowvit_bench.jetpack import JETPACKS

__all__ = ["UNKNOWN", "Figure", "Kind", "PowerMode", "Provenance", "Target"]


class Kind(StrEnum):
    """What sort of machine a target is."""

    JETSON = "jetson"
    DATACENTER = "datacenter"
    GEFORCE = "geforce"
    WORKSTATION = "workstation"


class Provenance(StrEnum):
    """How a figure is known; the first letter of its name in tables is ``letter``."""

    VENDOR = "vendor"  # NVIDIA's table or datasheet was seen
    SEVERAL = "several"  # several independent public repositories agree
    ONE_SOURCE = "one source"
    DERIVED = "derived"  # half of a published sparse figure, or the like
    UNGRADED = "ungraded"  # written down without its grade

    @property
    def letter(self) -> str:
        """A to D, or ``-`` for a figure without a grade."""
        return dict(zip(Provenance, "ABCD-", strict=True))[self]


@dataclass(frozen=True)
class Figure:
    """A figure, how it is known, and what must be said with it; ``value`` None was not read."""

    value: float | None
    provenance: Provenance = Provenance.UNGRADED
    note: str = ""


@dataclass(frozen=True)
class PowerMode:
    """A mode of ``nvpmodel``; ``number`` None was not read."""

    name: str
    number: int | None = None
    default: bool = False


@dataclass(frozen=True)
class Target:
    """A device that an engine is built for.

    Args:
        key: What ``--target`` takes.
        sm: Compute capability without its point: 87 is 8.7.
        memory: GB as sold; what a system shows is less.
        bandwidth: Of that memory, GB/s.
        peaks: Dense rates by precision in 10^12 operations a second. ``fp16`` accumulates in fp32, ``fp16-accumulate`` in fp16.
        family: Of a Jetson, the family of modules that a JetPack release names.
        dla: Number of deep learning accelerators; None where their number was not read.
        board_w: Power limit of the board in watts.
        since: The first JetPack with this configuration of the board.
    """

    key: str
    title: str
    kind: Kind
    sm: int
    memory: Figure
    bandwidth: Figure
    peaks: tuple[tuple[str, Figure], ...] = ()
    family: str = ""
    dla: int | None = 0
    dla_note: str = ""
    power_modes: tuple[PowerMode, ...] = ()
    power_note: str = ""
    board_w: float | None = None
    shared_memory: bool = False
    since: str = ""
    notes: tuple[str, ...] = ()

    @property
    def memory_gb(self) -> float | None:
        """Memory as sold, in GB, or None."""
        return self.memory.value

    @property
    def bandwidth_gb_s(self) -> float | None:
        """Memory bandwidth in GB/s, or None."""
        return self.bandwidth.value

    @property
    def compute_capability(self) -> str:
        """As NVIDIA writes it: 8.7."""
        return f"{self.sm // 10}.{self.sm % 10}"

    @property
    def modules(self) -> tuple[str, ...]:
        """Part numbers of a Jetson, as ``/proc/device-tree/compatible`` has them."""
        return PART_NUMBERS.get(self.key.removesuffix("-super"), ())

    @property
    def jetpacks(self) -> tuple[str, ...]:
        """The JetPack releases that run on it, oldest first; empty for what is no Jetson."""
        versions = [release.version for release in JETPACKS if self.family and self.family in release.boards]
        return tuple(versions[versions.index(self.since) :] if self.since else versions)

    def peak(self, precision: str) -> Figure:
        """Return the dense rate for a precision, ``UNKNOWN`` where the table has none."""
        return dict(self.peaks).get(precision, UNKNOWN)


UNKNOWN = Figure(None)
