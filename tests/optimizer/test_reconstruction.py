import numpy as np
import pytest
import torch
from torch import nn

import shallowvit
from shallowvit import ScoreConfig, ShallowvitError
from shallowvit.scoring import Calibration
from shallowvit.scoring.reconstruction import MASK_RATIO, reconstruction

from .small_models import bypassed, loaded, stacked

IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
    "initializer_range": 0.1,
}
DECODER = {
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}


@pytest.fixture(scope="module")
def video_autoencoder(tmp_path_factory):
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    settings = {**IMAGE, **DECODER, "num_frames": 4, "tubelet_size": 2, "norm_pix_loss": False}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "video_autoencoder"
    VideoMAEForPreTraining(VideoMAEConfig(**settings)).save_pretrained(folder)
    return shallowvit.load(f"hf:{folder}")


@pytest.fixture(scope="module")
def image_autoencoder(tmp_path_factory):
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "image_autoencoder"
    ViTMAEForPreTraining(ViTMAEConfig(**IMAGE, **DECODER)).save_pretrained(folder)
    return shallowvit.load(f"hf:{folder}")


def data_for(model, count=6, seed=0):
    return Calibration("own", torch.randn(count, *model.input_spec.shape, generator=torch.Generator().manual_seed(seed)))


def config(**changes):
    return ScoreConfig("reconstruction", **changes)


def masks_of(items, tokens, seed=0):
    """As many hidden tokens an item, by ranks of random numbers."""
    draws = np.random.default_rng(seed).random((items, tokens))
    return torch.from_numpy(draws.argsort(axis=1) < int(tokens * MASK_RATIO))


@torch.no_grad()
def test_reconstruction_is_the_rise_of_the_models_own_loss(video_autoencoder):
    model, data = video_autoencoder, data_for(video_autoencoder)
    masks = masks_of(6, 32)
    # items of their own, since fewer than 8 items are run one by one
    losses = [
        [module(data.inputs[i : i + 1], bool_masked_pos=masks[i : i + 1]).loss.item() for i in range(6)]
        for module in (model.module, bypassed(model, [1]))
    ]
    rises = np.subtract(losses[1], losses[0])
    found = reconstruction(model, data, config())[1]
    assert found.score == pytest.approx(rises.mean(), rel=1e-4)
    assert found.noise == pytest.approx(rises.std(ddof=1) / np.sqrt(6), rel=1e-4)


def test_reconstruction_weighs_a_short_last_batch_by_its_items(video_autoencoder):
    data = data_for(video_autoencoder, 17)
    pairs = reconstruction(video_autoencoder, data, config(batch=2))
    expected = [one.score for one in reconstruction(video_autoencoder, data, config(batch=1))]
    # losses are float32: differences of them are good to 1e-7 or so
    assert [one.score for one in pairs] == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("name", ["video_autoencoder", "image_autoencoder"])
def test_reconstruction_hides_the_same_each_time_and_other_parts_by_another_seed(name, request):
    model = request.getfixturevalue(name)
    data = data_for(model)
    first = [one.score for one in reconstruction(model, data, config())]
    torch.rand(3)
    assert [one.score for one in reconstruction(model, data, config())] == first
    assert [one.score for one in reconstruction(model, data, config(seed=1))] != first


def test_reconstruction_of_a_model_that_masks_itself_uses_the_same_masks_for_every_block(image_autoencoder):
    """A block that does nothing costs nothing, which only shows under the same masks."""
    model = image_autoencoder
    block = model.block(1)
    saved = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if name.endswith(("attention.o_proj.weight", "attention.output.dense.weight", "output.dense.weight", "fc2.weight")):
                parameter.zero_()
            if name.endswith(("attention.o_proj.bias", "attention.output.dense.bias", "output.dense.bias", "fc2.bias")):
                parameter.zero_()
    try:
        found = reconstruction(model, data_for(model), config())
    finally:
        block.load_state_dict(saved)
    assert found[1].score == pytest.approx(0, abs=1e-7)
    assert abs(found[0].score) > 1e-4


def test_reconstruction_leaves_the_random_state_and_the_model_as_they_were(image_autoencoder):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    reconstruction(image_autoencoder, data_for(image_autoencoder), config())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any("forward" in vars(part) for part in image_autoencoder.module.modules())


@pytest.mark.parametrize("make", ["video_model", "stacked", "encoder"])
def test_reconstruction_refuses_what_is_no_masked_autoencoder(make, request, tmp_path):
    if make == "encoder":  # takes masks, but gives no loss
        from transformers import ViTConfig, ViTModel

        ViTModel(ViTConfig(**IMAGE)).save_pretrained(tmp_path / "encoder")
        model = shallowvit.load(f"hf:{tmp_path / 'encoder'}")
    else:
        model = stacked(2) if make == "stacked" else request.getfixturevalue(make)
    with pytest.raises(ShallowvitError, match=r"needs a masked autoencoder .* gives no .* --criterion block-influence"):
        reconstruction(model, data_for(model), config())


def test_reconstruction_finds_the_tokens_of_a_model_without_an_example_mask(tmp_path):
    from transformers import ViTConfig, ViTForMaskedImageModeling

    torch.manual_seed(0)
    ViTForMaskedImageModeling(ViTConfig(**IMAGE, encoder_stride=4)).save_pretrained(tmp_path / "model")
    model = shallowvit.load(f"hf:{tmp_path / 'model'}")
    assert "bool_masked_pos" not in model.example
    assert all(abs(one.score) > 0 for one in reconstruction(model, data_for(model), config()))


def test_reconstruction_refuses_a_loss_that_is_not_finite():
    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = stacked(2).module.blocks

        def forward(self, x, noise=None):
            for block in self.blocks:
                x = block(x)
            return {"loss": x.sum() / 0, "states": x}

    model = loaded(Autoencoder(), seed=0)
    with pytest.raises(ShallowvitError, match=r"reconstruction loss of test:module on own is -?inf"):
        reconstruction(model, data_for(model), config())


def test_reconstruction_of_the_demo_finds_every_block_useful(demo_source):
    model = shallowvit.load(f"{demo_source}:pretrained")
    found = shallowvit.score(model, config(data="demo:train", samples=64))
    assert all(row.score > 3 * row.noise for row in found.blocks)
