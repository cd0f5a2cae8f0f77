"""Turn the rows of ``results/attention_kernels.jsonl`` into the tables of ``docs/kernels.md``; ``tables.py`` puts them there.

A row that was taken again stands further down, and the last one of a kind counts. A newcomer's trap: without rows of ``speed``
there is a sentence that says so, never an empty table that reads as if all were well.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from kernel_bench.floors import goals_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Row = dict[str, Any]

__all__ = ["kernel_tables", "latest", "tables_from_rows"]

RESULTS = Path(__file__).parent / "results" / "attention_kernels.jsonl"
_KEY = ("kind", "variant", "dtype", "head_size", "sm", "model", "pattern", "attention", "tokens", "batch", "side", "gpu")
_USUAL_HEAD = 64
_NO_SPEED = (
    "### Speed\n\nNot measured, since no row was taken on a GPU. `python benchmarks/attention_kernels.py` takes them where one "
    "is at hand.\n"
)


def kernel_tables() -> str:
    """Return what was measured of the attention kernels, as Markdown."""
    return tables_from_rows([json.loads(line) for line in RESULTS.read_text().splitlines()])


def latest(rows: Iterable[Row]) -> list[Row]:
    """Return the last row of each kind and place, in the order of the first."""
    return list({tuple(row.get(name) for name in _KEY): row for row in rows}.values())


def tables_from_rows(rows: Iterable[Row]) -> str:
    """Return the tables of rows as ``attention_kernels.py`` writes them; a kind without rows has no table, speed a sentence."""
    rows = latest(rows)
    parts = (_variants, _generations, _heads, _refused, _memory, _alone, _speed, _goals)
    texts = [text for part in parts if (text := part(rows))]
    return "\n".join([*texts, _taken(rows)])


def _compiled(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["kind"] == "compile" and row["status"] == "compiled"]


def _variants(rows: Sequence[Row]) -> str:
    """A line a variant and type, over all targets."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in _compiled(rows):
        if row["head_size"] == _USUAL_HEAD:
            found.setdefault((row["variant"], row["dtype"]), []).append(row)
    if not found:
        return ""
    lines = []
    for (variant, dtype), own in found.items():
        spilled = [f"{_capability(row['sm'])}: {row['spilled_bytes']}" for row in own if row["spilled_bytes"]]
        lines.append(
            [
                variant,
                dtype,
                str(len(own)),
                _range([row["registers"] for row in own]),
                ", ".join(spilled) or "none",
                _range([row["shared_bytes"] / 1024 for row in own], 1),
                _range([row["instructions"] for row in own]),
                _range([row["tensor_core_instructions"] for row in own]),
                _range([row["warps_per_sm"] for row in own]),
                _range([row["compile_seconds"] for row in own], 1),
            ]
        )
    return (
        f"### What the compiler made of each kernel\n\nHeads of {_USUAL_HEAD}, over the GPUs it was compiled for: "
        "smallest to largest. Registers and spills are a thread's, shared memory a block's; warps are those a multiprocessor "
        "holds at once, worked out from registers, shared memory and the limits of its generation (of 10.0 to 11.0 at most: "
        "their tensor memory isn't counted).\n\n"
        + _table(
            [
                "variant",
                "type",
                "GPUs",
                "registers",
                "spilled bytes",
                "shared KiB",
                "instructions",
                "of tensor cores",
                "warps",
                "seconds to compile",
            ],
            lines,
        )
    )


def _generations(rows: Sequence[Row]) -> str:
    """Plain attention, a line a type and compute capability."""
    own = [row for row in _compiled(rows) if row["variant"] == "plain" and row["head_size"] == _USUAL_HEAD]
    lines = [
        [
            row["dtype"],
            _capability(row["sm"]),
            _tile(row),
            str(row["threads"]),
            str(row["registers"]),
            f"{row['shared_bytes'] / 1024:.1f}",
            str(row["instructions"]),
            str(row["tensor_core_instructions"]),
            f"{row['blocks_per_sm']} ({100 * row['occupancy']:.0f} % of its warps)",
            row["limited_by"],
            f"{row['ptx_version'] / 10:.1f}{', exact' if row['exact'] else ''}",
        ]
        for row in own
    ]
    if not lines:
        return ""
    head = ["type", "GPU", "tile", "threads", "registers", "shared KiB", "instructions", "of tensor cores"]
    return (
        f"### Plain attention on each GPU\n\nHeads of {_USUAL_HEAD}. The tile is queries by keys; *exact* code runs there "
        "alone, other code on later GPUs too.\n\n" + _table([*head, "blocks a multiprocessor", "limited by", "PTX"], lines)
    )


def _heads(rows: Sequence[Row]) -> str:
    """Plain attention by head size, over the targets that were tried with each."""
    found: dict[tuple[int, str], list[Row]] = {}
    for row in _compiled(rows):
        if row["variant"] == "plain":
            found.setdefault((row["head_size"], row["dtype"]), []).append(row)
    if len({size for size, _ in found}) < 2:
        return ""
    lines = []
    for (size, dtype), own in sorted(found.items()):
        spilled = [f"{_capability(row['sm'])}: {row['spilled_bytes']}" for row in own if row["spilled_bytes"]]
        tiles = ", ".join(dict.fromkeys(_tile(row) for row in own))
        shared = _range([row["shared_bytes"] / 1024 for row in own], 1)
        lines.append([str(size), dtype, str(len(own)), tiles, _range([row["registers"] for row in own]), shared])
        lines[-1].append(", ".join(spilled) or "none")
    head = ["head size", "type", "GPUs", "tiles", "registers", "shared KiB", "spilled bytes"]
    return "### Plain attention by head size\n\n" + _table(head, lines)


def _refused(rows: Sequence[Row]) -> str:
    refused: dict[str, list[str]] = {}
    for row in rows:
        if row["kind"] == "compile" and row["status"] == "refused":
            where = f"{row['variant']} {row['dtype']}, heads of {row['head_size']}, {_capability(row['sm'])}"
            refused.setdefault(row["reason"], []).append(where)
    if not refused:
        return ""
    return "Refused:\n\n" + "".join(f"- {', '.join(where)}: {reason}\n" for reason, where in refused.items())


def _memory(rows: Sequence[Row]) -> str:
    own = [row for row in rows if row["kind"] == "engine-memory"]
    found: dict[tuple[int, str], dict[str, Row]] = {}
    for row in own:
        found.setdefault((row["tokens"], row["pattern"]), {})[row["attention"]] = row
    lines = []
    for (tokens, pattern), both in found.items():
        native, ours = both.get("native", {}), both.get("plugin", {})
        mib = [side.get("activation_mib") for side in (native, ours)]
        ratio = f"{mib[0] / mib[1]:.1f}x" if mib[0] and mib[1] else ""
        counts = [_count(side, name) for side, name in ((native, "fused"), (ours, "plugins"))]
        lines.append([f"{tokens:,}", pattern, *counts, *(_mib(side) for side in (native, ours)), ratio])
    if not lines:
        return ""
    failed = dict.fromkeys(row["reason"] for row in own if row["status"] == "failed")
    first = own[0]
    return (
        "### Memory of an engine\n\nActivation memory in MiB at batch 8, as TensorRT-RTX gives it when it builds: 4 "
        f"blocks as wide as VideoMAE-S ({first['width']}, {first['model_heads']} heads), by TensorRT and our kernel. *Gated* "
        "is the fp16 graph with a gate of ones on its probabilities, which TensorRT doesn't fuse.\n\n"
        + _table(
            ["tokens", "graph", "fused by TensorRT", "by our kernel", "MiB, TensorRT", "MiB, our kernel", "TensorRT : ours"],
            lines,
        )
        + (f"\nWhat failed:\n\n{''.join(f'- {reason}{chr(10)}' for reason in failed)}" if failed else "")
    )


def _alone(rows: Sequence[Row]) -> str:
    """A line a case: everything that must be in memory at once, by TensorRT and by ours."""
    found: dict[tuple[int, str, str], dict[str, Row]] = {}
    for row in rows:
        if row["kind"] == "alone-memory" and row["status"] == "ok":
            found.setdefault((row["tokens"], row["variant"], row["dtype"]), {})[row["attention"]] = row
    lines = []
    for (tokens, variant, dtype), both in found.items():
        if set(both) != {"native", "plugin"}:
            continue
        native, ours = (row["activation_mib"] + row["io_mib"] for row in (both["native"], both["plugin"]))
        how = "fused" if both["native"]["fused"] else "not fused"
        inputs = f"{both['plugin']['io_mib']:,.0f}"
        lines.append([f"{tokens:,}", variant, dtype, how, inputs, f"{native:,.0f}", f"{ours:,.0f}", f"{native / ours:.1f}x"])
    if not lines:
        return ""
    return (
        "### Memory of one attention alone\n\nMiB at batch 8, 12 heads of 64, operands of 12 heads times tokens times tokens: "
        "inputs and output, then with what the engine needs beside them, as TensorRT-RTX gives it when it builds.\n\n"
        + _table(
            ["tokens", "variant", "type", "by TensorRT", "inputs, output", "TensorRT", "our kernel", "TensorRT : ours"], lines
        )
    )


def _speed(rows: Sequence[Row]) -> str:
    """A line a case, the sides across."""
    own = [row for row in rows if row["kind"] == "speed"]
    if not own:
        return _NO_SPEED
    sides = list(dict.fromkeys(row["side"] for row in own))
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in own:
        case = tuple(row[name] for name in ("gpu", "variant", "dtype", "head_size", "tokens", "batch"))
        found.setdefault(case, {})[row["side"]] = row
    lines = []
    for (gpu, variant, dtype, head_size, tokens, batch), by_side in found.items():
        any_row = next(iter(by_side.values()))
        floors = [_ms(any_row[name]) for name in ("bytes_ms", "operations_ms")]
        lines.append([gpu, variant, dtype, str(head_size), f"{tokens:,}", str(batch), *floors])
        lines[-1] += [_side(by_side.get(side)) for side in sides]
    reasons: dict[str, list[str]] = {}
    for row in own:
        if row["status"] != "measured":
            reasons.setdefault(f"{row['side']}: {row['status']}: {row['reason']}", []).append(row["variant"])
    head = ["GPU", "variant", "type", "head size", "tokens", "batch", "floor of bytes, ms", "floor of operations, ms"]
    return (
        "### Speed\n\nMilliseconds: the median (10th to 90th percentile), then the memory in MiB beyond the inputs, then the "
        "error (root mean square, relative to fp32).\n\n"
        + _table([*head, *sides], lines)
        + "".join(f"\n- {reason} ({', '.join(dict.fromkeys(where))})" for reason, where in reasons.items())
        + "\n"
    )


def _side(row: Row | None) -> str:
    if row is None:
        return ""
    if row["status"] != "measured":
        return str(row["status"])
    times = f"{_ms(row['median_ms'])} ({_ms(row['p10_ms'])} to {_ms(row['p90_ms'])})"
    return f"{times}, {row['peak_mib']:,.0f} MiB, {row['relative_error']:.1e}"


def _goals(rows: Sequence[Row]) -> str:
    goals = [goal for goal in goals_of(rows) if goal.reached is not None]
    return "".join(f"- {goal}\n" for goal in goals)


def _ms(milliseconds: float | None) -> str:
    return "unknown" if milliseconds is None else f"{milliseconds:.3g}"


def _count(row: Row, name: str) -> str:
    return f"{row[name]} of {row['expected']}" if name in row else row.get("status", "not built")


def _mib(row: Row) -> str:
    mib = row.get("activation_mib")
    return row.get("status", "not built") if mib is None else f"{mib:,.0f}"


def _capability(sm: int) -> str:
    return f"{sm / 10:.1f}"


def _tile(row: Row) -> str:
    return f"{row['tile']['queries']} x {row['tile']['keys']}"


def _range(numbers: Sequence[float], digits: int = 0) -> str:
    low, high = (f"{number:,.{digits}f}" for number in (min(numbers), max(numbers)))
    return low if low == high else f"{low} to {high}"


def _taken(rows: Sequence[Row]) -> str:
    conditions = rows[-1]["conditions"]
    packages = conditions["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("triton", "torch", "tensorrt_rtx_cu13") if packages.get(name))
    assemblers = sorted({row["ptxas"] for row in _compiled(rows)})
    loads = [load for row in rows if (load := row["conditions"]["load_average"]) is not None]
    load = f", load average {median(loads):.1f} (median of the rows)" if loads else ""
    return (
        f"Taken on {conditions['device']}, {conditions['cores']} cores, {conditions['gpu'] or 'no GPU'}{load}; {versions}"
        + (f", ptxas {' and '.join(assemblers)}" if assemblers else "")
        + ".\n"
    )


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
