"""Measure the whole line on this machine: time and memory of an export, and what six of twelve blocks gain.

    python benchmarks/whole_line.py [--rounds 3]

Exports the demo model and a VideoMAE-B with random weights (ViT-B, 16 frames of 224 x 224; speed doesn't depend on the
weights), each as a process of its own, timed from outside, then benches the shallow VideoMAE-B against the full one, in
alternation in one process. Rows go to ``benchmarks/results/whole_line.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shallowvit_bench.conditions import read_conditions

RESULTS = Path(__file__).parent / "results" / "whole_line.jsonl"


def append(row: dict[str, Any]) -> None:
    """Append a row with the conditions."""
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(row | {"machine": platform.machine(), "conditions": asdict(read_conditions(None))}) + "\n")
    sys.stdout.write(json.dumps(row)[:400] + "\n")


def run(*words: str | Path) -> dict[str, Any]:
    """Run ``shallowvit`` with these words; return its wall seconds, its peak resident memory and its JSON."""
    started = time.perf_counter()
    command = [str(Path(sys.executable).with_name("shallowvit")), *map(str, words), "--json"]
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        out.seek(0)
        text = out.read().decode()
    if status:
        raise SystemExit(f"{' '.join(command)} failed with {os.waitstatus_to_exitcode(status)}")
    return {"seconds": round(seconds, 2), "peak_mib": round(usage.ru_maxrss / 1024), "json": json.loads(text)}


def videomae_base(folder: Path) -> None:
    """Save a VideoMAE-B classifier with random weights, seed 0."""
    import torch
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEImageProcessor

    torch.manual_seed(0)
    VideoMAEForVideoClassification(VideoMAEConfig(num_labels=400)).save_pretrained(folder)
    VideoMAEImageProcessor().save_pretrained(folder)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        videomae_base(work / "videomae-b")
        for source in ("demo", f"hf:{work / 'videomae-b'}"):
            label = "demo" if source == "demo" else "VideoMAE-B, random weights"
            for _ in range(rounds):
                out = run("export", source, "--prune-ratio", "0.5", "-o", work / "half", "--force")
                manifest = out.pop("json")["manifest"]
                append({"kind": "export", "model": label, "prune_ratio": 0.5, **out, "parity": manifest["parity"]})
        run("export", f"hf:{work / 'videomae-b'}", "-o", work / "full")
        for _ in range(rounds):
            out = run("bench", work / "half", "--against", work / "full", "--max-runs", "12", "--max-seconds", "60")
            append({"kind": "bench", "model": "VideoMAE-B, random weights", "measurements": out["json"]["measurements"]})


if __name__ == "__main__":
    main()
