"""The record of one measured side, and the file of rows it is appended to: one JSON object per line.

A newcomer's trap: ``None`` means not measured; a failed side is a row too, with its reason.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, BinaryIO

from .conditions import Conditions
from .errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["SCHEMA", "Measurement", "Metric", "append_rows", "measurement_from_row", "read_rows", "row_from_measurement"]

SCHEMA = 2


@dataclass(frozen=True)
class Metric:
    """An accuracy figure, a share unless its name says otherwise, with its 95 % interval; None: no interval is known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Measurement:
    """One side of a benchmark at one batch size.

    Args:
        id: Of the measurement; a later row with the same one replaces it.
        machine: The device it was taken on, by its name in ``shallowvit devices``; None: where the command ran.
        schema: Of the row; 1 had no providers, energy or metrics.
        status: ok, failed, or invalid (measured under throttling); ``reason`` says why unless it is ok.
        precision: Of the graph; ``computed_in`` is what the provider computes in.
        provider_trials: What ``--provider auto`` tried, each with its name, median and why it was or wasn't taken.
        copies: Whether a run holds the copies to and from a GPU; None: there are none.
        intervals_ms: 95 % bootstrap intervals of the figures in milliseconds, by the name of the figure.
        device_p50_ms: The median by the GPU's own clock, without copies.
        jitter_ms: Mean absolute difference of one run to the next, in the order of time.
        drift: How much slower the last third of the runs was than the first, as a share; ``drifted`` whether that is more than
            noise.
        overhead: The harness's own share of the median.
        power_source: The sensor; None: energy was not measured, and ``power_reason`` says why.
        idle_w: Before the first run; ``mean_w`` is over the timed runs.
        energy_mj: Of an inference (a batch), above idle, in millijoules; ``energy_item_mj`` of an item.
        throttled: What slowed the device down during the timed runs, each as a sentence.
        unreadable: Items of the data that could not be read; they count in no metric.
        predictions: The file with the outputs the metrics come from, beside the rows.
        against: The other side; ``speedup`` is its median over this one's (where real inputs are timed in turn, its mean),
            ``low`` and ``high`` the 10th and 90th percentile over rounds; ``ideal_speedup`` is the ratio of FLOPs.
        depth_shares: Of an adaptive bundle: the share of the items that each depth answered, of the data where its accuracy was
            measured, else of the timed runs.
        scenario: Of MLPerf LoadGen, with its results; None for the harness's own rounds.
    """

    side: str
    status: str
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
    id: str = ""
    machine: str | None = None
    schema: int = SCHEMA
    provider: str | None = None
    computed_in: str | None = None
    provider_options: dict[str, Any] = field(default_factory=dict)
    provider_trials: tuple[dict[str, Any], ...] = ()
    remarks: tuple[str, ...] = ()
    engine_sha256: str | None = None
    copies: bool | None = None
    cuda_graph: bool | None = None
    warm_up_runs: int | None = None
    warm_up_steady: bool | None = None
    runs: int | None = None
    min_ms: float | None = None
    mean_ms: float | None = None
    std_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    intervals_ms: dict[str, tuple[float, float]] = field(default_factory=dict)
    device_p50_ms: float | None = None
    jitter_ms: float | None = None
    drift: float | None = None
    drifted: bool | None = None
    overhead: float | None = None
    items_per_s: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    peak_mib: float | None = None
    power_source: str | None = None
    power_reason: str | None = None
    idle_w: float | None = None
    mean_w: float | None = None
    peak_w: float | None = None
    energy_mj: float | None = None
    energy_item_mj: float | None = None
    max_temperature_c: float | None = None
    clocks_mhz: dict[str, float] = field(default_factory=dict)
    throttled: tuple[str, ...] = ()
    data: str | None = None
    items: int | None = None
    unreadable: int | None = None
    metrics: dict[str, Metric] = field(default_factory=dict)
    predictions: str | None = None
    agreement: float | None = None
    against: str | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    ideal_speedup: float | None = None
    share_of_ideal: float | None = None
    depth_shares: dict[str, float] = field(default_factory=dict)
    scenario: str | None = None
    scenario_results: dict[str, Any] = field(default_factory=dict)
    samples_ms: tuple[float, ...] = field(default=(), repr=False)


def row_from_measurement(measurement: Measurement, *, samples: bool = True) -> dict[str, Any]:
    """Return the measurement as plain data, with or without its raw samples."""
    row = asdict(measurement)
    if not samples:
        del row["samples_ms"]
    return row


def measurement_from_row(row: Mapping[str, Any]) -> Measurement:
    """Return the record of a row that ``read_rows`` gave; what this version doesn't know is left out."""
    known = {entry.name for entry in fields(Measurement)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in row.items() if name in known
    }
    conditions = {entry.name: row["conditions"].get(entry.name) for entry in fields(Conditions)}
    values["conditions"] = Conditions(**conditions)
    values["metrics"] = {name: Metric(**metric) for name, metric in row.get("metrics", {}).items()}
    values["intervals_ms"] = {name: tuple(ends) for name, ends in row.get("intervals_ms", {}).items()}
    return Measurement(**values)


def append_rows(path: Path, measurements: Iterable[Measurement]) -> None:
    """Append one line per measurement and wait until the disk has them; a line that a crash cut off is removed first.

    Others may append to the same file at the same time: one waits for the other.

    Raises:
        BenchError: the file can't be written.
    """
    rows = map(row_from_measurement, measurements)
    lines = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows).encode()
    try:
        with path.open("a+b") as file:
            _lock(file)  # or what another has just appended would be taken for cut off, and removed
            whole, ending = _end_of_rows(file)
            file.truncate(whole)
            try:
                file.write(ending + lines)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(whole)  # a full disk takes part of a line
                raise
    except OSError as err:
        raise BenchError(f"append_rows: could not write {path} ({err.strerror}); make room or choose another --rows") from err


def _lock(file: BinaryIO) -> None:
    """Wait for the file until it is closed, where the system and the file's disk can do that."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    with contextlib.suppress(OSError):  # some network disks know no locks
        fcntl.flock(file, fcntl.LOCK_EX)


def _end_of_rows(file: BinaryIO) -> tuple[int, bytes]:
    """Where the last whole row of a file ends, and what must be written behind it first."""
    end = file.seek(0, os.SEEK_END)
    tail = b""
    while end > 0 and b"\n" not in tail:
        start = max(0, end - 65536)
        file.seek(start)
        tail, end = file.read(end - start) + tail, start
    rest = tail[tail.rfind(b"\n") + 1 :]
    size = file.seek(0, os.SEEK_END)
    try:
        json.loads(rest)
    except ValueError:
        return size - len(rest), b""
    return size, b"\n"  # whole but for its line's end


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a file, those of older versions brought to this one's form.

    Of rows with the same ``id`` the last stands for all: a measurement is written when it is timed, and again with its
    accuracy. A last line that a crash cut off is left out.

    Raises:
        BenchError: the file is missing, empty, or a line isn't a row.
    """
    if not path.is_file():
        raise BenchError(f"read_rows: no file {path}; write one with: shallowvit bench BUNDLE --rows {path}")
    rows: dict[object, dict[str, Any]] = {}
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as err:
            if number == len(lines) and not text.endswith("\n"):
                break
            raise BenchError(f"read_rows: line {number} of {path} is not JSON ({err}); remove it") from err
        missing = {"side", "status", "model_sha256", "batch", "conditions"} - set(row if isinstance(row, dict) else ())
        if missing:
            raise BenchError(
                f"read_rows: line {number} of {path} is no row of shallowvit bench: it lacks {', '.join(sorted(missing))}; "
                "remove it"
            )
        rows[row.get("id") or number] = _upgraded(row)
    if not rows:
        raise BenchError(f"read_rows: {path} holds no rows; write some with: shallowvit bench BUNDLE --rows {path}")
    return list(rows.values())


def _upgraded(row: dict[str, Any]) -> dict[str, Any]:
    """A row in this version's form."""
    if row.get("schema", 1) >= SCHEMA:
        return row
    top1 = {"value": row.pop("top1", None), "low": row.pop("top1_low", None), "high": row.pop("top1_high", None)}
    provider = "cpu" if row.get("backend") == "onnxruntime" else row.get("backend")
    return row | {"schema": SCHEMA, "provider": provider, "metrics": {} if top1["value"] is None else {"top1": top1}}
