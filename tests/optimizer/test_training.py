"""The loop of all trainings, on a tiny pruned video classifier and random clips."""

import copy
import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shallowvit.errors import MissingDependencyError, ShallowvitError
from shallowvit.recovery import RecoverConfig, TrainConfig, Workplace
from shallowvit.recovery.schedules import parameter_groups, schedule_of
from shallowvit.recovery.supervised import finetune_pruned
from shallowvit.recovery.training import CHECKPOINT, DIVERGED

from .small_models import loaded, stacked

RECIPE = TrainConfig(epochs=3, batch=4, accumulate=2, mixup=0.8, cutmix=1.0, drop_path=0.2, ema_decay=0.9, layer_decay=0.8)
PLAIN = TrainConfig(epochs=2, batch=8, learning_rate=1e-3)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """40 clips of noise whose brightness is their label."""
    path = tmp_path_factory.mktemp("clips") / "clips.npz"
    draw = np.random.default_rng(0)
    labels = np.arange(40) % 5
    frames = draw.integers(0, 60, (40, 4, 16, 16, 3)) + 40 * labels[:, None, None, None, None]
    np.savez(path, frames=frames.astype(np.uint8), labels=labels)
    return path


def _finetune(model, pruned, data, training, folder=None, progress=lambda *_: None, **given):
    own = replace(pruned, model=replace(pruned.model, module=copy.deepcopy(pruned.model.module)))
    config = RecoverConfig(str(data), "finetune", training=training, **given)
    return finetune_pruned(model, own, config, Workplace(folder, progress)), own.model.module


def _losses(training):
    return [(epoch.loss, epoch.validation) for epoch in training.epochs]


def _same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


class _KilledError(Exception):
    pass


def _kill_at(step):
    def progress(done, _all, _line):
        if done == step:
            raise _KilledError

    return progress


@pytest.mark.parametrize("step", [2, 4, 7], ids=["first epoch", "epoch's end", "second epoch"])
def test_train_killed_goes_on_with_the_same_losses(step, video_model, pruned_video, clips, tmp_path):
    training = replace(RECIPE, checkpoint_steps=1)
    whole, weights = _finetune(video_model, pruned_video, clips, training)
    with pytest.raises(_KilledError):
        _finetune(video_model, pruned_video, clips, training, tmp_path, _kill_at(step))
    seen = []
    again, resumed = _finetune(video_model, pruned_video, clips, training, tmp_path, lambda done, *_: seen.append(done))
    assert seen[0] == step  # the step that was killed had no checkpoint yet
    assert _losses(again) == _losses(whole)
    assert _same(weights.state_dict(), resumed.state_dict())


def test_train_finished_isnt_run_again(video_model, pruned_video, clips, tmp_path):
    whole, weights = _finetune(video_model, pruned_video, clips, PLAIN, tmp_path)
    again, resumed = _finetune(video_model, pruned_video, clips, PLAIN, tmp_path, _kill_at(1))
    assert again == whole
    assert _same(weights.state_dict(), resumed.state_dict())
    assert list((tmp_path / "tensorboard").iterdir())


def test_train_accumulated_batches_are_a_step(video_model, pruned_video, clips):
    whole, weights = _finetune(video_model, pruned_video, clips, PLAIN)
    halves, others = _finetune(video_model, pruned_video, clips, replace(PLAIN, batch=4, accumulate=2))
    assert [epoch.loss for epoch in halves.epochs] == pytest.approx([epoch.loss for epoch in whole.epochs], rel=1e-4)
    assert halves.inputs_seen == whole.inputs_seen
    for name, value in weights.state_dict().items():
        assert torch.allclose(value, others.state_dict()[name], atol=1e-3), name


def test_train_running_mean_is_what_is_kept(video_model, pruned_video, clips):
    plain, weights = _finetune(video_model, pruned_video, clips, replace(PLAIN, validation_share=0.0))
    mean, averaged = _finetune(video_model, pruned_video, clips, replace(PLAIN, validation_share=0.0, ema_decay=0.99))
    assert [epoch.loss for epoch in mean.epochs] == [epoch.loss for epoch in plain.epochs]  # it changes no training
    assert (plain.kept, [epoch.validation for epoch in plain.epochs]) == (1, [None, None])
    before = pruned_video.model.module.get_parameter("classifier.weight")
    last, behind = weights.classifier.weight, averaged.classifier.weight
    assert 0 < float((behind - before).norm()) < float((last - before).norm())


@pytest.mark.parametrize("package", ["accelerate", "timm", "torchmetrics", "tensorboard", "peft"])
def test_train_without_a_package_says_what_to_install(package, video_model, pruned_video, clips, tmp_path, monkeypatch):
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("torch.utils.tensorboard", "torch.utils.tensorboard.writer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    told = rf"needs the package {package}, which is not installed. Run: pip install 'shallowvit\[recover\]'"
    with pytest.raises(MissingDependencyError, match=told):
        _finetune(video_model, pruned_video, clips, replace(PLAIN, lora_rank=2), tmp_path)


def test_train_learns_and_leaves_the_model_as_it_was_made(video_model, pruned_video, clips):
    training, module = _finetune(video_model, pruned_video, clips, replace(PLAIN, epochs=6))
    assert training.epochs[-1].loss < training.epochs[0].loss - 0.1
    assert (training.items, training.inputs_seen) == (36, 6 * 32)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not any(child._forward_hooks for child in module.modules())


def test_train_keeps_the_best_epoch_and_stops_early(video_model, pruned_video, clips):
    # a rate that only ruins: the first epoch's validation isn't reached again
    ruinous = TrainConfig(epochs=30, batch=8, learning_rate=1e-7, patience=2)
    training, _module = _finetune(video_model, pruned_video, clips, ruinous)
    assert training.kept == 0
    assert len(training.epochs) == 3
    assert training.stopped == "no better validation in 2 epochs (patience 2)"


def test_train_ahead_in_processes_gives_the_same_batches(video_model, pruned_video, clips):
    training = replace(PLAIN, epochs=1, augment="flip")
    here, _module = _finetune(video_model, pruned_video, clips, training)
    ahead, _module = _finetune(video_model, pruned_video, clips, replace(training, workers=1))
    assert _losses(here) == _losses(ahead)


def test_train_bf16_trains_fp32_weights(video_model, pruned_video, clips):
    training, module = _finetune(video_model, pruned_video, clips, replace(PLAIN, epochs=1, precision="bf16"))
    exact, _module = _finetune(video_model, pruned_video, clips, replace(PLAIN, epochs=1))
    assert training.epochs[0].loss != exact.epochs[0].loss
    assert training.epochs[0].loss == pytest.approx(exact.epochs[0].loss, rel=0.02)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_train_loss_not_finite_stops_and_keeps_the_checkpoint(video_model, pruned_video, clips, tmp_path):
    wild = TrainConfig(epochs=3, batch=8, learning_rate=1e30, checkpoint_steps=1, warmup_share=0)
    told = rf"the loss is nan in step 2 of epoch 1; the checkpoint of step 1 stays in .*{CHECKPOINT}. Lower --learning-rate"
    with pytest.raises(ShallowvitError, match=told):
        _finetune(video_model, pruned_video, clips, wild, tmp_path)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 1


def test_train_that_diverged_goes_on_from_the_good_checkpoint_at_a_lower_rate(video_model, pruned_video, clips, tmp_path):
    own = replace(pruned_video, model=replace(pruned_video.model, module=copy.deepcopy(pruned_video.model.module)))

    def break_behind_step_3(done, _all, _line):
        if done == 3:
            own.model.module.classifier.weight.data[0, 0] = float("inf")

    often = replace(PLAIN, checkpoint_steps=1)
    with pytest.raises(ShallowvitError, match=r"Lower --learning-rate from 0.001, to go on from there, or remove it"):
        finetune_pruned(
            video_model, own, RecoverConfig(str(clips), "finetune", training=often), Workplace(tmp_path, break_behind_step_3)
        )
    with pytest.raises(ShallowvitError, match=r"is of a run with learning_rate 0.001, this one has 0.002"):
        _finetune(video_model, pruned_video, clips, replace(often, learning_rate=2e-3), tmp_path)
    with pytest.raises(ShallowvitError, match="is of a run with batch 8, this one has 16"):
        _finetune(video_model, pruned_video, clips, replace(often, learning_rate=1e-4, batch=16), tmp_path)
    steps = []
    gentle = replace(often, learning_rate=1e-4)
    training, _ = _finetune(video_model, pruned_video, clips, gentle, tmp_path, lambda done, *_: steps.append(done))
    assert steps[0] == 3
    assert training.epochs[-1].learning_rate < 1e-4
    (change,) = training.changes
    assert change.startswith(
        "learning_rate 0.001 to 0.0001 from step 2 on, since student.classifier.weight is no longer finite"
    )
    assert not (tmp_path / DIVERGED).exists()
    # what has got past it is a run like any other
    again, _ = _finetune(video_model, pruned_video, clips, gentle, tmp_path)
    assert (again.changes, _losses(again)) == (training.changes, _losses(training))
    with pytest.raises(ShallowvitError, match=r"is of a run with learning_rate 0.0001, this one has 1e-05"):
        _finetune(video_model, pruned_video, clips, replace(gentle, learning_rate=1e-5), tmp_path)


def test_train_that_diverged_goes_on_in_another_precision(video_model, pruned_video, clips, tmp_path):
    once = replace(PLAIN, epochs=1, checkpoint_steps=1)
    with pytest.raises(_KilledError):
        _finetune(video_model, pruned_video, clips, once, tmp_path, _kill_at(2))
    (tmp_path / DIVERGED).write_text('{"step": 1, "what": "the loss is nan in step 2 of epoch 1"}')
    training, _ = _finetune(video_model, pruned_video, clips, replace(once, precision="bf16"), tmp_path)
    assert training.changes == ("precision fp32 to bf16 from step 1 on, since the loss is nan in step 2 of epoch 1",)


def test_train_another_runs_checkpoint_is_refused(video_model, pruned_video, clips, tmp_path):
    once = replace(PLAIN, epochs=1)
    _finetune(video_model, pruned_video, clips, once, tmp_path)
    with pytest.raises(ShallowvitError, match=r"is of a run with learning_rate 0.001, this one has 0.002; remove it"):
        _finetune(video_model, pruned_video, clips, replace(once, learning_rate=2e-3), tmp_path)
    with pytest.raises(ShallowvitError, match="is of a run with seed 0, this one has 1"):
        _finetune(video_model, pruned_video, clips, once, tmp_path, seed=1)
    with pytest.raises(ShallowvitError, match="is of a run with items"):
        _finetune(video_model, pruned_video, clips, once, tmp_path, items=39)
    other = copy.deepcopy(pruned_video.model.module)
    next(other.parameters()).data.add_(1)
    with pytest.raises(ShallowvitError, match="is of a run with weights"):
        _finetune(video_model, replace(pruned_video, model=replace(pruned_video.model, module=other)), clips, once, tmp_path)


def test_train_a_checkpoint_that_is_none_is_told(video_model, pruned_video, clips, tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(ShallowvitError, match=r"can't be read as a checkpoint \(it is damaged or holds other things\); remove"):
        _finetune(video_model, pruned_video, clips, PLAIN, tmp_path)


def test_train_full_disk_keeps_the_last_checkpoint(video_model, pruned_video, clips, tmp_path, monkeypatch):
    whole, _module = _finetune(video_model, pruned_video, clips, PLAIN)
    real, calls = os.fsync, []

    def full_from_the_second(descriptor):
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_from_the_second)
        told = r"no space left for .*It was the checkpoint of step 8; the checkpoint of step 4 is kept"
        with pytest.raises(ShallowvitError, match=told):
            _finetune(video_model, pruned_video, clips, PLAIN, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [CHECKPOINT]
    again, _module = _finetune(video_model, pruned_video, clips, PLAIN, tmp_path)
    assert _losses(again) == _losses(whole)


def test_train_too_few_items_is_told(video_model, pruned_video, clips):
    told = r"36 items of clips.npz are left to train on, a step takes 64 \(--batch 32 x --accumulate 2 x 1 processes\)"
    with pytest.raises(ShallowvitError, match=told):
        _finetune(video_model, pruned_video, clips, replace(PLAIN, batch=32, accumulate=2))


def test_train_what_this_machine_or_timm_lacks_is_told(video_model, pruned_video, clips):
    with pytest.raises(ShallowvitError, match="timm has no optimizer 'fast'; choose from"):
        _finetune(video_model, pruned_video, clips, replace(PLAIN, optimizer="fast"))
    if not torch.cuda.is_available():
        with pytest.raises(ShallowvitError, match="fp16 trains on a GPU alone, and there is none; give bf16 or fp32"):
            _finetune(video_model, pruned_video, clips, replace(PLAIN, precision="fp16"))


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [("bnbadam", r"can't run here \(.*\); give one such as adamw"), ("adahessian", "needs the gradients' own gradients")],
)
def test_train_optimizer_that_cannot_run_here_is_told(optimizer, told, video_model, pruned_video, clips):
    if optimizer == "bnbadam" and torch.cuda.is_available():
        pytest.skip("it may run on a GPU")
    with pytest.raises(ShallowvitError, match=told):
        _finetune(video_model, pruned_video, clips, replace(PLAIN, optimizer=optimizer))


def test_train_two_processes_give_one_model(pruned_video, clips, tmp_path):
    from shallowvit.pruning import save_pruned

    save_pruned(pruned_video, tmp_path / "pruned")
    here = Path(sys.executable).parent
    words = [here / "torchrun", "--standalone", "--nproc-per-node", "2", "--no-python"]
    words += [here / "shallowvit", "recover", tmp_path / "pruned", "--data", clips]
    words += ["-o", tmp_path / "out", "--method", "finetune", "--batch", "4", "--epochs", "2"]
    words += ["--checkpoints", tmp_path / "kept"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("load it with") == 1
    state = torch.load(tmp_path / "kept" / "finetune" / CHECKPOINT, weights_only=True)
    assert (state["run"]["processes"], state["step"]) == (2, 8)
    assert len(list((tmp_path / "kept" / "finetune" / "tensorboard").iterdir())) == 1
    assert (tmp_path / "out" / "shallowvit.json").is_file()


class _Framed(nn.Module):
    def __init__(self):
        super().__init__()
        inner = stacked(3).module
        self.embed = nn.Linear(8, 8)
        self.blocks, self.norm, self.head = inner.blocks, nn.LayerNorm(8), inner.head

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def test_parameter_groups_slow_down_towards_the_input():
    model = loaded(_Framed(), seed=0)
    model.module.requires_grad_(True)
    groups = parameter_groups(model.module, model, TrainConfig(layer_decay=0.5, weight_decay=0.1))
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    rates = {name: found[id(p)] for name, p in model.module.named_parameters()}
    assert rates["head.weight"] == rates["blocks.2.fc1.weight"] == (1.0, 0.1)
    assert rates["norm.weight"] == rates["blocks.2.fc1.bias"] == (1.0, 0.0)
    assert rates["blocks.1.fc1.weight"] == (0.5, 0.1)
    assert rates["blocks.0.fc1.weight"] == (0.25, 0.1)
    assert rates["embed.weight"] == (0.125, 0.1)


def test_schedule_rises_from_more_than_none_and_falls_to_more_than_none():
    config = TrainConfig(learning_rate=1.0, warmup_share=0.2)
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr_scale": 0.5}], lr=1.0)
    schedule, rates = schedule_of(optimizer, 20, config), []
    for step in range(20):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_train_weights_that_a_finite_loss_broke_keep_the_good_checkpoint(video_model, pruned_video, clips, tmp_path):
    own = replace(pruned_video, model=replace(pruned_video.model, module=copy.deepcopy(pruned_video.model.module)))

    def break_behind_step_3(done, _all, _line):
        if done == 3:
            own.model.module.classifier.weight.data[0, 0] = float("inf")

    config = RecoverConfig(str(clips), "finetune", training=replace(PLAIN, checkpoint_steps=1))
    told = r"classifier.weight is no longer finite in step 3 of epoch 1; the checkpoint of step 2 stays in .*Lower"
    with pytest.raises(ShallowvitError, match=told):
        finetune_pruned(video_model, own, config, Workplace(tmp_path, break_behind_step_3))
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 2


def test_train_disk_that_the_logs_fill_is_told(video_model, pruned_video, clips, tmp_path, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    def full(*_given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    monkeypatch.setattr(SummaryWriter, "close", full)
    with pytest.raises(ShallowvitError, match="no space left for"):
        _finetune(video_model, pruned_video, clips, PLAIN, tmp_path)
