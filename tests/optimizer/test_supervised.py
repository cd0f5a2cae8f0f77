"""Finetuning on labels: what a batch goes through, what is trained, and which data is refused."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import shallowvit
from shallowvit.errors import ShallowvitError
from shallowvit.models import InputSpec
from shallowvit.models.load import loaded_from_module
from shallowvit.models.raw import RawModel
from shallowvit.models.weights import hash_state
from shallowvit.pruning import PlanConfig, plan, prune
from shallowvit.recovery import RecoverConfig, TrainConfig, Workplace
from shallowvit.recovery.augmenting import augment_frames, check_augment, flip_inputs
from shallowvit.recovery.items import read_train_items
from shallowvit.recovery.lora import low_rank
from shallowvit.recovery.objectives import Batch
from shallowvit.recovery.supervised import Supervised, _mixed, _mixup, finetune_pruned, stochastic_depth

from .small_models import Block, Stacked, loaded, stacked

SHORT = TrainConfig(epochs=1, batch=8, learning_rate=1e-3)


def _write(path, count=24, labels=None, seed=0, **arrays):
    frames = np.random.default_rng(seed).integers(0, 256, (count, 4, 16, 16, 3), dtype=np.uint8)
    np.savez(path, frames=frames, labels=np.arange(count) % 5 if labels is None else np.asarray(labels), **arrays)
    return str(path)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("clips") / "clips.npz")


@pytest.fixture
def own_video(pruned_video):
    """The pruned model, to be trained."""
    return replace(pruned_video, model=replace(pruned_video.model, module=copy.deepcopy(pruned_video.model.module)))


def _finetune(model, pruned, data, training=SHORT, **given):
    return finetune_pruned(model, pruned, RecoverConfig(data, "finetune", training=training, **given), Workplace())


def test_finetune_with_the_teacher_gives_its_parts(video_model, own_video, clips):
    training = replace(SHORT, teacher_weight=0.5, output_weight=2.0, hidden_weight=3.0)
    (epoch,) = _finetune(video_model, own_video, clips, training).epochs
    parts = epoch.parts
    assert set(parts) == {"labels", "output", "hidden"}
    expected = parts["labels"] + 0.5 * (2 * parts["output"] + 3 * parts["hidden"])
    assert epoch.loss == pytest.approx(expected, rel=1e-5)


def test_finetune_low_rank_leaves_a_stock_model_of_other_weights(video_model, own_video, clips):
    before = {name: value.clone() for name, value in own_video.model.module.state_dict().items()}
    _finetune(video_model, own_video, clips, replace(SHORT, lora_rank=2))
    after = own_video.model.module.state_dict()
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    blocks = {name for name in changed if name.startswith("videomae.encoder.layer.")}
    assert blocks
    assert {name.rpartition(".")[2] for name in blocks} == {"weight"}
    assert all(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 2 for name in blocks)
    assert "classifier.weight" in changed
    assert not any("embeddings" in name for name in changed)


class _Unlinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return x + self.weight * x


def test_low_rank_without_a_linear_layer_is_told():
    model = stacked(2)
    model = replace(model, module=nn.Sequential())
    model.module.add_module("blocks", nn.ModuleList([_Unlinear(), _Unlinear()]))
    model.module.forward = lambda x: x
    with pytest.raises(ShallowvitError, match=r"--lora-rank 2: no block of .* calls a torch.nn.Linear"), low_rank(model, 2, 0):
        pass


def test_stochastic_depth_skips_the_last_block_for_some_items_and_never_the_first():
    model, inputs = stacked(2, seed=1), torch.randn(64, 5, 8)
    module = model.module.train()
    first, second = (module.blocks[place] for place in (0, 1))
    with stochastic_depth(model, 0.5):
        torch.manual_seed(0)
        middle = first(inputs)
        out = second(middle)
        skipped = (out == middle).flatten(1).all(1)
        assert 16 < int(skipped.sum()) < 48
    assert torch.equal(middle, first(inputs))
    whole = second(middle)
    # what isn't skipped changes twice as much, so that the mean stays
    assert torch.allclose((out - middle)[~skipped], 2 * (whole - middle)[~skipped], atol=1e-5)


def test_stochastic_depth_leaves_eval_and_what_comes_after_alone():
    model, inputs = stacked(2, seed=1), torch.randn(4, 5, 8)
    plain = model.module(inputs)
    with stochastic_depth(model, 0.9):
        assert torch.equal(model.module.eval()(inputs), plain)
    assert torch.equal(model.module.train()(inputs), plain)


def test_stochastic_depth_of_lists_of_parts_is_told():
    model = stacked(2)
    model = replace(model, stacks=tuple(replace(stack, modes=(("0", "zero"),)) for stack in model.stacks))
    with (
        pytest.raises(ShallowvitError, match=r"--drop-path 0.1: blocks.0 of .* is a list of parts"),
        stochastic_depth(model, 0.1),
    ):
        pass


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_clips_are_mixed_alike_in_all_frames(kind):
    inputs = torch.stack([torch.full((4, 3, 16, 16), float(item)) for item in range(8)])
    mixup = _mixup(TrainConfig(label_smoothing=0.0, batch=8, **{kind: 1.0}), 8, "NTCHW")
    torch.manual_seed(1)
    mixed, soft = _mixed(mixup, inputs.clone(), torch.arange(8))
    assert mixed.shape == inputs.shape
    assert not torch.equal(mixed, inputs)
    assert all(torch.equal(mixed[:, 0], mixed[:, frame]) for frame in range(4))
    # clip n is mixed with clip 7 - n, and so are the labels
    assert torch.allclose(mixed.mean((1, 2, 3, 4)), (soft * torch.arange(8)).sum(1), atol=1e-4)
    torch.manual_seed(1)
    again, _soft = _mixed(mixup, inputs.clone(), torch.arange(8))
    assert torch.equal(mixed, again)


def test_supervised_mixes_in_training_alone(own_video):
    objective = Supervised(own_video.model, 5, TrainConfig(mixup=0.8, label_smoothing=0.0))
    inputs, targets = torch.randn(4, 4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    plain = nn.functional.cross_entropy(objective.eval().answer(inputs), targets)
    assert torch.equal(objective(Batch(inputs, targets))["loss"], plain)
    torch.manual_seed(0)
    assert not torch.equal(objective.train()(Batch(inputs, targets))["loss"], plain)


def test_cutmix_of_what_is_no_image_is_told():
    with pytest.raises(ShallowvitError, match=r"--cutmix 1 cuts boxes out of images, the input's layout is NDD; give 0"):
        _mixup(TrainConfig(cutmix=1.0), 5, "NDD")


class _Pooled(Stacked):
    def forward(self, x):
        return super().forward(x).mean(1)


def test_finetune_of_ones_own_classifier_compares_its_output_as_logits(tmp_path):
    teacher = loaded(_Pooled(nn.ModuleList(Block() for _ in range(3))))
    teacher.module.head.weight.data.mul_(1e-6)  # logits of no variance, whose squared error over it is huge
    teacher = replace(teacher, sha256=hash_state(teacher.module))
    pruned = prune(teacher, plan(teacher, config=PlanConfig(remove="2")))
    path = tmp_path / "items.npz"
    np.savez(path, inputs=np.random.default_rng(0).normal(size=(20, 5, 8)).astype(np.float32), labels=np.arange(20) % 3)
    done = _finetune(teacher, pruned, str(path), replace(SHORT, teacher_weight=1.0, hidden_weight=0.0))
    assert 0 <= done.epochs[0].parts["output"] < 0.1


def test_mixup_of_an_odd_batch_is_told(video_model, own_video, clips):
    with pytest.raises(ShallowvitError, match="mix pairs, --batch is 7; give an even one"):
        _finetune(video_model, own_video, clips, replace(SHORT, batch=7, mixup=0.8))


@pytest.mark.parametrize("augment", ["flip", "rand-m9-n2-mstd0.5"])
def test_augment_frames_changes_all_frames_of_a_clip_alike(augment):
    clip = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    clips = np.stack([np.repeat(clip, 4, 0)] * 8)  # eight clips of one still picture
    done = augment_frames(clips, augment, 3)
    assert (done.shape, done.dtype) == (clips.shape, np.uint8)
    assert (done == done[:, :1]).all()
    assert len({one.tobytes() for one in done}) > 1
    assert np.array_equal(done, augment_frames(clips, augment, 3))
    state = np.random.get_state()[1].copy()
    augment_frames(clips, augment, 4)
    assert np.array_equal(state, np.random.get_state()[1])


def test_flip_of_frames_is_that_of_prepared_inputs():
    frames = np.random.default_rng(0).integers(0, 256, (8, 4, 16, 16, 3), dtype=np.uint8)
    inputs = torch.from_numpy(frames).movedim(-1, -3).float()
    flipped = torch.from_numpy(augment_frames(frames, "flip", 5)).movedim(-1, -3).float()
    assert torch.equal(flip_inputs(inputs, 5), flipped)
    assert not torch.equal(flipped, inputs)


@pytest.mark.parametrize(
    ("augment", "told"),
    [
        ("mirror", "unknown --augment 'mirror'; give none, flip, or timm's RandAugment"),
        ("rand-z9", r"'rand-z9' is no RandAugment that timm knows \(Unknown RandAugment config section\)"),
    ],
)
def test_augment_that_is_unknown_is_told(augment, told, video_model, clips):
    with pytest.raises(ShallowvitError, match=told):
        read_train_items(video_model, RecoverConfig(clips, training=replace(SHORT, augment=augment)), labelled=True)


def test_augment_that_doesnt_fit_is_told(video_model, tmp_path):
    np.savez(tmp_path / "inputs.npz", inputs=np.zeros((24, 4, 3, 16, 16), np.float32), labels=np.arange(24) % 5)
    config = RecoverConfig(str(tmp_path / "inputs.npz"), training=replace(SHORT, augment="rand-m7-n4"))
    with pytest.raises(ShallowvitError, match="changes uint8 frames, the data holds prepared inputs; give frames"):
        read_train_items(video_model, config, labelled=True)
    with pytest.raises(ShallowvitError, match="takes frames of 3 colours, these have 1; give flip"):
        augment_frames(np.zeros((2, 8, 8, 1), np.uint8), "rand-m7-n4", 0)
    points = SimpleNamespace(input_spec=InputSpec("points", "NLC", (8, 3)))
    with pytest.raises(ShallowvitError, match=r"--augment flip: the input points \(NLC\) is no image"):
        check_augment("flip", points.input_spec, True)


def test_read_train_items_prepared_inputs_are_taken_as_they_are(video_model, tmp_path):
    inputs = np.random.default_rng(0).normal(size=(24, 4, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "inputs.npz", inputs=inputs, labels=np.arange(24) % 5)
    items, _held_out = read_train_items(video_model, RecoverConfig(str(tmp_path / "inputs.npz")), labelled=True)
    batch = items.batch([0, 1])
    assert torch.equal(batch.inputs, torch.from_numpy(inputs[items.numbers[:2]]))
    assert batch.targets.tolist() == [number % 5 for number in items.numbers[:2]]


def test_read_train_items_splits_without_overlap_by_seed(video_model, clips):
    items, held_out = read_train_items(video_model, RecoverConfig(clips, items=20), labelled=True)
    assert (len(items), len(held_out)) == (18, 2)
    assert not set(items.numbers) & set(held_out.numbers)
    again, _held_out = read_train_items(video_model, RecoverConfig(clips, items=20), labelled=True)
    other, _held_out = read_train_items(video_model, RecoverConfig(clips, items=20, seed=1), labelled=True)
    assert items.digest() == again.digest() != other.digest()


def test_read_train_items_too_few_to_hold_out_is_told(video_model, clips):
    told = r"a validation share of 0.1 holds 0 of 4 items of clips.npz out; give more items, another share, or --validation"
    with pytest.raises(ShallowvitError, match=told):
        read_train_items(video_model, RecoverConfig(clips, items=4), labelled=True)


def test_read_train_items_trained_and_judged_on_the_same_is_told(video_model, clips, tmp_path):
    with np.load(clips) as data:
        np.savez(tmp_path / "some.npz", frames=data["frames"][:3], labels=data["labels"][:3])
    config = RecoverConfig(clips, validation=str(tmp_path / "some.npz"))
    with pytest.raises(
        ShallowvitError, match=r"3 of the 3 items of some.npz that judge .* in clips.npz; give --validation data"
    ):
        read_train_items(video_model, config, labelled=True)
    apart = RecoverConfig(clips, validation=_write(tmp_path / "other.npz", 10, seed=1))
    items, held_out = read_train_items(video_model, apart, labelled=True)
    assert (len(items), len(held_out)) == (24, 10)


def test_read_train_items_of_one_class_is_told(video_model, tmp_path):
    path = _write(tmp_path / "one.npz", labels=[2] * 24)
    with pytest.raises(ShallowvitError, match=r"all 22 items of one.npz have the label 2, so nothing is learnt"):
        read_train_items(video_model, RecoverConfig(path), labelled=True)


def test_finetune_labels_out_of_range_are_told(video_model, own_video, tmp_path):
    path = _write(tmp_path / "far.npz", labels=np.arange(24) % 9)
    with pytest.raises(ShallowvitError, match=r"labels of far.npz are 0 to 8, .* has classes 0 to 4"):
        _finetune(video_model, own_video, path)
    # a model that doesn't name its classes is asked how many it has
    nameless = replace(own_video, model=replace(own_video.model, labels=None))
    with pytest.raises(ShallowvitError, match=r"far.npz has the label 5, .* has classes 0 to 4; give labels of its classes"):
        _finetune(video_model, nameless, path)


def test_finetune_data_that_isnt_there_or_has_no_labels_is_told(video_model, own_video, tmp_path):
    with pytest.raises(ShallowvitError, match="nowhere"):
        _finetune(video_model, own_video, str(tmp_path / "nowhere.npz"))
    np.savez(tmp_path / "bare.npz", frames=np.zeros((24, 4, 16, 16, 3), np.uint8))
    with pytest.raises(ShallowvitError, match="labels"):
        _finetune(video_model, own_video, str(tmp_path / "bare.npz"))


def test_finetune_what_is_no_classifier_is_told(tmp_path):
    example = torch.randn(1, 5, 8)
    raw = RawModel(stacked(2).module, "module", InputSpec("x", "NDD", (5, 8)), {"x": example})
    model = loaded_from_module(raw, "test:module", None, ())
    pruned = shallowvit.prune(model, shallowvit.plan(model, config=PlanConfig(remove="1")))
    np.savez(tmp_path / "points.npz", inputs=np.zeros((24, 5, 8), np.float32), labels=np.arange(24) % 3)
    with pytest.raises(ShallowvitError, match=r"answers \[1, 5, 3\], labels need logits \[batch, classes\]"):
        _finetune(model, pruned, str(tmp_path / "points.npz"))
