"""How each figure of a row is written for people, on the terminal and in the report: one table for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .percentiles import runs_needed

__all__ = ["CAVEATS", "FIGURES", "METRICS", "SWEEP", "Figure", "busy_text", "metric_of", "text_from_ms"]


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


def _text(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: str(row[key]) if row.get(key) is not None else ""


def _short_ms(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: "" if row.get(key) is None else f"{row[key]:.3f}" if row[key] < 100 else f"{row[key]:,.1f}"


def _latency(key: str) -> Callable[[Mapping[str, Any]], str]:
    """A latency with its interval where there is one."""

    def text(row: Mapping[str, Any]) -> str:
        if row.get(key) is None:
            return ""
        ends = (row.get("intervals_ms") or {}).get(key)
        return f"{row[key]:.3f} ms" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else "")

    return text


def _percentile(key: str, share: float, *, always: bool = True) -> Callable[[Mapping[str, Any]], str]:
    """A percentile, or how many runs it needs; without ``always`` nothing instead."""
    known = _latency(key)

    def text(row: Mapping[str, Any]) -> str:
        return known(row) or (f"needs {runs_needed(share):,} runs" if row.get("runs") and always else "")

    return text


def _metric(name: str, *, share: bool = True) -> Callable[[Mapping[str, Any]], str]:
    def text(row: Mapping[str, Any]) -> str:
        found = metric_of(row, name)
        if not found:
            return ""
        form = "{:.1%}" if share else "{:.4f}"
        ends = (found.get("low"), found.get("high"))
        return form.format(found["value"]) + ("" if None in ends else f" ({' to '.join(map(form.format, ends))})")

    return text


def _plain_metric(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: f"{found['value']:.1%}" if (found := metric_of(row, name)) else ""


def _speedup(row: Mapping[str, Any]) -> str:
    if row.get("speedup") is None:
        return ""
    ends = (row.get("speedup_low"), row.get("speedup_high"))
    return f"{row['speedup']:.2f}x" + ("" if None in ends else f" ({ends[0]:.2f} to {ends[1]:.2f})")


def _ideal(row: Mapping[str, Any]) -> str:
    if row.get("ideal_speedup") is None:
        return ""
    share = row.get("share_of_ideal")
    return f"{row['ideal_speedup']:.2f}x" + (f", {share:.0%} reached" if share is not None else ", the rest is the runtime's")


def _warm_up(row: Mapping[str, Any]) -> str:
    if row.get("warm_up_runs") is None:
        return ""
    return f"{row['warm_up_runs']} runs" + ("" if row["warm_up_steady"] else ", not steady")


def _computed(row: Mapping[str, Any]) -> str:
    """What computes, where that isn't plain from the head of the column."""
    computed = row.get("computed_in")
    graph = (" with a CUDA graph" if row.get("cuda_graph") else "") + (
        "" if row.get("copies") is None else ", copies counted" if row["copies"] else ", copies not counted"
    )
    return f"{row.get('backend')} in {computed}{graph}" if computed else ""


def _power(row: Mapping[str, Any]) -> str:
    if row.get("mean_w") is None:
        return ""
    return f"{row['mean_w']:.2f} W, idle {row['idle_w']:.2f} W" if row.get("idle_w") is not None else f"{row['mean_w']:.2f} W"


def _energy(row: Mapping[str, Any]) -> str:
    if row.get("energy_item_mj") is not None:
        return f"{row['energy_item_mj']:.3g} mJ"
    return "not measured" if row.get("power_reason") else ""


def _on(row: Mapping[str, Any]) -> str:
    if not row.get("items"):
        return ""
    return f"{row['items']:,} of {row['data']}" + (f", {row['unreadable']:,} unreadable" if row.get("unreadable") else "")


def _slowed(row: Mapping[str, Any]) -> str:
    """The drift check, for people."""
    if not row.get("drifted"):
        return ""
    change = "slower" if row["drift"] > 0 else "faster"
    return f"got {abs(row['drift']):.0%} {change} during the run, so the figures are of neither state; measure again when idle"


def _few(row: Mapping[str, Any]) -> str:
    """A ratio of medians that too few runs stand behind."""
    if row.get("speedup") is None or row.get("p50_ms") is not None:
        return ""
    runs = row.get("runs") or "too few"
    return f"the speed-up is of {runs} runs, a median needs {runs_needed(0.5)}, so don't quote it; raise --max-seconds"


METRICS = {
    "top1": Figure("top-1 (95 %)", _metric("top1")),
    "top5": Figure("top-5 (95 %)", _metric("top5")),
    "mean_class": Figure("mean class (95 %)", _metric("mean_class")),
    "map": Figure("mAP (95 %)", _metric("map")),
    "rank1": Figure("rank-1 (95 %)", _metric("rank1")),
    "rank5": Figure("rank-5 (95 %)", _metric("rank5")),
    "rank10": Figure("rank-10 (95 %)", _metric("rank10")),
    "auc": Figure("AUC (95 %)", _metric("auc", share=False)),
    "average_precision": Figure("average precision (95 %)", _metric("average_precision", share=False)),
}
_P50 = Figure("latency p50", _percentile("p50_ms", 0.5))
_P99 = Figure("latency p99", _percentile("p99_ms", 0.99))
_THROUGHPUT = Figure("throughput", _number("items_per_s", "{:,.1f} items/s"))
_ENERGY = Figure("energy an item", _energy)
_SPEEDUP = Figure("speed-up", _speedup)
_STATUS = Figure("status", _text("status"))


FIGURES = (
    _STATUS,
    Figure("computed by", _computed),
    _P50,
    Figure("latency p90", _percentile("p90_ms", 0.9)),
    Figure("latency p95", _percentile("p95_ms", 0.95, always=False)),
    _P99,
    Figure("latency p99.9", _percentile("p999_ms", 0.999, always=False)),
    Figure("latency min", _number("min_ms", "{:.3f} ms")),
    Figure("latency mean", _latency("mean_ms")),
    Figure("p50 by the GPU's clock", _number("device_p50_ms", "{:.3f} ms")),
    Figure("jitter", _number("jitter_ms", "{:.3f} ms")),
    Figure("timed runs", _number("runs", "{:,}")),
    Figure("warm-up", _warm_up),
    _THROUGHPUT,
    Figure("load", _number("load_ms", "{:,.0f} ms")),
    Figure("first inference", _number("first_ms", "{:,.2f} ms")),
    Figure("peak memory", _number("peak_mib", "{:,.0f} MiB")),
    Figure("power", _power),
    _ENERGY,
    Figure("highest temperature", _number("max_temperature_c", "{:.0f} C")),
    *METRICS.values(),
    Figure("on", _on),
    Figure("same predictions", _number("agreement", "{:.1%}")),
    _SPEEDUP,
    Figure("ideal from FLOPs", _ideal),
)

# what a line of a sweep has room for; units stand in the titles
SWEEP = (
    Figure("status", lambda row: "" if row["status"] == "ok" else str(row["status"])),
    Figure("p50 ms", _short_ms("p50_ms")),
    Figure("p99 ms", _short_ms("p99_ms")),
    Figure("items/s", _number("items_per_s", "{:,.1f}")),
    Figure("mJ an item", _number("energy_item_mj", "{:.3g}")),
    *(Figure(METRICS[name].title.partition(" (")[0], _plain_metric(name)) for name in ("top1", "map", "auc")),
    Figure("speed-up", _number("speedup", "{:.2f}x")),
)


def _passed_over(row: Mapping[str, Any]) -> str:
    """What ``--provider auto`` measured and didn't take, though it has the better median."""
    faster = [
        f"{trial['provider']} was {trial['ratio']:.2f}x as fast as cpu, but {trial.get('reason')}"
        for trial in row.get("provider_trials") or ()
        if trial.get("status") == "slower" and (trial.get("ratio") or 0) > _ratio_taken(row)
    ]
    return f"auto took {row['provider']}: {'; '.join(faster)}, and 90 % are needed" if faster else ""


def _ratio_taken(row: Mapping[str, Any]) -> float:
    return next((trial.get("ratio") or 1.0 for trial in row["provider_trials"] if trial.get("status") == "chosen"), 1.0)


# what must be said with a row's figures, each a sentence or ""
def _depths(row: Mapping[str, Any]) -> str:
    """The depths of an adaptive bundle with their shares."""
    listed = ", ".join(f"{name} {share:.0%}" for name, share in (row.get("depth_shares") or {}).items())
    return f"answered by {listed}; mean latency {row['mean_ms']:.3f} ms" if listed and row.get("mean_ms") else ""


CAVEATS: tuple[Callable[[Mapping[str, Any]], str], ...] = (
    _depths,
    lambda row: f"{row['status']}: {row['reason']}" if row.get("reason") else "",
    _slowed,
    _few,
    lambda row: row.get("power_reason") or "",
    lambda row: " ".join(row.get("remarks") or ()),
    _passed_over,
)
