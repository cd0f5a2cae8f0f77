"""Measure how fast and in how much memory blocks are scored from their weights, against the released method.

    python benchmarks/scoring_speed.py [--rounds 3] [--only against ways memory linear billion bandwidth]

The released method is pandas' ``value_counts`` of a block's weights in float64 and scipy's entropy of the counts. Weights are
random, stored in ``.safetensors`` files in a temporary folder: time doesn't depend on which fp32 numbers they are. A newcomer's
trap: memory is a process's peak over what it held before, and pages of a mapped file count in it while they are mapped. Rows
go to ``benchmarks/results/scoring_speed.jsonl``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

from shallowvit.scoring import ScoreConfig, score_checkpoint
from shallowvit.scoring.entropy import mutual_information, weight_entropy
from shallowvit.scoring.weights import chunks_of, hash_blocks, map_blocks, open_checkpoint
from shallowvit_bench.conditions import read_conditions, usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RESULTS = Path(__file__).parent / "results" / "scoring_speed.jsonl"
EXACT, REDUCED = ScoreConfig("entropy", 23), ScoreConfig("entropy", 7)
VIDEOMAE_B = (12, 768, 3072)  # blocks, width, width of the MLP
BILLION = (40, 1408, 6144)  # ViT-g: 1,009,254,400 weights


def append(row: dict[str, Any]) -> None:
    """Append a row with the conditions."""
    conditions = asdict(read_conditions(usable_cores()))
    conditions["packages"] |= {name: importlib.metadata.version(name) for name in ("pandas", "safetensors", "scipy")}
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(row | {"machine": platform.machine(), "conditions": conditions}) + "\n")
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, Any]]:
    """Run the sides in turn, ``rounds`` times after one warm-up of each but the released method; median and spread of each."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, run in sides.items():
            if turn == 0 and name == "released":
                continue
            started = time.perf_counter()
            run()
            if turn:
                taken[name].append(1e3 * (time.perf_counter() - started))
    return {
        name: {
            "median_ms": round(statistics.median(ms), 2),
            "min_ms": round(min(ms), 2),
            "max_ms": round(max(ms), 2),
            "runs": rounds,
        }
        for name, ms in taken.items()
    }


def checkpoint(folder: Path, blocks: int, width: int, mlp: int, shards: int = 1) -> int:
    """Save blocks of random weights, in as many files with an index where that is more than one; return their number."""
    generator = torch.Generator().manual_seed(0)
    shapes = {**dict.fromkeys(("query", "key", "value", "dense"), (width, width)), "fc1": (mlp, width), "fc2": (width, mlp)}
    folder.mkdir(parents=True)
    index = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        state = {
            f"encoder.layer.{block}.{part}.weight": torch.randn(shape, generator=generator).mul_(0.02)
            for block in range(shard * blocks // shards, (shard + 1) * blocks // shards)
            for part, shape in shapes.items()
        }
        save_file(state, folder / name)
        index |= dict.fromkeys(state, name)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return blocks * sum(rows * columns for rows, columns in shapes.values())


def released(values: np.ndarray) -> float:
    """The released method on one block's weights."""
    import pandas as pd
    import scipy.stats

    return float(scipy.stats.entropy(pd.Series(values.astype(np.float64)).value_counts()))


def measure_against(folder: Path, rounds: int) -> None:
    """All blocks of a VideoMAE-B, ours from the file, the released method from weights already in memory."""
    weights = checkpoint(folder, *VIDEOMAE_B)
    blocks = open_checkpoint(folder)
    joined = [np.concatenate([m.read().numpy().ravel() for m in block.matrices]) for block in blocks]
    found: dict[str, list[float]] = {}

    def ours(name: str, config: ScoreConfig) -> None:
        estimates = map_blocks(lambda b: weight_entropy([m.read() for m in b.matrices], config), open_checkpoint(folder))
        found[name] = [estimate.score for estimate in estimates]

    def theirs() -> None:
        found["released"] = [released(values) for values in joined]

    times = alternate(
        {
            "released": theirs,
            "exact": lambda: ours("exact", EXACT),
            "reduced": lambda: ours("reduced", REDUCED),
            "exact, whole command": lambda: score_checkpoint(folder, EXACT),
            "reduced, whole command": lambda: score_checkpoint(folder, REDUCED),
            "hash of the blocks": lambda: hash_blocks(blocks),
            "mutual information, reduced": lambda: mutual_information(blocks, ScoreConfig("mutual-information")),
        },
        rounds,
    )
    off = max(abs(one - other) for one, other in zip(found["exact"], found["released"], strict=True))
    for name, row in times.items():
        ratio = round(times["released"]["median_ms"] / row["median_ms"], 1)
        append(
            {"kind": "against", "model": "VideoMAE-B, random", "weights": weights, "side": name, **row, "times_faster": ratio}
        )
    append({"kind": "agreement", "model": "VideoMAE-B, random", "largest_difference_exact_released": off})


def measure_ways(rounds: int) -> None:
    """Ways of counting one block of VideoMAE-B, in one thread: what was chosen among in ``entropy``."""
    values = torch.randn(7_077_888, generator=torch.Generator().manual_seed(0)) * 0.02
    array = values.numpy()
    bits = array.view(np.uint32)

    def piecewise(count: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return sum(count(chunk.view(np.uint32) >> np.uint32(16)) for chunk in chunks_of([values]))  # type: ignore[return-value]

    def split_then_sort() -> None:
        for upper in range(256):  # by sign and most of the exponent
            np.sort(bits[(bits >> np.uint32(24)) == upper])

    ways: dict[str, Callable[[], object]] = {
        "reduced: ours": lambda: weight_entropy([values], REDUCED),
        "reduced: numpy bincount of pieces": lambda: piecewise(lambda k: np.bincount(k, minlength=65536)),
        "reduced: numpy bincount at once": lambda: np.bincount(bits >> np.uint32(16), minlength=65536),
        "reduced: torch bincount of pieces": lambda: piecewise(
            lambda k: torch.bincount(torch.from_numpy(k.view(np.int32)), minlength=65536).numpy()
        ),
        "reduced: torch bfloat16, bincount of pieces": lambda: sum(
            torch.bincount(piece.bfloat16().view(torch.uint16).int(), minlength=65536) for piece in values.split(1 << 19)
        ),
        "reduced: torch bfloat16, bincount at once": lambda: torch.bincount(
            values.bfloat16().view(torch.uint16).int(), minlength=65536
        ),
        "reduced: numpy sort of the upper 16 bits": lambda: np.sort((bits >> np.uint32(16)).astype(np.uint16)),
        "exact: ours": lambda: weight_entropy([values], EXACT),
        "exact: numpy sort of bit patterns (without the counts)": lambda: np.sort(bits),
        "exact: numpy sort of floats (without the counts)": lambda: np.sort(array),
        "exact: torch sort (without the counts)": lambda: torch.sort(values.view(torch.int32)),
        "exact: numpy unique": lambda: np.unique(bits, return_counts=True),
        "exact: torch unique": lambda: torch.unique(values.view(torch.int32), return_counts=True),
        "exact: split by the upper 8 bits, then sort": split_then_sort,
        "released": lambda: released(array),
    }
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the pool of blocks
    times = alternate(ways, rounds)
    torch.set_num_threads(before)
    for name, row in times.items():
        append({"kind": "ways", "weights": len(array), "side": name, **row})


def measure_bandwidth(rounds: int) -> None:
    """How fast all cores copy and add up fp32 numbers in memory: the limit for anything that reads each once."""
    source = [np.ones(1 << 25, np.float32) for _ in range(usable_cores())]
    target = [np.zeros_like(part) for part in source]

    def by_all(work: Callable[[int], object]) -> None:
        with ThreadPoolExecutor(len(source)) as pool:
            list(pool.map(work, range(len(source))))

    times = alternate(
        {
            "sum": lambda: by_all(lambda place: source[place].sum()),
            "copy": lambda: by_all(lambda place: np.copyto(target[place], source[place])),
        },
        max(rounds, 5),
    )
    for name, row in times.items():
        read = sum(part.nbytes for part in source)
        append({"kind": "bandwidth", "side": name, "bytes": read, **row, "read_gb_s": round(read / row["median_ms"] / 1e6, 2)})


def measure_linear(folder: Path, rounds: int) -> None:
    """Time against the number of weights: blocks of a quarter, once and four times the size of VideoMAE-B's."""
    sizes = {scale: (folder / str(scale), checkpoint(folder / str(scale), 12, scale, 4 * scale)) for scale in (384, 768, 1536)}
    for name, config in (("exact", EXACT), ("reduced", REDUCED)):
        sides = {
            str(scale): lambda path=path, config=config: map_blocks(
                lambda b: weight_entropy([m.read() for m in b.matrices], config), open_checkpoint(path)
            )
            for scale, (path, _) in sizes.items()
        }
        for scale, row in alternate(sides, rounds).items():
            weights = sizes[int(scale)][1]
            per_weight = round(1e6 * row["median_ms"] / weights, 3)
            append(
                {"kind": "linear", "side": name, "width": int(scale), "weights": weights, **row, "ns_per_weight": per_weight}
            )


# Peak over what was there before: clear_refs 5 sets the kernel's high-water mark back to the present. The sampler sees the
# process's own memory apart from pages of files.
_WORKER = """
import json, sys, threading, time
from pathlib import Path
from shallowvit.scoring import ScoreConfig, score_checkpoint
from shallowvit.scoring.entropy import weight_entropy
from shallowvit.scoring.weights import map_blocks, open_checkpoint
from shallowvit.scoring.records import BlockWeights, Matrix
from dataclasses import replace
import scipy.stats, torch

def status(key):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(key + ":"))
    return int(line.split()[1]) / 1024

path, bits, where = sys.argv[1], int(sys.argv[2]), sys.argv[3]
config = ScoreConfig("entropy", bits)
blocks = open_checkpoint(path)
if where == "memory":
    held = [[m.read().clone() for m in b.matrices] for b in blocks]
    blocks = [
        replace(b, matrices=tuple(replace(m, read=lambda t=t: t) for m, t in zip(b.matrices, own)))
        for b, own in zip(blocks, held)
    ]
warm = [torch.randn(300, 300)]
map_blocks(lambda b: weight_entropy(warm, config), blocks)
Path("/proc/self/clear_refs").write_text("5")
before, anon, done = status("VmRSS"), status("RssAnon"), []
peak = [anon]
def sample():
    while not done:
        peak[0] = max(peak[0], status("RssAnon"))
        time.sleep(0.002)
thread = threading.Thread(target=sample)
thread.start()
started = time.perf_counter()
if where == "whole":
    score_checkpoint(path, config)
else:
    map_blocks(lambda b: weight_entropy([m.read() for m in b.matrices], config), blocks)
seconds = time.perf_counter() - started
done.append(1)
thread.join()
print(json.dumps({
    "seconds": round(seconds, 3), "peak_rss_mib": round(status("VmHWM"), 1), "before_rss_mib": round(before, 1),
    "peak_own_mib": round(peak[0], 1),
    "extra_mib": round(status("VmHWM") - before, 1), "extra_own_mib": round(peak[0] - anon, 1),
}))
"""


def run_worker(path: Path, config: ScoreConfig, where: str) -> dict[str, Any]:
    """Score in a process of its own, from the file, from memory, or as the whole command with warnings and hash."""
    command = [sys.executable, "-c", _WORKER, str(path), str(config.mantissa_bits), where]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def measure_memory(folder: Path, rounds: int) -> None:
    """Peak memory over what the process held before, in blocks of fp32."""
    weights = checkpoint(folder, *VIDEOMAE_B)
    block_mib = 4 * weights / VIDEOMAE_B[0] / 2**20
    for where in ("memory", "file"):
        for name, config in (("exact", EXACT), ("reduced", REDUCED)):
            rows = [run_worker(folder, config, where) for _ in range(rounds)]
            worst = max(rows, key=lambda row: row["extra_mib"])
            in_blocks = {f"{key}_blocks": round(worst[f"{key}_mib"] / block_mib, 2) for key in ("extra", "extra_own")}
            append({"kind": "memory", "side": name, "weights_from": where, "block_mib": block_mib, **worst, **in_blocks})


def measure_billion(folder: Path, rounds: int) -> None:
    """A sharded checkpoint of a billion weights: the whole command, with warnings and hash."""
    weights = checkpoint(folder, *BILLION, shards=5)
    for _ in range(rounds):
        for name, config in (("exact", EXACT), ("reduced", REDUCED)):
            row = run_worker(folder, config, "whole")
            rate = round(4e-9 * weights / row["seconds"], 2)
            append({"kind": "billion", "side": f"{name}, whole command", "weights": weights, **row, "file_gb_s": rate})


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    kinds = ("bandwidth", "ways", "against", "memory", "linear", "billion")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for kind in given.only:
            if kind in ("bandwidth", "ways"):
                {"bandwidth": measure_bandwidth, "ways": measure_ways}[kind](given.rounds)
            else:
                measure = {
                    "against": measure_against,
                    "memory": measure_memory,
                    "linear": measure_linear,
                    "billion": measure_billion,
                }[kind]
                measure(work / kind, given.rounds)


if __name__ == "__main__":
    main()
