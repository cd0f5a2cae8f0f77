"""Measure the demo model in every runtime that this machine has: 9 of 12 blocks, whole, in OpenVINO, in torch, compiled.

    python benchmarks/sides.py [--repetitions 3]

All sides alternate within each repetition, which is one call of ``bench_here`` as ``shallowvit bench`` makes it. Rows go to
``benchmarks/results/sides.jsonl``, without their raw samples.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from shallowvit import PlanConfig, export, load, plan, prune, score
from shallowvit.benching import bench_here
from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.config import BenchConfig
from shallowvit_bench.measurement import row_from_measurement

RESULTS = Path(__file__).parent / "results" / "sides.jsonl"


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    repetitions = parser.parse_args().repetitions
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = load("demo")
        export(model, work / "full")
        export(prune(model, plan(model, score(model), PlanConfig(prune_ratio=0.25))), work / "9-of-12")
        against = [str(work / "full"), "provider:openvino", "torch", "torch-compile"]
        config = BenchConfig(provider="cpu", max_seconds=10.0)
        for repetition in range(repetitions):
            taken = bench_here(read_bundle(work / "9-of-12"), against, config, work / "rows.jsonl")
            with RESULTS.open("a", encoding="utf-8") as file:
                for measured in taken:
                    row = {"repetition": repetition} | row_from_measurement(measured, samples=False)
                    file.write(json.dumps(row) + "\n")
                    sys.stdout.write(f"{measured.side}: {measured.status} {measured.p50_ms} ms, {measured.speedup}\n")


if __name__ == "__main__":
    main()
