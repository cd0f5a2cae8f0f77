from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shallowvit.baselines import open_torch, side_from_source
from shallowvit.errors import ShallowvitError
from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.compare import bench
from shallowvit_bench.config import BenchConfig
from shallowvit_bench.preprocessing import random_input
from shallowvit_bench.runners import RunnerOptions
from shallowvit_bench.sides import side_from_bundle

OPTIONS = RunnerOptions(threads=1)
CONFIG = BenchConfig(max_runs=12, threads=1, power=False)

SOURCE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(16), nn.Linear(16, 16)
    def forward(self, x):
        return x + self.inner(self.norm(x))

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(4)), nn.Linear(16, 3)
    def forward(self, x):
        x = x.flatten(2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))

def make():
    torch.manual_seed(0)
    return Tiny(), torch.zeros(1, 3, 4, 4)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A bundle of a four-block model without its blocks 1 and 2, made by the real line."""
    import shallowvit as sv

    folder = tmp_path_factory.mktemp("exported")
    (folder / "model.py").write_text(SOURCE)
    model = sv.load(f"{folder / 'model.py'}:make")
    pruned = sv.prune(model, sv.plan(model, None, sv.PlanConfig(remove="1,2")))
    return read_bundle(sv.export(pruned, folder / "tiny").path)


def test_open_torch_runs_the_unpruned_source(exported):
    import torch

    import shallowvit as sv

    batch = random_input(exported, 2)
    with open_torch(exported, OPTIONS) as runner, torch.inference_mode():
        expected = sv.load(exported.manifest["source"]["spec"]).module(torch.from_numpy(batch)).numpy()
        np.testing.assert_allclose(runner.infer(batch), expected, atol=1e-6)


def test_bench_measures_a_bundle_against_its_source(exported):
    sides = [side_from_bundle(exported, BenchConfig(threads=1)), side_from_source(exported, OPTIONS)]
    ours, full = bench(sides, CONFIG)
    assert (ours.status, full.status, full.backend) == ("ok", "ok", "torch")
    assert ours.ideal_speedup == exported.flops_before / exported.flops_after > 1
    assert ours.share_of_ideal is None  # the ratio to torch holds the runtime too


def test_open_torch_rejects_changed_weights(exported, tmp_path):
    source = Path(exported.manifest["source"]["spec"].rpartition(":")[0]).read_text()
    (tmp_path / "changed.py").write_text(source.replace("manual_seed(0)", "manual_seed(1)"))
    manifest = exported.manifest | {"source": exported.manifest["source"] | {"spec": f"{tmp_path / 'changed.py'}:make"}}
    with pytest.raises(ShallowvitError, match=r"now has weights .* the bundle tiny was made from"):
        open_torch(replace(exported, manifest=manifest), OPTIONS)


def test_bench_makes_a_row_of_a_source_that_is_gone(exported, tmp_path):
    manifest = exported.manifest | {"source": exported.manifest["source"] | {"spec": f"{tmp_path / 'gone.py'}:make"}}
    sides = [
        side_from_bundle(exported, BenchConfig(threads=1)),
        side_from_source(replace(exported, manifest=manifest), OPTIONS),
    ]
    ours, full = bench(sides, CONFIG)
    assert (ours.status, full.status, ours.speedup) == ("ok", "failed", None)
    assert "gone.py" in full.reason


def test_bind_of_torch_reads_the_batch_where_it_lies(exported):
    batch = random_input(exported, 1)
    with open_torch(exported, OPTIONS) as runner:
        bound = runner.bind(batch)
        before = bound.output().copy()
        batch *= 2
        bound()
        assert not np.array_equal(bound.output(), before)


@pytest.mark.slow  # compiling for the CPU takes a minute the first time
def test_open_torch_compiled_gives_what_eager_gives_at_each_batch(exported):
    with open_torch(exported, OPTIONS) as eager, open_torch(exported, OPTIONS, compiled=True) as compiled:
        assert (eager.facts.backend, compiled.facts.backend) == ("torch", "torch-compile")
        for items in (1, 3):
            batch = random_input(exported, items)
            np.testing.assert_allclose(compiled.bind(batch).output(), eager.infer(batch), atol=1e-5)


def test_open_torch_compiled_names_the_compiler_that_is_missing(exported, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ShallowvitError, match=r"torch\.compile needs a C\+\+ compiler .* g\+\+"):
        open_torch(exported, OPTIONS, compiled=True)


def test_open_torch_compiled_turns_a_failed_compilation_into_a_sentence(exported, monkeypatch):
    import torch

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/bin/false"))
    torch._dynamo.reset()
    with (
        open_torch(exported, OPTIONS, compiled=True) as runner,
        pytest.raises(ShallowvitError, match=r"torch\.compile could not compile .*; compare with torch eager: --against torch"),
    ):
        runner.infer(random_input(exported, 5))


def test_side_from_source_names_what_it_runs(exported):
    side = side_from_source(exported, OPTIONS, compiled=True)
    assert (side.provider, side.precision, side.flops) == ("torch-compile", "fp32", exported.flops_before)


@pytest.mark.gpu
@pytest.mark.parametrize("copies", [True, False])
def test_a_bound_batch_on_a_gpu_gives_the_output_that_infer_gives(exported, copies):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA GPU here")
    batch = random_input(exported, 2)
    with open_torch(exported, RunnerOptions(copies=copies)) as runner:
        bound = runner.bind(batch)
        bound()
        np.testing.assert_allclose(bound.output(), runner.infer(batch), rtol=1e-3, atol=1e-4)
