"""Measure what looking at a model costs: loading, discovery and scoring of a ViT-B, the check of a removal, and its export.

    python benchmarks/coverage_speed.py [--rounds 3]

Each part is a process of its own, so that peak memory is its own; memory is the resident peak, from which the packages' own
(torch and timm imported, nothing loaded) and the weights' 4 bytes each are subtracted. Rows go to
``benchmarks/results/coverage_speed.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import whole_line

RESULTS = Path(__file__).parent / "results" / "coverage_speed.jsonl"
MODEL = "timm:vit_base_patch16_224"

_LOOK = """
import json, resource, sys, time
import timm, torch
import shallowvit
from shallowvit.scoring import score
from shallowvit.models import load
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
packages = peak()
start = time.perf_counter()
model = load(sys.argv[1])
loaded = time.perf_counter()
score(model)
scored = time.perf_counter()
weights = 4 * model.parameters / 2**20
print(json.dumps({"load_s": loaded - start, "score_s": scored - loaded, "peak_mib": peak(), "packages_mib": packages,
                  "weights_mib": weights, "beyond_mib": peak() - packages - weights, "blocks": len(model.blocks)}))
"""
_CHECK = """
import json, statistics, sys, time
import torch
from shallowvit.models import load
from shallowvit.models.probes import probe_inputs
from shallowvit.pruning.removal import remove_blocks
model = load(sys.argv[1])
inputs = probe_inputs(model.input_spec, model.example)
rows = []
for removed in ((3,), (3, 7), (3, 7, 10)):
    pairs = []
    for _ in range(5):
        start = time.perf_counter()
        with torch.no_grad():
            model.module(**inputs)
        forward = time.perf_counter() - start
        start = time.perf_counter()
        found = remove_blocks(model, removed)
        pairs.append((time.perf_counter() - start, forward))
    times = [check / forward for check, forward in pairs]
    rows.append({"removed": len(removed), "forwards": found.forwards, "way": found.removals[0].way,
                 "times_a_forward": statistics.median(times), "low": min(times), "high": max(times)})
print(json.dumps({"checks": rows}))
"""


def python(script: str, *words: str) -> dict[str, Any]:
    """Run a script in a process of its own and return the JSON object that it prints."""
    out = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True).stdout
    record: dict[str, Any] = json.loads(out.splitlines()[-1])
    return record


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    whole_line.RESULTS = RESULTS
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source = str(work / "vit-b")
        whole_line.run("prune", MODEL, "--remove", "11", "-o", source)  # a folder of 11 blocks, to show how a file loads
        for _ in range(rounds):
            for label, spec in ((MODEL, MODEL), ("11 of its blocks from a folder", source)):
                whole_line.append({"kind": "look", "model": label, **python(_LOOK, spec)})
        whole_line.append({"kind": "check", "model": MODEL, **python(_CHECK, MODEL)})
        for _ in range(rounds):
            out = whole_line.run("export", MODEL, "-o", work / "bundle", "--force")
            parity = out.pop("json")["manifest"]["parity"]
            whole_line.append({"kind": "export", "model": MODEL, **out, "parity": parity})


if __name__ == "__main__":
    main()
