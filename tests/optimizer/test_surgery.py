import copy

import pytest
import torch
from torch import nn

from shallowvit import PlanConfig, ShallowvitError, load, plan, prune
from shallowvit.models.outputs import tensors_in
from shallowvit.models.weights import hash_state

from .small_models import Block, Stacked, bypassed, loaded, stacked
from .test_blocks import TwoStacks

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
}
TIMM_VIT = "timm:vit_tiny_patch16_224?img_size=32&depth=4&embed_dim=48&num_heads=3&num_classes=5"
TIMM_CONVNEXT = "timm:convnext_atto?depths=(1,1,4,1)&dims=(8,16,24,32)&num_classes=4"


def _pruned(model, remove):
    return prune(model, plan(model, config=PlanConfig(remove=remove)))


def _saved(module, folder):
    module.save_pretrained(folder)
    return load(f"hf:{folder}")


def _random_example(model):
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in model.example.items()
    }


def _outputs(module, example):
    with torch.no_grad():
        # aligned alike: weights mapped from a file may start anywhere, which changes the order of additions
        return tensors_in(copy.deepcopy(module)(**example))


def _assert_same_as_bypassed(model, pruned):
    example = _random_example(model)
    expected = _outputs(bypassed(model, pruned.plan.removed), example)
    found = _outputs(pruned.model.module, example)
    assert len(found) == len(expected) > 0
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    whole = _outputs(model.module, example)
    assert not torch.equal(whole[-1], expected[-1])  # else the removed blocks did nothing and this shows nothing


def _transformers_model(name, folder):
    import transformers

    from tests.conftest import VIDEO

    torch.manual_seed(0)
    wide = {"initializer_range": 0.2}
    if name.startswith("VideoMAE"):
        return _saved(getattr(transformers, name)(transformers.VideoMAEConfig(**VIDEO, **wide)), folder)
    config = transformers.ViTConfig if name.startswith("ViT") else transformers.Dinov2Config
    return _saved(getattr(transformers, name)(config(**VIT, **wide)), folder)


TRANSFORMERS = ["VideoMAEForVideoClassification", "VideoMAEForPreTraining", "ViTForImageClassification", "Dinov2Model"]


@pytest.mark.parametrize("removed", ["0", "3", "1,2", "0-2"])
def test_prune_removed_equals_bypassed(removed):
    model = stacked(4)
    _assert_same_as_bypassed(model, _pruned(model, removed))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_prune_transformers_removed_equals_bypassed(tmp_path, name):
    model = _transformers_model(name, tmp_path / "model")
    _assert_same_as_bypassed(model, _pruned(model, "1,2"))


@pytest.mark.parametrize("spec", [TIMM_VIT, TIMM_CONVNEXT])
def test_prune_timm_removed_equals_bypassed(spec):
    model = load(spec)
    _assert_same_as_bypassed(model, _pruned(model, "0,2"))


def test_prune_original_is_untouched(video_model):
    before, config = hash_state(video_model.module), video_model.module.config.to_dict()
    pruned = _pruned(video_model, "0,2")
    with torch.no_grad():
        for parameter in pruned.model.module.parameters():
            parameter.zero_()
    assert hash_state(video_model.module) == before == video_model.sha256
    assert video_model.module.config.to_dict() == config
    assert len(video_model.module.videomae.encoder.layer) == 4


def test_prune_nothing_to_remove_gives_the_model():
    model = stacked(3)
    assert prune(model, plan(model)).model is model


def test_prune_plan_of_other_weights_raises():
    with pytest.raises(ShallowvitError, match=r"the plan was made for weights .* plan again"):
        prune(stacked(3), plan(stacked(3, seed=1), config=PlanConfig(remove="1")))


def test_prune_record_describes_what_is_left():
    model = stacked(5)
    left = _pruned(model, "1,3").model
    assert [(block.index, block.position, block.path) for block in left.blocks] == [
        (0, 0, "blocks.0"),
        (1, 1, "blocks.1"),
        (2, 2, "blocks.2"),
    ]
    assert torch.equal(left.block(1).fc1.weight, model.block(2).fc1.weight)
    assert left.stacks[0].length == 3
    assert left.stacks[0].parameters == sum(block.parameters for block in left.blocks)
    assert left.parameters == model.parameters - 2 * model.blocks[0].parameters
    assert left.sha256 == hash_state(left.module) != model.sha256
    assert left.origin == model.origin


def test_prune_two_stacks_each_loses_its_own():
    model = loaded(TwoStacks(), torch.ones(1, 5, 8), ("encoder", "decoder"), seed=0)
    pruned = _pruned(model, "1,3")
    assert (len(pruned.model.module.encoder), len(pruned.model.module.decoder)) == (2, 1)
    assert pruned.model.block(2) is pruned.model.module.decoder[0]
    _assert_same_as_bypassed(model, pruned)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_prune_transformers_configuration_is_mended(tmp_path, name):
    model = _transformers_model(name, tmp_path / "model")
    module = _pruned(model, "1").model.module
    encoder = module.get_submodule(model.stacks[0].path.rpartition(".")[0])
    assert [part.config.num_hidden_layers for part in (module, encoder)] == [3, 3]
    assert model.module.config.num_hidden_layers == 4
    assert module.config.num_attention_heads == 2


def test_prune_transformers_decoder_of_equal_length_stays(tmp_path):
    import transformers

    from tests.conftest import VIDEO

    config = transformers.VideoMAEConfig(**(VIDEO | {"decoder_num_hidden_layers": 4}))
    model = _saved(transformers.VideoMAEForPreTraining(config), tmp_path / "model")
    module = _pruned(model, "1").model.module
    assert (module.config.num_hidden_layers, module.config.decoder_num_hidden_layers) == (3, 4)


def test_prune_transformers_swin_depths_of_the_stage_are_mended(tmp_path):
    import transformers

    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[1, 4, 1], num_heads=[2, 2, 2], window_size=4
    )
    model = _saved(transformers.SwinForImageClassification(config), tmp_path / "model")
    assert model.stacks[0].path == "swin.encoder.layers.1.blocks"
    assert _pruned(model, "1,2").model.module.config.depths == [1, 2, 1]


@pytest.mark.parametrize(
    ("taps", "removed", "moved"), [([2, 4], "0", [1, 3]), ([2, 4], "3", [2, 3]), ([1, 3], "1,3", [1, 2]), ([-1], "2", [3])]
)
def test_prune_backbone_taps_move_with_their_blocks(tmp_path, taps, removed, moved):
    import transformers

    torch.manual_seed(0)
    config = transformers.Dinov2Config(**VIT, out_indices=taps, initializer_range=0.2)
    model = _saved(transformers.Dinov2Backbone(config), tmp_path / "model")
    pruned = _pruned(model, removed)
    assert [index % 4 for index in pruned.model.module.config.out_indices] == [index % 4 for index in moved]
    example = _random_example(model)
    expected = _outputs(bypassed(model, pruned.plan.removed), example)
    found = _outputs(pruned.model.module, example)
    assert [torch.equal(one, other) for one, other in zip(found, expected, strict=True)] == [True] * len(taps)


def test_prune_backbone_taps_that_fall_together_keep_the_place(tmp_path):
    import transformers

    torch.manual_seed(0)
    config = transformers.Dinov2Config(**VIT, out_indices=[2, 3], initializer_range=0.2)
    model = _saved(transformers.Dinov2Backbone(config), tmp_path / "model")
    pruned = _pruned(model, "2")
    assert [(one.way, one.gone) for one in pruned.removals] == [("placeholder", (2,))]
    _assert_same_as_bypassed(model, pruned)


def test_prune_timm_feature_info_names_the_kept_blocks():
    module = _pruned(load(TIMM_VIT), "0,2").model.module
    assert [entry["module"] for entry in module.feature_info] == ["blocks.0", "blocks.1"]


def test_prune_timm_stage_of_as_many_blocks_as_stages_leaves_the_stages():
    model = load(TIMM_CONVNEXT)
    assert (model.stacks[0].path, model.stacks[0].length) == ("stages.2.blocks", 4)
    module = _pruned(model, "1").model.module
    assert [entry["module"] for entry in module.feature_info] == [f"stages.{index}" for index in range(4)]


def test_prune_timm_arguments_are_mended():
    vit, convnext = load(TIMM_VIT), load(TIMM_CONVNEXT)
    assert _pruned(vit, "0,2").model.recipe["arguments"]["depth"] == 2
    assert list(_pruned(convnext, "1").model.recipe["arguments"]["depths"]) == [1, 1, 3, 1]
    assert vit.recipe["arguments"]["depth"] == 4


class Indexed(Block):
    def __init__(self, place):
        super().__init__()
        self.layer_idx = place
        self.inner = Block()
        self.inner.layer_idx = place


class Listed(Stacked):
    """Keeps what real models keep beside their blocks."""

    def __init__(self, count):
        super().__init__(nn.ModuleList(Indexed(place) for place in range(count)))
        self.depth = count
        self.dpr = [place / 10 for place in range(count)]
        self.layer_types = tuple("abcdefgh"[:count])
        self.num_layers = 99  # counts something else


def test_prune_indices_and_lists_are_mended():
    left = _pruned(loaded(Listed(5), seed=0), "0,3").model.module
    assert [block.layer_idx for block in left.blocks] == [0, 1, 2]
    assert [block.inner.layer_idx for block in left.blocks] == [0, 1, 2]
    assert left.depth == 3
    assert left.dpr == [0.1, 0.2, 0.4]
    assert left.layer_types == ("b", "c", "e")
    assert left.num_layers == 99


class CountsOn(Stacked):
    def forward(self, x):
        for place in range(4):
            x = self.blocks[place](x)
        return self.head(x)


def test_prune_forward_that_relies_on_the_count_keeps_the_place():
    model = loaded(CountsOn(nn.ModuleList(Block() for _ in range(4))), seed=0)
    pruned = _pruned(model, "1")
    (removal,) = pruned.removals
    assert removal.way == "placeholder"
    assert "it doesn't run (IndexError" in removal.reason
    assert [block.path for block in pruned.model.blocks] == ["blocks.0", "blocks.2", "blocks.3"]
    assert not list(pruned.model.module.blocks[1].parameters())
    _assert_same_as_bypassed(model, pruned)


class StacksOutputs(Stacked):
    def forward(self, x):
        seen = []
        for block in self.blocks:
            x = block(x)
            seen.append(x)
        return torch.stack(seen)


def test_prune_outputs_of_every_block_keep_the_place():
    model = loaded(StacksOutputs(nn.ModuleList(Block() for _ in range(4))), seed=0)
    pruned = _pruned(model, "1")
    assert [one.way for one in pruned.removals] == ["placeholder"]
    _assert_same_as_bypassed(model, pruned)
