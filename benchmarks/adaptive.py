"""Measure adaptive depth on the demo model: the gate's mix against depths 12, 6 and 3, a random mix and a confidence cascade.

    python benchmarks/adaptive.py [--max-drop 0.01] [--folders DEEP MIDDLE SHALLOW]

The depths are recovered by ``projection,finetune`` on training clips, unless folders are given. The gate learns from clips that
are made of half of the digit images that no training clip holds, and all is measured on clips of the other half, since on
clips that a depth was trained on every depth is right. Rows go to ``benchmarks/results/adaptive.jsonl``. A newcomer's trap: the
random mix and the cascade are put together from the depths' own times and answers; the gate's mix is run and timed as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from shallowvit import PlanConfig, PrunedModel, RecoverConfig, TrainConfig, load, plan, prune, recover, score
from shallowvit.adaptive import AdaptConfig, adapt, read_depths
from shallowvit.benching import bench_adaptive
from shallowvit_bench.adaptive_choice import first_above
from shallowvit_bench.config import BenchConfig
from shallowvit_bench.demo_clips import draw_clips
from shallowvit_bench.measurement import Measurement, row_from_measurement
from shallowvit_bench.predictions import Predictions, read_predictions

RESULTS = Path(__file__).parent / "results" / "adaptive.jsonl"
DEPTHS = (12, 6, 3)
_HALF = 198  # of the digit images that no training clip holds
_LEARNT_FROM, _MEASURED = 8192, 4000  # clips


def main() -> None:
    """Measure and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-drop", type=float, default=0.01)
    parser.add_argument("--folders", nargs="+", help="that prune or recover wrote, or demo; by default made here")
    parser.add_argument("--items", type=int, default=20_000, help="training clips that each depth is finetuned on")
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        learn = _write_clips(work / "learn.npz", 3, _LEARNT_FROM, slice(_HALF))
        measure = _write_clips(work / "measure.npz", 4, _MEASURED, slice(_HALF, None))
        config = AdaptConfig(str(learn), max_drop=given.max_drop, items=_LEARNT_FROM)
        depths = read_depths(given.folders) if given.folders else _recovered(given.items, given.epochs)
        made = adapt(depths, work / "adaptive", config)
        taken = bench_adaptive(made.path, BenchConfig(provider="cpu"), work / "rows.jsonl", str(measure))
        about = {
            "max_drop": given.max_drop,
            "items": given.items,
            "epochs": given.epochs,
            "remarks_of_adapt": made.manifest.remarks,
        }
        about["expected"] = {way: mix.model_dump() for way, mix in made.manifest.expected.items()}
        rows = [row_from_measurement(one, samples=False) | {"way": "gate" if one is taken[0] else one.side} for one in taken]
        for row in (*rows, *_put_together(taken, made.manifest.cascade_thresholds)):
            _append(about | row)


def _write_clips(path: Path, seed: int, count: int, part: slice) -> Path:
    clips = draw_clips(np.random.default_rng(seed), count, "test", part)
    np.savez(path, frames=clips.frames, labels=clips.labels)
    return path


def _recovered(items: int, epochs: int) -> tuple[PrunedModel, ...]:
    """The demo model at each depth, pruned by one order and recovered."""
    whole = load("demo")
    scores, count = score(whole), len(whole.blocks)
    made = [PrunedModel(whole, plan(whole))]
    training = replace(TrainConfig(), epochs=epochs)
    for depth in DEPTHS[1:]:
        pruned = prune(whole, plan(whole, scores, PlanConfig(prune_ratio=(count - depth) / count)))
        config = RecoverConfig("demo:train", "projection,finetune", items=items, training=training)
        made.append(recover(whole, pruned, config).pruned)
        sys.stdout.write(f"depth {depth} is recovered\n")
    return tuple(made)


def _put_together(taken: tuple[Measurement, ...], cascade: tuple[float, ...] | None) -> list[dict[str, Any]]:
    """Rows of the random mix, at the gate's shares, and of the cascade by confidence; depths from the shallowest."""
    mix, fixed = taken[0], list(reversed(taken[1:]))
    if any(one.status != "ok" or one.predictions is None for one in taken):
        return []
    times = np.array([one.mean_ms for one in fixed])
    answers = [read_predictions(Path(str(one.predictions))) for one in fixed]
    right = np.stack([one.outputs.argmax(axis=1) == one.truth.labels for one in answers], axis=1)
    shares = np.array([mix.depth_shares[one.side] for one in fixed])
    ways = {"random": (shares, float(right.mean(axis=0) @ shares), float(times @ shares))}
    if cascade is not None:
        chosen = first_above(np.stack([_confidence(one) for one in answers[:-1]], axis=1), cascade)
        part = np.bincount(chosen, minlength=len(fixed)) / len(chosen)
        ways["confidence"] = (part, float(right[np.arange(len(chosen)), chosen].mean()), float(np.cumsum(times) @ part))
    common = {"conditions": asdict(mix.conditions), "items": mix.items, "data": mix.data, "put_together": True}
    return [
        common
        | {"way": way, "mean_ms": mean, "metrics": {"top1": {"value": top1}}}
        | {"depth_shares": {one.side: float(share) for one, share in zip(fixed, part, strict=True)}}
        for way, (part, top1, mean) in ways.items()
    ]


def _confidence(found: Predictions) -> np.ndarray[Any, Any]:
    powers = np.exp(found.outputs - found.outputs.max(axis=1, keepdims=True))
    best: np.ndarray[Any, Any] = powers.max(axis=1) / powers.sum(axis=1)
    return best


def _append(row: dict[str, Any]) -> None:
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, default=str) + "\n")
    top1 = row.get("metrics", {}).get("top1", {}).get("value")
    sys.stdout.write(f"{row['way']}: mean {row.get('mean_ms')} ms, top-1 {top1}, {row.get('depth_shares')}\n")


if __name__ == "__main__":
    main()
