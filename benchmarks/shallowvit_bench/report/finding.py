"""Say in plain sentences what came out, and, louder, what must be known before a figure is believed.

A newcomer's trap: a sentence is only as good as the row behind it, so rows that are invalid or failed give caveats and no
finding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..figures import CAVEATS, METRICS, busy_text, metric_of, text_from_ms
from ..percentiles import runs_needed
from .entries import Entry, Row, tags_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..bundles import BundleInfo

__all__ = ["caveats_of", "finding_of", "main_metric", "metric_title", "rows_of_bundle", "text_of_metric"]

_OVERHEAD = 0.01  # the harness's own share of the median
_P99 = 0.99
_DEVICES = 4  # that the finding names


def metric_title(name: str) -> str:
    """Return a metric's name for people; one that this version doesn't know keeps its own."""
    return METRICS[name].title.removesuffix(" (95 %)") if name in METRICS else name


def text_of_metric(row: Row, name: str) -> str:
    """Return a metric with its interval, or ""."""
    found = metric_of(row, name)
    if not found:
        return ""
    if name in METRICS:
        return METRICS[name].text(row)
    ends = (found.get("low"), found.get("high"))
    return f"{found['value']:.4g}" + ("" if None in ends else f" ({ends[0]:.4g} to {ends[1]:.4g})")


def main_metric(row: Row) -> str | None:
    """Return the metric that stands for a row's accuracy: the first of ``METRICS`` that was measured, top-1 before all."""
    return next((name for name in METRICS if metric_of(row, name)), None)


def rows_of_bundle(bundle: BundleInfo, entries: Sequence[Entry]) -> list[Entry]:
    """Return the entry of each device that speaks for a bundle: one with a speed-up and an accuracy if there is one."""
    best: dict[str, Entry] = {}
    for entry in entries:
        if entry.row["model_sha256"] == bundle.model_sha256 and entry.valid:
            best[entry.device] = max(best.get(entry.device, entry), entry, key=_told)
    return list(best.values())


def _told(entry: Entry) -> tuple[bool, bool]:
    return bool(entry.row.get("speedup")), bool(entry.row.get("metrics"))


def finding_of(bundle: BundleInfo, entries: Sequence[Entry]) -> str:
    """Return what was removed from a bundle's model, and what that brought."""
    plan = bundle.manifest["plan"]
    removed, total = len(plan["removed"]), len(plan["removed"]) + len(plan["kept"])
    saved = 1 - bundle.flops_after / bundle.flops_before if bundle.flops_before else 0.0
    if removed:
        what = f"{bundle.name} is the model without {removed} of its {total} blocks, which saves {saved:.0%} of the FLOPs."
    else:
        what = f"{bundle.name} is the whole model: all {total} blocks are kept."
    own = rows_of_bundle(bundle, entries)
    if not own:
        return f"{what} No valid measurement of it is on this page."
    pairs = [(entry, _other_of(entry, entries)) for entry in own]
    scored = next((pair for pair in pairs if pair[0].row.get("metrics")), pairs[0])
    parts = [what, *(_cost_sentence(*pair) for pair in pairs[:_DEVICES])]
    if len(pairs) > _DEVICES:
        parts.append(f"{len(pairs) - _DEVICES} more devices are in the table.")
    return " ".join([*parts, _accuracy_sentence(scored[0].row, scored[1])])


def _other_of(entry: Entry, entries: Sequence[Entry]) -> Entry | None:
    """The side that ``entry`` was timed against: of the same run if it is on the page, else one as like it as possible."""

    def like(each: Entry) -> tuple[bool, bool]:
        run = str(entry.row.get("id") or "").rpartition("-")[0]
        same_run = bool(run) and str(each.row.get("id") or "").rpartition("-")[0] == run
        return same_run, each.row.get("provider") == entry.row.get("provider")

    def alike(each: Entry) -> bool:
        threads = each.row["conditions"].get("threads") == entry.row["conditions"].get("threads")
        return threads and each.device == entry.device and each.row["batch"] == entry.row["batch"]

    found = [each for each in entries if each.row["side"] == entry.row.get("against") and each.valid and alike(each)]
    return max(found, key=like, default=None)


def _cost_sentence(entry: Entry, other: Entry | None) -> str:
    """Latency and energy on a device."""
    row, parts = entry.row, []
    latency = f"{text_from_ms(row['p50_ms'])} for a batch of {row['batch']}" if row.get("p50_ms") is not None else ""
    if row.get("speedup"):
        text = f"it is {row['speedup']:.2f}x as fast as {row['against']}"
        if row.get("speedup_low") is not None:
            text += f" ({row['speedup_low']:.2f} to {row['speedup_high']:.2f} over rounds)"
        # not from the row of the other side, which may be of a later run
        parts.append(text + (f": {latency} instead of {text_from_ms(row['p50_ms'] * row['speedup'])}" if latency else ""))
    elif latency:
        parts.append(f"it takes {latency}")
    if row.get("energy_item_mj") is None:
        parts.append("its energy was not measured")
    else:
        energy = other.row.get("energy_item_mj") if other else None
        parts.append(
            f"an item takes {row['energy_item_mj']:.3g} mJ above idle"
            + (f" instead of {energy:.3g} mJ" if energy is not None else "")
        )
    return f"On {entry.device} {'; '.join(parts)}."


def _accuracy_sentence(row: Row, other: Entry | None) -> str:
    metric = main_metric(row)
    ours = metric_of(row, metric) if metric else None
    if metric is None or ours is None:
        return "Its accuracy was not measured."
    text = f"Its {metric_title(metric)} on {row.get('data')} is {text_of_metric(row, metric)}"
    theirs = metric_of(other.row, metric) if other and other.row.get("data") == row.get("data") else None
    if other is None or theirs is None:
        return f"{text}."
    text += f"; that of {row['against']} is {text_of_metric(other.row, metric)}"
    if None in (ours.get("low"), ours.get("high"), theirs.get("low"), theirs.get("high")):
        return f"{text}."
    overlap = ours["low"] <= theirs["high"] and theirs["low"] <= ours["high"]
    return f"{text}, and the intervals {'overlap' if overlap else 'lie apart'}."


def caveats_of(bundles: Sequence[BundleInfo], entries: Sequence[Entry], scenarios: Sequence[Entry] = ()) -> tuple[str, ...]:
    """Return what isn't known or went wrong, each a sentence that names the sides it is about."""
    said: dict[str, list[Entry]] = {}
    for entry in entries:
        for text in _caveats_of_row(entry):
            said.setdefault(text, []).append(entry)
    about = [*said.items(), *_over_rows(entries)]
    lines = [f"{_sides_text(which, entries)}: {text}" for text, which in about]
    for entry in scenarios:
        results = entry.row.get("scenario_results") or {}
        if entry.row["status"] != "ok" or results.get("valid") is False or results.get("shortened"):
            lines.append(f"{entry.tag} ({entry.row['side']}): the scenario {entry.row['scenario']} is no valid MLPerf run")
    for bundle in bundles:
        if not rows_of_bundle(bundle, entries):
            lines.append(f"{bundle.name}: nothing valid was measured of this bundle")
        for engine in bundle.manifest.get("engines") or ():
            if engine["attention_fused"] < engine["attention_expected"]:
                count = f"{engine['attention_fused']} of {engine['attention_expected']}"
                lines.append(f"{bundle.name}: attention is fused in only {count} places of {engine['path']}")
    return tuple(lines)


def _sides_text(about: Sequence[Entry], entries: Sequence[Entry]) -> str:
    if len(about) == len(entries) > 1:
        return "all sides"
    return f"{tags_of(about)} ({', '.join(dict.fromkeys(entry.row['side'] for entry in about))})"


def _over_rows(entries: Sequence[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """What is said once for all rows, with the span of their figures."""
    busy = [entry for entry in entries if busy_text(entry.row["conditions"])]
    texts = {busy_text(entry.row["conditions"]) for entry in busy}
    if len(texts) == 1:
        yield texts.pop(), busy
    elif busy:
        loads = sorted(entry.row["conditions"]["load_average"] for entry in busy)
        yield (
            f"busy before the start (loads {loads[0]:g} to {loads[-1]:g}), so latencies are likely too high; "
            "measure again when idle",
            busy,
        )
    short = [entry for entry in entries if entry.row.get("runs") and entry.row.get("p99_ms") is None]
    if short:
        runs = sorted({entry.row["runs"] for entry in short})
        were = f"{runs[0]:,}" if len(runs) == 1 else f"{runs[0]:,} to {runs[-1]:,}"
        yield f"no p99, since it needs {runs_needed(_P99)} runs and there were {were}", short


def _caveats_of_row(entry: Entry) -> Iterator[str]:
    row = entry.row
    if row["status"] == "failed":
        yield f"{row['side']} failed: {row['reason']}"
        return
    yield from (text for caveat in CAVEATS if (text := caveat(row)))
    yield from (text for text in row.get("throttled") or () if text not in (row.get("reason") or ""))
    if row.get("energy_item_mj") is None and not row.get("power_reason"):
        yield "energy was not measured"
    if row.get("warm_up_steady") is False:
        yield "the latency had not become steady when the warm-up ended"
    if not row.get("metrics"):
        yield "accuracy was not measured; give bench the option --data"
    yield from _doubts(row)


def _doubts(row: Row) -> Iterator[str]:
    """What makes a figure that is there doubtful."""
    speedup, low, high = row.get("speedup"), row.get("speedup_low"), row.get("speedup_high")
    if speedup and low and high and not low <= speedup <= high:
        yield (
            f"the speed-up of {speedup:.2f}x lies outside of its own spread over rounds ({low:.2f} to {high:.2f}), so the "
            "machine was not steady"
        )
    elif low and high and low <= 1 <= high:
        yield f"the speed-up isn't beyond noise: over rounds it goes from {low:.2f} to {high:.2f}"
    if speedup and row.get("ideal_speedup") and row.get("share_of_ideal") is None:
        yield f"{row['against']} ran in another runtime or precision, so the speed-up is not that of removed blocks alone"
    if (row.get("overhead") or 0) > _OVERHEAD:
        yield f"the harness's own time is {row['overhead']:.1%} of the median"
    if row.get("unreadable"):
        yield f"{row['unreadable']:,} items of {row['data']} could not be read and count in no metric"
    if row["conditions"].get("clocks_locked") is False:
        yield "clocks were not locked, so the governor chose them during the run"
