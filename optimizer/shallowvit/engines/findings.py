"""The record of one finding about a machine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "Status", "missing", "ok", "unknown"]


class Status(StrEnum):
    """``missing`` is known not to be there, or not as it should be; ``unknown`` couldn't be asked."""

    OK = "ok"
    MISSING = "missing"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """One thing about this machine. ``fix`` is the one command that gets what is missing; empty where no command does."""

    name: str
    status: Status
    value: str | None = None
    note: str = ""
    fix: str = ""


def ok(name: str, value: str, note: str = "") -> Finding:
    """Return a finding of something that is there."""
    return Finding(name, Status.OK, value, note)


def missing(name: str, note: str, fix: str = "", value: str | None = None) -> Finding:
    """Return a finding of something that is not there or not as it should be."""
    return Finding(name, Status.MISSING, value, note, fix)


def unknown(name: str, note: str, fix: str = "", value: str | None = None) -> Finding:
    """Return a finding of something that couldn't be asked."""
    return Finding(name, Status.UNKNOWN, value, note, fix)
