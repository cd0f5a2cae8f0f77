"""Turn result rows, published figures and the table of criteria into the tables of ``docs/``, between the marks of each page.

    python benchmarks/tables.py

Reads rows only, so the tables say what was measured. A spread is the sample standard deviation over seeds.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean, median, stdev
from typing import TYPE_CHECKING, Any

from adaptive_table import adaptive_table
from attention_kernel_tables import kernel_tables
from coverage_tables import coverage_table
from engine_tables import engine_tables
from families_table import families_table
from harness_tables import harness_table, provider_table, remote_table, sides_table
from published import published_tables
from quantization_pages import quantization_tables
from recovery_table import recovery_table
from repair_table import repair_table
from shallowvit.engines.targets import targets_table
from shallowvit.scoring.criteria import CRITERIA, Scope
from tokens_table import tokens_table
from tuning_table import tuning_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).resolve().parents[1]
MARKED = re.compile(r"(<!-- tables: begin (\w+) -->\n).*?(<!-- tables: end -->\n)", re.DOTALL)


def read(name: str) -> list[dict[str, Any]]:
    """Return the rows of a result file."""
    return [json.loads(line) for line in (ROOT / "benchmarks" / "results" / f"{name}.jsonl").read_text().splitlines()]


def demo_tables() -> str:
    """Return how the demo models were pretrained and finetuned, as Markdown."""
    pretraining = sorted(read("demo_pretraining"), key=lambda row: row["seed"])
    rows = read("demo_finetuning")
    rows = [row for row in rows if (row["clips"], row["epochs"]) == (rows[-1]["clips"], rows[-1]["epochs"])]
    lines = []
    for text, start, own_encoder in (
        ("the encoder of seed 0, which ships", "pretrained", False),
        ("encoders of their own seeds 1 and 2", "pretrained", True),
        ("random weights", "scratch", False),
    ):
        own = [row for row in rows if row["start"] == start and (row.get("encoder", 0) != 0) is own_encoder]
        lines.append([text, _share([row["test_top1"] for row in own]), str(len(own))])
    losses = [
        [
            str(row["seed"]),
            f"{row['steps']:,} of {row['batch']} clips",
            f"{row['train_loss_every_50'][0]:.4f}",
            f"{row['test_loss']:.4f}",
        ]
        for row in pretraining
    ]
    return (
        "### Pretraining\n\nMean squared error over the hidden patches.\n\n"
        + _table(["seed", "steps", "loss at step 50", "loss on test clips"], losses)
        + f"\n### Finetuning\n\n{rows[-1]['epochs']} epochs of {rows[-1]['clips']:,} labelled clips, batch "
        f"{rows[-1]['batch']}.\n\n" + _table(["finetuned from", "top-1 on 2,000 test clips", "finetuning seeds"], lines)
    )


def _share(values: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread} %"


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = list(head)
    rows = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def line_tables() -> str:
    """Return the tables of the whole line: exports from outside, and the shallow model against the full one."""
    rows = read("whole_line")
    exports = [row for row in rows if row["kind"] == "export"]
    lines = []
    for model in dict.fromkeys(row["model"] for row in exports):
        own = [row for row in exports if row["model"] == model]
        seconds = [row["seconds"] for row in own]
        peak, error = max(row["peak_mib"] for row in own), max(row["parity"]["relative_error"] for row in own)
        spread = f"{median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        lines.append([model, str(len(own)), spread, f"{peak:,}", f"{error:.1e}"])
    benches = [row["measurements"] for row in rows if row["kind"] == "bench"]
    speeds = [
        [
            f"{half['p50_ms']:,.0f} ms",
            f"{full['p50_ms']:,.0f} ms",
            f"{half['speedup']:.2f}x ({half['speedup_low']:.2f} to {half['speedup_high']:.2f})",
            f"{half['ideal_speedup']:.2f}x",
            f"{half['runs']}",
            f"{half['peak_mib']:,.0f} / {full['peak_mib']:,.0f}",
        ]
        for half, full in benches
    ]
    conditions = rows[-1]["conditions"]
    packages = conditions["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("onnxruntime", "torch") if packages.get(name))
    return (
        "### Export of half the blocks, as a process of its own\n\n"
        + _table(["model", "runs", "wall seconds, median (range)", "peak MiB", "relative error, worst"], lines)
        + "\n### VideoMAE-B: six of twelve blocks against twelve\n\nMedians of one clip in onnxruntime; each line is a run of "
        "`shallowvit bench` with both sides in alternation.\n\n"
        + _table(["6 blocks", "12 blocks", "speed-up (over rounds)", "ideal", "timed runs a side", "peak MiB"], speeds)
        + f"\nTaken on {conditions['device']}, {conditions['cores']} cores; {versions}.\n"
    )


def speed_tables() -> str:
    """Return the tables of scoring from the weights: speed against the released method, memory, scale, bandwidth."""
    rows = read("scoring_speed")
    against = [row for row in rows if row["kind"] == "against"]
    lines = [
        [
            _SIDES.get(row["side"], row["side"]),
            f"{row['median_ms'] / 1e3:,.2f} s ({row['min_ms'] / 1e3:,.2f} to {row['max_ms'] / 1e3:,.2f})",
            f"{row['times_faster']:.0f}x",
        ]
        for row in against
    ]
    ways = [
        [row["side"], f"{row['median_ms']:,.1f} ms ({row['min_ms']:,.1f} to {row['max_ms']:,.1f})"]
        for row in rows
        if row["kind"] == "ways"
    ]
    memory = [
        [row["side"], row["weights_from"], f"{row['extra_own_blocks']:.2f} blocks", f"{row['extra_blocks']:.2f} blocks"]
        for row in rows
        if row["kind"] == "memory"
    ]
    billion = [row for row in rows if row["kind"] == "billion"]
    scale = []
    for side in dict.fromkeys(row["side"] for row in billion):
        own = [row for row in billion if row["side"] == side]
        seconds = [row["seconds"] for row in own]
        peaks = [max(row[name] for row in own) for name in ("peak_own_mib", "peak_rss_mib")]
        spread = f"{median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"
        scale.append([side, spread, f"{peaks[0]:,.0f} MiB", f"{peaks[1]:,.0f} MiB"])
    linear = [
        [row["side"], f"{row['weights'] / 1e6:,.0f} million", f"{row['median_ms']:,.0f} ms", f"{row['ns_per_weight']:.1f} ns"]
        for row in rows
        if row["kind"] == "linear"
    ]
    read_gb_s = next(row["read_gb_s"] for row in rows if row["kind"] == "bandwidth" and row["side"] == "sum")
    seconds = {row["side"]: row["median_ms"] / 1e3 for row in against}
    gigabytes = 4 * against[0]["weights"] / 1e9
    limits = ", ".join(f"{side} {read_gb_s * seconds[side] / gigabytes:.0f} times" for side in ("reduced", "exact"))
    conditions = rows[0]["conditions"]
    return (
        "### Scoring from the weights\n\nVideoMAE-B (12 blocks of 7,077,888 weights), all blocks, both sides in turn in one "
        "process; the released method is pandas' `value_counts` of each block. *Whole command* reads the file, counts and "
        "checks for warnings.\n\n"
        + _table(["", "median (range)", "faster than released"], lines)
        + "\nWays of counting one block, in one thread:\n\n"
        + _table(["way", "median (range)"], ways)
        + "\nMemory beyond what was there before, at its peak, in blocks of 27 MiB; pages of a mapped file are given back "
        "when memory is short, so they are told apart:\n\n"
        + _table(["", "weights from", "own", "with mapped pages"], memory)
        + f"\nA checkpoint of {billion[0]['weights']:,} weights in shards, as a process of its own; most of the whole is "
        "PyTorch itself:\n\n"
        + _table(["", "median (range)", "own memory", "with libraries and mapped pages"], scale)
        + "\nTime is linear in the weights (the sort adds its logarithm):\n\n"
        + _table(["", "weights", "median", "a weight"], linear)
        + f"\nReading memory alone runs at {read_gb_s:.0f} GB/s here; counting takes longer than that would: {limits}.\n"
        f"\nTaken on {conditions['device']}, {conditions['cores']} cores, load average {conditions['load_average']}.\n"
    )


_SIDES = {
    "exact": "exact, counting only",
    "reduced": "7 bits, counting only",
    "reduced, whole command": "7 bits, whole command",
}


def criteria_table() -> str:
    """Return the table of criteria as Markdown."""
    lines = []
    for name, row in CRITERIA.items():
        needs = {Scope.COMPOSED: "what its parts read", Scope.MODEL: _READS[row.needs]}.get(row.scope, "the weights")
        own = [
            f"`--{setting.replace('_', '-')}`" for setting in row.settings if row.needs == "nothing" or setting not in _OF_DATA
        ]
        lines.append([f"`{name}`", needs, row.summary, row.unit, row.source, ", ".join(own)])
    return _table(["criterion", "reads", "what it says", "unit", "source", "settings"], lines) + (
        "\nCriteria that read inputs also have `--calibration`, `--samples`, `--batch` and `--seed`.\n"
    )


_READS = {"nothing": "the model", "unlabelled": "inputs", "labelled": "inputs and labels"}
_OF_DATA = ("data", "samples", "batch", "seed")


def study_tables() -> str:
    """Return the study's power, each criterion's agreement with each oracle, and accuracies by blocks removed."""
    study = read_study()
    powers = [
        [
            row["oracle"],
            f"{row['spread']:.3g}",
            f"{row['noise']:.2g}",
            f"{row['reliability']:.2f}",
            f"{row['ceiling']:.2f}",
            "" if row["models_agree"] is None else f"{row['models_agree']:+.2f}",
        ]
        for row in study["powers"]
    ]
    oracles = [row["oracle"] for row in study["powers"]]
    found = {(row["criterion"], row["oracle"]): row for row in study["agreements"]}
    criteria = sorted(
        (name for name in study["criteria"] if name != "oracle"),
        key=lambda name: -(found[name, oracles[0]]["spearman"]["mean"] or -2),
    )
    shown = [oracle for oracle in oracles if oracle != "zero-shot accuracy"]  # says the same as the loss
    agreement = []
    for name in criteria:
        cells = [name]
        for oracle in shown:
            row = found.get((name, oracle), {})  # a criterion that is an oracle itself has no row with it
            cells += [_interval(row.get("spearman")), _interval(row.get("over_depth"))]
        agreement.append(cells)
    head = [title for oracle in shown for title in (oracle, "more than depth")]
    first = study["conditions"][0]
    packages = first.get("packages", {})
    return (
        f"{len(study['models'])} models of their own pretraining, each with {study['config']['seeds']} finetuning seed; "
        f"{study['cells']} finetunings stand behind {study['cells_named']} choices of blocks.\n\n"
        "Can the oracles tell blocks apart?\n\n"
        + _table(
            ["oracle", "spread between blocks", "noise of a value", "reliability", "best possible Spearman", "models agree"],
            powers,
        )
        + "\nSpearman's rank correlation of each criterion with each oracle, and how much more that is than depth's, paired "
        "over models: means and 95 % intervals.\n\n"
        + _table(["criterion", *head], agreement)
        + "\n"
        + _accuracies(study, "finetuned_top1", "Top-1 after finetuning, mean and standard deviation over models")
        + f"\nTaken on {first.get('device')}, one thread a process; torch {packages.get('torch', '')}.\n"
    )


def read_study() -> dict[str, Any]:
    """Return what the study of the demo models found."""
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "demo_study.json").read_text())
    return found


def _accuracies(study: dict[str, Any], figure: str, title: str) -> str:
    """Rows are criteria, columns numbers of blocks; criteria that remove the same sets everywhere share a row."""
    counts = study["counts"]
    rows: dict[tuple[str, ...], list[str]] = {}
    for name in study["criteria"]:
        own = [row for row in study["measured"] if row["criterion"] == name]
        cells = tuple(_share([row[figure] for row in own if row["count"] == count]) for count in counts)
        rows.setdefault(cells, []).append(name)
    whole = _share([row[figure] for row in study["whole"]])
    lines = [[", ".join(names), *cells] for cells, names in rows.items()]
    lines.sort(key=lambda line: -float(line[1 + len(counts) // 2].split()[0]))
    return f"{title} (all blocks: {whole}):\n\n" + _table(["criterion", *(f"{count} removed" for count in counts)], lines)


def _interval(estimate: dict[str, Any] | None) -> str:
    if estimate is None or estimate["mean"] is None:
        return ""
    if estimate["low"] is None:
        return f"{estimate['mean']:+.2f}"
    return f"{estimate['mean']:+.2f} [{estimate['low']:+.2f}, {estimate['high']:+.2f}]"


def search_table() -> str:
    """Return each candidate's correlation with what skipping a block costs, by model."""
    rows = read("demo_search")
    columns = [(row["kind"], row["seed"]) for row in sorted(rows, key=lambda row: (row["kind"], row["seed"]))]
    found = {(row["kind"], row["seed"]): row["spearman"] for row in rows}
    names = sorted(rows[0]["spearman"], key=lambda name: -mean(found[column][name] for column in columns))
    lines = []
    for name in names:
        held_out = mean(found[column][name] for column in columns if column[1] != 0)
        lines.append([name, *(f"{found[column][name]:+.2f}" for column in columns), f"{held_out:+.2f}"])
    return _table(["score of the weights alone", *(f"{kind} {seed}" for kind, seed in columns), "mean of models 1, 2"], lines)


def estimator_table() -> str:
    """Return the range between simulated blocks and the noise of each estimator of entropy, by the size of a block."""
    rows = read("estimators")
    names = list(rows[0]["estimators"])
    lines = []
    for row in rows:
        cells = [(row["estimators"][name]["range"], row["estimators"][name]["noise"]) for name in names]
        lines.append([f"{row['weights']:,}", *(f"{wide:.4f} / {noise:.5f} = {wide / noise:.0f}" for wide, noise in cells)])
    return _table(["weights a block", *(f"{name}: range / noise" for name in names)], lines)


PARTS = {
    "demo": demo_tables,
    "line": line_tables,
    "speed": speed_tables,
    "coverage": coverage_table,
    "families": families_table,
    "criteria": criteria_table,
    "estimators": estimator_table,
    "published": published_tables,
    "study": study_tables,
    "search": search_table,
    "targets": targets_table,
    "engines": engine_tables,
    "quantization": quantization_tables,
    "harness": harness_table,
    "providers": provider_table,
    "remote": remote_table,
    "sides": sides_table,
    "kernels": kernel_tables,
    "repair": repair_table,
    "tuning": tuning_table,
    "adaptive": adaptive_table,
    "recovery": recovery_table,
    "tokens": tokens_table,
}
PAGES = (
    "demo-model.md",
    "measured.md",
    "scoring.md",
    "entropy.md",
    "targets.md",
    "quantization.md",
    "engines.md",
    "providers.md",
    "families.md",
    "kernels.md",
    "recovery.md",
    "tuning.md",
    "adaptive.md",
    "tokens.md",
)


def rewritten(page: str) -> str:
    """Return a page of ``docs/`` with its tables made anew."""
    text = (ROOT / "docs" / page).read_text()
    return MARKED.sub(lambda found: found[1] + PARTS[found[2]]() + found[3], text)


def main() -> None:
    """Rewrite the part of each page between the marks."""
    for page in PAGES:
        (ROOT / "docs" / page).write_text(rewritten(page))


if __name__ == "__main__":
    main()
