"""Prune the finetuned demo models by every criterion and measure: at once (zero-shot) and after the same short finetuning.

    python benchmarks/demo_model/study.py [--seeds 0 1 2]

Starts from ``runs/demo/pretrained-SEED`` (``finetune.py``). First each block is skipped alone, without retraining; then 3, 6
and 9 of the 12 blocks are removed. A row a measurement goes to ``benchmarks/results/demo_pruning.jsonl``; what stands there is
not measured again, so a run that was killed goes on. Two criteria that name the same blocks share one training, and both get a
row.
"""

from __future__ import annotations

import argparse
import copy
import json
from typing import Any

from shallowvit import LoadedModel, PlanConfig, ScoreConfig, load, plan, prune, score
from shallowvit.scoring import CRITERIA
from training import RESULTS, RUNS, FinetuneConfig, accuracy, append_row, finetune_on_clips

NAME = "demo_pruning"
COUNTS = (3, 6, 9)
CLIPS = 8_000
SHORT = {"epochs": 1, "learning_rate": 5e-4}


def rows() -> list[dict[str, Any]]:
    """Return the rows measured so far."""
    path = RESULTS / f"{NAME}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def skip_each_block(model: LoadedModel, seed: int) -> None:
    """Measure the zero-shot accuracy without each block, and of the whole model."""
    done = {row["block"] for row in rows() if row["kind"] == "skip" and row["seed"] == seed}
    for block in [None, *range(len(model.blocks))]:
        if block in done:
            continue
        removed = "" if block is None else str(block)
        shallow = model if block is None else prune(model, plan(model, None, PlanConfig(remove=removed))).model
        append_row(NAME, {"kind": "skip", "seed": seed, "block": block, "test_top1": accuracy(shallow.module)})


def score_blocks(model: LoadedModel, seed: int) -> None:
    """Note the scores by every criterion, to set them against what skipping a block costs."""
    if any(row["kind"] == "scores" and row["seed"] == seed for row in rows()):
        return
    scores = {name: [row.score for row in score(model, ScoreConfig(name, seed=seed)).blocks] for name in CRITERIA}
    append_row(NAME, {"kind": "scores", "seed": seed, "scores": scores})


def prune_and_finetune(model: LoadedModel, seed: int) -> None:
    """Measure each criterion at each count, zero-shot and after the short finetuning."""
    known = {tuple(row["removed"]): row for row in rows() if row["kind"] == "prune" and row["seed"] == seed}
    done = {(row["criterion"], row["count"]) for row in rows() if row["kind"] == "prune" and row["seed"] == seed}
    cells = [("none", 0), *((criterion, count) for count in COUNTS for criterion in CRITERIA)]
    for criterion, count in cells:
        if (criterion, count) in done:
            continue
        removed: tuple[int, ...] = ()
        if count:
            removed = tuple(sorted(score(model, ScoreConfig(criterion, seed=seed)).ascending[:count]))
        if removed not in known:
            wanted = PlanConfig(remove=",".join(map(str, removed))) if removed else PlanConfig()
            # an empty plan gives the model itself, which the next cells still need
            shallow = copy.deepcopy(prune(model, plan(model, None, wanted)).model.module)
            zero_shot = accuracy(shallow)
            finetune_on_clips(shallow, CLIPS, FinetuneConfig(seed=seed, **SHORT))
            known[removed] = {"removed": removed, "zero_shot_top1": zero_shot, "finetuned_top1": accuracy(shallow)}
        figures = {name: known[removed][name] for name in ("removed", "zero_shot_top1", "finetuned_top1")}
        append_row(
            NAME, {"kind": "prune", "seed": seed, "criterion": criterion, "count": count, "clips": CLIPS, **SHORT, **figures}
        )
        print(seed, criterion, count, figures, flush=True)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for seed in parser.parse_args().seeds:
        source = f"hf:{RUNS / f'pretrained-{seed}'}"
        model = load(source)
        score_blocks(model, seed)
        skip_each_block(model, seed)
        prune_and_finetune(model, seed)


if __name__ == "__main__":
    main()
