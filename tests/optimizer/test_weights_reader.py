import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import shallowvit
from shallowvit import ScoreConfig, ShallowvitError, score
from shallowvit.scoring import score_checkpoint
from shallowvit.scoring.weights import hash_blocks, map_blocks, open_checkpoint, weights_from_model

from .small_models import Block, Stacked, blocks_of, loaded, stacked

DATA_FREE = [
    "entropy",
    "interval-entropy",
    "value-entropy",
    "efficiency",
    "mean-abs",
    "variance",
    "std",
    "l1",
    "l2",
    "kurtosis",
]
DATA_FREE += ["mutual-information", "stable-rank", "spectral-entropy", "relative-norm"]


def _state(count=3, prefix="blocks.", seed=0):
    """Names and weights of blocks of an MLP each, with an embedding and a head beside them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"norm.weight": (8,), "mlp.fc1.weight": (16, 8), "mlp.fc1.bias": (16,), "mlp.fc2.weight": (8, 16)}
    state = {f"{prefix}{i}.{name}": torch.randn(s, generator=generator) for i in range(count) for name, s in shapes.items()}
    return state | {"patch_embed.weight": torch.randn(8, 3, generator=generator), "head.weight": torch.zeros(2, 8)}


def _saved(tmp_path, state, name="model.safetensors"):
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / name)
    return tmp_path / name


def _shards(folder, state, count=3):
    """The state in ``count`` files with an index, a block's weights in several of them."""
    names = sorted(state)
    files = {f"model-{n + 1:05}-of-{count:05}.safetensors": names[n::count] for n in range(count)}
    for file, held in files.items():
        save_file({name: state[name] for name in held}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in files.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json"


def _transformers_model(kind):
    import transformers as t

    vit = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 16}
    vit["patch_size"] = 4
    swin = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 3], "num_heads": [2, 2], "window_size": 4}
    video = vit | {"num_frames": 4, "tubelet_size": 2, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 2}
    video |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 64}
    conv = {"image_size": 32, "num_stages": 3, "hidden_sizes": [8, 16, 24], "depths": [1, 2, 3]}
    return {
        "videomae": lambda: t.VideoMAEForPreTraining(t.VideoMAEConfig(**video)),
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**vit)),
        "swin": lambda: t.SwinForImageClassification(t.SwinConfig(**swin)),
        "swinv2": lambda: t.Swinv2ForImageClassification(t.Swinv2Config(**swin)),
        "convnext": lambda: t.ConvNextForImageClassification(t.ConvNextConfig(**conv)),
        "dinov2": lambda: t.Dinov2ForImageClassification(t.Dinov2Config(**vit)),
        "beit": lambda: t.BeitForImageClassification(t.BeitConfig(**vit, use_relative_position_bias=True)),
    }[kind]()


FAMILIES = ["videomae", "vit", "swin", "swinv2", "convnext", "dinov2", "beit"]


@pytest.fixture(scope="module", params=FAMILIES)
def saved_and_loaded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    _transformers_model(request.param).save_pretrained(folder)
    return folder, shallowvit.load(f"hf:{folder}")


def _scores(scored):
    return [(row.block, row.weights, row.score, row.noise) for row in scored.blocks]


def test_score_checkpoint_of_transformers_equals_loaded_model_bit_for_bit(saved_and_loaded):
    folder, model = saved_and_loaded
    for criterion in DATA_FREE:
        config = ScoreConfig(criterion)
        assert _scores(score_checkpoint(folder, config)) == _scores(score(model, config)), criterion


def test_hash_blocks_of_transformers_file_equals_loaded_model(saved_and_loaded):
    folder, model = saved_and_loaded
    assert hash_blocks(open_checkpoint(folder)) == hash_blocks(weights_from_model(model))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "swinv2_tiny_window8_256"])
def test_score_checkpoint_of_timm_equals_loaded_model_with_its_paths(name, tmp_path):
    model = shallowvit.load(f"timm:{name}")
    found = score_checkpoint(_saved(tmp_path, model.module.state_dict()))
    assert found.blocks == score(model).blocks
    assert found.blocks_sha256 == hash_blocks(weights_from_model(model))


def test_open_checkpoint_numbers_after_a_common_text_are_blocks(tmp_path):
    state = _state(prefix="encoder.layers.encoder_layer_")
    found = open_checkpoint(_saved(tmp_path, state))
    assert [block.path for block in found] == [f"encoder.layers.encoder_layer_{n}" for n in range(3)]
    assert {block.stack for block in found} == {"encoder.layers"}


def test_open_checkpoint_of_a_bare_list_has_numbers_as_paths(tmp_path):
    state = {name: value for name, value in _state(prefix="").items() if name[0].isdigit()}
    assert [block.path for block in open_checkpoint(_saved(tmp_path, state))] == ["0", "1", "2"]


def test_open_checkpoint_ten_and_more_blocks_are_in_the_order_of_their_numbers(tmp_path):
    found = open_checkpoint(_saved(tmp_path, _state(12)))
    assert [block.path for block in found] == [f"blocks.{n}" for n in range(12)]
    assert [block.block for block in found] == list(range(12))


def test_open_checkpoint_takes_the_most_blocks_then_the_most_weights(tmp_path):
    wide = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in _state(3, "wide.").items() if name[:4] == "wide"}
    assert open_checkpoint(_saved(tmp_path, _state(3) | wide))[0].stack == "wide"
    assert open_checkpoint(_saved(tmp_path, _state(4) | wide))[0].stack == "blocks"


def test_open_checkpoint_chosen_stacks_are_counted_through(tmp_path):
    path = _saved(tmp_path, _state(3) | _state(2, "decoder.layers."))
    found = open_checkpoint(path, ["decoder.layers", "blocks"])
    assert [(block.block, block.path) for block in found][:3] == [
        (0, "decoder.layers.0"),
        (1, "decoder.layers.1"),
        (2, "blocks.0"),
    ]


def test_open_checkpoint_single_layers_in_a_list_are_no_blocks(tmp_path):
    layers = {f"mlp.{n}.weight": torch.randn(8, 8) for n in range(6)}
    assert open_checkpoint(_saved(tmp_path, _state(3) | layers))[0].stack == "blocks"


def test_open_checkpoint_children_of_different_shapes_are_no_stack(tmp_path):
    stages = {f"stages.{n}.mlp.weight": torch.randn(8 << n, 8) for n in range(5)}
    assert open_checkpoint(_saved(tmp_path, _state(3) | stages))[0].stack == "blocks"


def test_open_checkpoint_a_computed_mask_in_every_other_block_is_no_difference(tmp_path):
    state = _state(4) | {f"blocks.{n}.attn_mask": torch.zeros(4, 4) for n in (1, 3)}
    found = open_checkpoint(_saved(tmp_path, state))
    assert len(found) == 4


@pytest.mark.parametrize(
    "name",
    [
        "attn.relative_position_bias_table",
        "attention.relative_position_bias.relative_position_bias_table",
        "attn.rel_pos_h",
        "attn.cpb_mlp.0.weight",
        "attention.self.continuous_position_bias_mlp.2.weight",
        "attn.attention_biases",
        "pos_embed",
    ],
)
def test_open_checkpoint_tables_of_positions_do_not_count(name, tmp_path):
    tables = {f"blocks.{n}.{name}": torch.randn(9, 2) for n in range(3)}
    found = open_checkpoint(_saved(tmp_path, _state(3) | tables))
    assert [matrix.name for matrix in found[0].matrices] == ["mlp.fc1.weight", "mlp.fc2.weight"]


@pytest.mark.parametrize(
    ("shape", "counted"),
    [((16, 8, 1, 1), (16, 8)), ((16, 8, 1, 1, 1), (16, 8)), ((16, 8, 3, 3), None), ((16, 1, 1, 1), None), ((16, 8, 1), None)],
)
def test_open_checkpoint_convolutions_of_size_1_are_matrices(shape, counted, tmp_path):
    state = {f"blocks.{n}.conv.weight": torch.randn(shape) for n in range(3)}
    found = open_checkpoint(_saved(tmp_path, _state(3) | state))
    assert [matrix.shape for matrix in found[0].matrices if matrix.name == "conv.weight"] == ([counted] if counted else [])
    assert all(matrix.read().shape == matrix.shape for matrix in found[0].matrices)


class _Pointwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.pointwise = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return x + self.pointwise(self.depthwise(x))


class _Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(_Pointwise(), _Pointwise())

    def forward(self, x):
        return self.blocks(x)


def test_weights_from_model_takes_pointwise_convolutions_and_no_depthwise():
    model = loaded(_Convolutions(), torch.zeros(1, 4, 6, 6))
    (found, _) = weights_from_model(model)
    assert [(matrix.name, matrix.shape) for matrix in found.matrices] == [("pointwise.weight", (4, 4))]
    assert torch.equal(found.matrices[0].read(), model.module.blocks[0].pointwise.weight[:, :, 0, 0])


def test_weights_from_model_copies_nothing():
    model = stacked(2)
    (found, _) = weights_from_model(model)
    assert found.matrices[0].read().data_ptr() == model.module.blocks[0].fc1.weight.data_ptr()


def test_open_checkpoint_shards_equal_the_whole_file(tmp_path):
    whole = _saved(tmp_path, _state(4))
    folder = tmp_path / "sharded"
    folder.mkdir()
    index = _shards(folder, _state(4))
    expected = score_checkpoint(whole)
    assert score_checkpoint(index) == expected
    assert score_checkpoint(folder) == expected


@pytest.mark.parametrize("wrapped", [lambda s: s, lambda s: {"model": s}, lambda s: {f"module.{k}": v for k, v in s.items()}])
@pytest.mark.parametrize("zipped", [True, False])
def test_open_checkpoint_pickled_weights_equal_safetensors(wrapped, zipped, tmp_path):
    torch.save(wrapped(_state(4)), tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    assert score_checkpoint(tmp_path / "model.pth") == score_checkpoint(_saved(tmp_path, _state(4)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_open_checkpoint_other_floats_score_as_their_fp32_numbers(dtype, tmp_path):
    state = {name: value.to(torch.bfloat16).to(dtype) for name, value in _state(3).items()}
    plain = score_checkpoint(_saved(tmp_path, {name: value.float() for name, value in state.items()}, "plain.safetensors"))
    found = score_checkpoint(_saved(tmp_path, state))
    assert found.blocks == plain.blocks
    assert found.blocks_sha256 == plain.blocks_sha256


def test_open_checkpoint_large_finite_half_weights_are_not_infinite(tmp_path):
    state = {name: torch.full_like(value, 60_000).half() for name, value in _state(3).items()}
    (block, *_) = open_checkpoint(_saved(tmp_path, state))
    assert float(block.matrices[0].read().max()) == 60_000 - 60_000 % 32


def test_open_checkpoint_large_finite_weights_whose_sum_overflows_are_read(tmp_path):
    state = {name: torch.full_like(value, 3e38) for name, value in _state(3).items()}
    (block, *_) = open_checkpoint(_saved(tmp_path, state))
    assert torch.isfinite(block.matrices[0].read()).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_score_checkpoint_nan_or_inf_raises_and_names_the_weight(value, tmp_path):
    state = _state(3)
    state["blocks.1.mlp.fc2.weight"][2, 3] = value
    with pytest.raises(ShallowvitError, match=r"blocks\.1\.mlp\.fc2\.weight holds 1 of 128 weights that are NaN or Inf"):
        score_checkpoint(_saved(tmp_path, state))


def test_open_checkpoint_reads_numbers_only_when_asked(tmp_path):
    state = _state(3)
    state["blocks.1.mlp.fc2.weight"][2, 3] = float("nan")
    assert open_checkpoint(_saved(tmp_path, state))[0].matrices[0].read().shape == (16, 8)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "model.safetensors.index.json"])
def test_open_checkpoint_missing_file_raises(name, tmp_path):
    with pytest.raises(ShallowvitError, match=r"no file .*[cC]heck the path"):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_open_checkpoint_empty_file_raises(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(ShallowvitError, match=r"is empty \(0 bytes\)"):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("keep", [4, 100, -7])
def test_open_checkpoint_truncated_safetensors_raises(keep, tmp_path):
    path = _saved(tmp_path, _state(3))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ShallowvitError, match="is truncated or not a safetensors file"):
        open_checkpoint(path)


def test_open_checkpoint_truncated_pickle_raises(tmp_path):
    torch.save(_state(3), tmp_path / "model.pth")
    (tmp_path / "model.pth").write_bytes((tmp_path / "model.pth").read_bytes()[:900])
    with pytest.raises(ShallowvitError, match="can't be read as PyTorch weights"):
        open_checkpoint(tmp_path / "model.pth")


def test_open_checkpoint_missing_shard_raises_and_names_it(tmp_path):
    index = _shards(tmp_path, _state(3))
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ShallowvitError, match=r"names the shard model-00002-of-00003\.safetensors, which isn't in"):
        open_checkpoint(index)


def test_open_checkpoint_index_that_names_a_missing_tensor_raises(tmp_path):
    index = _shards(tmp_path, _state(3))
    content = json.loads(index.read_text())
    content["weight_map"]["blocks.9.weight"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(
        ShallowvitError, match=r"says that blocks\.9\.weight is in model-00001-of-00003\.safetensors, where it isn't"
    ):
        open_checkpoint(index)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_open_checkpoint_damaged_index_raises(content, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ShallowvitError, match="is no index of a sharded checkpoint"):
        open_checkpoint(tmp_path)


def test_open_checkpoint_folder_without_weights_raises(tmp_path):
    with pytest.raises(ShallowvitError, match=r"no \.safetensors file in .*; give the file of weights itself"):
        open_checkpoint(tmp_path)


def test_open_checkpoint_folder_with_several_files_raises(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        _saved(tmp_path, _state(3), name)
    with pytest.raises(ShallowvitError, match=r"holds 2 of \*\.safetensors \(a\.safetensors, b\.safetensors\); give one"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("count", [0, 1])
def test_open_checkpoint_without_blocks_raises(count, tmp_path):
    with pytest.raises(ShallowvitError, match=r"no blocks found in .*; give the model instead of its weights"):
        open_checkpoint(_saved(tmp_path, _state(count)))


def test_open_checkpoint_unknown_stack_raises_with_those_found(tmp_path):
    with pytest.raises(ShallowvitError, match=r"no blocks under layers in .*; found: blocks, decoder; give one of these"):
        open_checkpoint(_saved(tmp_path, _state(3) | _state(2, "decoder.")), ["layers"])


@pytest.mark.parametrize("stacks", [["blocks", "blocks"], ["blocks", "blocks.0.parts"], ["blocks.0.parts", "blocks"]])
def test_open_checkpoint_stacks_inside_each_other_raise(stacks, tmp_path):
    state = {f"blocks.{n}.parts.{m}.fc.weight": torch.randn(4, 4) for n in range(2) for m in range(2)}
    with pytest.raises(ShallowvitError, match=r"stands beside .* so some blocks would count twice; give one"):
        open_checkpoint(_saved(tmp_path, state), stacks)


def test_hash_blocks_names_and_order_of_matrices_do_not_matter():
    one, other = torch.randn(4, 6), torch.randn(6, 4)
    assert hash_blocks(blocks_of([one, other])) == hash_blocks(blocks_of([other, one]))


@pytest.mark.parametrize(
    "changed",
    [
        lambda a, b: ([b, a],),  # in one block
        lambda a, b: (b, a),  # blocks the other way round
        lambda a, b: (a, b.reshape(6, 4)),
        lambda a, b: (a, b + 1e-6),
        lambda a, b: (a, b, b),
    ],
)
def test_hash_blocks_changed_blocks_hash_otherwise(changed):
    one, other = torch.randn(4, 6), torch.ones(4, 6)
    assert hash_blocks(blocks_of(*changed(one, other))) != hash_blocks(blocks_of(one, other))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_hash_blocks_of_bf16_equals_its_fp32_numbers(seed):
    weights = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)).bfloat16()
    assert hash_blocks(blocks_of(weights)) == hash_blocks(blocks_of(weights.float()))


def test_map_blocks_keeps_the_order_of_the_blocks():
    blocks = blocks_of(*(torch.zeros(2, 2) for _ in range(20)))
    assert map_blocks(lambda block: block.block, blocks) == list(range(20))


def test_map_blocks_of_no_blocks_is_empty():
    assert map_blocks(len, []) == []


def test_weights_from_model_and_file_agree_for_a_plain_module(tmp_path):
    model = loaded(Stacked(nn.ModuleList(Block() for _ in range(3))))
    found = score_checkpoint(_saved(tmp_path, model.module.state_dict()))
    assert found.blocks == score(model).blocks
