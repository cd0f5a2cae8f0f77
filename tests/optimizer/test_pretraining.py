"""Continued masked pretraining: what is hidden, that teacher and student see the same, and who can't be pretrained."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import shallowvit
from shallowvit import PlanConfig, RecoverConfig, ShallowvitError
from shallowvit.pruning import save_pruned
from shallowvit.recovery.distillation import teaching
from shallowvit.recovery.masking import hiding, mask_plan
from shallowvit.recovery.objectives import Batch
from shallowvit.recovery.pretraining import _Pretraining
from shallowvit.recovery.records import Workplace
from shallowvit.recovery.settings import TrainConfig

from .small_models import stacked

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
    "initializer_range": 0.1,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}
TRAINING = TrainConfig(epochs=4, batch=8, learning_rate=2e-3)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEImageProcessor

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "video_autoencoder"
    config = VideoMAEConfig(**SIZES, num_frames=4, tubelet_size=2, norm_pix_loss=False)
    VideoMAEForPreTraining(config).save_pretrained(folder)
    VideoMAEImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return shallowvit.load(f"hf:{folder}")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    from transformers import ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "image_autoencoder"
    ViTMAEForPreTraining(ViTMAEConfig(**SIZES)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return shallowvit.load(f"hf:{folder}")


def items(model, tmp_path, count=32):
    """Unlabelled items whose patches follow from one another: a slope of brightness each."""
    rng = np.random.default_rng(0)
    slopes = rng.uniform(2, 14, (count, 1, 1)) * np.arange(16)[None, :, None] + rng.uniform(0, 30, (count, 1, 1))
    frames = np.repeat(slopes.astype(np.uint8)[..., None].repeat(16, 2), 3, axis=-1)  # [N, 16, 16, 3]
    if model.input_spec.layout == "NTCHW":
        frames = np.repeat(frames[:, None], 4, axis=1)
    path = tmp_path / "items.npz"
    np.savez(path, frames=frames)
    return str(path)


def pruned_of(model, remove):
    return shallowvit.prune(model, shallowvit.plan(model, config=PlanConfig(remove=remove)))


def own_copy(pruned):
    return replace(pruned, model=replace(pruned.model, module=copy.deepcopy(pruned.model.module)))


def test_mask_plan_of_clips_hides_the_same_places_in_every_frame(video):
    plan = mask_plan(video)
    masks = plan.draw(5)["bool_masked_pos"].view(5, 2, 16)  # [items, steps, places]
    assert (plan.frames, plan.hidden, plan.ratio) == (2, 14, 0.9)
    assert bool((masks[:, 0] == masks[:, 1]).all())
    assert masks[:, 0].sum(1).tolist() == [14] * 5
    assert len({tuple(row) for row in masks[:, 0].tolist()}) > 1


def test_mask_plan_without_tubes_hides_anywhere(video):
    plan = mask_plan(video, tubes=False)
    masks = plan.draw(5)["bool_masked_pos"]
    assert masks.sum(1).tolist() == [24] * 5  # 0.75 of 32
    assert not bool((masks.view(5, 2, 16)[:, 0] == masks.view(5, 2, 16)[:, 1]).all())


def test_mask_plan_of_images_gives_the_noise_by_which_the_model_hides(image):
    plan = mask_plan(image, 0.5)
    assert plan.draw(3)["noise"].shape == (3, 16)
    with hiding(plan, image.module), torch.no_grad():
        assert image.module(torch.zeros(3, 3, 16, 16), **plan.draw(3)).mask.sum(1).tolist() == [8.0] * 3


def test_hiding_gives_the_model_s_own_share_back_even_after_a_failure(image):
    with pytest.raises(KeyboardInterrupt), hiding(mask_plan(image, 0.5), image.module):
        raise KeyboardInterrupt
    assert image.module.config.mask_ratio == 0.75


def test_mask_plan_draws_follow_torch_s_seed_or_a_generator(video):
    plan = mask_plan(video)
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(plan.draw(4)["bool_masked_pos"])
    assert torch.equal(*drawn)
    other = plan.draw(4, torch.Generator().manual_seed(3))["bool_masked_pos"]
    assert torch.equal(other, drawn[0])


@pytest.mark.parametrize(("ratio", "hidden"), [(0.01, 0), (0.999, 15)])
def test_mask_plan_a_ratio_that_hides_nothing_is_refused(video, ratio, hidden):
    if hidden:
        assert mask_plan(video, ratio).hidden == hidden
        return
    with pytest.raises(
        ShallowvitError, match=r"pretrain: a mask ratio of 0\.01 hides 0 of 16 places of .*; give one that hides"
    ):
        mask_plan(video, ratio)


def test_mask_plan_of_a_classifier_says_what_to_give(video_model):
    with pytest.raises(
        ShallowvitError,
        match=r"pretrain: VideoMAEForVideoClassification has no decoder .*; prune and recover .*demo:pretrained",
    ):
        mask_plan(video_model)


def test_mask_plan_of_an_encoder_alone_is_refused(video):
    encoder = shallowvit.load(f"hf:{video.folder}", changes=shallowvit.models.Changes(head="none"))
    with pytest.raises(ShallowvitError, match="pretrain: VideoMAEModel has no decoder"):
        mask_plan(encoder)


def test_mask_plan_of_timm_says_that_it_ships_encoders():
    model = shallowvit.load("timm:vit_tiny_patch16_224?img_size=32&depth=2&embed_dim=48&num_heads=3&num_classes=5")
    with pytest.raises(ShallowvitError, match="timm ships VisionTransformer as an encoder, without the decoder"):
        mask_plan(model)


def test_mask_plan_of_any_module_is_refused():
    with pytest.raises(ShallowvitError, match="pretrain: Stacked has no decoder"):
        mask_plan(stacked(2))


@pytest.mark.parametrize("name", ["video", "image"])
def test_pretraining_the_unpruned_model_itself_is_at_its_aim_under_any_mask(name, request):
    model = request.getfixturevalue(name)
    whole = own_copy(shallowvit.prune(model, shallowvit.plan(model, config=PlanConfig(prune_ratio=0.0))))
    plan = mask_plan(model)
    inputs = torch.randn(3, *model.input_spec.shape, generator=torch.Generator().manual_seed(0))
    with teaching(model, whole, TrainConfig()) as taught, torch.no_grad():
        losses = _Pretraining(whole, taught, plan)(Batch(inputs))
    assert float(losses["loss"]) == pytest.approx(1.0)  # as good as the teacher, and nothing to learn
    assert (float(losses["output"]), float(losses["hidden"])) == (0.0, 0.0)
    assert losses["reconstruction"] > 0


@pytest.mark.parametrize("name", ["video", "image"])
def test_pretrain_rebuilds_better_and_the_folder_is_stock(name, request, tmp_path):
    model = request.getfixturevalue(name)
    pruned = pruned_of(model, "1,2")
    config = RecoverConfig(items(model, tmp_path), "pretrain", training=TRAINING)
    recovered = shallowvit.recover(model, pruned, config)
    (training,) = recovered.steps
    assert training.method == "pretrain"
    assert set(training.epochs[0].parts) == {"reconstruction", "output", "hidden"}
    assert training.epochs[-1].loss < training.epochs[0].loss
    assert training.epochs[-1].validation > training.epochs[0].validation
    assert not model.module.training
    save_pruned(recovered.pruned, tmp_path / "out")
    library = type(model.module).from_pretrained(tmp_path / "out")
    for key, tensor in recovered.pruned.model.module.state_dict().items():
        assert torch.equal(library.state_dict()[key], tensor)


def test_pretrain_fixed_positions_of_an_image_model_stay(image, tmp_path):
    pruned = pruned_of(image, "1")
    config = RecoverConfig(items(image, tmp_path), "pretrain", training=replace(TRAINING, epochs=1))
    after = shallowvit.recover(image, pruned, config).pruned.model.module
    for path in ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"):
        assert torch.equal(after.get_parameter(path), image.module.get_parameter(path))


def test_pretrain_killed_goes_on_with_the_same_losses(video, tmp_path):
    pruned = pruned_of(video, "1")
    config = RecoverConfig(items(video, tmp_path), "pretrain", training=replace(TRAINING, checkpoint_steps=2))

    def dies(done, _all, _line):
        if done == 8:
            raise KeyboardInterrupt

    whole = shallowvit.recover(video, pruned, config)
    with pytest.raises(KeyboardInterrupt):
        shallowvit.recover(video, pruned, config, Workplace(tmp_path / "place", dies))
    resumed = shallowvit.recover(video, pruned, config, Workplace(tmp_path / "place"))
    (one,), (other,) = whole.steps, resumed.steps
    assert [(epoch.loss, epoch.validation) for epoch in one.epochs] == [
        (epoch.loss, epoch.validation) for epoch in other.epochs
    ]
    assert whole.pruned.model.sha256 == resumed.pruned.model.sha256


def test_pretrained_encoder_takes_a_head_and_is_finetuned_elsewhere(video, tmp_path):
    save_pruned(pruned_of(video, "1,2"), tmp_path / "encoder")
    classifier = shallowvit.load(f"hf:{tmp_path / 'encoder'}", changes=shallowvit.models.Changes(head="linear:5"))
    assert classifier.output_shapes == ((1, 5),)
    assert len(classifier.blocks) == 2
