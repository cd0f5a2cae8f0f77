"""Every way of this file to write a loop over blocks is one that public code has; each goes wrong in silence when a block is
deleted."""

import copy

import pytest
import torch
from torch import nn

from shallowvit import PlanConfig, ScoreConfig, ShallowvitError, plan, prune, score
from shallowvit.pruning.removal import remove_blocks
from shallowvit.scoring.records import Calibration

from .small_models import Adds, Block, Stacked, bypassed, loaded


def _pruned(model, remove):
    return prune(model, plan(model, config=PlanConfig(remove=remove)))


def _inputs(model):
    generator = torch.Generator().manual_seed(7)
    return {name: torch.randn(value.shape, generator=generator) for name, value in model.example.items()}


def _assert_equal(found, expected):
    found = found if isinstance(found, tuple) else (found,)
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def _assert_skips(model, pruned, stub=None):
    """The pruned module equals the whole one whose blocks are replaced by a function, on fresh inputs."""
    if stub is None:
        reference = bypassed(model, pruned.plan.removed)
    else:
        reference = copy.deepcopy(model.module)
        for index in pruned.plan.removed:
            reference.get_submodule(model.blocks[index].path).forward = stub
    inputs = _inputs(model)
    with torch.no_grad():
        _assert_equal(pruned.model.module(**inputs), reference(**inputs))
        assert not torch.equal(
            torch.cat([one.flatten() for one in _tuple(reference(**inputs))]),
            torch.cat([one.flatten() for one in _tuple(model.module(**inputs))]),
        )


def _tuple(output):
    return output if isinstance(output, tuple) else (output,)


def _blocks(count=4, kind=Block):
    return nn.ModuleList(kind() for _ in range(count))


class Taps(Stacked):
    """Averages the states after some blocks."""

    def __init__(self, taps=(1, 3), count=4):
        super().__init__(_blocks(count))
        self.fetch_idx = list(taps)

    def forward(self, x):
        states = []
        for place, block in enumerate(self.blocks):
            x = block(x)
            if place in self.fetch_idx:
                states.append(x)
        return self.head(sum(states)), torch.stack(states)


@pytest.mark.parametrize(
    ("removed", "way", "taps"), [("0", "deleted", [0, 2]), ("2", "deleted", [1, 2]), ("3", "deleted", [1, 2])]
)
def test_prune_taps_by_block_move_along(removed, way, taps):
    model = loaded(Taps(), seed=0)
    pruned = _pruned(model, removed)
    assert [one.way for one in pruned.removals] == [way]
    assert pruned.model.module.fetch_idx == taps
    _assert_skips(model, pruned)


def test_prune_taps_that_would_fall_together_keep_the_place():
    model = loaded(Taps((2, 3)), seed=0)
    pruned = _pruned(model, "3")
    assert [(one.way, one.gone) for one in pruned.removals] == [("placeholder", (3,))]
    assert pruned.model.module.fetch_idx == [2, 3]
    _assert_skips(model, pruned)


class Inserts(Stacked):
    """Puts a token in before block ``cls_token_layer``, as ConViT does."""

    def __init__(self, count=5):
        super().__init__(_blocks(count))
        self.cls_token_layer = 3
        self.token = nn.Parameter(torch.zeros(1, 1, 8))

    def forward(self, x):
        for place, block in enumerate(self.blocks):
            if place == self.cls_token_layer:
                x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
            x = block(x)
        return self.head(x).mean(1)


@pytest.mark.parametrize(("removed", "before"), [("1", 2), ("0-1", 1), ("4", 3)])
def test_prune_token_put_in_before_a_block_moves_along(removed, before):
    model = loaded(Inserts(), blocks=("blocks",), seed=0)
    pruned = _pruned(model, removed)
    assert [one.way for one in pruned.removals] == ["deleted"]
    assert pruned.model.module.cls_token_layer == before
    _assert_skips(model, pruned)


class Alternates(Stacked):
    """A block's role is the parity of its place."""

    def forward(self, x):
        for place, block in enumerate(self.blocks):
            x = block(x) if place % 2 else block(x.flip(1))
        return self.head(x)


def test_prune_roles_by_parity_keep_the_place():
    model = loaded(Alternates(_blocks(6)), seed=0)
    one, two = _pruned(model, "2"), _pruned(model, "2-3")
    assert one.removals[0].way == "placeholder"
    _assert_skips(model, one)
    # the flip before block 2 is not a part of it, so even the pair isn't just left out
    assert two.removals[0].way == "placeholder"
    _assert_skips(model, two)


def test_prune_positions_added_before_each_block_keep_the_place_though_they_start_at_zero():
    model = loaded(Adds(_blocks()))
    assert not model.module.pos.any()
    pruned = _pruned(model, "1")
    assert pruned.removals[0].way == "placeholder"
    with torch.no_grad():
        model.module.pos.fill_(0.5)
        pruned.model.module.pos.fill_(0.5)
    _assert_skips(model, pruned)


class Zipped(nn.Module):
    """Two lists walked together."""

    def __init__(self):
        super().__init__()
        self.seeing, self.fusing = _blocks(4), _blocks(4)

    def forward(self, x):
        y = x
        for one, other in zip(self.seeing, self.fusing, strict=False):
            x = one(x)
            y = other(y + x)
        return y


def test_prune_lists_walked_with_zip_keep_the_place():
    model = loaded(Zipped(), blocks=("seeing",), seed=0)
    pruned = _pruned(model, "2")
    assert pruned.removals[0].way == "placeholder"
    _assert_skips(model, pruned)


class Hooked(Stacked):
    """Takes states through hooks on blocks by number, as DPT heads do."""

    def __init__(self):
        super().__init__(_blocks(4))
        for place in (1, 3):
            self.blocks[place].register_forward_hook(_Keep(self, place))

    def forward(self, x):
        self.seen = getattr(self, "seen", {})
        for block in self.blocks:
            x = block(x)
        return self.head(self.seen[1] + self.seen[3])


class _Keep:
    def __init__(self, owner, place):
        self.owner, self.place = [owner], place

    def __call__(self, _block, _inputs, output):
        self.owner[0].seen[self.place] = output


@pytest.mark.parametrize("removed", ["1", "3", "1-2"])
def test_prune_block_with_a_hook_keeps_its_place_and_its_hook(removed):
    model = loaded(Hooked(), seed=0)
    pruned = _pruned(model, removed)
    assert pruned.removals[0].way == "placeholder"
    _assert_skips(model, pruned)


def test_prune_block_without_a_hook_is_deleted():
    model = loaded(Hooked(), seed=0)
    pruned = _pruned(model, "0")
    assert pruned.removals[0].way == "deleted"
    _assert_skips(model, pruned)


class Sized(Block):
    def forward(self, x, H, W):
        assert x.shape[1] == H * W
        return super().forward(x)


class CallsWithSize(Stacked):
    def forward(self, x):
        for block in self.blocks:
            x = block(x, 1, x.shape[1])
        return self.head(x)


class Biased(Block):
    def forward(self, x, rel_pos_bias=None):
        return super().forward(x) + rel_pos_bias


class CallsWithBias(Stacked):
    def __init__(self, blocks):
        super().__init__(blocks)
        self.bias = nn.Parameter(torch.zeros(1, 5, 8))

    def forward(self, x):
        for block in self.blocks:
            x = block(x, rel_pos_bias=self.bias)
        return self.head(x)


@pytest.mark.parametrize(("kind", "block"), [(CallsWithSize, Sized), (CallsWithBias, Biased)])
def test_prune_blocks_called_with_more_arguments_are_deleted(kind, block):
    model = loaded(kind(_blocks(4, block)), seed=0)
    pruned = _pruned(model, "1,2")
    assert pruned.removals[0].way == "deleted"
    _assert_skips(model, pruned)


class TwoStreams(Block):
    def forward(self, x, y):
        z = super().forward(x + y)
        return z, y + self.norm(z)


class CallsTwoStreams(Stacked):
    def forward(self, x):
        y = 2 * x
        for block in self.blocks:
            x, y = block(x, y)
        return self.head(x), y


def test_prune_blocks_of_two_streams_hand_both_on():
    model = loaded(CallsTwoStreams(_blocks(4, TwoStreams)), seed=0)
    pruned = _pruned(model, "1")
    assert pruned.removals[0].way == "deleted"
    _assert_skips(model, pruned, lambda x, y: (x, y))


class PositionFirst(Block):
    def forward(self, pos, x):
        return super().forward(x) + 0.1 * pos


class CallsPositionFirst(Stacked):
    def __init__(self, blocks):
        super().__init__(blocks)
        self.pos = nn.Parameter(torch.randn(1, 5, 8))

    def forward(self, x):
        pos = self.pos.expand(len(x), -1, -1)
        for block in self.blocks:
            x = block(pos, x)
        return self.head(x)


def test_prune_state_that_is_the_second_argument_is_what_is_handed_on():
    model = loaded(CallsPositionFirst(_blocks(4, PositionFirst)))
    pruned = _pruned(model, "1")
    assert pruned.removals[0].way == "deleted"
    _assert_skips(model, pruned, lambda pos, x: x)


class Residual(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        return self.fc(self.norm(x))


class Parts(nn.Module):
    """Blocks that are lists of parts, with the residual outside."""

    num_classes = 3

    def __init__(self, count=4):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([Residual(), Block()]) for _ in range(count))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for attention, mlp in self.layers:
            x = x + attention(x)
            x = x + mlp(x)
        return self.head(x).mean(1)


class CountedParts(Parts):
    def forward(self, x):
        for place in range(4):
            x = x + self.layers[place][0](x)
            x = x + self.layers[place][1](x)
        return self.head(x).mean(1)


@pytest.mark.parametrize(("kind", "way"), [(Parts, "deleted"), (CountedParts, "placeholder")])
def test_prune_blocks_that_are_lists_of_parts(kind, way):
    model = loaded(kind(), seed=0)
    assert [(stack.path, stack.length, dict(stack.modes)) for stack in model.stacks] == [
        ("layers", 4, {"0": "zero", "1": "zero"})
    ]
    pruned = _pruned(model, "1")
    assert pruned.removals[0].way == way
    shorter = Parts(3)
    shorter.head = model.module.head
    shorter.layers = nn.ModuleList(model.module.layers[place] for place in (0, 2, 3))
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        assert torch.equal(pruned.model.module(x), shorter(x))
        assert not torch.equal(shorter(x), model.module(x))


def test_score_blocks_that_are_lists_of_parts_by_weights_and_bypass_but_not_by_states():
    model = loaded(Parts(), seed=0)
    data = Calibration("own", torch.randn(4, 5, 8), torch.tensor([0, 1, 2, 0]))
    assert len(score(model).blocks) == len(score(model, ScoreConfig("bypass"), data).blocks) == 4
    with pytest.raises(ShallowvitError, match=r"layers\.0 is a list of parts that no forward calls"):
        score(model, ScoreConfig("block-influence"), data)


def test_score_angles_only_of_runs_without_another_layer_between():
    stage = nn.Sequential(Block(), Block(), nn.Linear(8, 8), Block())
    model = loaded(Stacked(stage), seed=0)
    assert [block.position for block in model.blocks] == [0, 1, 3]
    runs = score(model, ScoreConfig("angular"), Calibration("own", torch.randn(4, 5, 8))).intervals
    assert [(run.first, run.last) for run in runs] == [(0, 0), (0, 1), (1, 1), (2, 2)]


class PostNorm(Block):
    def forward(self, x):
        return self.norm(x + self.fc2(torch.relu(self.fc1(x))))


def test_prune_post_norm_blocks_are_deleted():
    model = loaded(Stacked(_blocks(4, PostNorm)), seed=0)
    pruned = _pruned(model, "2")
    assert pruned.removals[0].way == "deleted"
    _assert_skips(model, pruned)


class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(8, 16), nn.ReLU())

    def forward(self, x):
        return self.fc(x)


def test_prune_list_with_a_downsampling_layer_keeps_the_layer():
    stage = nn.Sequential(Block(), Block(), Block(), Narrow(), Block(16), Block(16))
    model = loaded(Stacked(stage, 16), seed=0)
    assert [(stack.path, stack.length) for stack in model.stacks] == [("blocks[0-2]", 3), ("blocks[4-5]", 2)]
    pruned = _pruned(model, "1")
    assert [type(child).__name__ for child in pruned.model.module.blocks] == ["Block", "Block", "Narrow", "Block", "Block"]
    _assert_skips(model, pruned)
    both = loaded(Stacked(copy.deepcopy(stage), 16), blocks=("blocks",), seed=0)
    pruned = _pruned(both, "0,4")
    assert [block.path for block in pruned.model.blocks] == ["blocks.0", "blocks.1", "blocks.3"]
    _assert_skips(both, pruned)


class Refuses(Stacked):
    """Looks into its blocks' weights, which a module without weights doesn't have, and counts on their number."""

    def forward(self, x):
        for place in range(4):
            x = self.blocks[place](x) * self.blocks[place].norm.weight.abs().mean()
        return self.head(x)


def test_prune_that_can_be_neither_deleted_nor_kept_raises():
    model = loaded(Refuses(_blocks(4)), seed=0)
    with pytest.raises(
        ShallowvitError, match=r"Refuses without blocks\.1 isn't the model that skips them: deleted, it doesn't run"
    ):
        _pruned(model, "1")


class OneAtATime(Stacked):
    def forward(self, x):
        return super().forward(x.view(5, 8))


def test_prune_model_of_one_item_is_compared_on_one():
    model = loaded(OneAtATime(_blocks(4)), seed=0)
    pruned = _pruned(model, "1")
    assert pruned.removals[0].way == "deleted"
    _assert_skips(model, pruned)


class Silent(Stacked):
    """Its head is all zeros, and its blocks are asleep, so that outputs say nothing."""

    def __init__(self):
        super().__init__(_blocks(4))
        for block in self.blocks:
            nn.init.zeros_(block.fc2.weight)
            nn.init.zeros_(block.fc2.bias)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        for place, block in enumerate(self.blocks):
            x = block(x) if place % 2 else block(x.flip(1))
        return self.head(x)


def test_prune_blocks_that_do_nothing_yet_are_compared_awake():
    assert _pruned(loaded(Silent()), "1").removals[0].way == "placeholder"


def test_remove_blocks_that_are_deleted_take_two_forwards():
    model = loaded(Stacked(_blocks(4)), seed=0)
    assert remove_blocks(model, (1,)).forwards == 2
    assert remove_blocks(model, (1, 2)).forwards == 2


def test_remove_blocks_leaves_the_model_as_it_was():
    model = loaded(Hooked(), seed=0)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    remove_blocks(model, (1,))
    after = model.module.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [type(block) for block in model.module.blocks] == [Block] * 4
