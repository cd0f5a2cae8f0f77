"""The tables about the harness: its timing against others', providers in turn, a device over SSH; ``tables.py`` puts them in.

A newcomer's trap: rows that were taken on a busy machine stand in the files too, and each table says the load it was taken at.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["harness_table", "provider_table", "remote_table", "sides_table"]

RESULTS = Path(__file__).parent / "results"
_AGAINST = {
    "loop": "a plain loop over `session.run` on the same session",
    "tool": "`onnxruntime.tools.onnxruntime_test`, a session of its own",
    "loadgen": "MLPerf LoadGen SingleStream on the same runner",
}


def _read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = list(head)
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *map(list, lines)])


def harness_table() -> str:
    """Return how the harness's own timing differs from others', and what its loop costs."""
    rows = _read("harness")
    lines = []
    for row in rows:
        if row["kind"] == "overhead":
            continue
        turns = f", turns of {row['seconds']:g} s" if "seconds" in row else ""
        lines.append(
            [
                _AGAINST[row["kind"]] + turns,
                row["figure"].removesuffix("_ms"),
                f"{row['ours_ms']:.3f} / {row['theirs_ms']:.3f} ms",
                f"{row['difference']:+.1%} ({row['difference_low']:+.1%} to {row['difference_high']:+.1%})",
                str(row["repetitions"]),
            ]
        )
    (own,) = [row for row in rows if row["kind"] == "overhead"]
    conditions, load = rows[-1]["conditions"], rows[0]["conditions"]["load_average"]
    note = (
        f"The demo model, a batch of one. The loop itself takes {1e3 * own['own_ms']:.2f} µs of a run of "
        f"{own['median_ms']:.2f} ms: {own['share']:.3%}. Taken on {conditions['device']}, {conditions['cores']} cores, "
        f"onnxruntime {conditions['packages']['onnxruntime']}, load before the start {load:g}."
    )
    head = ["against", "figure", "ours / theirs, medians", "difference, median (range)", "repetitions"]
    return f"{_table(head, lines)}\n{note}\n"


def sides_table() -> str:
    """Return the demo model in every runtime, all sides in alternation; medians over repetitions."""
    rows = [row for row in _read("sides") if row["status"] == "ok"]
    lines = []
    for side in dict.fromkeys(row["side"] for row in rows):
        own = [row for row in rows if row["side"] == side]
        speedups = sorted(row["speedup"] for row in own if row["speedup"] is not None)
        gained = f"{median(speedups):.2f}x ({speedups[0]:.2f} to {speedups[-1]:.2f})" if speedups else ""
        ideal = own[-1]["ideal_speedup"]
        lines.append(
            [
                f"{side}, {own[-1]['backend']} in {own[-1]['computed_in']}",
                f"{median(row['p50_ms'] for row in own):.3f} ms",
                gained,
                f"{ideal:.2f}x" if ideal else "",
                f"{median(row['load_ms'] for row in own):,.0f} ms",
                f"{median(row['first_ms'] for row in own):,.0f} ms",
                f"{median(row['peak_mib'] for row in own):,.0f}",
            ]
        )
    conditions, repetitions = rows[-1]["conditions"], len({row["repetition"] for row in rows})
    packages = ", ".join(f"{name} {conditions['packages'][name]}" for name in ("onnxruntime", "torch"))
    head = ["side", "p50", "faster than full", "ideal", "load", "first inference", "peak MiB"]
    return (
        _table(head, lines)
        + f"\n{repetitions} repetitions of all sides in alternation, a batch of one, {conditions['threads']} threads; "
        f"{conditions['device']}; {packages}; load before the start {rows[0]['conditions']['load_average']:g}.\n"
    )


def provider_table() -> str:
    """Return what each graph provider took, against the CPU provider in turn; the newest row of each graph."""
    newest = {(row["model"], row["opset"], row["precision"], row["batch"]): row for row in _read("providers")}
    lines = []
    for (model, opset, precision, batch), row in newest.items():
        for trial in row["trials"]:
            if trial["median_ms"] is None or trial["provider"] == "cpu":
                continue
            cpu = next(one for one in row["trials"] if one["provider"] == "cpu")
            taken = f"yes, took {trial['provider']}" if row["chosen"] == trial["provider"] else f"no, {trial['reason']}"
            lines.append(
                [
                    f"{model}, opset {opset}, {precision}, batch {batch}",
                    f"{cpu['median_ms']:,.2f} ms",
                    f"{trial['provider']} in {trial['computed_in']}, {trial['median_ms']:,.2f} ms",
                    f"{trial['ratio']:.2f}x",
                    f"{trial['error']:.0e}",
                    taken,
                    f"{row['conditions']['load_average']:g}",
                ]
            )
    conditions = next(iter(newest.values()))["conditions"]
    left = {
        trial["provider"]: trial["reason"].partition(": ")[2] or trial["reason"]
        for row in newest.values()
        for trial in row["trials"]
        if trial["median_ms"] is None
    }
    reasons = "; ".join(f"`{provider}`: {reason}" for provider, reason in left.items())
    return (
        _table(["graph", "cpu", "against", "faster", "relative error", "`auto`", "load before"], lines)
        + f"\nTaken on {conditions['device']}, {conditions['cores']} cores. Not measured: {reasons}.\n"
    )


def remote_table() -> str:
    """Return what a call over SSH sends and takes, and how its figures agree with those taken here."""
    rows = _read("remote")
    lines = []
    for row in rows:
        if row["kind"] == "agreement":
            first, later = row["calls"][0], row["calls"][1:]
            seconds = sorted(call["seconds"] for call in later)
            lines += [
                [
                    "median there over median here",
                    f"{row['ratio']:.3f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f}), {row['repetitions']} turns",
                ],
                ["first call", f"{first['sent_bytes'] / 1e6:.1f} MB sent, {first['seconds']:.1f} s with 1,000 timed runs"],
                [
                    "later calls",
                    f"{max(call['sent_bytes'] for call in later)} bytes sent, {seconds[0]:.1f} to {seconds[-1]:.1f} s",
                ],
            ]
        else:
            packages = ", ".join(f"{name} {row['packages'][name]}" for name in ("numpy", "onnxruntime"))
            lines += [
                ["aarch64 userland", f"Python {row['python']}, {packages}, under qemu"],
                [
                    "accuracy there and here",
                    f"{row['top1']:.1%} and {row['top1_here']:.1%} of {row['items']} clips; the same class on "
                    f"{row['same_predictions']:.1%}, outputs differ by at most {row['largest_difference']:.0e} of the largest",
                ],
            ]
    conditions = rows[0]["conditions"]
    return (
        _table(["demo model, 9 of 12 blocks", ""], lines)
        + f"\nThrough an SSH server on loopback; {conditions['device']}, {conditions['cores']} cores.\n"
    )
