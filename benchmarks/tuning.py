"""Set ``tune`` against an exhaustive search on the demo model, under budgets of latency: accuracy, trainings, epochs, minutes.

    python benchmarks/tuning.py [--state DIR] [--budgets 0.4,0.6,0.8] [--seeds 0,1,2] [--epochs 3] [--items 2048]

The exhaustive search repairs and trains every candidate (each ranking at each depth with each share of tokens) by the recipe
that tune gives its finalists, and reports the one that is best on the items that judge, as tune does. Budgets are shares of the
unpruned model's latency. One row a budget and seed is appended to ``benchmarks/results/tuning.jsonl``; what is done is kept in
the state folder, so the same command goes on.

The demo model has seen every digit image of ``demo:train``, so candidates are judged by ``demo:validation``, clips of half of
the test images, and reported on by ``demo:report``, clips of the other half. A newcomer's trap: either search may be ahead by
chance, since both choose by the one half and are compared on the other.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shallowvit import Budgets, TrainConfig, TuneConfig, tune
from shallowvit_bench.conditions import read_conditions

if TYPE_CHECKING:
    from shallowvit.tuning import TuneResult

RESULTS = Path(__file__).parent / "results" / "tuning.jsonl"
CRITERIA = ("entropy", "depth", "block-influence", "l1", "bypass", "taylor-weight")
SELECTS = ("prefix", "interval", "gaps")
KEEP_TOKENS = (1.0, 0.5)
_ALL = 1000  # more than there are candidates, so that each is trained


def main() -> None:
    """Measure and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=Path("/tmp/shallowvit-tuning"))
    parser.add_argument("--budgets", default="0.4,0.6,0.8")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--items", type=int, default=2048)
    given = parser.parse_args()
    given.state.mkdir(parents=True, exist_ok=True)
    base = TuneConfig(
        "demo:report", "demo:train", Budgets(max_latency_ms=1e6), given.state / "whole", "demo:validation",
        precisions=("fp32",), criteria=CRITERIA, selects=SELECTS, keep_tokens=KEEP_TOKENS, trials=_ALL, items=given.items,
        holdout=2000, training=TrainConfig(epochs=given.epochs),
    )  # fmt: skip
    # the unpruned model's latency, which budgets are shares of
    measured = tune("demo", replace(base, depths=(12,), keep_tokens=(1.0,), criteria=("depth",), method="projection"), _say)
    whole = next(point for point in measured.points if not point.removed and point.bundle)
    assert whole.latency_ms is not None
    for seed in map(int, given.seeds.split(",")):
        for share in map(float, given.budgets.split(",")):
            _compare(replace(base, seed=seed, budgets=Budgets(max_latency_ms=round(share * whole.latency_ms, 3))), share, whole)


def _compare(base: TuneConfig, share: float, whole: Any) -> None:
    """Search both ways under a budget, and append the row."""
    found = {}
    # one rung of all: eta so large that there is none before the last
    for name, config in (("tune", base), ("exhaustive", replace(base, eta=_ALL, trained=_ALL))):
        out = base.out.parent / f"{name}-{share:g}-{base.seed}"
        started = time.monotonic()
        result = _resumed(replace(config, out=out))
        found[name] = _figures(result, time.monotonic() - started)
    _append(
        {
            "model": "demo",
            "share": share,
            "seed": base.seed,
            "budget_ms": base.budgets.max_latency_ms,
            "whole_ms": whole.latency_ms,
            "whole_top1": whole.top1,
            "epochs": base.training.epochs,
            "train_items": base.items,
            "judging_items": base.holdout,
            "report_items": whole.items,
            "criteria": list(base.criteria),
            "selects": list(base.selects),
            "keep_tokens": list(base.keep_tokens),
            **found,
            "conditions": asdict(read_conditions(None)),
        }
    )


def _resumed(config: TuneConfig) -> TuneResult:
    """Search, with the cells of the other searches beside it: a candidate that one has trained needn't be trained again."""
    shared = config.out.parent / "cells"
    state = config.out / "state"
    state.mkdir(parents=True, exist_ok=True)
    for name in ("cells", "weights", "costs"):
        (shared / name).mkdir(parents=True, exist_ok=True)
        if not (state / name).exists():
            (state / name).symlink_to((shared / name).resolve())
    return tune("demo", config, _say)


def _figures(result: TuneResult, seconds: float) -> dict[str, Any]:
    point = result.point(result.recommended or result.nearest or result.points[0].name)
    return {
        "point": point.name,
        "recommended": result.recommended is not None,
        "latency_ms": point.latency_ms,
        "top1": point.top1,
        "searched_top1": point.searched_top1,
        "candidates": result.candidates,
        "trainings": result.trainings,
        "epochs": result.epochs,
        "seconds": seconds,
        "measured": {one.name: [one.latency_ms, one.top1, one.searched_top1] for one in result.points if one.bundle},
    }


def _say(progress: Any) -> None:
    print(f"{progress.doing} {progress.done}/{progress.total}", flush=True)  # noqa: T201 - a script prints


def _append(row: dict[str, Any]) -> None:
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(  # noqa: T201 - a script prints
        f"{row['share']:.0%} of the latency: tune {row['tune']['top1']:.1%} with {row['tune']['trainings']} trainings, "
        f"exhaustive {row['exhaustive']['top1']:.1%} with {row['exhaustive']['trainings']}",
        flush=True,
    )


if __name__ == "__main__":
    main()
