"""How each figure of a row is written for people, on the terminal and in the report: one table for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .percentiles import runs_needed

__all__ = ["FIGURES", "Figure", "busy_text", "metric_of", "text_from_ms"]


_BUSY = 0.5  # load per core


@dataclass(frozen=True)
class Figure:
    """A line of the table: its title, and its text for a row ("" where the row has nothing to say)."""

    title: str
    text: Callable[[Mapping[str, Any]], str]


def text_from_ms(latency_ms: float) -> str:
    """Return a latency with three figures, as labels in charts want it."""
    return f"{latency_ms:,.0f} ms" if latency_ms >= 1000 else f"{latency_ms:.3g} ms"


def busy_text(conditions: Mapping[str, Any]) -> str:
    """Return a warning when something else was using the cores before the start, else ""."""
    load, cores = conditions.get("load_average"), conditions.get("cores")
    if load is None or not cores or load < _BUSY * cores:
        return ""
    return f"busy before the start (load {load:g} on {cores} cores), so latencies are likely too high; measure again when idle"


def metric_of(row: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """Return an accuracy figure of a row with its interval, or None where it wasn't measured."""
    found = (row.get("metrics") or {}).get(name)
    return found if found is None or isinstance(found, Mapping) else asdict(found)


def _number(key: str, form: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: form.format(row[key]) if row.get(key) is not None else ""


def _percentile(key: str, share: float) -> Callable[[Mapping[str, Any]], str]:
    def text(row: Mapping[str, Any]) -> str:
        if row.get(key) is not None:
            return f"{row[key]:.3f} ms"
        return f"needs {runs_needed(share)} runs" if row.get("runs") else ""

    return text


def _top1(row: Mapping[str, Any]) -> str:
    found = metric_of(row, "top1")
    return f"{found['value']:.1%} ({found['low']:.1%} to {found['high']:.1%})" if found else ""


def _speedup(row: Mapping[str, Any]) -> str:
    if row.get("speedup") is None:
        return ""
    return f"{row['speedup']:.2f}x ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})"


def _ideal(row: Mapping[str, Any]) -> str:
    if row.get("ideal_speedup") is None:
        return ""
    share = row.get("share_of_ideal")
    return f"{row['ideal_speedup']:.2f}x" + (f", {share:.0%} reached" if share is not None else ", the rest is the runtime's")


def _warm_up(row: Mapping[str, Any]) -> str:
    if row.get("warm_up_runs") is None:
        return ""
    return f"{row['warm_up_runs']} runs" + ("" if row["warm_up_steady"] else ", not steady")


FIGURES = (
    Figure("status", _number("status", "{}")),
    Figure("latency p50", _percentile("p50_ms", 0.5)),
    Figure("latency p90", _percentile("p90_ms", 0.9)),
    Figure("latency p99", _percentile("p99_ms", 0.99)),
    Figure("latency min", _number("min_ms", "{:.3f} ms")),
    Figure("latency mean", _number("mean_ms", "{:.3f} ms")),
    Figure("timed runs", _number("runs", "{:,}")),
    Figure("warm-up", _warm_up),
    Figure("throughput", _number("items_per_s", "{:,.1f} items/s")),
    Figure("load", _number("load_ms", "{:,.0f} ms")),
    Figure("first inference", _number("first_ms", "{:,.2f} ms")),
    Figure("peak memory", _number("peak_mib", "{:,.0f} MiB")),
    Figure("top-1 (95 %)", _top1),
    Figure("on", lambda row: f"{row['items']:,} of {row['data']}" if row.get("items") else ""),
    Figure("same predictions", _number("agreement", "{:.1%}")),
    Figure("speed-up", _speedup),
    Figure("ideal from FLOPs", _ideal),
)
