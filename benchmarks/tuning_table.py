"""The table of tune against an exhaustive search, from ``results/tuning.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["tuning_table"]

_RESULTS = Path(__file__).parent / "results" / "tuning.jsonl"
_HEAD = (
    "budget",
    "search",
    "top-1",
    "latency",
    "trainings of candidates",
    "epochs together",
    "top-1 against exhaustive",
    "seeds",
)
_SETTINGS = ("epochs", "train_items", "criteria", "selects", "keep_tokens")


def tuning_table(results: Path = _RESULTS) -> str:
    """Return what both searches found under each budget, medians over seeds, of the settings of the newest row."""
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
    if not rows:
        return "Not measured yet: `python benchmarks/tuning.py`.\n"
    last = max(rows, key=lambda row: str(row["conditions"]["time_utc"]))
    newest = {(row["share"], row["seed"]): row for row in rows if all(row.get(name) == last[name] for name in _SETTINGS)}
    lines = [list(_HEAD), ["---"] * len(_HEAD)]
    for share in sorted({share for share, _ in newest}):
        own = [row for (one, _), row in sorted(newest.items()) if one == share]
        budget = median(row["budget_ms"] for row in own)
        for name in ("tune", "exhaustive"):
            found = [row[name] for row in own]
            behind = [100 * (row[name]["top1"] - row["exhaustive"]["top1"]) for row in own]
            lines.append(
                [
                    f"{budget:.3g} ms ({share:.0%} of the unpruned model's)",
                    name,
                    _spread([100 * one["top1"] for one in found], lambda value: f"{value:.1f}%"),
                    _spread([one["latency_ms"] for one in found], lambda value: f"{value:.3g} ms"),
                    f"{median(one['trainings'] for one in found):g} of {median(one['candidates'] for one in found):g}",
                    f"{median(one['epochs'] for one in found):g}",
                    "" if name == "exhaustive" else _spread(behind, lambda value: f"{value:+.1f}"),
                    str(len(own)),
                ]
            )
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return (
        f"{table}\nMedians over seeds, least and greatest in brackets. Top-1 on `demo:report`, clips "
        "of digit images that neither a training nor a choice has seen; the unpruned model has "
        f"{last['whole_top1']:.1%} at {last['whole_ms']:.3g} ms. Trained on {last['train_items']:,} clips, {last['epochs']} "
        f"epochs in the last rung, judged by {last['judging_items']:,}. Taken on {last['conditions']['device']}.\n"
    )


def _spread(values: list[float], text: Callable[[float], Any]) -> str:
    if len(values) == 1 or min(values) == max(values):
        return str(text(values[0]))
    return f"{text(median(values))} ({text(min(values))} to {text(max(values))})"
