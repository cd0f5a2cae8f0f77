import pytest
import torch
from torch import nn

from shallowvit import PlanConfig, ShallowvitError, plan, prune
from shallowvit.models.blocks import find_stacks

from .small_models import Block, Stacked, loaded

X = {"x": torch.ones(2, 5, 8)}


class Nest(nn.Module):
    """A block with a list of like blocks inside."""

    def __init__(self, inner=3):
        super().__init__()
        self.inner = nn.ModuleList(Block() for _ in range(inner))

    def forward(self, x):
        for block in self.inner:
            x = block(x)
        return x


class TwoStacks(nn.Module):
    def __init__(self, uses_decoder=True):
        super().__init__()
        self.encoder = nn.ModuleList(Block(8) for _ in range(3))
        self.widen = nn.Linear(8, 64)
        self.decoder = nn.Sequential(*(Block(64) for _ in range(2)))
        self.uses_decoder = uses_decoder

    def forward(self, x):
        for block in self.encoder:
            x = block(x)
        x = self.widen(x)
        return self.decoder(x) if self.uses_decoder else x


class Narrows(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU())

    def forward(self, x):
        return self.fc(x)


@pytest.mark.parametrize("kind", [nn.ModuleList, lambda blocks: nn.Sequential(*blocks)])
def test_find_stacks_list_of_blocks_is_found(kind):
    search = find_stacks(Stacked(kind([Block() for _ in range(3)])), X)
    assert [(stack.path, stack.class_name, stack.length) for stack in search.stacks] == [("blocks", "Block", 3)]
    assert [block.path for block in search.blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert [block.parameters for block in search.blocks] == [16 + 8 * 16 + 16 + 16 * 8 + 8] * 3


def test_find_stacks_blocks_flops_are_two_a_multiply_add():
    search = find_stacks(Stacked(nn.ModuleList(Block() for _ in range(3))), {"x": torch.ones(1, 5, 8)})
    a_block = 2 * 5 * (8 * 16 + 16 * 8)
    assert [block.flops for block in search.blocks] == [a_block] * 3
    assert search.stacks[0].flops == 3 * a_block
    assert search.flops == 3 * a_block + 2 * 5 * 8 * 3


class Attention(nn.Module):
    """Each token looks at each, by torch's fused operator or by its own products."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)  # [batch, 2, tokens, 4]
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        else:
            mixed = (query @ key.mT / 2).softmax(-1) @ value
        return x + mixed.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("fused", [True, False])
def test_find_stacks_flops_of_attention_count_its_products_fused_or_not(fused):
    search = find_stacks(Stacked(nn.ModuleList(Attention(fused) for _ in range(3))), {"x": torch.ones(1, 5, 8)})
    assert [block.flops for block in search.blocks] == [2 * 5 * 8 * 24 + 2 * 2 * 5 * 5 * 8] * 3


class _NamedX(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return self.inside(x)


class RootList(nn.Sequential):
    """The whole model is the list."""

    def forward(self, x):
        return super().forward(x)


def test_find_stacks_root_list_can_be_pruned():
    model = loaded(RootList(Block(), Block(), Block()), seed=1)
    assert [block.path for block in model.blocks] == ["0", "1", "2"]
    assert all(block.flops > 0 for block in model.blocks)
    pruned = prune(model, plan(model, config=PlanConfig(remove="1")))
    x = model.example["x"]
    assert torch.equal(pruned.model.module(x), model.module[2](model.module[0](x)))


def test_find_stacks_several_stacks_longest_comes_first():
    search = find_stacks(TwoStacks(), X)
    assert [stack.path for stack in search.stacks] == ["encoder", "decoder"]
    assert search.stacks[1].parameters > search.stacks[0].parameters
    assert {block.stack for block in search.blocks} == {"encoder"}


def test_find_stacks_nested_lists_outer_wins_when_longer():
    search = find_stacks(Stacked(nn.ModuleList(Nest(3) for _ in range(4))), X)
    assert [(stack.path, stack.length) for stack in search.stacks] == [("blocks", 4)]


def test_find_stacks_chosen_inner_list_is_used():
    search = find_stacks(Stacked(nn.ModuleList(Nest(3) for _ in range(4))), X, ["blocks.2.inner"])
    assert [block.path for block in search.blocks] == [f"blocks.2.inner.{index}" for index in range(3)]


def test_find_stacks_list_never_called_is_no_stack():
    search = find_stacks(TwoStacks(uses_decoder=False), X)
    assert [stack.path for stack in search.stacks] == ["encoder"]
    with pytest.raises(ShallowvitError, match=r"--blocks decoder: not a stack.*child 0 \(Block\) isn't called"):
        find_stacks(TwoStacks(uses_decoder=False), X, ["decoder"])


def test_find_stacks_single_layers_only_raises():
    module = Stacked(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    with pytest.raises(ShallowvitError, match=r"no removable blocks found in Stacked \(blocks: its children are single layers"):
        find_stacks(module, X)


def test_find_stacks_shape_changing_child_raises():
    module = Stacked(nn.Sequential(Narrows(8), Narrows(4)), width=2)
    with pytest.raises(ShallowvitError, match=r"blocks: child 0 \(Narrows\) turns shape \(2, 5, 8\) into \(2, 5, 4\)"):
        find_stacks(module, X)


def test_find_stacks_children_of_two_types_raises():
    module = Stacked(nn.ModuleList([Block(), Nest(1)]))
    with pytest.raises(ShallowvitError, match=r"children of different types \(Block, Nest\)"):
        find_stacks(module, X)


def test_find_stacks_shared_block_raises():
    block = Block()
    with pytest.raises(ShallowvitError, match="the same module stands in it more than once"):
        find_stacks(Stacked(nn.ModuleList([block, block])), X)


def test_find_stacks_children_without_matrices_raises():
    module = Stacked(nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.ReLU()) for _ in range(2)))
    with pytest.raises(ShallowvitError, match="its children have no weight matrices"):
        find_stacks(module, X)


def test_find_stacks_no_list_at_all_raises():
    with pytest.raises(ShallowvitError, match=r"no removable blocks found in _NamedX \(it has no ModuleList or Sequential\)"):
        find_stacks(_NamedX(nn.Linear(8, 8)), X)


def test_find_stacks_wrong_path_raises_with_lists_seen():
    with pytest.raises(ShallowvitError, match=r"--blocks layers: no ModuleList.*lists in the model: encoder, decoder"):
        find_stacks(TwoStacks(), X, ["layers"])


@pytest.mark.parametrize("chosen", [["encoder", "encoder"], ["blocks", "blocks.0.inner"]])
def test_find_stacks_blocks_named_twice_raises(chosen):
    module = TwoStacks() if chosen[0] == "encoder" else Stacked(nn.ModuleList(Nest(2) for _ in range(3)))
    with pytest.raises(ShallowvitError, match="would count twice"):
        find_stacks(module, X, chosen)


def test_find_stacks_two_chosen_are_counted_through():
    search = find_stacks(TwoStacks(), X, ["decoder", "encoder"])
    assert [(block.index, block.position, block.path) for block in search.blocks] == [
        (0, 0, "decoder.0"),
        (1, 1, "decoder.1"),
        (2, 0, "encoder.0"),
        (3, 1, "encoder.1"),
        (4, 2, "encoder.2"),
    ]


def test_find_stacks_one_block_list_by_name_is_found():
    search = find_stacks(Stacked(nn.ModuleList([Block()])), X, ["blocks"])
    assert len(search.blocks) == 1


def test_find_stacks_forward_that_fails_raises_with_shape():
    with pytest.raises(ShallowvitError, match=r"one forward of Stacked with x \(2, 5, 7\) failed.*example"):
        find_stacks(Stacked(nn.ModuleList(Block() for _ in range(2))), {"x": torch.ones(2, 5, 7)})


def test_find_stacks_leaves_no_hooks():
    module = Stacked(nn.ModuleList(Block() for _ in range(3)))
    find_stacks(module, X)
    assert not any(part._forward_hooks for part in module.modules())
