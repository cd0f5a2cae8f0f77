"""Hold the harness's own timing against others' on the same graph: its overhead, onnxruntime's way of timing, MLPerf's LoadGen.

    python benchmarks/harness_accuracy.py [BUNDLE] [--repetitions 10] [--only overhead loop tool loadgen]

Without a bundle the demo model is exported into a temporary folder. Others' timing alternates with ours, since the machine's
speed drifts by more than they differ. A newcomer's trap: two sessions with different settings are two things to time; ``loop``
times the very session that the harness times. Rows go to ``benchmarks/results/harness.jsonl``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.conditions import read_conditions, usable_cores
from shallowvit_bench.loadgen import run_scenario
from shallowvit_bench.percentiles import latency_from_samples
from shallowvit_bench.preprocessing import random_input
from shallowvit_bench.runners import RunnerOptions, open_onnxruntime
from shallowvit_bench.timing import TimingLimits, own_overhead_ms, time_rounds, warm_up

if TYPE_CHECKING:
    from collections.abc import Callable

    from shallowvit_bench.runners import Bound

RESULTS = Path(__file__).parent / "results" / "harness.jsonl"
GOALS = {"overhead": 0.01, "agreement": 0.02}
RUNS = 400  # of each side in each repetition
TURN = 16  # runs of each side at a time: other work on the machine then hits both


def append(row: dict[str, Any], model: str) -> None:
    """Append a row with the conditions."""
    RESULTS.parent.mkdir(exist_ok=True)
    whole = {"kind": row.pop("kind"), "model": model, **row, "conditions": asdict(read_conditions(usable_cores()))}
    with RESULTS.open("a") as file:
        file.write(json.dumps(whole) + "\n")
    sys.stdout.write(json.dumps({key: value for key, value in whole.items() if key != "conditions"}) + "\n")
    sys.stdout.flush()


def ours(bound: Bound, runs: int = RUNS) -> np.ndarray:
    """Samples as the harness takes them, in milliseconds."""
    (timed,) = time_rounds([bound], TimingLimits(max_runs=runs, max_seconds=1e9))
    return np.array(timed.samples_ms)


def loop(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray], runs: int = RUNS) -> np.ndarray:
    """Samples as onnxruntime_perf_test takes them: ``run`` again and again, the clock read before and after each."""
    outputs = [session.get_outputs()[0].name]
    samples = []
    for _ in range(runs):
        begun = time.perf_counter()
        session.run(outputs, feeds)
        samples.append(1e3 * (time.perf_counter() - begun))
    return np.array(samples)


def measure_overhead(bound: Bound) -> dict[str, Any]:
    """What a run that does nothing takes, and how much of the wall time between first and last run is in no sample."""
    median_ms = float(np.median(ours(bound)))
    overheads = [own_overhead_ms() for _ in range(5)]
    (timed,) = time_rounds([bound], TimingLimits(max_runs=RUNS, max_seconds=1e9))
    wall_ms = 1e3 * sum(end - begun for begun, end in timed.windows)
    share = statistics.median(overheads) / median_ms
    return {
        "kind": "overhead",
        "own_ms": round(statistics.median(overheads), 7),
        "own_ms_worst": round(max(overheads), 7),
        "median_ms": round(median_ms, 5),
        "share": round(share, 6),
        "share_outside_samples": round(1 - sum(timed.samples_ms) / wall_ms, 6),
        "within_goal": share < GOALS["overhead"],
    }


def alternate(sides: dict[str, Callable[[], np.ndarray]], turns: int, repetitions: int) -> dict[str, list[np.ndarray]]:
    """Take every side's samples in turns A B B A ...; of each repetition all its turns together."""
    taken: dict[str, list[np.ndarray]] = {name: [] for name in sides}
    for _ in range(repetitions):
        parts: dict[str, list[np.ndarray]] = {name: [] for name in sides}
        for turn in range(turns):
            order = list(sides.items())
            for name, take in order if turn % 2 == 0 else reversed(order):
                parts[name].append(take())
        for name, arrays in parts.items():
            taken[name].append(np.concatenate(arrays))
    return taken


def compare(ours_taken: list[np.ndarray], theirs_taken: list[np.ndarray], figure: Callable[[Any], Any]) -> dict[str, Any]:
    """Our figure over theirs, by repetition: the median ratio and the range of the middle 80 %."""
    ratios = [float(figure(mine) / figure(their)) for mine, their in zip(ours_taken, theirs_taken, strict=True)]
    low, high = np.quantile(ratios, (0.1, 0.9))
    difference = statistics.median(ratios) - 1
    return {
        "ours_ms": round(statistics.median(float(figure(one)) for one in ours_taken), 5),
        "theirs_ms": round(statistics.median(float(figure(one)) for one in theirs_taken), 5),
        "difference": round(difference, 5),
        "difference_low": round(float(low) - 1, 5),
        "difference_high": round(float(high) - 1, 5),
        "within_goal": abs(difference) < GOALS["agreement"],
    }


def measure_loop(bound: Bound, session: Any, feeds: dict[str, np.ndarray], repetitions: int) -> list[dict[str, Any]]:
    """Ours against the plain loop on the same session: medians and means."""
    sides = {"ours": lambda: ours(bound, TURN), "loop": lambda: loop(session, feeds, TURN + 1)[1:]}
    taken = alternate(sides, RUNS // TURN, repetitions)
    return [
        {"kind": "loop", "figure": name, "repetitions": repetitions, "runs": RUNS}
        | compare(taken["ours"], taken["loop"], figure)
        for name, figure in (("p50_ms", np.median), ("mean_ms", np.mean))
    ]


def measure_tool(bound: Bound, path: Path, feeds: dict[str, np.ndarray], repetitions: int) -> dict[str, Any]:
    """Ours against the mean that onnxruntime's own test tool prints, which loads a session of default settings each time."""
    from onnxruntime.tools.onnxruntime_test import run_model

    def tool() -> np.ndarray:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            run_model(str(path), num_iters=RUNS // 4, feeds=dict(feeds))
        found = re.search(r"avg latency: ([\d.]+) ms", printed.getvalue())
        if found is None:
            raise SystemExit(f"onnxruntime_test printed no latency: {printed.getvalue()}")
        return np.array([float(found[1])])

    taken = alternate({"ours": lambda: ours(bound, RUNS // 4), "tool": tool}, 4, repetitions)
    row = {"kind": "tool", "tool": "onnxruntime_test", "figure": "mean_ms", "repetitions": repetitions, "runs": RUNS}
    return row | compare(taken["ours"], taken["tool"], np.mean)


def measure_loadgen(bound: Bound, repetitions: int, seconds: float) -> list[dict[str, Any]]:
    """Ours against SingleStream's median and mean; its figures hold LoadGen's own steps between queries and runs."""
    results: list[dict[str, float]] = []

    def scenario() -> np.ndarray:
        result = run_scenario(bound, 1, "SingleStream", seconds)
        results.append(result.figures | {"estimate_ms": result.value or 0.0, "valid": result.valid})
        return np.array([len(results) - 1])

    taken = alternate({"ours": lambda: ours(bound, RUNS // 4), "loadgen": scenario}, 4, repetitions)
    rows = []
    for name, figure in (("p50_ms", np.median), ("mean_ms", np.mean)):
        theirs = [np.array([results[int(place)][name] for place in places]) for places in taken["loadgen"]]
        row = {"kind": "loadgen", "scenario": "SingleStream", "figure": name, "repetitions": repetitions, "seconds": seconds}
        rows.append(row | compare(taken["ours"], theirs, figure))
    rows[0]["estimate_ms"] = [round(result["estimate_ms"], 5) for result in results]
    rows[0]["ours_p90_ms"] = [latency_from_samples(samples).p90_ms for samples in taken["ours"]]
    rows[0]["valid"] = all(result["valid"] for result in results)
    return rows


def export_demo(folder: Path) -> Path:
    """Export the demo model, unpruned."""
    command = [str(Path(sys.executable).with_name("shallowvit")), "export", "demo", "--out", str(folder), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each LoadGen test, four a repetition")
    kinds = ("overhead", "loop", "tool", "loadgen")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        bundle = read_bundle(given.bundle or export_demo(Path(work) / "demo"))
        batch = random_input(bundle, 1)
        with open_onnxruntime(bundle.model_path.absolute(), RunnerOptions(threads=usable_cores())) as runner:
            bound = runner.bind(batch)
            session = bound._session  # the same session, or its settings would be compared too
            feeds = {session.get_inputs()[0].name: batch}
            warm_up(bound, TimingLimits())
            if "overhead" in given.only:
                append(measure_overhead(bound), bundle.name)
            for row in measure_loop(bound, session, feeds, given.repetitions) if "loop" in given.only else ():
                append(row, bundle.name)
            if "tool" in given.only:
                append(measure_tool(bound, bundle.model_path, feeds, given.repetitions), bundle.name)
            for row in measure_loadgen(bound, given.repetitions, given.seconds) if "loadgen" in given.only else ():
                append(row, bundle.name)


if __name__ == "__main__":
    main()
