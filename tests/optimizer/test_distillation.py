"""What the unpruned model teaches: which states are compared, the losses, and a training on them alone."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import shallowvit
from shallowvit import PlanConfig, RecoverConfig, ShallowvitError
from shallowvit.recovery.distillation import Teaching, distill_pruned, forward_of, output_loss, output_of, teaching
from shallowvit.recovery.records import Workplace
from shallowvit.recovery.settings import TrainConfig
from shallowvit.recovery.states import Watch, normalised_error, state_loss, state_pairs
from shallowvit.tokens import TokenConfig, reduce_tokens

from .small_models import Block, loaded, stacked

TRAINING = TrainConfig(epochs=3, batch=8, learning_rate=2e-3)


def pruned_of(model, remove):
    return shallowvit.prune(model, shallowvit.plan(model, config=PlanConfig(remove=remove)))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def answer_of(model, inputs):
    return output_of(model, forward_of(model, model.module, inputs))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """64 clips of the tiny video model, those of a class alike."""
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 5
    frames = (labels[:, None, None, None, None] * 40 + rng.integers(0, 60, (64, 4, 16, 16, 3))).astype(np.uint8)
    path = tmp_path_factory.mktemp("clips") / "clips.npz"
    np.savez(path, frames=frames, labels=labels)
    return path


def training_config(clips, **changes):
    return RecoverConfig(str(clips), "distill", training=replace(TRAINING, **changes))


def test_state_pairs_a_block_in_front_of_a_gap_aims_at_the_state_behind_it():
    pairs = state_pairs(pruned_of(stacked(6), "1,2,5"))
    assert [(pair.block, pair.target) for pair in pairs] == [(0, 2), (3, 3), (4, 5)]
    assert [(pair.student, pair.teacher) for pair in pairs] == [
        ("blocks.0", "blocks.2"),
        ("blocks.1", "blocks.3"),
        ("blocks.2", "blocks.5"),
    ]


def test_state_pairs_blocks_gone_in_front_leave_the_first_kept_its_own_aim():
    assert [(pair.block, pair.target) for pair in state_pairs(pruned_of(stacked(4), "0,1"))] == [(2, 2), (3, 3)]


def test_state_pairs_a_gap_ends_where_its_list_does():
    class Stages(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high = (nn.ModuleList(Block() for _ in range(3)) for _ in range(2))

        def forward(self, x):
            for block in (*self.low, *self.high):
                x = block(x)
            return x

    pairs = state_pairs(pruned_of(loaded(Stages(), blocks=("low", "high"), seed=0), "2,3"))
    assert [(pair.block, pair.target) for pair in pairs] == [(0, 0), (1, 2), (4, 4), (5, 5)]
    assert [pair.student for pair in pairs] == ["low.0", "low.1", "high.0", "high.1"]


def test_normalised_error_is_one_for_the_mean_at_any_scale():
    aim = normal(4, 3, 8)
    for scale in (1e-3, 1.0, 1e3):
        assert float(normalised_error(torch.full_like(aim, float(aim.mean())) * scale, aim * scale)) == pytest.approx(1.0)
    assert float(normalised_error(aim, aim)) == 0.0


def test_normalised_error_of_an_aim_that_is_all_alike_is_finite():
    assert bool(torch.isfinite(normalised_error(torch.zeros(2, 3), torch.ones(2, 3))))


def test_state_loss_leaves_out_states_of_other_shapes():
    pairs = state_pairs(pruned_of(stacked(3), "1"))
    aims = {"blocks.1": normal(2, 5, 8), "blocks.2": normal(2, 5, 8, seed=1)}
    student = {"blocks.0": aims["blocks.1"] * 2, "blocks.1": normal(2, 3, 8)}
    alone = normalised_error(student["blocks.0"], aims["blocks.1"])
    assert float(state_loss(student, aims, pairs)) == float(alone)
    assert state_loss({"blocks.0": normal(2, 3, 8), "blocks.1": normal(2, 3, 8)}, aims, pairs) is None


def test_output_loss_of_logits_is_the_divergence_of_softened_probabilities():
    student, wanted = normal(6, 5), normal(6, 5, seed=1)
    for temperature in (1.0, 3.0):
        p, q = (wanted / temperature).softmax(-1), (student / temperature).softmax(-1)
        expected = (p * (p / q).log()).sum(-1).mean() * temperature**2
        torch.testing.assert_close(output_loss(student, wanted, temperature), expected)
    assert float(output_loss(wanted, wanted, 2.0)) == pytest.approx(0.0, abs=1e-6)


def test_output_loss_without_temperature_is_of_any_numbers():
    student, wanted = normal(6, 4, 5), normal(6, 4, 5, seed=1)
    assert float(output_loss(student, wanted, None)) == float(normalised_error(student, wanted))


def test_output_loss_other_head_is_refused():
    with pytest.raises(ShallowvitError, match=r"distill: the student answers \[2, 3\], the teacher \[2, 4\]; give a model of"):
        output_loss(torch.zeros(2, 3), torch.zeros(2, 4), 1.0)


def test_watch_a_copy_made_meanwhile_leaves_what_is_seen_alone():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    watch = Watch(module, ["0"])
    other = copy.deepcopy(module)
    watch.close()
    module(torch.zeros(1, 2))
    assert watch.take() == {}
    assert not module[0]._forward_hooks
    other(torch.zeros(1, 2))  # still works


def test_teaching_the_unpruned_model_itself_has_nothing_to_learn():
    model = stacked(3)
    whole = shallowvit.prune(model, shallowvit.plan(model, config=PlanConfig(prune_ratio=0.0)))
    with teaching(model, whole, TrainConfig()) as taught:
        inputs = normal(4, 5, 8)
        losses = taught.losses(inputs, whole.model.module(inputs))
    assert {name: float(loss) for name, loss in losses.items()} == {"output": 0.0, "hidden": 0.0}


def test_teaching_gradients_reach_the_student_and_not_the_teacher(video_model, pruned_video):
    student = replace(pruned_video, model=replace(pruned_video.model, module=copy.deepcopy(pruned_video.model.module)))
    student.model.module.requires_grad_(True)
    with teaching(video_model, student, TrainConfig()) as taught:
        inputs = normal(3, *video_model.input_spec.shape)
        output = answer_of(student.model, inputs)
        taught.total(taught.losses(inputs, output)).backward()
    assert student.model.block(0).attention.output.dense.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in video_model.module.parameters())


def test_teaching_leaves_no_hook_on_either_model(video_model, pruned_video):
    def hooks():  # transformers leaves some of its own where hidden states were once asked for
        models = (video_model.module, pruned_video.model.module)
        return [len(module._forward_hooks) for model in models for module in model.modules()]

    before = hooks()
    with teaching(video_model, pruned_video, TrainConfig()) as taught:
        inputs = normal(2, *video_model.input_spec.shape)
        assert hooks() != before
        with torch.no_grad():
            taught.losses(inputs, answer_of(pruned_video.model, inputs))
    assert hooks() == before


@pytest.mark.parametrize(("changes", "parts"), [({"hidden_weight": 0.0}, {"output"}), ({"output_weight": 0.0}, {"hidden"})])
def test_teaching_a_part_of_weight_zero_is_left_out(video_model, pruned_video, changes, parts):
    taught = Teaching(video_model, pruned_video, TrainConfig(**changes))
    inputs = normal(2, *video_model.input_spec.shape)
    with torch.no_grad():
        output = answer_of(pruned_video.model, inputs)
    assert set(taught.losses(inputs, output)) == parts
    taught.close()


def test_forward_of_repeats_the_other_inputs_of_the_example():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

        def forward(self, x, keep):
            assert keep.shape == x.shape[:2]
            return x * keep[..., None]

    model = loaded(stacked(2).module)
    model = replace(model, example={**model.example, "keep": torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0]])})
    output = forward_of(model, Masked(), torch.ones(3, 5, 8))
    assert output.sum() == 3 * 3 * 8
    assert forward_of(model, Masked(), torch.ones(3, 5, 8), keep=torch.zeros(3, 5)).sum() == 0


def test_distill_brings_a_pruned_model_nearer_its_teacher_and_leaves_both_inputs(video_model, pruned_video, clips):
    before = copy.deepcopy(pruned_video.model.module.state_dict())
    recovered = shallowvit.recover(video_model, pruned_video, training_config(clips, epochs=6))
    (training,) = recovered.steps
    assert training.method == "distill"
    assert training.epochs[-1].loss < 0.7 * training.epochs[0].loss
    assert set(training.epochs[0].parts) == {"output", "hidden"}
    assert training.epochs[-1].validation > training.epochs[0].validation  # minus the loss on what was held out
    inputs = normal(8, *video_model.input_spec.shape, seed=3)
    off = [
        normalised_error(forward_of(one, one.module, inputs).logits, forward_of(video_model, video_model.module, inputs).logits)
        for one in (pruned_video.model, recovered.pruned.model)
    ]
    assert off[1] < off[0]
    for name, tensor in pruned_video.model.module.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert recovered.pruned.model.sha256 != pruned_video.model.sha256
    assert not any(module._forward_hooks for module in recovered.pruned.model.module.modules())


def test_distill_labelled_validation_judges_by_accuracy(video_model, pruned_video, clips, tmp_path):
    rng = np.random.default_rng(1)
    np.savez(
        tmp_path / "judge.npz",
        frames=rng.integers(0, 256, (10, 4, 16, 16, 3), dtype=np.uint8),
        labels=np.arange(10) % 5,
    )
    config = replace(training_config(clips, epochs=1), validation=str(tmp_path / "judge.npz"))
    (training,) = shallowvit.recover(video_model, pruned_video, config).steps
    right = 10 * training.epochs[0].validation  # of ten items; minus the loss would be below 0
    assert right >= 0
    assert right == pytest.approx(round(right), abs=1e-5)
    assert training.items == 64


def test_distill_killed_goes_on_with_the_same_losses(video_model, pruned_video, clips, tmp_path):
    config = training_config(clips, ema_decay=0.9, accumulate=2, checkpoint_steps=1)

    def dies(done, _all, _line):
        if done == 5:
            raise KeyboardInterrupt

    whole = shallowvit.recover(video_model, pruned_video, config)
    with pytest.raises(KeyboardInterrupt):
        shallowvit.recover(video_model, pruned_video, config, Workplace(tmp_path, dies))
    resumed = shallowvit.recover(video_model, pruned_video, config, Workplace(tmp_path))
    (one,), (other,) = whole.steps, resumed.steps
    assert [(epoch.loss, epoch.validation) for epoch in one.epochs] == [
        (epoch.loss, epoch.validation) for epoch in other.epochs
    ]
    assert whole.pruned.model.sha256 == resumed.pruned.model.sha256


def test_distill_without_any_weight_is_refused(video_model, pruned_video, clips):
    config = training_config(clips, output_weight=0.0, hidden_weight=0.0)
    with pytest.raises(ShallowvitError, match="distill: output weight 0 and hidden weight 0, so nothing is taught; give one"):
        distill_pruned(video_model, pruned_video, config, Workplace())


def test_distill_of_a_model_of_features_compares_the_features(clips, video_folder):
    features = shallowvit.load(f"hf:{video_folder}", changes=shallowvit.models.Changes(head="none"))
    pruned = pruned_of(features, "2")
    (training,) = shallowvit.recover(features, pruned, training_config(clips)).steps
    assert training.epochs[-1].loss < training.epochs[0].loss


def test_teaching_compares_states_behind_reduced_tokens_where_they_stayed(video_model):
    whole = shallowvit.prune(video_model, shallowvit.plan(video_model))
    reduced = reduce_tokens(whole, TokenConfig("0:0.75,1:0.5"))
    inputs = normal(3, *video_model.input_spec.shape)
    watch = Watch(reduced.model.module, ["videomae.encoder.layer.0", "videomae.encoder.layer.1"])
    with teaching(video_model, reduced, TRAINING) as taught, torch.no_grad():
        output = answer_of(reduced.model, inputs)
        states = watch.take()
        _, aims = taught.answers(inputs)
        kept = taught._at_kept_tokens(aims)
        answer_of(reduced.model, inputs)
        losses = taught.losses(inputs, output)
    watch.close()
    first, second = (kept[path] for path in states)
    assert torch.allclose(first, states["videomae.encoder.layer.0"], atol=1e-6)  # nothing differs before tokens are gone
    assert second.shape == states["videomae.encoder.layer.1"].shape
    assert 0 < losses["hidden"] < normalised_error(second.flip(1), states["videomae.encoder.layer.1"])
