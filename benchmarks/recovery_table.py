"""The table of what each recovery regains, from ``results/recovery.jsonl``."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

__all__ = ["recovery_table"]

_RESULTS = Path(__file__).parent / "results" / "recovery.jsonl"
_ARMS = {  # name of the rows -> head of the column
    "closed form": "closed form",
    "distill": "distillation",
    "finetune": "finetuning",
    "start": "finetuning behind the closed form",
    "both": "distillation and finetuning",
}


def recovery_table(results: Path = _RESULTS) -> str:
    """Return top-1 of each arm with the share of the loss that came back, and what each took, for the newest settings."""
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if not rows:
        return "Not measured yet.\n"
    newest = {tuple(row["key"]): row for row in rows}
    trained = [row for row in newest.values() if row["items"]]
    last = max(trained or newest.values(), key=lambda row: str(row["conditions"]["time_utc"]))
    settings = (last["items"], last["epochs"])
    kept = [row for row in newest.values() if row["items"] is None or (row["items"], row["epochs"]) == settings]
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in kept:
        groups.setdefault((len(row["removed"]), row["arm"]), []).append(row)
    removals = sorted({removed for removed, _arm in groups})
    arms = {arm: head for arm, head in _ARMS.items() if any((removed, arm) in groups for removed in removals)}
    accuracy = [["blocks removed", "whole", "none", *arms.values()]]
    cost = [["blocks removed", *arms.values()]]
    for removed in removals:
        own = {arm: groups.get((removed, arm), []) for arm in arms}
        first = next(found[0] for found in own.values() if found)
        name = f"{removed} of 12"
        whole, bare = f"{first['top1_whole']:.1%}", f"{first['top1_pruned']:.1%}"
        accuracy.append([name, whole, bare, *map(_accuracy, own.values())])
        cost.append([name, *map(_cost, own.values())])
    seeds = len({row["seed"] for row in kept})
    text = f"Top-1 on {last['test_items']:,} test clips and the share of the loss that came back: the median of {seeds} seeds, "
    text += "least and greatest share in brackets.\n\n" + _markdown(accuracy)
    text += "\nWhat it took of one thread, and inputs seen (an input as often as it was seen):\n\n" + _markdown(cost)
    if trained:
        text += (
            f"\nTrainings: {last['items']:,} clips, of which a tenth judges the epochs, {last['epochs']} epochs, learning rate "
            f"{last['training']['learning_rate']:g}. "
        )
    device, packages = last["conditions"]["device"], last["conditions"]["packages"]
    return f"{text}Taken on {device}, torch {packages['torch']}.\n"


def _accuracy(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    shares = [(row["top1_recovered"] - row["top1_pruned"]) / (row["top1_whole"] - row["top1_pruned"]) for row in rows]
    middle = statistics.median(row["top1_recovered"] for row in rows)
    return f"{middle:.1%} ({statistics.median(shares):.0%}; {min(shares):.0%} to {max(shares):.0%})"


def _cost(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    seconds = statistics.median(row["seconds"] for row in rows)
    return f"{f'{seconds:.0f} s' if seconds < 60 else f'{seconds / 60:.1f} min'}; {rows[0]['inputs_seen']:,}"


def _markdown(lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], ["---"] * len(lines[0]), *lines[1:]))
