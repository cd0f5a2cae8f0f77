"""The table of what keeping some tokens costs and saves, from ``results/tokens.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["tokens_table"]

_RESULTS = Path(__file__).parent / "results" / "tokens.jsonl"
_COLUMNS = (  # head, part, scorer
    ("mean", "zero-shot", "mean"),
    ("norm", "zero-shot", "norm"),
    ("even", "zero-shot", "even"),
    ("mean, distilled", "distill", "mean"),
    ("learned, distilled", "distill", "learned"),
)


def tokens_table(results: Path = _RESULTS) -> str:
    """Return top-1 by scorer before and behind a distillation, with the latency, a line a model and share."""
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if not rows:
        return "Not measured yet.\n"
    found = {(row["part"], len(row["removed"]), row["share"], row["scorer"]): row for row in rows}
    cases = sorted({(removed, -share) for _part, removed, share, _scorer in found})
    heads = ["blocks removed", "tokens", *(head for head, _part, _scorer in _COLUMNS), "p50 ms"]
    lines = [heads, ["---"] * len(heads)]
    for removed, negative in cases:
        share = -negative
        own = next(row for key, row in found.items() if key[1:3] == (removed, share))
        cells = [_top1(found.get((part, removed, share, scorer))) for _head, part, scorer in _COLUMNS]
        timed = found.get(("latency", removed, share, "mean"))
        latency = f"{timed['p50_ms']:.2f}" if timed and timed["p50_ms"] else ""
        lines.append([f"{removed} of 12", str(own["tokens"]), *cells, latency])
    trained = next((row for row in reversed(rows) if row["part"] == "distill"), None)
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    text += f"\nTop-1 on {rows[-1]['items']:,} test clips"
    if trained:
        text += f"; distilled for {trained['epochs']} epochs of {trained['train_items']:,} clips, one seed"
    device, packages = rows[-1]["conditions"]["device"], rows[-1]["conditions"]["packages"]
    return f"{text}; latency of a clip in onnxruntime, one thread, all in turn. Taken on {device}, torch {packages['torch']}.\n"


def _top1(row: dict[str, Any] | None) -> str:
    return f"{row['top1']:.1%}" if row else ""
