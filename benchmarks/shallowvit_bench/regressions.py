"""Compare rows with those of an earlier run and tell a regression from noise: what ``--baseline`` and ``--max-regression`` do.

A figure has regressed when the whole 95 % interval of its change is beyond what is allowed. A newcomer's trap: the interval
of one run doesn't know how much the next start of the program differs; several baseline rows under the same conditions do, and
then it counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BenchError
from .figures import METRICS, busy_text, metric_of
from .gates import interval_of, row_label, why_missing
from .percentiles import interval_tail, resample, runs_needed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["FIGURES", "Regression", "Verdict", "compare_with_baseline"]

FIGURES: dict[str, float | None] = {
    "p50_ms": 0.5,
    "mean_ms": None,
    "p90_ms": 0.9,
    "p95_ms": 0.95,
    "p99_ms": 0.99,
    "p999_ms": 0.999,
}
_DRAWS = 1000
_MOST_TIMES = 1000  # more runs than these times as many settle nothing that matters
_KEY = ("side", "backend", "provider", "precision", "batch", "copies", "threads", "device", "gpu", "board")
_PASSING = ("time_utc", "load_average", "commit", "command")  # conditions that say nothing about the figures


class Verdict(str, Enum):
    """What came of a comparison; the first two pass."""

    KEPT = "kept"
    NOISE = "within noise"
    REGRESSED = "regressed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Regression:
    """A figure of a row against the baseline's.

    Args:
        change: How much worse, above 0, or better it is: a share of the baseline's figure, for accuracy a difference of
            shares. None: not comparable.
        low: With ``high``, the 95 % interval of the change; None: none is known.
        warnings: What differs besides, or makes the figures doubtful, each a sentence.
        failed: Whether the run should fail: what can't be compared doesn't pass.
    """

    row: str
    figure: str
    verdict: Verdict
    change: float | None
    low: float | None
    high: float | None
    sentence: str
    warnings: tuple[str, ...] = ()
    failed: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "failed", self.verdict in (Verdict.REGRESSED, Verdict.UNKNOWN))


@dataclass(frozen=True)
class _Change:
    """A change for the worse with its interval; ``between``: most of its noise is from one measurement to the next."""

    change: float
    low: float | None
    high: float | None
    between: bool = False


def compare_with_baseline(
    rows: Sequence[Mapping[str, Any]],
    baseline_rows: Sequence[Mapping[str, Any]],
    max_regression: float,
    figure: str = "p50_ms",
    max_accuracy_drop: float = 0.01,
) -> tuple[Regression, ...]:
    """Compare each row's latency, accuracy and energy with the baseline rows of the same side, provider, batch and device.

    Rows of LoadGen, whose figures are others, are passed over.

    Args:
        rows: Those in question, with their raw samples.
        baseline_rows: Of earlier runs; several of the same kind count as repetitions.
        max_regression: By what share latency and energy may get worse.
        figure: The latency: ``p50_ms``, ``mean_ms`` or a percentile.
        max_accuracy_drop: By how much each accuracy figure may fall, as a difference of shares: 0.01 is one point.

    Raises:
        BenchError: there are no rows, or ``figure`` isn't one of those.
    """
    if figure not in FIGURES:
        raise BenchError(f"compare_with_baseline: no interval for {figure!r}; choose one of {', '.join(FIGURES)}")
    rows, baseline_rows = ([row for row in some if not row.get("scenario")] for some in (rows, baseline_rows))
    if not rows or not baseline_rows:
        where = "to compare" if baseline_rows else "in the baseline"
        raise BenchError(f"compare_with_baseline: no rows {where}; measure with: shallowvit bench BUNDLE --rows ROWS")
    found: list[Regression] = []
    for row in rows:
        label = row_label(row)
        matching = [other for other in baseline_rows if other["status"] == "ok" and _key_of(other) == _key_of(row)]
        if row["status"] != "ok":
            text = f"the run is {row['status']}, {row['reason']}"
            found.append(Regression(label, figure, Verdict.UNKNOWN, None, None, None, text))
        elif not matching:
            text = _no_match(row, baseline_rows)
            found.append(Regression(label, figure, Verdict.UNKNOWN, None, None, None, text))
        else:
            warnings = _warnings(row, matching)
            found.append(_compare_latency(row, matching, max_regression, figure, warnings))
            found += _compare_energy(row, matching, max_regression)
            with_accuracy = [other for other in matching if other.get("metrics")]
            found += _compare_accuracy(row, (with_accuracy or matching)[-1], max_accuracy_drop)
    return tuple(found)


def _key_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for two rows to be compared."""
    return {name: row.get(name, row["conditions"].get(name)) for name in _KEY}


def _no_match(row: Mapping[str, Any], baseline_rows: Sequence[Mapping[str, Any]]) -> str:
    """Say how the nearest row of the baseline differs."""
    ours = _key_of(row)
    nearest = max(baseline_rows, key=lambda other: sum(_key_of(other)[name] == ours[name] for name in _KEY))
    theirs = _key_of(nearest)
    differing = ", ".join(f"{name} {theirs[name]} (here {ours[name]})" for name in _KEY if theirs[name] != ours[name])
    if not differing:
        return f"the baseline's run is {nearest['status']}, {nearest['reason']}; measure the baseline again"
    return f"the baseline has no such row: the nearest has {differing}; measure the baseline under the same conditions"


def _warnings(row: Mapping[str, Any], matching: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What makes the comparison doubtful."""
    found = []
    ours, theirs = _told(row), _told(matching[-1])
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            found.append(f"{name} is {ours.get(name)}, the baseline's {theirs.get(name)}")
    for owner, one in (("this run", row), *(("the baseline", other) for other in matching)):
        if one.get("drifted"):
            found.append(f"{owner} changed its speed by {one['drift']:+.0%} while it was measured")
        if text := busy_text(one["conditions"]):
            found.append(f"{owner} was {text}")
    return tuple(dict.fromkeys(found))


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions that may change figures, flat, without those that the key holds."""
    conditions = {name: value for name, value in row["conditions"].items() if name not in (*_KEY, *_PASSING, "packages")}
    packages = row["conditions"].get("packages") or {}
    facts = {name: row.get(name) for name in ("computed_in", "cuda_graph", "input_shape", "data", "power_source")}
    facts["input_shape"] = list(facts["input_shape"] or ())
    return {name: value for name, value in {**facts, **conditions, **packages}.items() if value is not None}


def _compare_latency(
    row: Mapping[str, Any],
    matching: Sequence[Mapping[str, Any]],
    allowed: float,
    figure: str,
    warnings: tuple[str, ...],
) -> Regression:
    share, label = FIGURES[figure], row_label(row)
    needed = runs_needed(share) if share is not None else 1
    short = [one for one in (row, *matching) if len(one.get("samples_ms") or ()) < needed]
    if short:
        whose = "here" if short[0] is row else "in the baseline"
        why = why_missing(short[0], figure) if short[0].get("samples_ms") else "the row holds no raw samples"
        text = f"{figure} is unknown {whose}: {why}"
        return Regression(label, figure, Verdict.UNKNOWN, None, None, None, text, warnings)
    samples = [np.asarray(one["samples_ms"], np.float64) for one in (row, *matching)]
    change = _ratio_change(samples, share)
    verdict = _verdict(change, allowed)
    sentence = _sentence(figure, change, allowed, verdict)
    if verdict is Verdict.NOISE:
        sentence += "; " + _settling(change, allowed, min(map(len, samples)), "runs a side")
    if verdict is Verdict.REGRESSED and len(matching) == 1:
        warnings += (
            "the baseline is one measurement, so how much one start of the program differs from the next isn't in the "
            "interval; append two or more to the baseline",
        )
    return Regression(label, figure, verdict, change.change, change.low, change.high, sentence, warnings)


def _ratio_change(samples: Sequence[np.ndarray[Any, Any]], share: float | None) -> _Change:
    """How much greater the first samples' figure is than the others' geometric mean, with the 95 % interval.

    Beside the noise within each, the spread between the baseline's measurements counts: by Student's t, for ours and for
    their mean.
    """
    points = np.array([math.log(np.mean(one) if share is None else np.quantile(one, share)) for one in samples])
    draws = np.array([_log_draws(one, share, seed) for seed, one in enumerate(samples)])
    ours, theirs = draws[0], draws[1:].mean(axis=0)
    within = float(draws[1:].var(axis=1).mean())
    variance, spread = 0.0, np.zeros(_DRAWS)
    repeats = len(samples) - 1
    if repeats > 1:
        variance = max(0.0, float(points[1:].var(ddof=1)) - within)
        chance = np.random.default_rng(len(samples)).standard_t(repeats - 1, size=_DRAWS)
        spread = math.sqrt(variance * (1 + 1 / repeats)) * chance
    tail = min(map(interval_tail, samples))
    low, high = np.expm1(np.quantile(ours - theirs + spread, (tail, 1 - tail)))
    return _Change(math.expm1(points[0] - points[1:].mean()), float(low), float(high), between=variance > within)


def _log_draws(samples: np.ndarray[Any, Any], share: float | None, seed: int) -> np.ndarray[Any, Any]:
    drawn = resample(samples, () if share is None else (share,), _DRAWS, seed)
    found: np.ndarray[Any, Any] = np.log(drawn.means if share is None else drawn.quantiles[:, 0])
    return found


def _compare_energy(row: Mapping[str, Any], matching: Sequence[Mapping[str, Any]], allowed: float) -> list[Regression]:
    """The energy of an item; nothing where the baseline has none."""
    name, label = "energy_item_mj", row_label(row)
    theirs = [other[name] for other in matching if other.get(name) is not None]
    if not theirs:
        return []
    if row.get(name) is None:
        text = f"{name} was not measured here, the baseline has it: {why_missing(row, name)}"
        return [Regression(label, name, Verdict.UNKNOWN, None, None, None, text)]
    change = _Change(row[name] / float(np.mean(theirs)) - 1, None, None)
    verdict = _verdict(change, allowed)
    return [Regression(label, name, verdict, change.change, None, None, _sentence(name, change, allowed, verdict))]


def _compare_accuracy(row: Mapping[str, Any], baseline: Mapping[str, Any], allowed: float) -> list[Regression]:
    """Each accuracy figure that the baseline has."""
    label, found = row_label(row), []
    for name in METRICS:
        ours, theirs = metric_of(row, name), metric_of(baseline, name)
        if theirs is None:
            continue
        if ours is None or row.get("data") != baseline.get("data"):
            here = "was not measured" if ours is None else f"is on {row.get('data')}"
            text = f"{name} {here} here, the baseline's is on {baseline.get('data')}; measure with the same --data"
            found.append(Regression(label, name, Verdict.UNKNOWN, None, None, None, text))
            continue
        change = _drop(ours, theirs, interval_of(row, name), interval_of(baseline, name))
        verdict = _verdict(change, allowed)
        sentence = _sentence(name, change, allowed, verdict, points=True)
        if verdict is Verdict.NOISE:
            sentence += "; " + _settling(change, allowed, min(row.get("items") or 0, baseline.get("items") or 0), "items")
        found.append(Regression(label, name, verdict, change.change, change.low, change.high, sentence))
    return found


def _drop(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    our_ends: tuple[float, float] | None,
    their_ends: tuple[float, float] | None,
) -> _Change:
    """How much an accuracy figure fell; the interval of the difference is Newcombe's, from both figures' own (1998)."""
    change = theirs["value"] - ours["value"]
    if our_ends is None or their_ends is None:
        return _Change(change, None, None)
    below = math.hypot(theirs["value"] - their_ends[0], our_ends[1] - ours["value"])
    above = math.hypot(their_ends[1] - theirs["value"], ours["value"] - our_ends[0])
    return _Change(change, change - below, change + above)


def _verdict(change: _Change, allowed: float) -> Verdict:
    if change.change <= allowed:
        return Verdict.KEPT
    return Verdict.NOISE if change.low is not None and change.low <= allowed else Verdict.REGRESSED


def _sentence(name: str, change: _Change, allowed: float, verdict: Verdict, *, points: bool = False) -> str:
    """Say how much worse or better, within which interval, and what that means."""
    unit, worse, better = (" points", "lower", "higher") if points else (" %", "worse", "better")
    sign = 1 if change.change > 0 else -1
    much = f"{abs(100 * change.change):.1f}{unit} {worse if sign > 0 else better}" if change.change else "as it was"
    between = ""
    if change.low is not None and change.high is not None:
        low, high = sorted((100 * sign * change.low, 100 * sign * change.high))
        between = f" ({low:.1f} to {high:.1f})"
    limit = f"{100 * allowed:g}{unit.removesuffix('s') if allowed == 0.01 else unit}"
    meaning = {
        Verdict.KEPT: f"within the {limit} allowed" if change.change > 0 else "no regression",
        Verdict.NOISE: f"more than the {limit} allowed, but within noise",
        Verdict.REGRESSED: f"more than the {limit} allowed",
        Verdict.UNKNOWN: "",
    }[verdict]
    if verdict is Verdict.KEPT and change.high is not None and change.high > allowed:
        meaning += f", but up to {100 * change.high:.1f}{unit} {worse} can't be ruled out; measure longer or when idle"
    if verdict is Verdict.REGRESSED and change.low is None:
        meaning += " (no interval is known, so noise can't be told apart)"
    return f"{name} is {much}{between}, {meaning}"


def _settling(change: _Change, allowed: float, count: int, what: str) -> str:
    """Say how many runs or items would bring the interval's near end to the limit: noise falls with their square root."""
    assert change.low is not None
    if change.between:
        return "the baseline's own measurements differ as much, so only more of them would settle it"
    times = ((change.change - change.low) / (change.change - allowed)) ** 2
    if times > _MOST_TIMES or not count:
        return f"so near the limit that more {what} would hardly settle it"
    needed = math.ceil(times * count)
    digits: int = 10 ** max(0, len(str(needed)) - 2)
    return f"about {math.ceil(needed / digits) * digits:,} {what} would settle it (there were {count:,})"
