"""Rows and files as benchmarks of several devices would leave them. Every figure here is made up; none was measured."""

import json

import numpy as np

from shallowvit_bench.conditions import Conditions
from shallowvit_bench.measurement import Measurement, Metric, append_rows, read_rows
from shallowvit_bench.percentiles import latency_from_samples

ORIN = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super (made up)"
THOR = "NVIDIA Jetson AGX Thor Developer Kit (made up)"
SERVER = "NVIDIA H100 80GB HBM3 (made up)"


def made_up_conditions(device, **changes):
    values = {
        "time_utc": "2026-01-02T03:04:05+00:00",
        "device": device,
        "cores": 6,
        "threads": 6,
        "governor": "schedutil",
        "load_average": 0.1,
        "os": "Linux 5.15.148-tegra aarch64",
        "python": "3.10.12",
        "packages": {"numpy": "1.26.4", "tensorrt": "10.3.0"},
        "commit": None,
        "command": "shallowvit bench half --device orin --batches 1,4,16 --data demo",
    }
    return Conditions(**(values | changes))


def made_up_row(side, *, device=ORIN, ms=10.0, batch=1, runs=700, sha="ab" * 32, top1=0.8, seed=0, **changes):
    """A measurement of ``runs`` runs around ``ms``; keyword arguments replace fields."""
    random = np.random.default_rng(seed)
    samples = (ms * (1 + 0.04 * random.gamma(1.5, size=runs))).round(6).tolist()
    values = {
        "side": side,
        "status": "ok",
        "reason": None,
        "backend": "tensorrt",
        "bundle": side,
        "model_sha256": sha,
        "precision": "fp16",
        "flops": 10**9,
        "batch": batch,
        "input_shape": (3, 16, 224, 224),
        "input_dtype": "float32",
        "conditions": made_up_conditions(device),
        "provider": "tensorrt",
        "computed_in": "fp16",
        "warm_up_runs": 20,
        "warm_up_steady": True,
        "items_per_s": batch * 1e3 / ms,
        "samples_ms": tuple(samples),
    }
    values |= vars(latency_from_samples(samples))
    if top1 is not None:
        values |= {"data": "demo", "items": 2000}
        values["metrics"] = {"top1": Metric(top1, max(0.0, top1 - 0.017), min(1.0, top1 + 0.017))}
    return Measurement(**(values | changes))


def made_up_energy(mj, **changes):
    """Fields of a row whose energy was measured."""
    values = {"power_source": "tegrastats VDD_IN", "idle_w": 4.9, "mean_w": 11.2, "peak_w": 13.4, "energy_mj": mj}
    return values | {"energy_item_mj": mj, "max_temperature_c": 61.5, "clocks_mhz": {"gpu": 1020.0}} | changes


def made_up_sweep():
    """Two sides on three devices at three batches, with all that can go wrong in between."""
    rows = []
    for place, (device, scale) in enumerate(((ORIN, 1.0), (THOR, 0.21), (SERVER, 0.05))):
        for batch in (1, 4, 16):
            ms = 9.0 * scale * batch**0.8
            energy = {} if device == SERVER else made_up_energy(ms * 6.1 / batch)
            if device == SERVER:
                energy = {"power_reason": "energy not measured: NVML has no such field for this user (made up)"}
            shared = {"device": device, "batch": batch, "seed": place}
            half = {"against": "full", "speedup": 1.91, "speedup_low": 1.86, "speedup_high": 1.95, "ideal_speedup": 1.98}
            half["share_of_ideal"] = 0.96
            rows.append(made_up_row("half", ms=ms, top1=0.78, sha="aa" * 32, **shared, **half, **energy))
            energy = {key: value * 1.9 if key.endswith("_mj") else value for key, value in energy.items()}
            rows.append(made_up_row("full", ms=1.91 * ms, top1=0.886, sha="bb" * 32, **shared, **energy))
    slowed = ("the GPU was slowed down by heat in 3 of 40 rounds (made up)",)
    rows.append(made_up_row("hot", status="invalid", reason=slowed[0], throttled=slowed, top1=0.7, sha="cc" * 32))
    rows.append(made_up_row("drifting", ms=12, drift=0.12, drifted=True, jitter_ms=0.3, runs=100, top1=None, sha="dd" * 32))
    trials = (
        {"provider": "openvino-bf16", "computed_in": "bf16", "median_ms": 3.1, "status": "taken", "reason": None},
        {"provider": "cpu", "computed_in": "fp32", "median_ms": 8.7, "status": "slower", "reason": "2.8 times as slow"},
    )
    rows.append(made_up_row("chosen", ms=3.1, provider="openvino-bf16", provider_trials=trials, top1=0.77, sha="ee" * 32))
    scenario = {"scenario": "SingleStream", "metric": "90th percentile latency", "unit": "ms", "value": 11.5, "valid": False}
    scenario |= {"reasons": ["min duration not met"], "shortened": True, "figures": {"mean_ms": 10.2}, "remarks": []}
    rows.append(made_up_row("half", scenario="SingleStream", scenario_results=scenario, samples_ms=(), top1=None))
    return rows


def made_up_sides(count):
    """As many sides on one device."""
    return [
        made_up_row(f"side-{place}", ms=5.0 * 1.15**place, top1=0.5 + 0.03 * place, sha=f"{place:02x}" * 32, seed=place)
        for place in range(count)
    ]


def rows_of(measurements, path):
    """The rows as they are read back from a file."""
    append_rows(path, measurements)
    return read_rows(path)


def write_profile(path, layers=20):
    """A per-layer profile as trtexec --exportProfile writes it; the names are of a TensorRT engine, the times made up."""
    names = [f"__myl_AddReshTran_myl0_{place}" for place in range(layers - 2)]
    names += ["_gemm_mha_v2_myl0_7", "node_MatMul_22+node_MatMul_14+node_linear_myl0_4 " + "of a long name " * 8]
    times = [
        {"name": name, "timeMs": 10.0 * (i + 1), "averageMs": 0.1 * (i + 1), "medianMs": 0.09 * (i + 1), "percentage": 1.0}
        for i, name in enumerate(names)
    ]
    path.write_text(json.dumps([{"count": 100}, *times]))
    return path
