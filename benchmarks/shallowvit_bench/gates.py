"""Fail a run by its figures, as a CI job wants it: ``p99_ms > 10``, ``top1 < 80%``. A gate says what fails, not what passes.

A newcomer's trap: a figure that was not measured fails its gate too, or a run too short for a p99 would pass every limit on it.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from .errors import BenchError
from .figures import METRICS, metric_of
from .measurement import Measurement
from .percentiles import runs_needed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Gate", "GateResult", "check_gates", "interval_of", "parse_gate", "parse_share", "row_label", "why_missing"]

_NUMBER = r"(?P<number>[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)"
_GATE = re.compile(rf"(?P<name>[A-Za-z]\w*)\s*(?P<sign>[<>=!]+)\s*{_NUMBER}\s*(?P<unit>\S*)")
_SIGNS: dict[str, tuple[Callable[[float, float], bool], str, str]] = {  # and its words for "fails" and "passes"
    "<": (operator.lt, "below", "not below"),
    "<=": (operator.le, "at most", "above"),
    ">": (operator.gt, "above", "not above"),
    ">=": (operator.ge, "at least", "below"),
    "==": (operator.eq, "equal to", "not"),
    "!=": (operator.ne, "not", "equal to"),
}
_UNITS: dict[str, dict[str, float]] = {  # end of a figure's name -> its own unit, first, and others in it
    "_ms": {"ms": 1.0, "us": 1e-3, "s": 1e3},
    "_mj": {"mJ": 1.0, "uJ": 1e-3, "J": 1e3},
    "_w": {"W": 1.0, "mW": 1e-3},
    "_mib": {"MiB": 1.0, "GiB": 1024.0},
    "_c": {"C": 1.0},
    "_per_s": {"/s": 1.0},
    "speedup": {"x": 1.0},
}
_PERCENT = {"": 1.0, "%": 0.01}
_SHARES = ("drift", "overhead", "agreement", "share_of_ideal")
_PERCENTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p95_ms": 0.95, "p99_ms": 0.99, "p999_ms": 0.999}
_NUMBERS = ("int", "float", "int | None", "float | None")
_FIELDS = tuple(entry.name for entry in fields(Measurement) if entry.type in _NUMBERS and entry.name != "schema")


@dataclass(frozen=True)
class Gate:
    """What fails a run; ``limit`` is in the figure's own unit, ``text`` as it was written."""

    text: str
    name: str
    sign: str
    limit: float


@dataclass(frozen=True)
class GateResult:
    """A gate on one row. ``value`` None: not measured, which fails; ``sentence`` says what was found, with its interval."""

    gate: Gate
    row: str
    failed: bool
    value: float | None
    sentence: str


def parse_gate(text: str) -> Gate:
    """Read ``NAME SIGN NUMBER [UNIT]``: a number of a row or an accuracy figure, one of < <= > >= == !=, a limit.

    Raises:
        BenchError: it reads otherwise, there is no such figure, the unit isn't one of the figure's, or a share is above 1.
    """
    found = _GATE.fullmatch(text.strip())
    if found is None or found["sign"] not in _SIGNS:
        raise BenchError(
            f"parse_gate: {text!r} is no gate; write NAME SIGN NUMBER with one of {' '.join(_SIGNS)}, as in 'p99_ms > 10' or "
            "'top1 < 80%'"
        )
    name, unit = found["name"], found["unit"]
    choices = (*_FIELDS, *METRICS)
    if name not in choices:
        near = difflib.get_close_matches(name, choices, n=4, cutoff=0.65)
        raise BenchError(f"parse_gate: no figure {name!r} in {text!r}; " + _advice(near, choices))
    units = _units_of(name)
    if unit and unit not in units:
        allowed = " or ".join(key for key in units if key)
        raise BenchError(
            f"parse_gate: {name} has no unit {unit!r} in {text!r}; " + (f"write {allowed}" if allowed else "leave the unit out")
        )
    limit = float(found["number"]) * units.get(unit, 1.0)
    if name in METRICS and not 0 <= limit <= 1:
        raise BenchError(f"parse_gate: {name} is a share from 0 to 1, the limit in {text!r} is {limit:g}; write 0.8 or 80%")
    return Gate(text.strip(), name, found["sign"], limit)


def _advice(near: Sequence[str], choices: Sequence[str]) -> str:
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(choices)}"


def _units_of(name: str) -> Mapping[str, float]:
    if name in METRICS or name in _SHARES:
        return _PERCENT
    return next((units for end, units in _UNITS.items() if name.endswith(end)), {})


def parse_share(text: str, option: str) -> float:
    """Read a share written as ``5%`` or ``0.05``; a bare number of 1 and more could mean either, so it is refused.

    Raises:
        BenchError: it reads otherwise, or is below 0.
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(%?)", text.strip())
    if found is None or (not found[2] and float(found[1]) >= 1):
        raise BenchError(f"{option}: {text!r} is no share; write it as 5% or 0.05")
    return float(found[1]) * _PERCENT[found[2]]


def check_gates(rows: Sequence[Mapping[str, Any]], gates: Sequence[Gate]) -> tuple[GateResult, ...]:
    """Check each gate on each row: those of the side in question, at every batch size.

    Rows of LoadGen, whose figures are others, are passed over.

    Raises:
        BenchError: there are no rows, so no gate would be checked.
    """
    timed = [row for row in rows if not row.get("scenario")]
    if not timed:
        raise BenchError("check_gates: no rows to check; measure first with: shallowvit bench BUNDLE --rows ROWS")
    return tuple(_check(row, gate) for row in timed for gate in gates)


def _check(row: Mapping[str, Any], gate: Gate) -> GateResult:
    label = row_label(row)
    value = _value_of(row, gate.name)
    if row["status"] != "ok":
        return GateResult(gate, label, True, value, f"{gate.name} doesn't count: the run is {row['status']}, {row['reason']}")
    if value is None:
        return GateResult(gate, label, True, None, f"{gate.name} was not measured: {why_missing(row, gate.name)}")
    holds, fails, passes = _SIGNS[gate.sign]
    failed = holds(value, gate.limit)
    interval = interval_of(row, gate.name)
    sentence = (
        f"{gate.name} is {_written(value, gate.name)}{_between(interval, gate.name)}, {fails if failed else passes} "
        f"{_written(gate.limit, gate.name)}"
    )
    if interval and interval[0] <= gate.limit <= interval[1]:
        sentence += "; the limit is within the interval, so another run may decide otherwise"
    return GateResult(gate, label, failed, value, sentence)


def row_label(row: Mapping[str, Any]) -> str:
    """Return what tells a row from the others of a run, for people."""
    side = f"{row['side']} on {row['machine']}" if row.get("machine") else row["side"]
    return ", ".join([side, *([row["provider"]] if row.get("provider") else []), f"batch {row['batch']}"])


def interval_of(row: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    """Return the 95 % interval of a figure, None where none is known."""
    if name in METRICS:
        metric = metric_of(row, name)
        ends = (metric["low"], metric["high"]) if metric else (None, None)
    else:
        ends = (row.get("intervals_ms") or {}).get(name, (None, None))
    return None if ends[0] is None or ends[1] is None else (float(ends[0]), float(ends[1]))


def _value_of(row: Mapping[str, Any], name: str) -> float | None:
    metric = metric_of(row, name) if name in METRICS else None
    value = metric["value"] if metric else row.get(name)
    return None if value is None or not math.isfinite(value) else float(value)


def why_missing(row: Mapping[str, Any], name: str) -> str:
    """Return why a row lacks a figure, and what to do about it."""
    if name in _PERCENTILES:
        needed = runs_needed(_PERCENTILES[name])
        return f"it needs {needed:,} runs, there were {row.get('runs') or 0:,}; raise --max-runs and --max-seconds"
    if name in METRICS:
        on = row.get("data")
        return f"{on} gives no {name}; choose another --data" if on else "no --data was given"
    if name in ("idle_w", "mean_w", "peak_w", "energy_mj", "energy_item_mj", "max_temperature_c"):
        return row.get("power_reason") or "power was not sampled"
    if name in ("agreement", "speedup", "speedup_low", "speedup_high", "ideal_speedup", "share_of_ideal"):
        return "there is no other side; give --against"
    return "this run has none"


def _between(interval: tuple[float, float] | None, name: str) -> str:
    if interval is None:
        return ""
    low, high = (_written(end, name) for end in interval)
    return f" (95 %: {low} to {high})"


def _written(value: float, name: str) -> str:
    units = _units_of(name)
    if units is _PERCENT:
        return f"{100 * value:.4g} %"
    unit = next(iter(units), "")
    return f"{value:.4g}{'' if unit in ('', 'x', '/s') else ' '}{unit}"
