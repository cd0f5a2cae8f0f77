"""The table of adaptive depth, from ``results/adaptive.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["adaptive_table"]

_RESULTS = Path(__file__).parent / "results" / "adaptive.jsonl"
_WAYS = {"gate": "the gate's mix", "random": "a random mix at the same shares", "confidence": "a cascade by confidence"}


def adaptive_table() -> str:
    """Return mean and tail latency and accuracy of the mix, of each depth, and of the ways without a gate."""
    if not _RESULTS.is_file():
        return "No row is committed yet; `python benchmarks/adaptive.py` writes them.\n"
    newest = {row["way"]: row for row in map(json.loads, _RESULTS.read_text().splitlines())}
    fixed = sorted((way for way in newest if way not in _WAYS), key=_depth, reverse=True)
    order = [*fixed, *(way for way in _WAYS if way in newest)]
    lines = [["", "answered by", "mean ms", "p99 ms", "top-1"], ["---"] * 5]
    for way in order:
        row = newest[way]
        shares = ", ".join(f"{name} {share:.0%}" for name, share in (row.get("depth_shares") or {}).items())
        p99 = f"{row['p99_ms']:.2f}" if row.get("p99_ms") is not None else ""
        mean = f"{row['mean_ms']:.2f}" if row.get("mean_ms") is not None else ""
        lines.append([_WAYS.get(way, way), shares, mean, p99, _top1(row)])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    first = newest["gate"]
    said = "".join(f" The command says: {text}." for text in first["remarks_of_adapt"])
    return (
        f"{table}\nOne clip at a time, on {first['items']:,} clips; thresholds for a drop of at most "
        f"{first['max_drop']:.0%}. The random mix and the cascade are put together from the depths' own times and answers."
        f"{said} Taken on {first['conditions']['device']}, {first['conditions']['cores']} cores.\n"
    )


def _depth(way: str) -> int:
    return int(way.rpartition("-")[2])


def _top1(row: dict[str, Any]) -> str:
    found = (row.get("metrics") or {}).get("top1")
    return f"{found['value']:.1%}" if found else ""
