"""Turn the rows of ``results/engines.jsonl`` into the tables of ``docs/engines.md``; ``tables.py`` puts them there.

A row that was taken again stands further down, and the last one of a kind counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Row = dict[str, Any]

__all__ = ["engine_tables", "latest", "tables_from_rows"]

RESULTS = Path(__file__).parent / "results" / "engines.jsonl"
_KEY = ("kind", "model", "opset", "precision", "batches", "tokens", "compute_capability")
_PRECISIONS = ("fp32", "fp32, attention fp16", "fp16", "bf16", "int8", "fp8", "int4")
_OPSETS = (23, 18)


def engine_tables() -> str:
    """Return what was measured of the engines built on this machine, as Markdown."""
    return tables_from_rows([json.loads(line) for line in RESULTS.read_text().splitlines()])


def latest(rows: Iterable[Row]) -> list[Row]:
    """Return the last row of each kind, model, opset, precision, profile, number of tokens and compute capability, in order."""
    return list({tuple(row.get(name) for name in _KEY): row for row in rows}.values())


def tables_from_rows(rows: Iterable[Row]) -> str:
    """Return the tables of rows as ``engines.py`` writes them; a kind without rows has no table."""
    rows = latest(rows)
    parts = (_fused, _reasons, _memory, _sizes, _unfused, _tokens, _capabilities, _times, _equality)
    texts = [text for part in parts if (text := part(rows))]
    return "\n".join([*texts, _taken(rows)])


def _of(rows: Sequence[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def _grid(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    """Models down, precisions across; in a cell opset 23 and 18, once where they say the same."""
    cells = _of(rows, "cell")
    found = {(row["model"], row["precision"], row["opset"]): cell(row) for row in cells}
    precisions = [precision for precision in _PRECISIONS if any(row["precision"] == precision for row in cells)]
    lines = []
    for model in sorted({row["model"] for row in cells}):
        line = [model]
        for precision in precisions:
            both = [found.get((model, precision, opset), "not built") for opset in _OPSETS]
            line.append(" / ".join(dict.fromkeys(both)))
        lines.append(line)
    return _table(["model", *precisions], lines)


def _fused(rows: Sequence[Row]) -> str:
    cells = _of(rows, "cell")
    if not cells:
        return ""
    raised = {row["precision"]: row["graph_opset"] for row in cells if row["opset"] == 18 and row.get("graph_opset", 18) > 18}
    note = ", ".join(f"{precision} {opset}" for precision, opset in raised.items())
    return (
        "### Attentions fused\n\nOf all attentions of the graph; opset 23 / opset 18 where they differ. Models have random "
        "weights and their whole depth; the larger ones, and variants, are built in three precisions alone."
        + (f" Quantising raises opset 18: {note}." if note else "")
        + "\n\n"
        + _grid(rows, lambda row: "failed" if row["status"] == "failed" else f"{row['fused']} of {row['expected']}")
    )


def _reasons(rows: Sequence[Row]) -> str:
    """What the builder said where not all is fused, or nothing was built."""
    cells: dict[tuple[str, str], list[str]] = {}
    for row in _of(rows, "cell"):
        said = [row["reason"]] if row["status"] == "failed" else list(row["reasons"])
        for reason in said:
            cells.setdefault((row["precision"], reason), []).append(f"{row['model']}, opset {row['opset']}")
    if not cells:
        return ""
    lines = []
    for (precision, reason), where in cells.items():
        shown = ", ".join(where) if len(where) <= 4 else f"{len(where)} cells"
        lines.append([precision, shown, reason])
    return "In the words of the build, what isn't fused:\n\n" + _table(["precision", "where", "reason"], lines)


def _memory(rows: Sequence[Row]) -> str:
    if not _of(rows, "cell"):
        return ""
    return (
        "### Activation memory\n\nMiB on the device at batch 8, as the builder gives it; opset 23 / opset 18 where they "
        "differ.\n\n" + _grid(rows, lambda row: _number(row.get("activation_mib")))
    )


def _sizes(rows: Sequence[Row]) -> str:
    if not _of(rows, "cell"):
        return ""
    return (
        "### Size of the engine\n\nMiB of the file, those of its weights in brackets; the rest is code. Opset 23 / opset 18 "
        "where they differ.\n\n" + _grid(rows, lambda row: f"{_number(row.get('engine_mib'))}{_weights(row)}")
    )


def _weights(row: Row) -> str:
    return f" ({row['weights_mib']:,.0f})" if row.get("weights_mib") else ""


def _number(mib: float | None) -> str:
    return "failed" if mib is None else f"{mib:,.0f}"


def _unfused(rows: Sequence[Row]) -> str:
    """Fused attention against the same fp16 graph with a gate on its probabilities, and against fp32."""
    cells = {(row["model"], row["precision"], row["opset"]): row.get("activation_mib") for row in _of(rows, "cell")}
    gated = {row["model"]: row for row in sorted(_of(rows, "unfused"), key=lambda row: row["model"])}
    lines = []
    for model, row in gated.items():
        fused, single = cells.get((model, "fp16", 18)), cells.get((model, "fp32", 18))
        tokens = max(row.get("queries") or row.get("keys") or [0])
        unfused = row.get("activation_mib")
        ratios = [_times_more(mib, fused) for mib in (unfused, single)]
        lines.append([model, f"{tokens:,}" if tokens else "", *map(_number, (fused, unfused, single)), *ratios])
    if not lines:
        return ""
    return (
        "### What fused attention saves\n\nActivation memory in MiB at batch 8, opset 18. *fp16 unfused* is the fp16 graph "
        "with a gate of ones on its probabilities, so that nothing but the fused kernels is missing; *fp32* has none and "
        "tensors of twice the size.\n\n"
        + _table(
            ["model", "tokens", "fp16 fused", "fp16 unfused", "fp32", "fp16 unfused : fused", "fp32 : fp16 fused"],
            lines,
        )
    )


def _times_more(mib: float | None, fused: float | None) -> str:
    return "" if not (mib and fused) else f"{mib / fused:.1f}x"


def _tokens(rows: Sequence[Row]) -> str:
    found = {(row["tokens"], row["precision"], row["opset"]): row.get("activation_mib") for row in _of(rows, "tokens")}
    lines = []
    for tokens in sorted({key[0] for key in found}):
        new, fused, gated, single = (
            found.get((tokens, *key)) for key in (("fp16", 23), ("fp16", 18), ("gated", 18), ("fp32", 18))
        )
        ratios = [_times_more(mib, fused) for mib in (gated, single)]
        lines.append([f"{tokens:,}", *map(_number, (new, fused, gated, single)), *ratios])
    if not lines:
        return ""
    return "### By the number of tokens\n\nFour blocks as wide as VideoMAE-S (384, 6 heads), MiB at batch 8.\n\n" + _table(
        [
            "tokens",
            "fp16 fused, opset 23",
            "fp16 fused, opset 18",
            "fp16 unfused",
            "fp32",
            "fp16 unfused : fused",
            "fp32 : fp16 fused",
        ],
        lines,
    )


def _capabilities(rows: Sequence[Row]) -> str:
    found = {(row["compute_capability"], row["precision"]): row for row in _of(rows, "capability")}
    if not found:
        return ""
    precisions = [name for name in _PRECISIONS if any(name == precision for _, precision in found)]
    lines: list[list[str]] = []
    said: dict[str, str] = {}
    for number in dict.fromkeys(key[0] for key in found):
        line = ["portable" if number == "portable" else f"{number / 10:.1f}"]
        for precision in precisions:
            row = found.get((number, precision))
            line.append("" if row is None else row["status"])
            if row and row["status"] in ("refused", "failed"):
                said.setdefault(precision, row["reason"])
        lines.append(line)
    model = next(iter(found.values()))["model"]
    sentences = "".join(f"- {precision}: {reason}\n" for precision, reason in said.items())
    return (
        f"### Compute capabilities\n\n{model}, opset 23, built for one compute capability or as a portable engine; fp32 is "
        "built unfused. What a compute capability can't run is refused before the build:\n\n"
        + _table(["compute capability", *precisions], lines)
        + (f"\nThe first refusal of each:\n\n{sentences}" if sentences else "")
    )


def _times(rows: Sequence[Row]) -> str:
    times = _of(rows, "build-time")
    lines = []
    for row in times:
        if row["status"] == "failed":
            lines.append([row["model"], row["precision"], "failed", "", ""])
            continue
        seconds = f"{row['median_s']:.1f} s ({row['min_s']:.1f} to {row['max_s']:.1f})"
        lines.append([row["model"], row["precision"], seconds, str(row["builds"]), str(row["load_average"])])
    if not lines:
        return ""
    head = ["model", "precision", "median (range)", "builds", "load before"]
    return "### Seconds to build\n\nParsing and building at opset 23, in a process of its own.\n\n" + _table(head, lines)


def _equality(rows: Sequence[Row]) -> str:
    """How many graphs gave the same bytes each time."""
    built = [row for row in rows if "identical" in row]
    if not built:
        return ""
    other = [f"{row['model']}, {row['precision']}, opset {row['opset']}" for row in built if not row["identical"]]
    text = f"Two or three builds of the same graph gave the same bytes for {len(built) - len(other)} of {len(built)} graphs"
    return f"{text}{'; not for ' + ', '.join(other) if other else ''}.\n"


def _taken(rows: Sequence[Row]) -> str:
    conditions = rows[-1]["conditions"]
    packages = conditions["packages"]
    names = ("tensorrt_rtx_cu13", "torch", "timm", "transformers", "onnxruntime")
    versions = ", ".join(f"{name} {packages[name]}" for name in names if packages.get(name))
    loads = [row["conditions"]["load_average"] for row in rows if row["conditions"]["load_average"] is not None]
    load = f", load average {median(loads):.1f} (median of the rows)" if loads else ""
    return f"Taken on {conditions['device']}, {conditions['cores']} cores, no GPU{load}; {versions}.\n"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
