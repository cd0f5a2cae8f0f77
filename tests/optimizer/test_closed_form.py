"""Gaps repaired in closed form: what is fitted, that it folds, and what is refused."""

import copy
import json
import sys

import numpy as np
import pytest
import torch

import shallowvit
from shallowvit import PlanConfig, ShallowvitError
from shallowvit.cli.main import main
from shallowvit.exporting.inputs import tensors_of_example
from shallowvit.models.branch_probe import Call
from shallowvit.recovery import RecoverConfig, pruned_from_folder
from shallowvit.recovery.closed_form import RepairConfig, RepairMethod, repair_gaps
from shallowvit.recovery.least_squares import Sums, fit_ridge
from shallowvit.recovery.projections import Projection, _search, find_projections

from ..conftest import save_video_model

TIMM = "timm:vit_tiny_patch16_224?img_size=32&depth=4&embed_dim=48&num_heads=3&num_classes=5"


def _pruned(model, remove):
    return shallowvit.prune(model, shallowvit.plan(model, config=PlanConfig(remove=remove)))


def _batches(model, count=6, size=8):
    generator = torch.Generator().manual_seed(0)
    (name, example), *_ = tensors_of_example(model).items()
    drawn = [torch.randn(size, *example.shape[1:], generator=generator) for _ in range(count)]
    return lambda: [{name: one} for one in drawn]


@torch.no_grad()
def _outputs(model, batches):
    from shallowvit.models.outputs import tensors_in

    return torch.cat([tensors_in(model.module(**batch))[0] for batch in batches()])


@pytest.fixture(scope="module")
def vit():
    return shallowvit.load(TIMM)


@pytest.mark.parametrize("method", RepairMethod)
def test_repair_gaps_brings_outputs_nearer_and_leaves_the_pruned_model(vit, method):
    batches = _batches(vit)
    pruned = _pruned(vit, "1,3")
    before = copy.deepcopy(pruned.model.module.state_dict())
    repair = repair_gaps(vit, pruned, batches, RepairConfig(method, ridges=(1e-3, 1e-2, 1e-1)))
    wanted = _outputs(vit, batches)
    off = (_outputs(pruned.model, batches) - wanted).square().mean()
    left = (_outputs(repair.pruned.model, batches) - wanted).square().mean()
    assert left < off
    assert [(gap.block, gap.target) for gap in repair.gaps] == [(0, 1), (2, 3)]
    assert all(gap.error_after <= gap.error_before for gap in repair.gaps)
    assert repair.inputs == 48
    for name, tensor in pruned.model.module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_repair_gaps_richer_methods_err_no_more_on_the_tokens_they_were_fitted_on(vit):
    sums = {}
    for method in RepairMethod:
        repair = repair_gaps(vit, _pruned(vit, "3"), _batches(vit, 24), RepairConfig(method))
        sums[method] = repair.gaps[0].error_after
    assert sums[RepairMethod.PROJECTION] < sums[RepairMethod.LINEAR] < sums[RepairMethod.SCALE]


def test_repair_gaps_changes_one_layer_a_gap_and_nothing_else(vit):
    pruned = _pruned(vit, "1,2")
    repair = repair_gaps(vit, pruned, _batches(vit))
    changed = [
        name
        for name, tensor in repair.pruned.model.module.state_dict().items()
        if not torch.equal(tensor, pruned.model.module.state_dict()[name])
    ]
    assert changed == ["blocks.0.mlp.fc2.weight", "blocks.0.mlp.fc2.bias"]
    assert repair.gaps[0].layer == "blocks.0.mlp.fc2"


def test_repair_gaps_blocks_gone_in_front_are_made_up_for_by_the_first_kept(vit):
    repair = repair_gaps(vit, _pruned(vit, "0"), _batches(vit))
    (gap,) = repair.gaps
    assert (gap.block, gap.target) == (1, 1)
    assert gap.error_after <= gap.error_before


def test_repair_gaps_of_layer_scale_aims_through_it():
    model = shallowvit.load(
        "timm:vit_tiny_patch16_224?img_size=32&depth=3&embed_dim=48&num_heads=3&num_classes=5&init_values=0.3"
    )
    projection = find_projections(model)["blocks.0"]
    assert isinstance(projection, Projection)
    np.testing.assert_allclose(projection.scale, 0.3, rtol=1e-4)
    repair = repair_gaps(model, _pruned(model, "2"), _batches(model, 24))
    assert repair.gaps[0].error_after < repair.gaps[0].error_before


def test_repair_gaps_of_a_hugging_face_model(video_model):
    pruned = _pruned(video_model, "2")
    repair = repair_gaps(video_model, pruned, _batches(video_model, 8))
    assert repair.gaps[0].layer.endswith("output.dense")
    assert repair.gaps[0].error_after < repair.gaps[0].error_before
    assert repair.pruned.plan == pruned.plan


def test_find_projections_takes_the_mlp_s_last_layer_and_never_the_attention_s(vit):
    assert {one.path for one in find_projections(vit).values()} == {f"blocks.{number}.mlp.fc2" for number in range(4)}


def test_find_projections_norm_behind_the_sum_has_none():
    class PostNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)

        def forward(self, x):
            return self.norm(x + self.linear(x))

    block = PostNorm()
    call = Call((torch.randn(2, 3, 8),), {}, 0)
    assert "token for token" in _search(torch.nn.ModuleDict({"block": block}), "block", call)


def test_repair_gaps_in_the_wrong_order_is_told(vit, video_model):
    with pytest.raises(
        ShallowvitError, match=r"repair: the pruned model was made from weights .*; give the model that was pruned"
    ):
        repair_gaps(video_model, _pruned(vit, "1"), _batches(vit))


def test_repair_gaps_one_batch_is_too_few(vit):
    with pytest.raises(ShallowvitError, match="repair: 1 batches; give at least two"):
        repair_gaps(vit, _pruned(vit, "1"), _batches(vit, 1))


def test_repair_gaps_states_that_overflow_are_told(vit):
    (name, example), *_ = tensors_of_example(vit).items()
    broken = [{name: torch.full((2, *example.shape[1:]), float("nan"))}] * 3
    with pytest.raises(ShallowvitError, match="repair: a state isn't finite"):
        repair_gaps(vit, _pruned(vit, "1"), lambda: broken)


def test_repair_config_refuses_what_means_nothing():
    with pytest.raises(ShallowvitError, match="unknown method 'magic'; choose from projection, linear, scale"):
        RepairConfig("magic")
    with pytest.raises(ShallowvitError, match="a held-out share of 1; give one between 0 and 1"):
        RepairConfig(held_out=1)


def test_fit_ridge_finds_the_weights_that_made_the_targets():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(200, 6, generator=generator)
    truth = torch.randn(6, 3, generator=generator)
    fitted, held_out = Sums(6, 3), Sums(6, 3)
    for part, sums in ((features[:150], fitted), (features[150:], held_out)):
        for half in part.chunk(2):
            sums.add(half, half @ truth)
    fit = fit_ridge(fitted, held_out, torch.zeros(6, 3, dtype=torch.float64))
    torch.testing.assert_close(fit.weights.float(), truth, rtol=1e-4, atol=1e-4)
    wrong = features[150:] @ truth
    assert fit.error_before == pytest.approx(float(wrong.square().mean()), rel=1e-6)


def test_fit_ridge_noise_that_no_feature_explains_leaves_the_weights():
    generator = torch.Generator().manual_seed(2)
    fitted, held_out = Sums(8, 2), Sums(8, 2)
    for sums in (fitted, held_out):
        sums.add(torch.randn(10, 8, generator=generator), torch.randn(10, 2, generator=generator))
    start = torch.zeros(8, 2, dtype=torch.float64)
    fit = fit_ridge(fitted, held_out, start, ridges=(1e-6,))
    assert fit.ridge is None
    assert torch.equal(fit.weights, start)


@pytest.fixture(scope="module")
def pruned_folder(video_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("pruned") / "video"
    shallowvit.save_pruned(_pruned(video_model, "1,3"), out)
    return out


def _run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["shallowvit", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    written = capsys.readouterr()
    return stopped.value.code or 0, written.out, written.err


def test_recover_command_writes_a_repaired_folder_that_loads(pruned_folder, tmp_path, monkeypatch, capsys):
    out, clips = tmp_path / "repaired", tmp_path / "clips.npz"
    frames = np.random.default_rng(0).integers(0, 256, (24, 4, 16, 16, 3), dtype=np.uint8)
    np.savez(clips, frames=frames)
    words = (pruned_folder, "-o", out, "--data", clips, "--samples", "24", "--json")
    code, printed, err = _run(monkeypatch, capsys, "recover", *words)
    assert code == 0, err
    record = json.loads(printed)
    assert [(gap["block"], gap["target"]) for gap in record["steps"][0]["gaps"]] == [(0, 1), (2, 3)]
    assert record["steps"][0]["inputs"] == 24
    before, after = (shallowvit.load(str(folder)).module.state_dict() for folder in (pruned_folder, out))
    fitted = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert fitted
    assert all(".output.dense." in name for name in fitted)


def test_recover_a_folder_of_another_teacher_is_told(pruned_folder, tmp_path_factory):
    other = save_video_model(tmp_path_factory.mktemp("models") / "other", seed=5)
    with pytest.raises(ShallowvitError, match=r"was pruned from weights .*; name the unpruned model with --teacher"):
        pruned_from_folder(pruned_folder, f"hf:{other}")


def test_recover_of_no_pruned_folder_is_told(tmp_path):
    with pytest.raises(ShallowvitError, match=r"is no folder that shallowvit prune wrote \(no shallowvit\.json\)"):
        pruned_from_folder(tmp_path)


def test_recover_refuses_what_has_no_gaps(video_model):
    with pytest.raises(ShallowvitError, match="no block was removed"):
        whole = shallowvit.prune(video_model, shallowvit.plan(video_model))
        shallowvit.recover(video_model, whole, RecoverConfig("demo:train"))
    config = PlanConfig(remove="1", granularity="mlp")
    halved = shallowvit.prune(video_model, shallowvit.plan(video_model, config=config))
    with pytest.raises(ShallowvitError, match="halves of blocks were removed"):
        shallowvit.recover(video_model, halved, RecoverConfig("demo:train"))


def test_recover_config_too_few_items_is_told():
    with pytest.raises(ShallowvitError, match="recover: 1 items in batches of 16; give 2 items or more"):
        RecoverConfig("demo:train", samples=1)


def test_recover_command_leaves_what_it_did_in_lineage_and_bundle(pruned_folder, tmp_path, monkeypatch, capsys):
    out, clips = tmp_path / "repaired", tmp_path / "clips.npz"
    frames = np.random.default_rng(0).integers(0, 256, (24, 4, 16, 16, 3), dtype=np.uint8)
    np.savez(clips, frames=frames)
    words = (pruned_folder, "-o", out, "--data", clips, "--samples", "24", "--method", "scale")
    assert _run(monkeypatch, capsys, "recover", *words)[0] == 0
    _, again = pruned_from_folder(out)
    (line,) = again.recovery
    assert (line["method"], line["data"], line["inputs"]) == ("scale", str(clips), 24)
    bundle = shallowvit.export(shallowvit.load(str(out)), tmp_path / "bundle")
    assert bundle.manifest.recovery == again.recovery
    assert f"| recovered | scale on 24 items of `{clips}` |" in (bundle.path / "README.md").read_text()
