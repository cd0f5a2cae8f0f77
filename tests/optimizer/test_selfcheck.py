import json
import re
import subprocess
import sys

import pytest

from shallowvit.errors import ShallowvitError
from shallowvit.selfcheck import SelfcheckConfig, selfcheck
from shallowvit.selfcheck.ceilings import measure_ceilings
from shallowvit_bench.measurement import read_rows


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    out = tmp_path_factory.mktemp("selfcheck") / "out"
    return selfcheck(out, SelfcheckConfig(max_seconds=0.2)), out


def test_selfcheck_writes_a_row_for_every_step(checked):
    result, out = checked
    rows = [json.loads(line) for line in (out / "checks.jsonl").read_text().splitlines()]
    assert [(row["name"], row["status"]) for row in rows] == [(check.name, check.status) for check in result.checks]
    assert [check.name for check in result.checks if check.status == "ok"] == [
        "facts",
        "ceilings",
        "demo: export",
        "demo-shallow: correctness",
        "demo-full: correctness",
        "demo: speed",
    ]


def test_selfcheck_says_what_it_left_out(checked):
    (left,) = [check for check in checked[0].checks if check.status == "skipped"]
    assert (left.name, left.reason) == ("videomae-b", "takes minutes on a CPU; it is checked with --gpu")


def test_selfcheck_measures_the_pruned_model_against_the_whole_one_and_torch(checked):
    rows = read_rows(checked[1] / "bench.jsonl")
    assert [row["side"] for row in rows] == ["demo-shallow", "demo-full", "demo-full in torch"]
    assert [row["against"] for row in rows] == ["demo-full", None, "demo-full"]
    assert rows[0]["metrics"]["top1"]["value"] == pytest.approx(0.84, abs=0.01)
    assert rows[1]["metrics"]["top1"]["value"] == pytest.approx(0.886, abs=0.01)


def test_selfcheck_gives_its_rows_ids_of_no_other_run(checked):
    ids = [row["id"] for row in read_rows(checked[1] / "bench.jsonl")]
    assert len({name.rsplit("-", 2)[0] for name in ids}) == 1
    assert all(re.fullmatch(r"demo-[0-9a-f]{12}-0-[012]", name) for name in ids)


def test_selfcheck_skips_what_needs_a_gpu_with_the_reason(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    result = selfcheck(tmp_path / "out", SelfcheckConfig(gpu=True))
    assert {(check.status, check.reason) for check in result.checks[:2]} == {("skipped", "PyTorch sees no CUDA GPU here")}
    assert not any(check.status == "failed" for check in result.checks)
    assert result.measurements == ()


def test_check_kernels_holds_every_kernel_and_modifier(monkeypatch):
    from shallowvit.selfcheck import kernels
    from shallowvit_kernels import gpu_check
    from shallowvit_kernels.records import Dtype, Kernel, Modifier

    variants = kernels.CHECKED_VARIANTS
    assert {one.kernel for one in variants} == set(Kernel)
    assert {one.dtype for one in variants} == set(Dtype)
    assert {operand.modifier for one in variants for operand in one.operands} == set(Modifier)

    def checked(variant, error):
        return gpu_check.GpuCheck(variant.name, 90, 90, error, 1e-2)

    monkeypatch.setattr(gpu_check, "check_on_gpu", lambda variant: checked(variant, 1e-3))
    assert len(kernels.check_kernels()) == len(variants)
    monkeypatch.setattr(gpu_check, "check_on_gpu", lambda variant: checked(variant, float("nan")))
    with pytest.raises(ShallowvitError, match=r"errs by nan of the largest output on this GPU, and 0\.01 is allowed"):
        kernels.check_kernels()


def test_selfcheck_skips_what_has_not_begun_in_time(tmp_path):
    result = selfcheck(tmp_path / "out", SelfcheckConfig(minutes=1e-9))
    assert {check.status for check in result.checks} == {"skipped"}
    assert result.checks[0].reason == "the 1e-09 minutes were over"


def test_selfcheck_refuses_a_folder_that_exists(tmp_path):
    with pytest.raises(ShallowvitError, match=r"exists; choose another --out"):
        selfcheck(tmp_path)


def test_measure_ceilings_gives_a_copy_and_products():
    found = measure_ceilings("cpu")
    assert [ceiling.unit for ceiling in found] == ["GB/s", "TFLOPS", "TFLOPS"]
    assert all(0 < ceiling.median <= ceiling.best for ceiling in found)


def test_selfcheck_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "shallowvit.selfcheck", "--minutes", "1e-9", "--json", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {check["status"] for check in json.loads(done.stdout)["checks"]} == {"skipped"}
