"""The record of one measured side, and the file of rows it is appended to: one JSON object per line.

A newcomer's trap: ``None`` means not measured; a failed side is a row too, with its reason.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import BenchError

if TYPE_CHECKING:
    from pathlib import Path

    from .conditions import Conditions

__all__ = ["Measurement", "append_rows", "read_rows", "row_from_measurement"]


@dataclass(frozen=True)
class Measurement:
    """One side of a benchmark. ``speedup`` is the other side's median over this one's, ``low`` and ``high`` its 10th and 90th
    percentile over rounds; ``ideal_speedup`` is the ratio of FLOPs.
    """

    side: str
    status: str  # ok, failed
    reason: str | None
    backend: str
    bundle: str
    model_sha256: str
    precision: str
    flops: int
    batch: int
    input_shape: tuple[int, ...]
    input_dtype: str
    conditions: Conditions
    warm_up_runs: int | None = None
    warm_up_steady: bool | None = None
    runs: int | None = None
    min_ms: float | None = None
    mean_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    items_per_s: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    peak_mib: float | None = None
    data: str | None = None
    items: int | None = None
    top1: float | None = None
    top1_low: float | None = None
    top1_high: float | None = None
    agreement: float | None = None
    against: str | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    ideal_speedup: float | None = None
    share_of_ideal: float | None = None
    samples_ms: tuple[float, ...] = field(default=(), repr=False)


def row_from_measurement(measurement: Measurement, *, samples: bool = True) -> dict[str, Any]:
    """Return the measurement as plain data, with or without its raw samples."""
    row = asdict(measurement)
    if not samples:
        del row["samples_ms"]
    return row


def append_rows(path: Path, measurements: tuple[Measurement, ...]) -> None:
    """Append one line per measurement and wait until the disk has them.

    Raises:
        BenchError: the file can't be written.
    """
    lines = [json.dumps(row_from_measurement(measurement), separators=(",", ":")) for measurement in measurements]
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as err:
        raise BenchError(f"append_rows: could not write {path} ({err.strerror}); choose another --rows") from err


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows that ``append_rows`` wrote.

    Raises:
        BenchError: the file is missing, empty, or a line isn't a row.
    """
    if not path.is_file():
        raise BenchError(f"read_rows: no file {path}; write one with: shallowvit bench BUNDLE --rows {path}")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as err:
            raise BenchError(f"read_rows: line {number} of {path} is not JSON ({err}); remove it") from err
        missing = {"side", "status", "model_sha256", "batch", "conditions"} - set(row if isinstance(row, dict) else ())
        if missing:
            raise BenchError(
                f"read_rows: line {number} of {path} is no row of shallowvit bench: it lacks {', '.join(sorted(missing))}"
            )
        rows.append(row)
    if not rows:
        raise BenchError(f"read_rows: {path} holds no rows")
    return rows
