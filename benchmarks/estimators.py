"""Simulate blocks of known shape and ask which estimator of entropy tells them apart, and from what size on.

    python benchmarks/estimators.py

Twelve blocks, each a mixture of two normal distributions, from a normal one (excess kurtosis 0) to tails as heavy as the
published first block's (about 10). *Range* is the spread between the blocks' mean scores, *noise* the standard deviation over
redraws of one block. Rows go to ``benchmarks/results/estimators.jsonl``; ``tables.py`` puts them into ``docs/scoring.md``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from shallowvit.scoring import ScoreConfig
from shallowvit.scoring.entropy import weight_entropy
from shallowvit_bench.conditions import read_conditions

RESULTS = Path(__file__).parent / "results" / "estimators.jsonl"
SIZES = (49_152, 110_592, 442_368, 1_769_472)
REDRAWS = 5
TAILS = np.linspace(1.0, 4.0, 12)  # deviation of the wide tenth over that of the rest
ESTIMATORS = {"exact": 23, "7 bits": 7, "4 bits": 4}


def draw(tail: float, size: int, rng: np.random.Generator) -> torch.Tensor:
    """One block's weights, fp32 [1, size], of deviation about 0.02."""
    wide = rng.random(size) < 0.1
    weights = rng.standard_normal(size, dtype=np.float32) * np.where(wide, tail, 1.0).astype(np.float32) * np.float32(0.02)
    return torch.from_numpy(weights).view(1, -1)


def main() -> None:
    """Simulate every size."""
    for size in SIZES:
        scores = {name: np.zeros((len(TAILS), REDRAWS)) for name in ESTIMATORS}
        for block, tail in enumerate(TAILS):
            for redraw in range(REDRAWS):
                weights = draw(tail, size, np.random.default_rng([size, block, redraw]))
                for name, bits in ESTIMATORS.items():
                    scores[name][block, redraw] = weight_entropy([weights], ScoreConfig(mantissa_bits=bits)).score
        figures = {
            name: {"range": float(np.ptp(found.mean(axis=1))), "noise": float(found.std(axis=1, ddof=1).mean())}
            for name, found in scores.items()
        }
        row = {"weights": size, "blocks": len(TAILS), "redraws": REDRAWS, "estimators": figures}
        with RESULTS.open("a") as file:
            file.write(json.dumps(row | {"conditions": asdict(read_conditions(torch.get_num_threads()))}) + "\n")
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
