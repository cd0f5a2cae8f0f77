"""What each recovery regains of what removing blocks of the demo model costs: closed form, distillation, finetuning, and both.

    python benchmarks/recovery.py [--seeds 3] [--items 2000] [--epochs 3] [--jobs 2] [--removed 1,3,5,7,9,11] [--arms both]

The demo model is pruned by entropy at the six removals of the paper's tables; each arm recovers it on training clips of
``demo:train``, and its top-1 is taken on the test clips of ``demo``. Every training sees as many items as often, with the same
settings; a seed draws the items and all else. A row each is appended to ``benchmarks/results/recovery.jsonl``, and an arm whose
row stands there isn't run again, so a killed run goes on. A newcomer's trap: ``both`` differs from ``finetune`` by its closed
form and by its teacher; ``start`` has the closed form alone and says how much of the gain is whose.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import shallowvit
from shallowvit import PlanConfig, RecoverConfig
from shallowvit.exporting import deployable
from shallowvit.recovery import evaluate
from shallowvit.recovery.records import Training
from shallowvit.recovery.settings import TrainConfig
from shallowvit_bench.conditions import read_conditions
from shallowvit_bench.demo_clips import demo_clips

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shallowvit.pruning import PrunedModel
    from shallowvit.recovery.records import Recovered

RESULTS = Path(__file__).parent / "results" / "recovery.jsonl"
BLOCKS_REMOVED = (1, 3, 5, 7, 9, 11)  # of twelve
SAMPLES = 256  # of the closed form
LEARNING_RATE = 1e-3
ARMS = {  # name -> the steps, and what differs from the common settings
    "closed form": ("projection", {}),
    "distill": ("projection,distill", {}),
    "finetune": ("finetune", {}),
    "start": ("projection,finetune", {}),
    "both": ("projection,finetune", {"teacher_weight": 1.0}),
}


@dataclass(frozen=True)
class Task:
    """An arm at a removal and seed."""

    removed: int
    arm: str
    seed: int
    items: int
    epochs: int

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells its row from others; a closed form has neither items nor epochs."""
        trains = self.arm != "closed form"
        return self.removed, self.arm, self.seed, self.items if trains else None, self.epochs if trains else None

    @property
    def config(self) -> RecoverConfig:
        """How it recovers."""
        method, changes = ARMS[self.arm]
        training = replace(TrainConfig(epochs=self.epochs, learning_rate=LEARNING_RATE), **changes)
        return RecoverConfig("demo:train", method, SAMPLES, self.items, seed=self.seed, training=training)


def main() -> None:
    """Measure what isn't there yet and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--removed", default=",".join(map(str, BLOCKS_REMOVED)))
    parser.add_argument("--arms", default=",".join(ARMS))
    given = parser.parse_args()
    tasks = [
        Task(removed, arm, seed, given.items, given.epochs)
        for seed in range(given.seeds)  # a whole seed first, so that a run that is cut short says something
        for removed in map(int, given.removed.split(","))
        for arm in given.arms.split(",")
    ]
    done = {tuple(row["key"]) for row in read_rows()}
    left = [task for task in tasks if task.key not in done]
    print(f"{len(left)} of {len(tasks)} arms are left", flush=True)  # noqa: T201 - a script prints
    # spawned: torch's threads don't survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for future in as_completed([pool.submit(measured, task) for task in left]):
            append(future.result())


def read_rows() -> list[dict[str, Any]]:
    """Return the rows that are there."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


@cache
def teacher() -> shallowvit.LoadedModel:
    """Return the demo model, once a process."""
    return shallowvit.load("demo")


@cache
def pruned_by(removed: int) -> tuple[PrunedModel, float]:
    """Return the demo model without so many blocks, and its top-1."""
    scores = shallowvit.score(teacher())
    plan = shallowvit.plan(teacher(), scores, PlanConfig(prune_ratio=removed / len(teacher().blocks)))
    pruned = shallowvit.prune(teacher(), plan)
    return pruned, top1(pruned.model)


@cache
def whole_top1() -> float:
    """Return the unpruned model's top-1."""
    return top1(teacher())


def top1(model: shallowvit.LoadedModel) -> float:
    """Return the share of the test clips that a model classifies rightly."""
    clips = demo_clips("test")
    frames, labels = torch.from_numpy(clips.frames), torch.from_numpy(clips.labels).long()
    return evaluate(deployable(model, preprocess=True), frames, labels).top1


def measured(task: Task) -> dict[str, Any]:
    """Run an arm and return its row."""
    pruned, bare = pruned_by(task.removed)
    config = task.config
    recovered = shallowvit.recover(teacher(), pruned, config)
    return {
        "key": list(task.key),
        "model": "demo",
        "removed": list(pruned.plan.removed),
        "arm": task.arm,
        "method": config.method,
        "seed": task.seed,
        "items": task.items if task.arm != "closed form" else None,
        "epochs": task.epochs if task.arm != "closed form" else None,
        "training": asdict(config.training) if task.arm != "closed form" else None,
        "samples": SAMPLES if "projection" in config.method else None,
        "inputs_seen": sum(_inputs_seen(recovered)),
        "seconds": recovered.seconds,
        "kept_epochs": [step.kept for step in recovered.steps if isinstance(step, Training)],
        "threads": torch.get_num_threads(),
        "test_items": len(demo_clips("test").labels),
        "top1_whole": whole_top1(),
        "top1_pruned": bare,
        "top1_recovered": top1(recovered.pruned.model),
        "conditions": asdict(read_conditions(None)),
    }


def _inputs_seen(recovered: Recovered) -> Sequence[int]:
    return [step.inputs_seen if isinstance(step, Training) else step.inputs for step in recovered.steps]


def append(row: dict[str, Any]) -> None:
    """Append a row and say what it found."""
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    lost, back = row["top1_whole"] - row["top1_pruned"], row["top1_recovered"] - row["top1_pruned"]
    print(  # noqa: T201 - a script prints
        f"{len(row['removed'])} removed, {row['arm']}, seed {row['seed']}: {row['top1_pruned']:.1%} -> "
        f"{row['top1_recovered']:.1%} of {row['top1_whole']:.1%} ({back / lost:.0%} back), {row['inputs_seen']:,} inputs, "
        f"{row['seconds'] / 60:.1f} min",
        flush=True,
    )


if __name__ == "__main__":
    main()
