"""Turn the result rows of the demo model into the tables of ``docs/demo-model.md``, between its two marks.

    python benchmarks/demo_model/tables.py

Reads rows only, so the tables say what was measured. A spread is the sample standard deviation over seeds.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from scipy.stats import spearmanr

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "demo-model.md"
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"


def read(name: str) -> list[dict[str, Any]]:
    """Return the rows of a result file."""
    return [json.loads(line) for line in (ROOT / "benchmarks" / "results" / f"{name}.jsonl").read_text().splitlines()]


def tables() -> str:
    """Return the tables as Markdown."""
    return "\n".join([_training(), _skipping(), _pruning()])


def _share(values: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread} %"


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = list(head)
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _training() -> str:
    pretraining = read("demo_pretraining")[-1]
    rows = read("demo_finetuning")
    lines = []
    for start, text in (("pretrained", "pretrained by masking"), ("scratch", "random weights")):
        own = [row for row in rows if row["start"] == start]
        lines.append([text, _share([row["test_top1"] for row in own]), str(len(own))])
    losses = pretraining["train_loss_every_50"]
    return (
        "### Pretraining and finetuning\n\n"
        f"Pretraining: {pretraining['steps']:,} steps of {pretraining['batch']} clips; the loss over hidden patches fell from "
        f"{losses[0]:.4f} (step 50) to {pretraining['test_loss']:.4f} (on test clips).\n\n"
        + _table(["finetuned from", "top-1 on 2,000 test clips", "seeds"], lines)
    )


def _skipping() -> str:
    rows = read("demo_pruning")
    seeds = sorted({row["seed"] for row in rows if row["kind"] == "skip"})
    top1 = {(row["seed"], row["block"]): row["test_top1"] for row in rows if row["kind"] == "skip"}
    scores = {row["seed"]: row["scores"] for row in rows if row["kind"] == "scores"}
    blocks = sorted({block for _, block in top1 if block is not None})
    drops = {seed: [top1[seed, None] - top1[seed, block] for block in blocks] for seed in seeds}
    lines = [
        [
            str(block),
            *(f"{100 * drops[seed][block]:.1f}" for seed in seeds),
            f"{100 * mean(drops[s][block] for s in seeds):.1f}",
        ]
        for block in blocks
    ]
    agreement = [
        [name, *(f"{spearmanr(scores[seed][name], drops[seed]).statistic:+.2f}" for seed in seeds)] for name in scores[seeds[0]]
    ]
    heads = [f"seed {seed}" for seed in seeds]
    return (
        "\n### One block skipped, nothing retrained\n\nPoints of top-1 lost on the test clips.\n\n"
        + _table(["block", *heads, "mean"], lines)
        + "\nSpearman's rank correlation of each criterion's score with that loss (+1: the same order):\n\n"
        + _table(["criterion", *heads], agreement)
    )


def _pruning() -> str:
    rows = [row for row in read("demo_pruning") if row["kind"] == "prune"]
    counts = sorted({row["count"] for row in rows} - {0})
    names = [name for name in dict.fromkeys(row["criterion"] for row in rows) if name != "none"]

    def cells(criterion: str, figure: str) -> list[str]:
        return [
            _share([row[figure] for row in rows if row["criterion"] == criterion and row["count"] == count]) for count in counts
        ]

    heads = [f"{count} of 12 removed" for count in counts]
    whole = [row for row in rows if row["criterion"] == "none"]
    short = whole[0]
    return (
        "\n### Pruned by each criterion\n\n"
        f"All blocks, no retraining: {_share([row['zero_shot_top1'] for row in whole])}; all blocks after the same short "
        f"finetuning as below: {_share([row['finetuned_top1'] for row in whole])}.\n\n"
        "At once (zero-shot):\n\n"
        + _table(["criterion", *heads], ([name, *cells(name, "zero_shot_top1")] for name in names))
        + f"\nAfter {short['epochs']} epoch on {short['clips']:,} clips (learning rate {short['learning_rate']:g}):\n\n"
        + _table(["criterion", *heads], ([name, *cells(name, "finetuned_top1")] for name in names))
    )


def main() -> None:
    """Rewrite the part of the page between the marks."""
    text = PAGE.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(before + BEGIN + tables() + END + after)


if __name__ == "__main__":
    main()
