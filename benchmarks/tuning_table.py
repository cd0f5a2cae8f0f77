"""The table of tune against an exhaustive search, from ``results/tuning.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["tuning_table"]

_RESULTS = Path(__file__).parent / "results" / "tuning.jsonl"
_HEAD = ("budget", "search", "point", "latency", "top-1", "trainings", "epochs together")


def tuning_table() -> str:
    """Return what both searches found under each budget, the newest row a budget."""
    if not _RESULTS.is_file():
        return "Not measured yet: `python benchmarks/tuning.py`.\n"
    newest: dict[float, dict[str, Any]] = {row["share"]: row for row in map(json.loads, _RESULTS.read_text().splitlines())}
    lines = [list(_HEAD), ["---"] * len(_HEAD)]
    for share, row in sorted(newest.items()):
        for name in ("tune", "exhaustive"):
            own = row[name]
            lines.append(
                [
                    f"{row['budget_ms']:.3g} ms ({share:.0%} of the unpruned model's)",
                    name,
                    own["point"],
                    f"{own['latency_ms']:.3g} ms",
                    f"{own['top1']:.1%}",
                    str(own["trainings"]),
                    str(own["epochs"]),
                ]
            )
    last = max(newest.values(), key=lambda row: str(row["conditions"]["time_utc"]))
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return (
        f"{table}\nTop-1 on the test clips of `demo`; the unpruned model has {last['whole_top1']:.1%} at "
        f"{last['whole_ms']:.3g} ms. Trained on {last['train_items']:,} clips, {last['epochs']} epochs in the last rung. Taken "
        f"on {last['conditions']['device']}.\n"
    )
