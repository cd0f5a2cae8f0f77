import json
import shutil

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import shallowvit
from shallowvit import PlanConfig, PrunedModel, ShallowvitError
from shallowvit.adaptive import AdaptConfig, adapt, depths_of, is_adaptive, parts_of, read_depths, verify_adaptive
from shallowvit.adaptive.gate import gate_body, train_head, with_gate_head
from shallowvit.adaptive.settings import depths_from_text
from shallowvit.adaptive.sources import check_depths
from shallowvit.adaptive.thresholds import Outcomes, Thresholds, judge, set_thresholds, verdict
from shallowvit.cli.adapt import adapt as adapt_command
from shallowvit.cli.build import build as build_command
from shallowvit.cli.verify import verify as verify_command
from shallowvit_bench.adaptive import read_adaptive
from shallowvit_bench.adaptive_choice import NEVER, choose_depths
from shallowvit_bench.errors import BenchError

COSTS = (0.25, 0.5, 1.0)


def pruned_to(model, keep):
    return shallowvit.prune(model, shallowvit.plan(model, config=PlanConfig(keep=keep)))


def whole(model):
    return PrunedModel(model, shallowvit.plan(model))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Random frames, with labels and without."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (120, 4, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "labelled.npz", frames=frames, labels=rng.integers(0, 5, 120))
    np.savez(folder / "bare.npz", frames=frames)
    np.savez(folder / "few.npz", frames=frames[:40])
    return folder


@pytest.fixture(scope="module")
def depths(video_model):
    return pruned_to(video_model, "0"), pruned_to(video_model, "0,2"), whole(video_model)


@pytest.fixture(scope="module")
def made(depths, clips, tmp_path_factory):
    config = AdaptConfig(str(clips / "bare.npz"), max_drop=0.5)
    return adapt(depths, tmp_path_factory.mktemp("adaptive") / "mix", config)


def outcomes(count=1600, informed=True):
    """Items of which a third each need the three depths; an informed gate knows which."""
    need = np.arange(count) % 3
    right = np.arange(3)[None] >= need[:, None]
    logits = 8.0 * np.eye(3)[need] if informed else np.zeros((count, 3))
    confidence = np.where(right, 0.9, 0.6).astype(np.float32)
    return Outcomes(logits, confidence, right, COSTS, 0.05)


def test_adapt_config_takes_one_demand():
    assert AdaptConfig("demo").max_drop == 0.01
    assert AdaptConfig("demo", budget=0.5).max_drop is None
    with pytest.raises(ShallowvitError, match="--max-drop and --budget exclude each other; give one"):
        AdaptConfig("demo", max_drop=0.01, budget=0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("budget", 1.5), ("gate_blocks", 0), ("tradeoff", 1.0), ("items", 79), ("epochs", 0), ("max_drop", -0.1)],
)
def test_adapt_config_refuses_values_out_of_range(name, value):
    with pytest.raises(ShallowvitError, match=f"adapt: {name.replace('_', ' ')} {value}; give"):
        AdaptConfig("demo", **{name: value})


def test_depths_from_text_reads_two_or_three_numbers():
    assert depths_from_text("3, 12,6") == (12, 6, 3)
    for text in ("12", "12,6,3,1", "12,12", "12,x", "4,0"):
        with pytest.raises(ShallowvitError, match="write two or three different numbers of blocks"):
            depths_from_text(text)


def test_set_thresholds_of_an_informed_gate_sends_each_item_where_it_belongs():
    found = outcomes()
    thresholds = set_thresholds(found, AdaptConfig("demo"))
    judged = judge(found, thresholds)
    assert choose_depths(found.gate_logits, thresholds.gate).tolist() == (np.arange(1600) % 3).tolist()
    assert judged["gate"].accuracy == 1.0
    assert judged["gate"].cost == pytest.approx(0.05 + sum(COSTS) / 3, abs=1e-3)
    assert judged["random"].accuracy == pytest.approx((1 / 3 + 2 / 3 + 1) / 3, abs=1e-2)
    assert judged["random"].cost == pytest.approx(sum(COSTS) / 3, abs=1e-3)
    assert judged["confidence"].cost == pytest.approx((0.25 + 0.75 + 1.75) / 3, abs=1e-2)
    assert verdict(judged, ("a", "b", "c"), "top1") == ()


def test_set_thresholds_keeps_the_drop_with_a_standard_error_on_top():
    found = outcomes(informed=False)
    thresholds = set_thresholds(found, AdaptConfig("demo", max_drop=0.01))
    judged = judge(found, thresholds)
    assert thresholds.gate == (NEVER, NEVER)
    assert verdict(judged, ("a", "b", "c"), "top1") == (
        "the gate always picks c, so that this bundle only costs more than c alone",
    )


def test_set_thresholds_spends_a_budget_and_refuses_one_out_of_reach():
    found = outcomes()
    judged = judge(found, set_thresholds(found, AdaptConfig("demo", budget=0.45)))
    assert judged["gate"].cost <= 0.45
    with pytest.raises(
        ShallowvitError, match=r"--budget 0\.2 can't be met: .* cost 0\.300 of the deepest; give at least 0\.300"
    ):
        set_thresholds(found, AdaptConfig("demo", budget=0.2))


def test_verdict_tells_what_does_as_well_for_less():
    found = outcomes()
    easy = Outcomes(found.gate_logits, found.confidence, np.ones_like(found.right), COSTS, 0.6)
    said = verdict(judge(easy, Thresholds((0.9, 0.9), (0.5, 0.5))), ("a", "b", "c"), "top1")
    assert [text.partition(":")[0] for text in said] == [
        "the gate doesn't earn its keep",
        "a cascade by confidence does as well for less",
        "a alone does as well for less",
        "b alone does as well for less",
        "the mix costs 1.18 of the deepest model, so that the deepest alone is cheaper",
    ]


def test_train_head_learns_which_depth_suffices_and_is_the_same_by_seed():
    torch.manual_seed(0)
    features = torch.randn(600, 6) * 3 + 5
    need = (features[:, 0] > 5).long() * 2
    right = torch.arange(3)[None] >= need[:, None]
    config = AdaptConfig("demo")
    head = train_head(features, right, COSTS, config)
    assert (head(features).argmax(1) == need).float().mean() > 0.95
    again = train_head(features, right, COSTS, config)
    assert torch.equal(head(features), again(features))
    assert len(train_head(features, right, COSTS, AdaptConfig("demo", gate_width=0))) == 1


def test_train_head_takes_the_shallowest_where_no_depth_is_right():
    features = torch.randn(100, 4)
    head = train_head(features, torch.zeros(100, 3, dtype=torch.bool), COSTS, AdaptConfig("demo"))
    assert (head(features).argmax(1) == 0).all()


def test_gate_body_hands_on_what_the_head_pools(depths):
    body, path = gate_body(depths[1], 1)
    assert path == "classifier"
    assert len(body.model.blocks) == 1
    example = body.model.example
    assert body.model.module(**example).logits.shape == (1, 32)
    gate = with_gate_head(body, path, torch.nn.Sequential(torch.nn.Linear(32, 3)), ("a", "b", "c"))
    assert gate.model.module(**example).logits.shape == (1, 3)
    assert depths[1].model.module(**example).logits.shape == (1, 5)
    with pytest.raises(ShallowvitError, match="--gate-blocks 3 is more than the 2 blocks of the shallowest model"):
        gate_body(depths[1], 3)


def test_check_depths_orders_by_depth(depths):
    assert check_depths(depths[::-1]) == depths


def test_check_depths_refuses_what_is_not_nested(video_model, depths):
    with pytest.raises(ShallowvitError, match="it keeps blocks 3 besides"):
        check_depths([pruned_to(video_model, "3"), pruned_to(video_model, "0,2")])
    with pytest.raises(ShallowvitError, match="isn't nested in that of 2: it keeps as many"):
        check_depths([depths[1], depths[1]])
    with pytest.raises(ShallowvitError, match="1 depth given; give two or three"):
        check_depths(depths[:1])


def test_check_depths_refuses_another_model(depths, tmp_path_factory):
    from tests.conftest import save_video_model

    other = shallowvit.load(f"hf:{save_video_model(tmp_path_factory.mktemp('other') / 'video', seed=1)}")
    with pytest.raises(ShallowvitError, match=r"was made from weights .* give depths of one model"):
        check_depths([depths[0], whole(other)])


def test_check_depths_refuses_halves(video_model):
    halved = shallowvit.prune(video_model, shallowvit.plan(video_model, config=PlanConfig(remove="1", granularity="mlp")))
    with pytest.raises(ShallowvitError, match="halves of blocks were removed"):
        check_depths([pruned_to(video_model, "0"), halved])


def test_read_depths_takes_folders_and_sources(video_folder, video_model, depths, tmp_path):
    shallowvit.save_pruned(depths[1], tmp_path / "two")
    found = check_depths(read_depths([f"hf:{video_folder}", tmp_path / "two"]))
    assert [one.plan.kept for one in found] == [(0, 2), (0, 1, 2, 3)]


def test_depths_of_makes_nested_repaired_depths(video_model, clips):
    config = AdaptConfig(str(clips / "bare.npz"), samples=24)
    shallow, middle, deep = check_depths(depths_of(video_model, (4, 2, 1), config))
    assert set(shallow.plan.kept) < set(middle.plan.kept) < set(deep.plan.kept)
    assert [len(one.recovery) for one in (shallow, middle, deep)] == [1, 1, 0]
    with pytest.raises(ShallowvitError, match=r"--depths 9: .* has 4 blocks; give that many at most"):
        depths_of(video_model, (9, 2), config)


def test_adapt_writes_a_bundle_that_verifies_and_that_the_harness_reads(made, depths):
    manifest = verify_adaptive(made.path).manifest
    assert [one.kept for one in manifest.depths] == [(0,), (0, 2), (0, 1, 2, 3)]
    assert manifest.items == {"trained": 60, "thresholds": 30, "judged": 30}
    assert manifest.measure == "agreement"
    assert any("has no labels, so that drops are in agreement" in text for text in manifest.remarks)
    assert set(manifest.expected) == {"gate", "random", "confidence", "depth-1", "depth-2", "depth-4"}
    assert manifest.expected["depth-4"].accuracy == 1.0
    assert is_adaptive(made.path)
    assert [one.name for one in parts_of(made.path)] == ["gate", "depth-1", "depth-2", "depth-4"]
    info = read_adaptive(made.path)
    assert info.thresholds == manifest.thresholds
    assert info.gate.labels == ("depth-1", "depth-2", "depth-4")
    assert info.flops >= info.gate.flops_after + info.depths[0].flops_after


def test_adapt_refuses_data_too_small_and_an_output_that_exists(depths, clips, tmp_path):
    with pytest.raises(ShallowvitError, match=r"few\.npz holds 40 items, too few to hold any out"):
        adapt(depths, tmp_path / "mix", AdaptConfig(str(clips / "few.npz")))
    assert not (tmp_path / "mix").exists()
    with pytest.raises(ShallowvitError, match="exists; choose another --out"):
        adapt(depths, tmp_path, AdaptConfig(str(clips / "bare.npz")))


@pytest.fixture
def copied(made, tmp_path):
    return shutil.copytree(made.path, tmp_path / "copy")


def _change(folder, **entries):
    file = folder / "adaptive.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_verify_adaptive_names_a_stray_file_and_a_swapped_graph(copied):
    shutil.rmtree(copied / "depth-2")
    shutil.copytree(copied / "depth-1", copied / "depth-2")
    with pytest.raises(ShallowvitError, match=r"the graph of .*depth-2 has sha256 .* adaptive\.json says"):
        verify_adaptive(copied)
    (copied / "stray.txt").write_text("")
    with pytest.raises(ShallowvitError, match=r"stray\.txt is not in adaptive\.json \(1 extra\)"):
        verify_adaptive(copied)


def test_verify_adaptive_names_what_is_damaged(copied, tmp_path):
    with pytest.raises(ShallowvitError, match=r"is damaged at .*: .*3 depths and 1 thresholds"):
        _change(copied, thresholds=[0.5])
        verify_adaptive(copied)
    _change(copied, schema_version=2)
    with pytest.raises(ShallowvitError, match="has schema 2, this version reads 1; update shallowvit"):
        verify_adaptive(copied)
    (copied / "adaptive.json").write_text("[")
    with pytest.raises(ShallowvitError, match="is not JSON of a bundle"):
        verify_adaptive(copied)
    with pytest.raises(ShallowvitError, match=r"no adaptive\.json in"):
        verify_adaptive(tmp_path)


def test_verify_of_an_adaptive_bundle_as_a_plain_one_says_so(made):
    with pytest.raises(ShallowvitError, match="is an adaptive bundle, whose depths are bundles of their own"):
        shallowvit.verify(made.path)


def run(function, *arguments):
    app = typer.Typer()
    app.command()(function)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_adapt_command_makes_depths_of_one_source(video_folder, clips, tmp_path):
    out = tmp_path / "mix"
    result = run(
        adapt_command, f"hf:{video_folder}", "--depths", "4,1", "--data", clips / "labelled.npz", "-o", out, "--samples", "24"
    )
    assert result.exit_code == 0
    assert "on 30 items that neither trained the gate nor set its thresholds" in result.stdout
    answer = json.loads(run(verify_command, out, "--json").stdout)
    assert answer["ok"]
    assert len(answer["parts"]) == 3


def test_build_command_builds_an_engine_of_the_gate_and_of_every_depth(copied):
    pytest.importorskip("tensorrt_rtx", reason="builds engines; pip install 'shallowvit[tensorrt]'")
    answer = json.loads(run(build_command, copied, "--engine", "rtx", "--allow-unfused", "--json", "--quiet").stdout)
    assert list(answer["engines"]) == [str(part) for part in parts_of(copied)]
    assert all((part / answer["engines"][str(part)]["path"]).is_file() for part in parts_of(copied))
    assert len(answer["engines"]) == 4
    verify_adaptive(copied)


def test_adapt_command_prints_one_json_object(video_folder, depths, clips, tmp_path):
    shallowvit.save_pruned(depths[1], tmp_path / "two")
    arguments = ("--data", clips / "labelled.npz", "-o", tmp_path / "mix", "--json", "--max-drop", "50%")
    answer = json.loads(run(adapt_command, f"hf:{video_folder}", tmp_path / "two", *arguments).stdout)
    assert answer["depths"] == ["depth-2", "depth-4"]
    assert answer["measure"] == "top1"


def test_adapt_command_refuses_sources_that_make_no_depths(tmp_path):
    more = ("--data", "demo:train", "-o", tmp_path / "mix")
    with pytest.raises(ShallowvitError, match="one source is given; give two or three depths of a model, or one source and"):
        run(adapt_command, "demo", *more)
    with pytest.raises(ShallowvitError, match="--depths makes the depths of one source, 2 are given"):
        run(adapt_command, "demo", "other", "--depths", "12,6", *more)
    with pytest.raises(ShallowvitError, match="unknown --precision 'int8'; choose fp32, fp16 or bf16"):
        run(adapt_command, "demo", "--depths", "12,6", "--precision", "int8", *more)
    with pytest.raises(BenchError, match="--max-drop: '3' is no share"):
        run(adapt_command, "demo", "--depths", "12,6", "--max-drop", "3", *more)
