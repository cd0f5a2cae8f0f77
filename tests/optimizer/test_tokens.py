"""Token reduction: what it is asked, what a reduced model computes, and which models can't do without their tokens."""

import copy
import json
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import shallowvit
from shallowvit import ExportConfig, PlanConfig
from shallowvit.cli.main import main
from shallowvit.cli.prune import token_config
from shallowvit.errors import ShallowvitError
from shallowvit.exporting import export_onnx
from shallowvit.models.token_reducer import TokenReducer, TokenSite, choices_of, take_tokens, token_reducers
from shallowvit.pruning import save_pruned
from shallowvit.recovery.closed_form import repair_gaps
from shallowvit.recovery.stage import pruned_from_folder
from shallowvit.tokens import TokenConfig, reduce_tokens
from shallowvit.tokens.checks import prefix_tokens
from shallowvit.tokens.config import count_from_share

from .small_models import Block, loaded, stacked

TOKENS = torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(3))


class Pools(nn.Module):
    """Four blocks, the mean of the tokens or the first of them, a head; before each block what ``between`` does."""

    def __init__(self, between=None, first=False, attention=True):
        super().__init__()
        self.blocks = nn.ModuleList(Attends() if attention else Block() for _ in range(4))
        self.head = nn.Linear(8, 3)
        self.between, self.first = between, first

    def forward(self, x):
        for block in self.blocks:
            x = block(self.between(x) if self.between else x)
        return self.head(x[:, 0] if self.first else x.mean(1))


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.mlp = nn.Linear(8, 24), Block()

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.mlp(x + (q @ k.mT).softmax(-1) @ v)  # written out, since the counter leaves the CPU's fused one out


class Biased(nn.Module):
    """Attention with a bias for each pair of places, cut to the number of tokens, so that fewer run without an error."""

    def __init__(self):
        super().__init__()
        self.qkv, self.bias = nn.Linear(8, 24), nn.Parameter(torch.zeros(9, 9))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        bias = self.bias[: x.shape[1], : x.shape[1]]
        return x + torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def pools(**settings):
    return whole(loaded(Pools(**settings), TOKENS, seed=1))


def whole(model, remove=None):
    return shallowvit.prune(model, shallowvit.plan(model, config=PlanConfig(remove=remove)))


def outputs(pruned, x):
    with torch.no_grad():
        return pruned.model.module(x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("3",), "isn't a list of blocks and shares; write 3:0.7"),
        (("a:0.5",), "isn't a list of blocks and shares"),
        (("1:nan",), "isn't a list of blocks and shares"),
        (("1:0",), "a share of 0; give one above 0"),
        (("1:1.2",), r"a share of 1\.2; give one above 0 and up to 1"),
        (("1:0.5,1:0.4",), "names block 1 twice"),
        (("1:0.5,2:0.7",), r"behind block 2 a share of 0\.7 would stay, and 0\.5 is left behind block 1"),
        (("1:0.5", "best"), "unknown scorer 'best'; choose from mean, norm"),
        (("1:0.5", "mean", -1), "-1 tokens in front; give 0 or more"),
    ],
)
def test_token_config_refuses_what_cannot_be(settings, message):
    with pytest.raises(ShallowvitError, match=message):
        TokenConfig(*settings)


def test_count_from_share_is_the_nearest_and_one_at_least():
    assert [count_from_share(share, 10) for share in (0.01, 0.14, 0.15, 0.2, 1.0)] == [1, 1, 2, 2, 10]


def test_reduce_tokens_keeps_the_farthest_from_the_mean_in_their_order():
    reduced = reduce_tokens(pools(), TokenConfig("1:0.5"))
    seen = {}
    blocks = reduced.model.module.blocks
    blocks[1].register_forward_hook(lambda _m, _a, out: seen.update(whole=out), prepend=True)
    blocks[2].register_forward_hook(lambda _m, args, _o: seen.update(given=args[0]))
    x = torch.randn(2, 9, 8)
    outputs(reduced, x)
    state = seen["whole"]
    far = (state - state.mean(1, keepdim=True)).norm(dim=-1).topk(5).indices.sort(1).values
    assert torch.equal(seen["given"], take_tokens(state, far))
    assert [(site.block, site.before, site.after) for site in reduced.tokens.sites] == [(1, 9, 5)]


def test_reduce_tokens_leaves_the_model_it_was_given_alone():
    pruned = pools()
    before = outputs(pruned, TOKENS)
    reduce_tokens(pruned, TokenConfig("1:0.5"))
    assert torch.equal(outputs(pruned, TOKENS), before)
    assert not token_reducers(pruned.model.module)


def test_reduce_tokens_with_a_share_of_one_is_the_model_itself():
    pruned = pools()
    assert reduce_tokens(pruned, TokenConfig("1:1,2:1.0")) is pruned


def test_reduce_tokens_counts_the_operations_anew():
    pruned = pools()
    reduced = reduce_tokens(pruned, TokenConfig("1:0.34"))  # 3 of 9
    linear = 2 * 8 * 24 + 2 * 2 * 8 * 16  # a token: queries, keys and values, and the MLP
    pairs = 2 * 2 * 8  # a pair of tokens
    assert [block.flops for block in reduced.model.blocks] == [9 * linear + 81 * pairs] * 2 + [3 * linear + 9 * pairs] * 2
    assert reduced.plan.flops_after == reduced.model.flops == pruned.model.flops - 2 * (6 * linear + 72 * pairs)
    assert reduced.model.stacks[0].flops == sum(block.flops for block in reduced.model.blocks)


def test_reduce_tokens_of_equal_scores_keeps_the_first():
    reducer = TokenReducer(TokenSite(0, "blocks.0", 5, 2, 8), "norm", 0)
    state = torch.ones(1, 5, 8) * torch.tensor([1.0, 2, 2, 2, 1])[None, :, None]
    assert reducer.choose(state).tolist() == [[1, 2]]


def test_reduce_tokens_in_front_always_stay():
    reduced = reduce_tokens(pools(first=True), TokenConfig("1:0.25", prefix=1))
    with choices_of(reduced.model.module) as kept:
        outputs(reduced, torch.randn(4, 9, 8))
    assert kept[1].shape == (4, 3)
    assert bool((kept[1][:, 0] == 0).all())


def test_reduce_tokens_by_class_keeps_those_most_like_it():
    reducer = TokenReducer(TokenSite(0, "blocks.0", 4, 2, 2), "class", 1)
    state = torch.tensor([[[1.0, 0], [0, 1], [2, 0.1], [-1, 0]]])
    assert reducer(state).tolist() == [[[1.0, 0], [2, pytest.approx(0.1)]]]


def test_reduce_tokens_evenly_looks_at_no_token():
    reducer = TokenReducer(TokenSite(0, "blocks.0", 9, 3, 8), "even", 0)
    assert reducer.choose(torch.randn(2, 9, 8)).tolist() == [[0, 3, 6]] * 2


def test_reduce_tokens_learned_starts_as_mean_and_is_trained():
    plain, learned = (reduce_tokens(pools(), TokenConfig("1:0.5", name)) for name in ("mean", "learned"))
    assert torch.equal(outputs(plain, TOKENS), outputs(learned, TOKENS))
    module = learned.model.module.train().requires_grad_(True)
    answer = module(TOKENS)
    assert torch.equal(answer, outputs(plain, TOKENS))  # the gate is exactly 1
    answer.square().sum().backward()
    weight = module.blocks[1].token_reduction.weight
    assert float(weight.grad.abs().sum()) > 0
    with torch.no_grad():
        weight.copy_(torch.randn(8, generator=torch.Generator().manual_seed(0)) * 10)
    assert not torch.equal(module.eval()(TOKENS), answer)


def test_reduce_tokens_twice_is_composed_by_choices():
    reduced = reduce_tokens(pools(attention=False), TokenConfig("0:0.7,1:0.4"))
    x = torch.randn(2, 9, 8)
    with choices_of(reduced.model.module) as kept:
        outputs(reduced, x)
    state = reduced.model.module.blocks[0].forward(x)  # no hook: all tokens
    state = reduced.model.module.blocks[1].forward(state)
    mean = reduced.model.module.head(take_tokens(_through(reduced, state, 2), kept[1]).mean(1))
    assert torch.allclose(mean, outputs(reduced, x), atol=1e-6)


def _through(pruned, state, first):
    for block in pruned.model.module.blocks[first:]:
        state = block.forward(state)
    return state


def test_reduce_tokens_at_another_size_is_refused():
    reduced = reduce_tokens(pools(), TokenConfig("1:0.5"))
    with pytest.raises(ShallowvitError, match="16 tokens behind block 1, which keeps 5 of 9; reduce"):
        reduced.model.module(torch.randn(1, 16, 8))


@pytest.mark.parametrize(
    ("remove", "config", "message"),
    [
        (None, TokenConfig("4:0.5"), "no block 4; the model has blocks 0 to 3, of which 0, 1, 2, 3 stay"),
        ("1", TokenConfig("1:0.5"), "block 1 was removed, so nothing is reduced behind it; 0, 2, 3 stay"),
        (None, TokenConfig("3:0.5"), "block 3 is the last, so no block would see fewer"),
        ("3", TokenConfig("2:0.5"), "block 2 is the last"),
        (None, TokenConfig("1:0.5", "class"), "compares with the class token, and Pools has none"),
        (None, TokenConfig("1:0.5", prefix=9), "9 tokens in front always stay, and there are 9 behind block 1"),
    ],
)
def test_reduce_tokens_refuses_blocks_that_are_not_there(remove, config, message):
    with pytest.raises(ShallowvitError, match=message):
        reduce_tokens(whole(loaded(Pools(), TOKENS, seed=1), remove), config)


def test_reduce_tokens_of_a_reduced_model_is_refused():
    reduced = reduce_tokens(pools(), TokenConfig("1:0.5"))
    with pytest.raises(ShallowvitError, match=r"is reduced already \(9 tokens, 5 behind block 1 \(mean\)\)"):
        reduce_tokens(reduced, TokenConfig("1:0.5"))
    again = shallowvit.plan(reduced.model, config=PlanConfig(remove="2"))
    with pytest.raises(ShallowvitError, match=r"reduces its tokens .* so its blocks can't be taken out any more"):
        shallowvit.prune(reduced.model, again)


def _biased():
    model = Pools()
    model.blocks = nn.ModuleList(Biased() for _ in range(4))
    return loaded(model, TOKENS, seed=1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_biased, r"blocks\.2 doesn't treat its tokens alike wherever they stand"),
        (lambda: loaded(Pools(first=True), TOKENS, seed=1), "takes tokens by their place .* with 0 in front"),
        (lambda: loaded(Pools(between=lambda x: x + x.new_zeros(9, 8)), TOKENS, seed=1), "can't run with 5 of 9 tokens"),
        (stacked, r"the output \[1, 5, 3\] became \[1, 3, 3\]: it has a row a token"),
        (lambda: shallowvit.load("timm:test_convnext?num_classes=5"), "keeps its tokens as a grid or among other axes"),
    ],
    ids=["bias", "first", "shape", "dense", "grid"],
)
def test_reduce_tokens_of_a_model_that_needs_them_is_refused(model, message):
    with pytest.raises(ShallowvitError, match=message):
        reduce_tokens(whole(model()), TokenConfig("0:0.5" if "grid" in message else "1:0.5"))


def test_reduce_tokens_of_a_composite_block_is_refused():
    pruned = pools()
    block = pruned.model.module.blocks[1]
    block.__class__ = type("Walked", (Attends,), {"__call__": Attends.forward})  # a forward that goes around the hooks
    with pytest.raises(ShallowvitError, match=r"blocks\.1 is a list of parts that Pools walks itself"):
        reduce_tokens(pruned, TokenConfig("1:0.5"))


def test_reduce_tokens_of_stock_models_finds_the_tokens_in_front():
    model = shallowvit.load("timm:vit_tiny_patch16_224?img_size=32&patch_size=8&depth=3&num_classes=4")
    assert prefix_tokens(model) == 1
    reduced = reduce_tokens(whole(model), TokenConfig("0:0.5"))
    assert [(site.before, site.after) for site in reduced.tokens.sites] == [(17, 9)]


def test_save_pruned_reduced_comes_back_bit_by_bit(video_folder, tmp_path):
    model = shallowvit.load(f"hf:{video_folder}")
    reduced = reduce_tokens(whole(model, "2"), TokenConfig("0:0.5,1:0.25", "learned"))
    with torch.no_grad():
        token_reducers(reduced.model.module)[0].weight.fill_(0.5)
    saved = save_pruned(reduced, tmp_path / "pruned")
    assert not saved.stock
    back = shallowvit.load(saved.path, arch=f"hf:{video_folder}")
    x = torch.randn(3, *model.input_spec.shape)
    assert torch.equal(outputs(reduced, x).logits, back.module(x).logits)
    assert (back.flops, [block.path for block in back.blocks]) == (
        reduced.model.flops,
        [block.path for block in reduced.model.blocks],
    )
    teacher, again = pruned_from_folder(saved.path)
    assert teacher.sha256 == model.sha256
    assert again.tokens == reduced.tokens == shallowvit.prune(back, shallowvit.plan(back)).tokens
    assert torch.equal(outputs(reduced, x).logits, outputs(again, x).logits)


def test_load_reduced_with_another_arch_is_refused(video_folder, tmp_path):
    reduced = reduce_tokens(whole(shallowvit.load(f"hf:{video_folder}")), TokenConfig("0:0.5"))
    save_pruned(reduced, tmp_path / "pruned")
    with pytest.raises(
        ShallowvitError, match=r"reduces tokens behind a block that VisionTransformer doesn't have .* Check --arch"
    ):
        shallowvit.load(tmp_path / "pruned", arch="timm:test_vit")


def test_repair_gaps_behind_reduced_tokens_pairs_each_with_its_own():
    # each token goes its own way, so a gap of an MLP that is linear is made good exactly where tokens are paired rightly
    model = loaded(Pools(attention=False), TOKENS, seed=1)
    pruned = whole(model, "3")
    reduced = reduce_tokens(pruned, TokenConfig("0:0.5"))

    def batches():
        generator = torch.Generator().manual_seed(0)
        return [{"x": torch.randn(8, 9, 8, generator=generator)} for _ in range(4)]

    gap = repair_gaps(model, reduced, batches).gaps[0]
    alone = repair_gaps(model, pruned, batches).gaps[0]
    assert gap.error_after < 1.5 * alone.error_after
    assert gap.error_before < 3 * alone.error_before


def test_reduced_copies_work_for_themselves():
    reduced = reduce_tokens(pools(), TokenConfig("1:0.5", "learned"))
    copied = copy.deepcopy(reduced.model.module)
    with torch.no_grad():
        copied.blocks[1].token_reduction.weight.fill_(3.0).mul_(torch.arange(8) - 3)
    assert not torch.equal(copied(TOKENS), outputs(reduced, TOKENS))
    assert torch.equal(outputs(reduced, TOKENS), outputs(reduce_tokens(pools(), TokenConfig("1:0.5")), TOKENS))


@pytest.mark.parametrize("opset", [23, 18])
def test_export_onnx_of_reduced_tokens_has_static_shapes(video_model, tmp_path, opset):
    import onnx

    reduced = reduce_tokens(whole(video_model, "2"), TokenConfig("0:0.5,1:0.25"))
    exported = export_onnx(reduced, tmp_path / "m.onnx", ExportConfig(opset=opset))
    assert exported.batch == "dynamic"
    assert exported.attention_nodes == exported.blocks == 3
    assert exported.parity.relative_error < 1e-5
    names = [node.op_type for node in onnx.load(exported.path).graph.node]
    assert names.count("TopK") == 4  # of scores, and of places to keep their order
    assert "NonZero" not in names


def test_export_onnx_of_reduced_tokens_takes_one_size(video_model, tmp_path):
    reduced = reduce_tokens(whole(video_model), TokenConfig("0:0.5"))
    with pytest.raises(ShallowvitError, match="--dynamic-size 16-32: how many tokens stay is a constant"):
        export_onnx(reduced, tmp_path / "m.onnx", ExportConfig(dynamic_size=(16, 32)))


def test_with_reduction_keeps_what_was_recovered():
    pruned = replace(pools(), recovery=({"method": "scale"},))
    assert reduce_tokens(pruned, TokenConfig("1:0.5")).recovery == pruned.recovery


def test_prune_and_export_of_the_command_line_reduce_tokens(video_folder, tmp_path, monkeypatch, capsys):
    def told(*words):
        monkeypatch.setattr(sys, "argv", ["shallowvit", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code
        return capsys.readouterr().out

    options = ["--remove", "2", "--keep-tokens", "0:0.5", "--token-scorer", "norm", "--quiet", "--out"]
    line = "tokens: 32 tokens, 16 behind block 0 (norm)"
    assert line in told("prune", f"hf:{video_folder}", *options, str(tmp_path / "pruned"))
    assert line in told("export", f"hf:{video_folder}", *options, str(tmp_path / "bundle"))
    plan = json.loads((tmp_path / "bundle/manifest.json").read_text())["plan"]
    assert (plan["tokens"]["scorer"], plan["tokens"]["sites"][0]["after"]) == ("norm", 16)
    assert "| tokens | 32, then 16 behind block 0 (by norm) |" in (tmp_path / "bundle/README.md").read_text()


def test_prune_with_a_scorer_and_no_tokens_to_keep_is_refused():
    with pytest.raises(ShallowvitError, match="--token-scorer and --prefix-tokens say how to keep tokens; add --keep-tokens"):
        token_config(None, "norm", None, "prune")
