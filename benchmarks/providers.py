"""Measure what the providers that run here gain over onnxruntime's CPU provider, as ``bench --provider auto`` does.

    python benchmarks/providers.py [--models demo videomae-b]

Exports the demo model and a VideoMAE-B with random weights (ViT-B, 16 frames of 224 x 224) and lets ``choose_provider`` try
every candidate on them, one item a batch. A row per model and opset, with every trial and the conditions, goes to
``benchmarks/results/providers.jsonl``. A candidate that can't run here is in the row with its reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.conditions import read_conditions, usable_cores
from shallowvit_bench.preprocessing import random_input
from shallowvit_bench.runners import RunnerOptions
from shallowvit_bench.runners.choosing import choose_provider
from shallowvit_bench.timing import TimingLimits
from whole_line import run, videomae_base

RESULTS = Path(__file__).parent / "results" / "providers.jsonl"
OPSETS = (23, 18)  # attention as one node, and as MatMul and Softmax
LIMITS = TimingLimits(max_runs=160, max_seconds=45.0, max_warm_up_runs=20)


def measure(name: str, bundle: Path) -> dict[str, Any]:
    """Return the row of one bundle."""
    info = read_bundle(bundle)
    cores = usable_cores()
    conditions = read_conditions(cores)  # before, so that the load isn't our own
    choice = choose_provider(
        info.model_path,
        random_input(info, 1),
        RunnerOptions(threads=cores),
        progress=lambda text: sys.stderr.write(f"{name}: {text}\n"),
        limits=LIMITS,
    )
    return {
        "kind": "providers",
        "model": name,
        "opset": info.manifest["graph"]["opset"],
        "precision": info.precision,
        "batch": 1,
        "input_shape": list(info.input.shape),
        "model_sha256": info.model_sha256,
        "chosen": choice.key,
        "trials": list(choice.trials),
        "conditions": asdict(conditions),
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["demo", "videomae-b"], choices=["demo", "videomae-b"])
    models = parser.parse_args().models
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for model in models:
            source = "demo"
            if model == "videomae-b":
                videomae_base(work / model)
                source = f"hf:{work / model}"
            for opset in OPSETS:
                bundle = work / f"{model}-{opset}"
                run("export", source, "--opset", str(opset), "-o", bundle)
                row = measure(model, bundle)
                RESULTS.parent.mkdir(exist_ok=True)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                for trial in row["trials"]:
                    took = f"{trial['median_ms']:.2f} ms, {trial['ratio']:.2f}x" if trial["median_ms"] else "-"
                    sys.stdout.write(
                        f"{model} opset {opset}  {trial['provider']}: {trial['status']}  {took}  {trial['reason']}\n"
                    )


if __name__ == "__main__":
    main()
