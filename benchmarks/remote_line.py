"""Measure a bundle here and over SSH in turns: do the figures agree, what is sent, how long does it take?

    python benchmarks/remote_line.py [--repetitions 5] [--aarch64 DIR]

The device is this machine, through a real SSH server on loopback with an environment of its own
(``tests/benchmarks/loopback.py``). With ``--aarch64`` its ``python3`` is that of an aarch64 userland under qemu
(``tests/benchmarks/aarch64_board.py DIR`` makes one): its speed says nothing, its answers do. Rows go to
``benchmarks/results/remote.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from shallowvit import PlanConfig, export, load, plan, prune, score
from shallowvit.benching import bench_here
from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.conditions import read_conditions, usable_cores
from shallowvit_bench.config import BenchConfig
from shallowvit_bench.demo_clips import demo_clips
from shallowvit_bench.predictions import read_predictions
from shallowvit_bench.remote.bench import remote_bench

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "remote.jsonl"
_CLIPS = 200  # of the test split, some seconds each under emulation
QUICK = BenchConfig(threads=usable_cores(), provider="cpu", power=False, max_seconds=5.0)

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
from aarch64_board import make_board  # noqa: E402
from loopback import start_loopback  # noqa: E402


def append(row: dict[str, Any]) -> None:
    """Append a row with the conditions."""
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row | {"conditions": asdict(read_conditions(QUICK.threads))}) + "\n")
    sys.stdout.write(json.dumps(row)[:600] + "\n")


def measure_agreement(bundle: Path, server: Any, work: Path, repetitions: int) -> None:
    """Medians here and there, in turns, and what each call sends and takes."""
    info, device = read_bundle(bundle), server.device(cache=str(work / "cache"))
    here, there, calls = [], [], []
    for turn in range(repetitions):
        (ours,) = bench_here(info, (), QUICK, work / "rows.jsonl")
        started = time.perf_counter()
        (result,) = remote_bench([device], [bundle], QUICK)
        seconds = time.perf_counter() - started
        if result.failure:
            raise SystemExit(result.failure)
        here.append(ours.p50_ms)
        there.append(result.rows[0]["p50_ms"])
        calls.append({"turn": turn, "sent_bytes": result.sent_bytes, "seconds": round(seconds, 2)})
    ratios = np.array(there) / np.array(here)
    append(
        {
            "kind": "agreement",
            "model": info.name,
            "repetitions": repetitions,
            "here_ms": statistics.median(here),
            "there_ms": statistics.median(there),
            "ratio": float(np.median(ratios)),
            "ratio_low": float(ratios.min()),
            "ratio_high": float(ratios.max()),
            "calls": calls,
        }
    )


def measure_aarch64(bundle: Path, server: Any, work: Path, board: Path) -> None:
    """The accuracy there and here, and on how many items both predict the same."""
    python = make_board(board.absolute())
    server.set_python(f'#!/bin/sh\nexec {python} "$@"\n')
    config = replace(QUICK, threads=1, max_runs=12)
    clips = demo_clips("test", _CLIPS)
    np.savez(work / "clips.npz", frames=clips.frames, labels=clips.labels)
    started = time.perf_counter()
    (result,) = remote_bench([server.device(cache=str(work / "board"))], [bundle], config, str(work / "clips.npz"))
    seconds = time.perf_counter() - started
    if result.failure:
        raise SystemExit(result.failure)
    (row,) = result.rows
    (ours,) = bench_here(
        read_bundle(bundle), (), replace(config, threads=QUICK.threads), work / "rows.jsonl", str(work / "clips.npz")
    )
    for name, content in result.files.items():
        (work / name).write_bytes(content)
    theirs = read_predictions(work / Path(row["predictions"]).name)
    mine = read_predictions(Path(ours.predictions or ""))
    append(
        {
            "kind": "aarch64",
            "model": bundle.name,
            "system": row["conditions"]["os"],
            "python": row["conditions"]["python"],
            "packages": row["conditions"]["packages"],
            "seconds": round(seconds, 1),
            "items": row["items"],
            "top1": row["metrics"]["top1"]["value"],
            "top1_here": ours.metrics["top1"].value,
            "same_predictions": float((theirs.outputs.argmax(1) == mine.outputs.argmax(1)).mean()),
            "largest_difference": float(np.abs(theirs.outputs - mine.outputs).max() / np.abs(mine.outputs).max()),
        }
    )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--aarch64", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = load("demo")
        bundle = work / "demo-9-of-12"
        export(prune(model, plan(model, score(model), PlanConfig(prune_ratio=0.25))), bundle)
        server = start_loopback(work / "server")
        try:
            if given.repetitions:
                measure_agreement(bundle, server, work, given.repetitions)
            if given.aarch64:
                measure_aarch64(bundle, server, work, given.aarch64)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
