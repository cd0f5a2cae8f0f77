"""What the benchmark of the kernels says follows from what was measured: floors, goals, occupancy, rows and tables."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attention_kernel_tables import latest, tables_from_rows
from attention_kernels import Rows, Sizes, device_of, measure_speed, shapes_of
from kernel_bench.cases import CASES, DECOMPOSED, OURS, Shape, decomposed, inputs_for, sides_of, variant_of
from kernel_bench.compiled import Group, compile_rows, planned
from kernel_bench.floors import floors_of, goals_of, target_of_gpu
from kernel_bench.occupancy import LIMITS, Occupancy, occupancy_of
from kernel_bench.speed import error_of, measure, reference, summary_of
from shallowvit_kernels.records import Dtype, Modifier
from shallowvit_kernels.tiles import TARGETS

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "attention_kernels.py"
BY_NAME = {case.name: case for case in CASES}
PLAIN = Shape(BY_NAME["plain"], Dtype.FP16, 64, 1568, 8)
CONDITIONS = {"device": "a CPU", "cores": 2, "gpu": None, "load_average": 5.0, "packages": {"triton": "3.8.0"}}


class WallClock:
    """The CPU's stopwatch, in place of a GPU's."""

    gpu, device = "NVIDIA A100-SXM4-80GB", "cpu"

    def captured(self, run):
        return run, "call"

    def milliseconds(self, runs):
        taken = {}
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            taken[name] = 1e3 * (time.perf_counter() - started)
        return taken

    def peak_bytes(self, run):
        return run().nbytes


def _tiny(name, dtype=Dtype.FP32):
    return replace(PLAIN, case=BY_NAME[name], dtype=dtype, tokens=12, batch=1, head_size=64)


def _speed(side, median_ms, **changes):
    row = {"kind": "speed", "variant": "plain", "dtype": "fp16", "head_size": 64, "tokens": 1568, "batch": 8, "gpu": "A100"}
    row |= {"side": side, "status": "measured", "median_ms": median_ms, "p10_ms": median_ms, "p90_ms": median_ms}
    row |= {"peak_mib": 10.0, "relative_error": 1e-3, "bytes_ms": 0.1, "operations_ms": None, "conditions": CONDITIONS}
    return row | changes


def _compiled(sm=80, **changes):
    row = {"kind": "compile", "variant": "plain", "dtype": "fp16", "head_size": 64, "sm": sm, "status": "compiled"}
    row |= {"threads": 128, "registers": 200, "spilled_bytes": 0, "shared_bytes": 24576, "instructions": 1000, "ptxas": "12.9"}
    row |= {"tensor_core_instructions": 64, "tile": {"queries": 64, "keys": 32, "warps": 4, "stages": 2}, "ptx_version": 80}
    row |= {"blocks_per_sm": 2, "warps_per_sm": 8, "occupancy": 0.125, "limited_by": "registers", "exact": False}
    return row | {"compile_seconds": 1.2, "conditions": CONDITIONS} | changes


def _memory(attention, mib, **changes):
    row = {"kind": "engine-memory", "model": "VideoMAE", "width": 384, "model_heads": 6, "tokens": 1568, "pattern": "fp32"}
    row |= {"attention": attention, "status": "fused", "fused": 4, "expected": 4, "plugins": 4, "activation_mib": mib}
    return row | {"conditions": CONDITIONS} | changes


# occupancy


def test_limits_are_known_for_every_target_of_the_compiler():
    assert sorted(LIMITS) == sorted(TARGETS)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((80, 256, 32, 0), Occupancy(8, 64, 1.0, "registers")),  # all 64 warps of an A100
        ((80, 128, 255, 0), Occupancy(2, 8, 0.125, "registers")),
        ((86, 128, 32, 49152), Occupancy(2, 8, 8 / 48, "shared memory")),  # 48 and 1 KiB of 100
        ((75, 128, 32, 32768), Occupancy(2, 8, 0.25, "shared memory")),  # nothing is kept back before 8.0
        ((87, 32, 16, 0), Occupancy(16, 16, 16 / 48, "blocks")),
    ],
)
def test_occupancy_of_known_cases_is_theirs(given, expected):
    assert occupancy_of(*given) == expected


_C = """
#include <stdio.h>
#include "cuda_occupancy.h"
int main() {
  int sm, threads, registers, shared, limit, shared_kib, reserved;
  while (scanf("%d %d %d %d %d %d %d", &sm, &threads, &registers, &shared, &limit, &shared_kib, &reserved) == 7) {
    cudaOccDeviceProp device;
    cudaOccFuncAttributes function;
    cudaOccDeviceState state;
    cudaOccResult result;
    memset(&device, 0, sizeof device); memset(&function, 0, sizeof function);
    device.computeMajor = sm / 10; device.computeMinor = sm % 10; device.maxThreadsPerBlock = 1024; device.warpSize = 32;
    device.maxThreadsPerMultiprocessor = limit; device.regsPerBlock = device.regsPerMultiprocessor = 65536; device.numSms = 1;
    device.sharedMemPerBlock = 49152; device.sharedMemPerMultiprocessor = shared_kib * 1024;
    device.sharedMemPerBlockOptin = shared_kib * 1024 - reserved; device.reservedSharedMemPerBlock = reserved;
    function.maxThreadsPerBlock = 1024; function.numRegs = registers; function.numBlockBarriers = 1;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &function, &state, threads, shared)) return 1;
    printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
  return 0;
}
"""


def test_occupancy_is_that_of_the_toolkits_own_header(tmp_path):
    header = Path(importlib.util.find_spec("triton").origin).parent / "backends/nvidia/include/cuda_occupancy.h"
    if not header.is_file() or shutil.which("g++") is None:
        pytest.skip("no g++, or no cuda_occupancy.h in Triton")
    (tmp_path / "ask.cpp").write_text(_C)
    ask = tmp_path / "ask"
    subprocess.run(["g++", f"-I{header.parent}", "-o", str(ask), str(tmp_path / "ask.cpp")], check=True, capture_output=True)
    shared = (0, 4096, 12289, 24576, 48 * 1024)
    cases = [
        (sm, threads, registers, bytes_)
        for sm in LIMITS
        for threads in (32, 64, 96, 128, 160, 256, 512)
        for registers in (16, 33, 64, 96, 107, 128, 168, 200, 255)
        for bytes_ in shared
        if threads * registers <= 65536
    ]
    lines = [[*case, LIMITS[case[0]].threads, LIMITS[case[0]].shared_kib, LIMITS[case[0]].reserved_bytes] for case in cases]
    text = "".join(f"{' '.join(map(str, line))}\n" for line in lines)
    done = subprocess.run([str(ask)], input=text, check=True, capture_output=True, text=True)
    theirs = dict(zip(cases, map(int, done.stdout.split()), strict=True))
    assert {case: occupancy_of(*case).blocks for case in cases} == theirs


# floors and goals


def test_floors_of_a_known_card_are_bytes_over_bandwidth_and_operations_over_rate():
    floors = floors_of(PLAIN, "fp16", "NVIDIA A100-SXM4-80GB")
    assert (floors.card, floors.remark) == ("a100-80gb", None)
    assert floors.bytes_ms == pytest.approx(1e3 * 4 * 8 * 12 * 1568 * 64 * 2 / 2039e9)
    assert floors.operations_ms == pytest.approx(1e3 * 4 * 8 * 12 * 1568**2 * 64 / 312e12)
    assert floors_of(PLAIN, "bf16", "NVIDIA A100-SXM4-80GB").operations_ms == floors.operations_ms


def test_floors_of_what_the_registry_lacks_are_none_and_said():
    unknown = floors_of(PLAIN, "fp16", "NVIDIA X1")
    assert (unknown.card, unknown.bytes_ms, unknown.operations_ms) == (None, None, None)
    assert unknown.remark == "NVIDIA X1 isn't in the registry of targets"
    single = floors_of(PLAIN, "fp32", "NVIDIA H100 PCIe")
    assert (single.bytes_ms, single.operations_ms) == (None, None)
    assert single.remark == "the registry has no bandwidth and no fp32 rate of h100-pcie"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
    ],
)
def test_target_of_gpu_knows_the_names_that_drivers_give(name, key):
    assert target_of_gpu(name).key == key


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090 D", "NVIDIA A10", "NVIDIA RTX A2000"])
def test_target_of_gpu_another_card_is_none(name):
    assert target_of_gpu(name) is None


def test_shape_counts_operands_once_and_a_linear_kernel_as_linear():
    bias, linear = (replace(PLAIN, case=BY_NAME[name]) for name in ("bias", "linear"))
    assert bias.bytes - PLAIN.bytes == 2 * 12 * 1568**2
    assert replace(linear, tokens=3136).operations == 2 * linear.operations
    assert replace(PLAIN, tokens=3136).operations == 4 * PLAIN.operations


def test_goals_plain_is_judged_by_its_worst_case_against_the_best_library_kernel():
    rows = [_speed(OURS, 1.1), _speed("SDPA flash", 1.0), _speed("SDPA math", 0.5)]
    rows += [_speed(OURS, 2.4, tokens=784), _speed("FlexAttention", 2.0, tokens=784), _speed("SDPA flash", 3.0, tokens=784)]
    plain = goals_of(rows)[0]
    assert (plain.cases, plain.reached) == (2, False)
    assert plain.worst == pytest.approx(1.2)
    assert "N784" in plain.where
    assert "NOT reached in the worst of 2 cases, 1.20x (plain fp16 d64 N784 batch 8 on A100)" in str(plain)


def test_goals_variants_are_judged_at_their_number_of_tokens_alone():
    rows = [_speed(OURS, 1.0, variant="bias", peak_mib=5.0), _speed(DECOMPOSED, 3.5, variant="bias", peak_mib=60.0)]
    rows += [_speed(OURS, 9.0, variant="bias", tokens=196), _speed(DECOMPOSED, 1.0, variant="bias", tokens=196)]
    plain, faster, leaner = goals_of(rows)
    assert plain.reached is None
    assert str(plain).endswith("not measured")
    assert (faster.reached, faster.worst, faster.cases) == (True, 3.5, 1)
    assert (leaner.reached, leaner.worst) == (True, 12.0)


def test_goals_a_side_that_failed_is_no_figure():
    rows = [_speed(OURS, 1.0), {"status": "out of memory", "reason": "2 GiB"} | _without(_speed("SDPA flash", 1.0))]
    assert goals_of(rows)[0].reached is None


def _without(row):
    return {name: row[name] for name in row if name not in ("status", "median_ms")}


# sides and rows


@pytest.mark.parametrize("name", list(BY_NAME))
def test_sides_that_compute_a_case_agree_with_its_reference(name):
    shape = _tiny(name)
    variant, given = variant_of(shape.case, shape.dtype, shape.head_size), inputs_for(shape, "cpu", seed=3)
    expected = reference(variant, given)
    sides = sides_of(variant, given, compiled=False)
    assert error_of(decomposed(variant, given), expected) < 1e-5
    for side in (OURS, "SDPA math", "FlexAttention"):
        if not isinstance(sides[side], str):
            assert error_of(sides[side](), expected) < 1e-5, side


def test_sides_that_cannot_compute_a_case_say_why():
    shape = _tiny("probability_mask")
    sides = sides_of(variant_of(shape.case, shape.dtype, 64), inputs_for(shape, "cpu", 0), compiled=False)
    assert sides["SDPA flash"] == "SDPA takes an additive mask and no other modifier"
    assert "needs a second pass" in sides["FlexAttention"]
    linear = _tiny("linear")
    sides = sides_of(variant_of(linear.case, linear.dtype, 64), inputs_for(linear, "cpu", 0), compiled=False)
    assert "softmax attention alone" in sides["SDPA math"]
    assert "softmax attention alone" in sides["FlexAttention"]


def test_measure_makes_a_row_of_every_side():
    rows = {row["side"]: row for row in measure(replace(_tiny("bias"), batch=2), WallClock(), rounds=2, seed=5)}
    assert set(rows) == {OURS, DECOMPOSED, "SDPA flash", "SDPA efficient", "SDPA cuDNN", "SDPA math", "FlexAttention"}
    ours = rows[OURS]
    assert (ours["status"], ours["rounds"], ours["timed_as"], ours["seed"]) == ("measured", 2, "call", 5)
    assert ours["p10_ms"] <= ours["median_ms"] <= ours["p90_ms"]
    assert ours["relative_error"] < 1e-5
    assert ours["card"] == "a100-80gb"
    assert ours["peak_mib"] == round(2 * 12 * 12 * 64 * 4 / 2**20, 2)
    assert rows["SDPA efficient"]["status"] == "refused"  # no such kernel on a CPU
    assert rows["SDPA efficient"]["reason"]


def test_measure_memory_that_runs_out_is_a_row_and_others_are_measured():
    class Small(WallClock):
        def peak_bytes(self, run):
            if run.__qualname__.startswith("sides_of"):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return 1

    rows = {row["side"]: row for row in measure(_tiny("plain"), Small(), rounds=1, seed=0)}
    assert (rows[OURS]["status"], "2.00 GiB" in rows[OURS]["reason"]) == ("out of memory", True)
    assert "median_ms" not in rows[OURS]
    assert rows["SDPA math"]["status"] == "measured"


@pytest.mark.gpu
def test_script_on_a_gpu_times_our_kernel_and_the_decomposed_graph(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    path = tmp_path / "rows.jsonl"
    command = [sys.executable, str(SCRIPT), "--quick", "--parts", "speed", "--only", "plain", "--append", str(path)]
    # the interpreter is for tests without a GPU
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=clean)
    assert done.returncode == 0, done.stderr
    rows = {row["side"]: row for row in map(json.loads, path.read_text().splitlines())}
    assert {rows[OURS]["status"], rows[DECOMPOSED]["status"], rows["FlexAttention"]["status"]} == {"measured"}
    assert rows[OURS]["peak_mib"] < rows[DECOMPOSED]["peak_mib"]
    assert rows[OURS]["relative_error"] < 1e-5
    assert "against the decomposed graph" in done.stdout


def test_measure_speed_in_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="speed: TRITON_INTERPRET=1 would run our kernels on the CPU; unset it"):
        measure_speed(None, None, "cuda:0")


def test_error_of_what_is_not_finite_is_infinite():
    expected = torch.ones(4)
    assert error_of(torch.tensor([1.0, 1.0, 1.0, float("nan")]), expected) == float("inf")
    assert error_of(expected + 0.5, expected) == 0.5


def test_summary_of_is_the_median_and_the_tenths():
    assert summary_of([float(number) for number in range(11)]) == {"median_ms": 5.0, "p10_ms": 1.0, "p90_ms": 9.0}
    assert summary_of([2.0]) == {"median_ms": 2.0, "p10_ms": 2.0, "p90_ms": 2.0}


def test_inputs_for_positions_are_probabilities_with_a_gate_a_head():
    given = inputs_for(_tiny("positions"), "cpu", seed=1)
    assert list(given) == ["q", "k", "v", str(Modifier.POSITIONS), "gate"]
    assert torch.allclose(given["positions"].sum(-1), torch.ones(1, 12, 12))
    assert given["gate"].shape == (12,)


def test_shapes_of_is_the_whole_grid():
    shapes = list(shapes_of(["plain", "bias"], Sizes(("fp16",), (64, 32), (196, 784), (1, 8))))
    assert len(shapes) == len(set(map(str, shapes))) == 2 * 2 * 2 * 2
    assert {shape.heads for shape in shapes} == {12, 24}


def test_planned_leaves_no_case_out_and_takes_fewer_gpus_for_other_heads():
    groups = planned(list(BY_NAME))
    assert {(group.case.name, group.dtype) for group in groups} >= {(name, "fp16") for name in BY_NAME}
    assert all(len(group.sm) == (len(TARGETS) if group.head_size == 64 else 5) for group in groups)


def test_compile_rows_a_type_that_a_gpu_lacks_is_refused_and_the_other_compiled():
    old, new = compile_rows(Group(BY_NAME["plain"], Dtype.BF16, 32, (75, 80)))
    assert (old["sm"], old["status"]) == (75, "refused")
    assert "bf16 needs compute capability 8.0" in old["reason"]
    assert (new["sm"], new["status"], new["spilled_bytes"]) == (80, "compiled", 0)
    assert new["blocks_per_sm"] * new["threads"] == 32 * new["warps_per_sm"]
    assert new["tensor_core_instructions"] > 0


def test_device_of_none_is_none_and_a_name_is_taken():
    assert device_of("none") is None
    assert device_of("cuda:1") == "cuda:1"


def test_rows_are_in_the_file_with_their_conditions_as_soon_as_they_are_taken(tmp_path):
    rows = Rows(tmp_path / "new" / "rows.jsonl")

    def some():
        yield {"kind": "compile"}
        assert json.loads((tmp_path / "new" / "rows.jsonl").read_text())["conditions"]["packages"]["triton"]

    rows.take(some())
    assert rows.taken == [{"kind": "compile"}]


@pytest.mark.slow
def test_script_without_a_gpu_says_so_and_takes_what_it_can(tmp_path):
    path = tmp_path / "rows.jsonl"
    command = [sys.executable, str(SCRIPT), "--quick", "--device", "none", "--sm", "80", "--append", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "speed: no GPU here, so nothing is timed" in done.stdout
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"compile", "engine-memory", "alone-memory"}
    alone = {(row["variant"], row["dtype"], row["attention"]): row for row in rows if row["kind"] == "alone-memory"}
    for (_variant, _dtype, attention), row in alone.items():
        assert (row["status"], row["fused"], row["plugins"]) == ("ok", int(attention == "plugin"), int(attention == "plugin"))
        assert (row["activation_mib"] > 0) == (attention == "native")
    assert [row["status"] for row in rows if row["kind"] == "compile"] == ["compiled"]
    memory = {(row["pattern"], row["attention"]): row for row in rows if row["kind"] == "engine-memory"}
    assert {row["status"] for row in memory.values()} <= {"fused", "unfused"}
    assert (memory["fp32", "native"]["fused"], memory["fp32", "plugin"]["plugins"]) == (0, 2)
    assert memory["fp32", "plugin"]["activation_mib"] < memory["fp32", "native"]["activation_mib"]
    text = tables_from_rows(rows)
    assert "| plain | fp32 | 1 |" in text
    assert "Not measured, since no row was taken on a GPU" in text


# tables


def _line(text, start):
    return next(line for line in text.splitlines() if line.startswith(start))


def _alone(attention, mib, **changes):
    row = {"kind": "alone-memory", "variant": "soft_cap", "dtype": "fp16", "tokens": 1568, "batch": 8, "attention": attention}
    row |= {"head_size": 64, "status": "ok", "io_mib": 50.0, "activation_mib": mib, "fused": int(attention == "plugin")}
    return row | {"conditions": CONDITIONS} | changes


def test_tables_of_one_attention_s_memory_count_inputs_and_output_on_both_sides():
    text = tables_from_rows([_alone("native", 950.0), _alone("plugin", 0.0), _alone("plugin", 0.0, tokens=196)])
    assert _line(text, "| 1,568 | soft_cap") == "| 1,568 | soft_cap | fp16 | not fused | 50 | 1,000 | 50 | 20.0x |"
    assert "| 196 |" not in text


def test_latest_of_a_row_taken_again_is_the_second():
    assert [row["registers"] for row in latest([_compiled(), _compiled(90), _compiled(registers=1)])] == [1, 200]


def test_tables_of_compiled_kernels_give_ranges_and_name_spills():
    text = tables_from_rows([_compiled(), _compiled(75, registers=255, spilled_bytes=40, exact=True)])
    assert "| plain | fp16 | 2 | 200 to 255 | 7.5: 40 | 24.0 | 1,000 | 64 | 8 | 1.2 |" in text
    assert "| fp16 | 8.0 | 64 x 32 | 128 | 200 | 24.0 | 1000 | 64 | 2 (12 % of its warps) | registers | 8.0 |" in text
    assert _line(text, "| fp16 | 7.5").endswith("| 8.0, exact |")
    assert "by head size" not in text
    assert "ptxas 12.9" in text


def test_tables_by_head_size_and_what_was_refused():
    refused = {"status": "refused", "reason": "kernels: a head of 1024"}
    text = tables_from_rows([_compiled(), _compiled(head_size=128), _compiled(head_size=1024, variant="bias") | refused])
    assert "| 128 | fp16 | 1 | 64 x 32 | 200 | 24.0 | none |" in text
    assert "- bias fp16, heads of 1024, 8.0: kernels: a head of 1024" in text


def test_tables_of_memory_hold_ours_against_tensorrts():
    rows = [_memory("native", 1000.0, fused=0, status="unfused"), _memory("plugin", 80.0)]
    assert "| 1,568 | fp32 | 0 of 4 | 4 of 4 | 1,000 | 80 | 12.5x |" in tables_from_rows(rows)
    failed = {"attention": "plugin", "status": "failed", "reason": "build: no", "conditions": CONDITIONS}
    broken = {
        name: value
        for name, value in _memory("native", 1.0).items()
        if name in ("kind", "tokens", "pattern", "width", "model_heads")
    }
    text = tables_from_rows([rows[0], broken | failed])
    assert "| 1,568 | fp32 | 0 of 4 | failed | 1,000 | failed |  |" in text
    assert "- build: no" in text
    assert "| 1,568 | fp32 | 0 of 4 | not built | 1,000 | not built |  |" in tables_from_rows(rows[:1])


def test_tables_of_speed_say_why_a_side_has_no_figure_and_judge_the_goals():
    refused = {"status": "can't", "reason": "takes no such thing"} | _without(_speed("SDPA flash", 1.0, variant="bias"))
    rows = [_speed(OURS, 1.0), _speed("SDPA flash", 1.0), _speed(OURS, 2.0, variant="bias"), refused]
    text = tables_from_rows(rows)
    assert "| A100 | plain | fp16 | 64 | 1,568 | 8 | 0.1 | unknown | 1 (1 to 1), 10 MiB, 1.0e-03 |" in text
    assert _line(text, "| A100 | bias").endswith("| can't |")
    assert "- SDPA flash: can't: takes no such thing (bias)" in text
    assert "- plain within 1.15x of the best library kernel: reached in the worst of 1 cases, 1.00x" in text


def test_tables_without_speed_say_that_it_was_not_measured():
    assert "Not measured, since no row was taken on a GPU" in tables_from_rows([_compiled()])
