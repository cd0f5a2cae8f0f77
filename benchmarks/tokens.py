"""What keeping some tokens of the demo model costs and saves: shares, scorers, with and without blocks removed.

    python benchmarks/tokens.py [--parts zero-shot,distill,latency] [--items 2000] [--epochs 3]

Tokens are reduced behind block 3 of the whole demo model and of the one without three blocks (by entropy). ``zero-shot`` takes
top-1 on the test clips of ``demo``; ``distill`` takes it behind a distillation on ``demo:train``; ``latency`` exports each
and times all in turn in onnxruntime on this CPU. A row each is appended to ``benchmarks/results/tokens.jsonl``, and what stands
there isn't measured again, so a killed run goes on. A newcomer's trap: an untrained ``learned`` scorer is ``mean``, so it has
no zero-shot row.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

import shallowvit
from shallowvit import PlanConfig, RecoverConfig
from shallowvit.benching import bench_here
from shallowvit.exporting import deployable
from shallowvit.pruning import PrunedModel
from shallowvit.recovery import evaluate
from shallowvit.recovery.settings import TrainConfig
from shallowvit.tokens import TokenConfig, TokenScorer, reduce_tokens
from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.conditions import read_conditions
from shallowvit_bench.config import BenchConfig
from shallowvit_bench.demo_clips import demo_clips

RESULTS = Path(__file__).parent / "results" / "tokens.jsonl"
BLOCK = 3
REMOVED = (0, 3)  # of twelve
SHARES = (1.0, 0.7, 0.5, 0.3)
UNTRAINED = (TokenScorer.MEAN, TokenScorer.NORM, TokenScorer.EVEN)
PARTS = ("zero-shot", "distill", "latency")


def main() -> None:
    """Measure what isn't there yet and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    parts = given.parts.split(",")
    if "zero-shot" in parts:
        for removed, share, scorer in _cases(UNTRAINED):
            _measure(["zero-shot", removed, share, scorer], lambda *case: {"top1": _top1(_reduced(*case))})
    if "distill" in parts:
        for removed, share, scorer in _cases((TokenScorer.MEAN, TokenScorer.LEARNED)):
            if share > 0.5:
                continue  # little was lost
            _measure(
                ["distill", removed, share, scorer, given.items, given.epochs],
                lambda *case: _distilled(*case, items=given.items, epochs=given.epochs),
            )
    if "latency" in parts:
        _latencies()


def _cases(scorers: tuple[TokenScorer, ...]) -> list[tuple[int, float, str]]:
    """Removed blocks, share, scorer; of all tokens one scorer is enough."""
    return [
        (removed, share, str(scorer))
        for removed in REMOVED
        for share in SHARES
        for scorer in scorers
        if share < 1 or scorer is scorers[0]
    ]


def _measure(key: list[Any], figures: Any) -> None:
    if key in [row["key"] for row in _rows()]:
        return
    part, removed, share, scorer = key[:4]
    pruned = _reduced(removed, share, scorer)
    row = {"key": key, "part": part, "removed": list(pruned.plan.removed), "share": share, "scorer": scorer}
    row |= {"tokens": pruned.tokens.sites[0].after if pruned.tokens else 64, "flops": pruned.model.flops}
    row |= {"items": len(demo_clips("test").labels), **figures(removed, share, scorer)}
    _append(row | {"conditions": asdict(read_conditions(None))})


def _rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def _append(row: dict[str, Any]) -> None:
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print({name: row[name] for name in row if name not in ("conditions", "key")}, flush=True)  # noqa: T201 - a script prints


@cache
def _teacher() -> shallowvit.LoadedModel:
    return shallowvit.load("demo")


@cache
def _pruned(removed: int) -> PrunedModel:
    teacher = _teacher()
    config = PlanConfig(prune_ratio=removed / len(teacher.blocks), protect=str(BLOCK))
    return shallowvit.prune(teacher, shallowvit.plan(teacher, shallowvit.score(teacher), config))


def _reduced(removed: int, share: float, scorer: str) -> PrunedModel:
    return reduce_tokens(_pruned(removed), TokenConfig(f"{BLOCK}:{share}", scorer))


def _top1(pruned: PrunedModel) -> float:
    clips = demo_clips("test")
    frames, labels = torch.from_numpy(clips.frames), torch.from_numpy(clips.labels).long()
    return evaluate(deployable(pruned.model, preprocess=True), frames, labels).top1


def _distilled(removed: int, share: float, scorer: str, items: int, epochs: int) -> dict[str, Any]:
    training = TrainConfig(epochs=epochs)
    config = RecoverConfig("demo:train", "distill", items=items, training=training)
    recovered = shallowvit.recover(_teacher(), _reduced(removed, share, scorer), config)
    return {"top1": _top1(recovered.pruned), "seconds": recovered.seconds, "train_items": items, "epochs": epochs}


def _latencies() -> None:
    """Bundles of all cases, timed in turn against the whole model's."""
    cases = [(removed, share, "mean") for removed in REMOVED for share in SHARES]
    done = [row["key"] for row in _rows()]
    if all(["latency", *case] in done for case in cases):
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = {case: Path(folder) / f"removed{case[0]}-tokens{round(case[1] * 100)}" for case in cases}
        for case, path in paths.items():
            shallowvit.export(_reduced(*case), path)
        first, *others = paths.values()
        config = BenchConfig(threads=1, power=False, provider="cpu")
        measured = bench_here(read_bundle(first), [str(path) for path in others], config, Path(folder) / "rows.jsonl")
    for case, one in zip(paths, measured, strict=True):
        figures = {"p50_ms": one.p50_ms, "p90_ms": one.p90_ms, "threads": 1, "status": one.status}
        _measure(["latency", *case], lambda *_case, figures=figures: figures)


if __name__ == "__main__":
    main()
