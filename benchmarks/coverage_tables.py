"""The table of what looking at a model and checking a removal cost, from ``results/coverage_speed.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["coverage_table"]

_RESULTS = Path(__file__).parent / "results" / "coverage_speed.jsonl"


def coverage_table() -> str:
    """Return the table as Markdown; each figure is a median with its range over processes."""
    rows = [json.loads(line) for line in _RESULTS.read_text().splitlines()]
    lines = ["| ViT-B |  | asked |", "| --- | --- | --- |"]
    looks = [row for row in rows if row["kind"] == "look"]
    for model in dict.fromkeys(row["model"] for row in looks):
        own = [row for row in looks if row["model"] == model]
        seconds = _spread([row["load_s"] + row["score_s"] for row in own], 1)
        beyond = _spread([row["beyond_mib"] for row in own], 0)
        lines.append(f"| `{model}`: loaded, its blocks found and scored | {seconds} s | 5 s |")
        lines.append(f"| `{model}`: memory beyond the packages' own and the weights | {beyond} MiB | 1,500 MiB |")
    for check in [check for row in rows if row["kind"] == "check" for check in row["checks"]][-3:]:
        each = check["forwards"] / check["removed"]
        times = f"{check['times_a_forward']:.1f} ({check['low']:.1f} to {check['high']:.1f})"
        what = f"{check['removed']} block{'s' if check['removed'] > 1 else ''} removed and compared"
        lines.append(
            f"| {what} | {check['forwards']} forwards, {each:.1f} a block; {times} times as long as one | 3 forwards a block |"
        )
    exports = [row for row in rows if row["kind"] == "export"]
    lines.append(f"| exported, as a process of its own | {_spread([row['seconds'] for row in exports], 1)} s | 40 s |")
    conditions: dict[str, Any] = rows[-1]["conditions"]
    packages = conditions["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "onnxruntime") if packages.get(name))
    return "\n".join(lines) + f"\n\nTaken on {conditions['device']}, {conditions['cores']} cores; {versions}.\n"


def _spread(values: list[float], digits: int) -> str:
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
