"""What closed-form repair regains of what removing blocks of the demo model costs, by method, inputs and ratio.

    python benchmarks/repair.py [--seeds 3] [--samples 64,256]

For each of the six removals of the paper's tables the demo model is pruned by entropy, its top-1 on the test clips of ``demo``
is taken, then each method repairs it on unlabelled training clips, drawn anew for each seed. One row each is appended to
``benchmarks/results/repair.jsonl``. A newcomer's trap: the share regained is of what was lost, so where little was lost it is
mostly noise.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import shallowvit
from shallowvit import PlanConfig, RecoverConfig
from shallowvit.exporting import deployable
from shallowvit.recovery import Repair, RepairMethod, evaluate
from shallowvit_bench.conditions import read_conditions
from shallowvit_bench.demo_clips import demo_clips

RESULTS = Path(__file__).parent / "results" / "repair.jsonl"
BLOCKS_REMOVED = (1, 3, 5, 7, 9, 11)  # of twelve


def main() -> None:
    """Measure and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", default="64,256")
    given = parser.parse_args()
    teacher = shallowvit.load("demo")
    clips = demo_clips("test")
    frames, labels = torch.from_numpy(clips.frames), torch.from_numpy(clips.labels).long()

    def top1(model: shallowvit.LoadedModel) -> float:
        return evaluate(deployable(model, preprocess=True), frames, labels).top1

    whole = top1(teacher)
    scores = shallowvit.score(teacher)
    for removed in BLOCKS_REMOVED:
        plan = shallowvit.plan(teacher, scores, PlanConfig(prune_ratio=removed / len(teacher.blocks)))
        pruned = shallowvit.prune(teacher, plan)
        bare = top1(pruned.model)
        for samples in map(int, given.samples.split(",")):
            for seed in range(given.seeds):
                for method in RepairMethod:
                    config = RecoverConfig("demo:train", method, samples, seed=seed)
                    (repair,) = shallowvit.recover(teacher, pruned, config).steps
                    assert isinstance(repair, Repair)
                    row = {
                        "model": "demo",
                        "removed": list(plan.removed),
                        "method": str(method),
                        "samples": samples,
                        "seed": seed,
                        "items": len(labels),
                        "top1_whole": whole,
                        "top1_pruned": bare,
                        "top1_repaired": top1(repair.pruned.model),
                        "seconds": repair.seconds,
                        "gaps": [asdict(gap) for gap in repair.gaps],
                        "conditions": asdict(read_conditions(None)),
                    }
                    _append(row)


def _append(row: dict[str, Any]) -> None:
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    lost, back = row["top1_whole"] - row["top1_pruned"], row["top1_repaired"] - row["top1_pruned"]
    print(  # noqa: T201 - a script prints
        f"{len(row['removed'])} removed, {row['method']}, {row['samples']} items, seed {row['seed']}: "
        f"{row['top1_pruned']:.1%} -> {row['top1_repaired']:.1%} of {row['top1_whole']:.1%} ({back / lost:.0%} back), "
        f"{row['seconds']:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
