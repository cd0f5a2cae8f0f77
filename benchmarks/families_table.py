"""The table of families, from ``results/families.jsonl``: what passes, and what is refused with its reason.

A newcomer's trap: the newest row of a name counts, and rows of cases that are gone stay until somebody deletes them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["families_table"]

_RESULTS = Path(__file__).parent / "results" / "families.jsonl"
_WAYS = ("deleted", "placeholder", "refused")
_PACKAGES = ("torch", "transformers", "timm", "torchvision", "onnx", "onnxruntime", "tensorrt_rtx_cu13")
_PLACES = re.compile(r"(?<!\S)/\S*?/(?:site-packages/|(?=benchmarks/))")  # where this machine keeps the packages
_HEAD = ("model", "class", "stack", "each block alone", "removed", "ONNX: attentions, error", "engine: fused")


def families_table() -> str:
    """Return a summary, a table for each family with the reasons below it, and what the rows were taken with."""
    newest = {row["name"]: row for row in map(json.loads, _RESULTS.read_text().splitlines())}
    rows = list(newest.values())
    parts = [_summary(rows)]
    for family in dict.fromkeys(row["family"] for row in rows):
        own = [row for row in rows if row["family"] == family]
        table = _table(_HEAD, [_cells(row) for row in own])
        reasons = [f"- `{row['name']}`: {reason}" for row in own for reason in _reasons(row)]
        below = "\n" + "\n".join(reasons) + "\n" if reasons else ""
        parts.append(f"### {family[0].upper()}{family[1:]}\n\n{table}{below}")
    return "\n".join(parts) + "\n" + _conditions(rows)


def _summary(rows: Sequence[dict[str, Any]]) -> str:
    """Counts over all models."""
    engines = [row for row in rows if "engine" in row]
    lines = [
        ["found blocks", _of(sum("stack" in row for row in rows), rows)],
        ["scored by entropy", _of(sum(row.get("scored_by") is not None for row in rows), rows)],
        ["removal: deleted", _of(sum(row.get("way") == "deleted" for row in rows), rows)],
        ["removal: a module without weights keeps the place", _of(sum(row.get("way") == "placeholder" for row in rows), rows)],
        ["removal: refused", _of(sum(row.get("way") == "refused" for row in rows), rows)],
        ["exported, equal to torch", _of(sum(_state(row, "export") == "passes" for row in rows), rows)],
        ["engine, every attention fused", _of(sum(_state(row, "engine") == "passes" for row in engines), engines)],
        ["engine, some attention not fused", _of(sum(_state(row, "engine") == "unfused" for row in engines), engines)],
        ["of these, every attention fused with our kernels", _of(_made_whole(engines), _unfused(engines))],
        ["crashes", _of(sum(row["status"] == "crash" for row in rows), rows)],
    ]
    return _table(["stage", "models"], lines)


def _unfused(engines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in engines if _state(row, "engine") == "unfused"]


def _made_whole(engines: Sequence[dict[str, Any]]) -> int:
    return sum(_state(row, "own_kernels") == "passes" for row in _unfused(engines))


def _of(count: int, rows: Sequence[dict[str, Any]]) -> str:
    return f"{count} of {len(rows)}"


def _state(row: dict[str, Any], stage: str) -> str | None:
    state: str | None = row.get(stage, {}).get("status")
    return state


def _cells(row: dict[str, Any]) -> list[str]:
    name = f"`{row['name']}`" + (f" ({row['note']})" if row.get("note") else "")
    stack = f"`{row['stack']}`: {row['blocks_of_stack']}" if "stack" in row else "-"
    ways = row.get("ways", {})
    each = ", ".join(f"{ways[way]} {way}" for way in _WAYS if way in ways) or "-"
    removed = f"{','.join(map(str, row['removed']))}: {row['way']}" if "way" in row else "-"
    return [name, row.get("class", row["model"]), stack, each, removed, _graph(row), _engine(row)]


def _graph(row: dict[str, Any]) -> str:
    export = row.get("export", {})
    if export.get("status") != "passes":
        return export.get("status", "-")
    used = [step["name"] for step in export["steps"] if step["outcome"] == "used" and step["name"] != "plain"]
    steps = f"; {', '.join(used)}" if used else ""
    batch = f"; batch {export['batch']} only" if export["batch"] != "dynamic" else ""
    return f"{export['attentions']}, {export['relative_error']:.0e}{steps}{batch}"


def _engine(row: dict[str, Any]) -> str:
    engine = row.get("engine", {})
    if "fused" not in engine:
        return engine.get("status", "-")
    if not engine["attentions"]:
        return "built, no attention"
    ours = row.get("own_kernels", {})
    more = f"; with our kernels {ours['fused']} of {ours['attentions']}" if "fused" in ours else ""
    return f"{engine['fused']} of {engine['attentions']}{more}"


def _reasons(row: dict[str, Any]) -> list[str]:
    """What stands in the way, in the order of the stages; each reason once."""
    found = []
    if row["status"] == "crash":
        found.append(f"crash in {row['stage']}: {row['reason']}")
    elif row.get("reason"):
        found.append(f"{row.get('way', row['status'])}, since {row['reason'].removeprefix('prune: ')}")
    if row.get("scored_by") is None and row.get("score_reason"):
        found.append(row["score_reason"])
    for stage in ("export", "engine", "own_kernels"):
        reason = row.get(stage, {}).get("reason")
        if reason and reason != "there is no graph":
            found.append(
                reason
                if reason.startswith(("export:", "build:"))
                else f"{stage.replace('own_kernels', 'with our kernels')}: {reason}"
            )
    return [
        " ".join(_PLACES.sub("", reason).split()).replace("|", "\\|").replace("<", "&lt;") for reason in dict.fromkeys(found)
    ]


def _conditions(rows: Sequence[dict[str, Any]]) -> str:
    last = max(rows, key=lambda row: str(row["conditions"]["time_utc"]))["conditions"]
    versions = ", ".join(f"{name} {last['packages'][name]}" for name in _PACKAGES if name in last["packages"])
    walls = sorted(row["wall_s"] for row in rows)
    peak = max(row["peak_mib"] for row in rows)
    return (
        f"Taken on {last['device']}, {last['cores']} cores, shared; {versions}. The whole line took "
        f"{walls[len(walls) // 2]:.0f} s a model (median; {walls[0]:.0f} to {walls[-1]:.0f} s), the largest process "
        f"{peak:,} MiB.\n"
    )


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = list(head)
    rows = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
