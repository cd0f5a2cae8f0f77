"""``shallowvit recover`` with trainings, as a user runs it."""

import json
import sys

import numpy as np
import pytest
import torch

import shallowvit
from shallowvit.cli.main import main
from shallowvit.files import only_one
from shallowvit.pruning import save_pruned
from shallowvit.recovery import stage, supervised
from shallowvit.recovery import training as loop

SHORT = ("--method", "finetune", "--batch", "8", "--epochs", "2")


@pytest.fixture(scope="module")
def pruned_folder(pruned_video, tmp_path_factory):
    return save_pruned(pruned_video, tmp_path_factory.mktemp("pruned") / "pruned").path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clips.npz"
    frames = np.random.default_rng(0).integers(0, 256, (24, 4, 16, 16, 3), dtype=np.uint8)
    np.savez(path, frames=frames, labels=np.arange(24) % 5)
    return path


def _run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["shallowvit", "recover", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    written = capsys.readouterr()
    return stopped.value.code or 0, written.out, written.err


def test_recover_command_fits_then_finetunes_and_says_which_epoch_was_kept(pruned_folder, clips, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    words = (pruned_folder, "--data", clips, "-o", out, *SHORT[2:], "--method", "projection,finetune", "--with-teacher")
    code, printed, err = _run(monkeypatch, capsys, *words)
    assert code == 0, err
    assert printed.count(" kept ") == 1
    assert "labels" in printed
    assert "hidden" in printed
    assert "finetune: 22 items, 32 inputs seen" in printed
    assert not (tmp_path / "out.training").exists()
    before, after = (shallowvit.load(str(folder)).module.state_dict() for folder in (pruned_folder, out))
    assert list(before) == list(after)
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])


def test_recover_command_killed_goes_on_by_the_same_command(pruned_folder, clips, tmp_path, monkeypatch, capsys):
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = (pruned_folder, "--data", clips, *SHORT, "--json")
    code, printed, err = _run(monkeypatch, capsys, *words, "-o", whole)
    assert code == 0, err
    expected = [epoch["loss"] for epoch in json.loads(printed)["steps"][0]["epochs"]]
    real, saves = loop.save_atomically, []

    def interrupted_behind_the_first(state, path, stage):
        real(state, path, stage)
        saves.append(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_atomically", interrupted_behind_the_first)
        code, _printed, err = _run(monkeypatch, capsys, *words, "-o", out)
    assert code == 130
    assert "interrupted; what was finished is kept" in err
    assert saves == [tmp_path / "out.training" / "finetune" / "checkpoint.pt"]
    assert not out.exists()
    code, printed, err = _run(monkeypatch, capsys, *words, "-o", out)
    assert code == 0, err
    assert [epoch["loss"] for epoch in json.loads(printed)["steps"][0]["epochs"]] == expected
    assert shallowvit.load(str(out)).sha256 == shallowvit.load(str(whole)).sha256
    assert not (tmp_path / "out.training").exists()


def test_recover_command_killed_goes_on_from_the_repair_it_had(pruned_folder, clips, tmp_path, monkeypatch, capsys):
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = (pruned_folder, "--data", clips, *SHORT[2:], "--method", "projection,finetune", "--samples", 16)
    code, _printed, err = _run(monkeypatch, capsys, *words, "-o", whole)
    assert code == 0, err

    def interrupted(*_given):
        raise KeyboardInterrupt

    def fitted_again(*_given):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(supervised, "train", interrupted)
        assert _run(monkeypatch, capsys, *words, "-o", out)[0] == 130
    with monkeypatch.context() as patch:
        patch.setattr(stage, "repair", fitted_again)  # on another number of threads it would round otherwise
        code, _printed, err = _run(monkeypatch, capsys, *words, "-o", out)
    assert code == 0, err
    assert shallowvit.load(str(out)).sha256 == shallowvit.load(str(whole)).sha256


def test_recover_command_over_the_repair_of_another_run_is_told(pruned_folder, clips, tmp_path, monkeypatch, capsys):
    words = (pruned_folder, "--data", clips, *SHORT[2:], "--method", "projection,finetune", "--checkpoints", tmp_path / "kept")
    assert _run(monkeypatch, capsys, *words, "--samples", 16, "-o", tmp_path / "one")[0] == 0
    code, _printed, err = _run(monkeypatch, capsys, *words, "--samples", 12, "-o", tmp_path / "other")
    assert code == 1
    assert "repaired.pt is of a run with samples 16, this one has 12; remove it or give another" in err


def test_recover_command_beside_another_over_the_same_out_is_told(pruned_folder, clips, tmp_path, monkeypatch, capsys):
    with only_one(tmp_path / "out.training", "recover"):
        code, _printed, err = _run(monkeypatch, capsys, pruned_folder, "--data", clips, *SHORT, "-o", tmp_path / "out")
    assert code == 1
    assert "another command works in" in err
    assert not (tmp_path / "out.training").exists()


def test_recover_command_keeps_the_checkpoints_that_were_asked_for(pruned_folder, clips, tmp_path, monkeypatch, capsys):
    words = (pruned_folder, "--data", clips, *SHORT, "-o", tmp_path / "out", "--checkpoints", tmp_path / "kept", "--epochs", 1)
    code, _printed, err = _run(monkeypatch, capsys, *words)
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "kept" / "finetune").iterdir()) == ["checkpoint.pt", "tensorboard"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"--data": "nowhere.npz"}, "nowhere.npz"),
        ({"--validation": "nowhere.npz"}, "nowhere.npz"),
        ({"--method": "finetune,projection"}, "the closed form comes first"),
        ({"--method": "retrain"}, "unknown method 'retrain'"),
        ({"--seed": "-1"}, "seed -1; give 0 or more"),
        ({"--epochs": "0"}, "epochs 0; give at least 1"),
        ({"--precision": "fp8"}, "precision fp8; give one of fp32, bf16, fp16"),
    ],
)
def test_recover_command_finds_what_is_wrong_before_it_loads(
    changed, told, pruned_folder, clips, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("shallowvit.recovery.stage.load", lambda *_args, **_kwargs: pytest.fail("loaded"))
    options = {"--data": str(clips), "-o": str(tmp_path / "out")} | changed
    code, printed, err = _run(monkeypatch, capsys, pruned_folder, *[word for pair in options.items() for word in pair])
    assert (code, printed) == (1, "")
    assert err.startswith("shallowvit: ")
    assert told in err


def test_recover_command_of_no_folder_is_told(clips, tmp_path, monkeypatch, capsys):
    code, _printed, err = _run(monkeypatch, capsys, tmp_path / "nothing", "--data", clips, "-o", tmp_path / "out")
    assert code == 1
    assert "nothing; give one that shallowvit prune wrote" in err
