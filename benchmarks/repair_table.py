"""The table of closed-form repair, from ``results/repair.jsonl``."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

__all__ = ["repair_table"]

_RESULTS = Path(__file__).parent / "results" / "repair.jsonl"
_METHODS = ("projection", "linear", "scale")


def repair_table() -> str:
    """Return top-1 before and after each method, with the share of the loss that came back and its spread over seeds."""
    newest = {_key(row): row for row in map(json.loads, _RESULTS.read_text().splitlines())}
    groups: dict[tuple[int, int], dict[str, list[dict[str, Any]]]] = {}
    for row in newest.values():
        groups.setdefault((len(row["removed"]), row["samples"]), {}).setdefault(row["method"], []).append(row)
    head = ["blocks removed", "inputs", "whole", "pruned", *(f"{method} (share regained)" for method in _METHODS)]
    lines = [head, ["---"] * len(head)]
    for (removed, samples), methods in sorted(groups.items()):
        first = next(iter(methods.values()))[0]
        lines.append(
            [
                f"{removed} of 12",
                str(samples),
                f"{first['top1_whole']:.1%}",
                f"{first['top1_pruned']:.1%}",
                *(_cell(methods.get(method, [])) for method in _METHODS),
            ]
        )
    last = max(newest.values(), key=lambda row: str(row["conditions"]["time_utc"]))
    seeds = len({row["seed"] for row in newest.values()})
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return (
        f"{table}\nTop-1 on {last['items']:,} test clips; the median of {seeds} draws of the inputs, least and greatest share "
        f"in brackets. Taken on {last['conditions']['device']}, torch {last['conditions']['packages']['torch']}.\n"
    )


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return len(row["removed"]), row["samples"], row["method"], row["seed"]


def _cell(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    shares = [(row["top1_repaired"] - row["top1_pruned"]) / (row["top1_whole"] - row["top1_pruned"]) for row in rows]
    middle = statistics.median(row["top1_repaired"] for row in rows)
    return f"{middle:.1%} ({statistics.median(shares):.0%}; {min(shares):.0%} to {max(shares):.0%})"
