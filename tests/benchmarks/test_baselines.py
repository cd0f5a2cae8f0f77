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
from shallowvit_bench.sides import side_from_bundle

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
    with open_torch(exported, 1) as runner, torch.inference_mode():
        expected = sv.load(exported.manifest["source"]["spec"]).module(torch.from_numpy(batch)).numpy()
        np.testing.assert_allclose(runner.infer(batch), expected, atol=1e-6)


def test_bench_measures_a_bundle_against_its_source(exported):
    sides = [side_from_bundle(exported, BenchConfig(threads=1)), side_from_source(exported, 1)]
    ours, full = bench(sides, BenchConfig(max_runs=12, threads=1))
    assert (ours.status, full.status, full.backend) == ("ok", "ok", "torch")
    assert ours.ideal_speedup == exported.flops_before / exported.flops_after > 1
    assert ours.share_of_ideal is None  # the ratio to torch holds the runtime too


def test_open_torch_rejects_changed_weights(exported, tmp_path):
    source = Path(exported.manifest["source"]["spec"].rpartition(":")[0]).read_text()
    (tmp_path / "changed.py").write_text(source.replace("manual_seed(0)", "manual_seed(1)"))
    manifest = exported.manifest | {"source": exported.manifest["source"] | {"spec": f"{tmp_path / 'changed.py'}:make"}}
    with pytest.raises(ShallowvitError, match=r"now has weights .* the bundle tiny was made from"):
        open_torch(replace(exported, manifest=manifest))


def test_bench_makes_a_row_of_a_source_that_is_gone(exported, tmp_path):
    manifest = exported.manifest | {"source": exported.manifest["source"] | {"spec": f"{tmp_path / 'gone.py'}:make"}}
    sides = [side_from_bundle(exported, BenchConfig(threads=1)), side_from_source(replace(exported, manifest=manifest), 1)]
    ours, full = bench(sides, BenchConfig(max_runs=12, threads=1))
    assert (ours.status, full.status, ours.speedup) == ("ok", "failed", None)
    assert "gone.py" in full.reason
