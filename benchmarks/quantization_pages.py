"""Turn the rows of ``quantization.py`` into the tables of ``docs/quantization.md``; ``tables.py`` puts them in."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RESULTS = Path(__file__).parent / "results" / "quantization.jsonl"


def quantization_tables() -> str:
    """Return what each precision costs and gains, as Markdown."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("check", "engine", "speed", "tool")}
    models = list(dict.fromkeys(row["model"] for row in kinds["check"]))
    conditions = kinds["speed"][-1]["conditions"]
    loads = [row["conditions"]["load_average"] for row in kinds["speed"]]
    return (
        "### Accuracy and size\n\n"
        + "".join(f"{_accuracy(model, kinds['check'])}\n" for model in models)
        + "### Engines\n\n"
        + _engines(kinds["engine"])
        + "\n### Speed on a CPU\n\n"
        + "".join(f"{_speeds(model, kinds['speed'])}\n" for model in models)
        + f"Taken on {conditions['device']}, one thread, at a load of {min(loads):.1f} to {max(loads):.1f} from other work on "
        f"{conditions['cores']} cores; onnxruntime {conditions['packages']['onnxruntime']}.\n"
        + "\n### Other quantisers\n\n"
        + _tools(kinds["tool"])
    )


def _accuracy(model: str, rows: Sequence[dict[str, Any]]) -> str:
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["model"] == model:
            check = row["check"]
            groups.setdefault((check["precision"], row["method"] or "", check["base"]), []).append(row)
    lines = []
    for (precision, method, base), own in groups.items():
        checks = [row["check"] for row in own]
        first = checks[0]
        lines.append(
            [
                precision if precision == base else f"{precision} on {base}",
                method,
                str(len(own)) if method else "",
                _percent([check["top1"] for check in checks]),
                f"{100 * mean(check['drop'] for check in checks):+.2f} [{100 * first['drop_interval'][0]:+.2f}, "
                f"{100 * first['drop_interval'][1]:+.2f}]",
                _percent([check["top1_agreement"] for check in checks]),
                f"{max(check['relative_error'] for check in checks):.4f}",
                f"{mean(row['bytes'] for row in own) / 1e3:,.0f}",
                f"{mean(row['weights_bytes'] for row in own) / 1e3:,.0f}",
            ]
        )
    reference = next(row["check"]["top1_reference"] for row in rows if row["model"] == model)
    head = ["graph", "calibration", "draws", "top-1", "points lost [95 %]", "agreement", "error", "file kB", "weights kB"]
    return f"{model}; fp32 has {100 * reference:.2f} % on 2,000 clips:\n\n" + _table(head, lines)


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.2f}{spread} %"


def _engines(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        [
            row["model"],
            row["graph"],
            f"{row['fused']} of {row['attentions']}",
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['seconds']:.1f}",
        ]
        for row in rows
    ]
    head = ["model", "graph", "attentions fused", "engine MB", "seconds to build"]
    return _table(head, lines) + f"\nBuilt with {rows[-1]['tensorrt']} for any GPU it reaches, with no GPU at hand.\n"


def _speeds(model: str, rows: Sequence[dict[str, Any]]) -> str:
    own = [row for row in rows if row["model"] == model]
    lines = []
    for graph in dict.fromkeys(row["graph"] for row in own):
        cells = [graph]
        for batch in sorted({row["batch"] for row in own}):
            row = next(row for row in reversed(own) if (row["graph"], row["batch"]) == (graph, batch))
            cells += [f"{row['median_ms']:.2f} ms", f"{row['ratio']:.2f}x ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"]
        lines.append(cells)
    batches = sorted({row["batch"] for row in own})
    head = ["graph", *(text for batch in batches for text in (f"batch of {batch}", "speed-up over fp32 (over rounds)"))]
    runs = " and ".join(map(str, sorted({row["runs"] for row in own})))
    return f"{model}; medians of {runs} runs, all graphs in alternation:\n\n" + _table(head, lines)


def _tools(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        check = row.get("check")
        lines.append(
            [
                f"{row['tool']} ({row.get('version', '')})" if row.get("version") else row["tool"],
                f"{row['precision']} on {row['base']}",
                row["status"] if row["status"] == "ok" else f"{row['status']}: {_short(row['reason'])}",
                f"{100 * check['top1']:.2f} %" if check else "",
                f"{100 * check['top1_agreement']:.2f} %" if check else "",
                f"{row['weights_bytes'] / 1e3:,.0f}" if "weights_bytes" in row else "",
                f"{row['named_nodes']} of {row['nodes']}" if "nodes" in row else "",
                f"{row['seconds']:.0f}",
            ]
        )
    head = ["tool", "graph", "outcome", "top-1", "agreement", "weights kB", "nodes that name their module", "seconds"]
    return _table(head, lines)


def _short(reason: str) -> str:
    """The end of a library's message, where it says what it found."""
    return reason if len(reason) <= 110 else f"... {reason[-110:].partition(' ')[2]}"


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = list(head)
    rows = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
