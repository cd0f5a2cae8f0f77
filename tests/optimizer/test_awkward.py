"""Modules in the styles of research code that hide a mistake from a comparison of outputs: state that stays behind, arguments
that look alike, heads that the forward doesn't use. A block that is skipped is a function written here, by hand."""

import copy
import threading

import pytest
import torch
from torch import nn

import shallowvit
from shallowvit import PlanConfig, ShallowvitError, plan, prune, save_pruned

from .small_models import Block, Stacked, loaded, redraw


def _blocks(kind=Block, count=3):
    return nn.ModuleList(kind() for _ in range(count))


def _pruned(model, remove):
    return prune(model, plan(model, config=PlanConfig(remove=remove)))


def _assert_skips(built, pruned, place, stub):
    """The pruned model, twice in a row, equals the module as it was built whose block is replaced by a function."""
    reference, found = copy.deepcopy(built), copy.deepcopy(pruned.model.module)
    reference.get_submodule(f"blocks.{place}").forward = stub
    whole = copy.deepcopy(built)
    for seed, batch in ((1, 1), (2, 2)):
        x = torch.randn(batch, 5, 8, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            answer = reference(x)
            torch.testing.assert_close(found(x), answer, rtol=0, atol=1e-6)
            assert not torch.allclose(whole(x), answer, atol=1e-4)


class Named(Block):
    def forward(self, *, context, hidden_states):
        return super().forward(hidden_states + 0.1 * context)


class Contexts(Stacked):
    def forward(self, x):
        context = x
        for block in self.blocks:
            x = block(context=context, hidden_states=x)
        return self.head(x)


def _weak(module):
    """The state stays like the context for all of its way."""
    with torch.no_grad():
        for block in module.blocks:
            block.fc2.weight.mul_(0.3)
    return module


@pytest.mark.parametrize("remove", [0, 1, 2])
def test_prune_context_that_looks_like_the_state_isnt_handed_on(remove):
    built = _weak(redraw(Contexts(_blocks(Named)), 0)).eval()
    _assert_skips(
        built, _pruned(loaded(copy.deepcopy(built)), str(remove)), remove, lambda *, context, hidden_states: hidden_states
    )


class Initialised(Block):
    """Takes its shift from the first batch it sees."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.tensor(False))
        self.register_buffer("shift", torch.zeros(1, 1, 8))

    def forward(self, x):
        if not self.seen:
            self.shift.copy_(x.mean((0, 1), keepdim=True))
            self.seen.fill_(True)
        return super().forward(x - self.shift) + self.shift


def test_load_and_prune_leave_what_a_first_call_would_set():
    built = redraw(Stacked(_blocks(Initialised)), 0).eval()
    model = loaded(copy.deepcopy(built))
    pruned = _pruned(model, "1")
    assert not any(block.seen for one in (model, pruned.model) for block in one.module.blocks)
    _assert_skips(built, pruned, 1, lambda x: x)


class Averaging(Stacked):
    """Keeps a running mean of each state, in eval mode too."""

    def __init__(self, blocks):
        super().__init__(blocks)
        self.register_buffer("mean", torch.zeros(3, 8))

    def forward(self, x):
        for place, block in enumerate(self.blocks):
            x = block(x)
            self.mean[place] = 0.9 * self.mean[place] + 0.1 * x.mean((0, 1))
            x = x - 0.3 * self.mean[place]
        return self.head(x)


def test_prune_buffer_that_each_call_changes_place_stays():
    built = redraw(Averaging(_blocks()), 0).eval()
    pruned = _pruned(loaded(copy.deepcopy(built)), "1")
    assert [one.way for one in pruned.removals] == ["placeholder"]
    assert not pruned.model.module.mean.any()
    _assert_skips(built, pruned, 1, lambda x: x)


class Context:
    bias = None


class Biasing(Block):
    """The first block leaves a bias in an object that all of them know."""

    def __init__(self, context, first):
        super().__init__()
        self.context = context
        self.bias = nn.Parameter(torch.randn(1, 1, 8)) if first else None

    def forward(self, x):
        if self.bias is not None:
            self.context.bias = self.bias
        return super().forward(x if self.context.bias is None else x + self.context.bias)


def test_prune_bias_that_a_first_block_leaves_behind_goes_with_it():
    context = Context()
    built = redraw(Stacked(nn.ModuleList(Biasing(context, place == 0) for place in range(3))), 0).eval()
    _assert_skips(built, _pruned(loaded(copy.deepcopy(built)), "0"), 0, lambda x: x)


class Noisy(Block):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))


def test_prune_block_that_draws_noise_is_deleted():
    built = redraw(Stacked(_blocks(Noisy)), 0).eval()
    pruned = _pruned(loaded(built), "0")
    assert [one.way for one in pruned.removals] == ["deleted"]


class Exits(Stacked):
    """Leaves early where the input is bright, by a head of its own for each block."""

    def __init__(self, blocks):
        super().__init__(blocks)
        self.exits = nn.ModuleList(nn.Linear(8, 3) for _ in range(3))

    def forward(self, x):
        bright = bool(x.mean() > 5)
        for place, block in enumerate(self.blocks):
            x = block(x)
            if bright and place >= 1:
                return self.exits[place](x)
        return self.head(x)


def test_prune_exits_that_no_comparison_takes_keep_their_blocks_places():
    built = redraw(Exits(_blocks()), 0).eval()
    pruned = _pruned(loaded(copy.deepcopy(built)), "0")
    assert [one.way for one in pruned.removals] == ["placeholder"]
    assert "doesn't use exits, which has as many entries as there are blocks" in pruned.removals[0].reason
    reference = copy.deepcopy(built)
    reference.blocks[0].forward = lambda x: x
    x = torch.randn(1, 5, 8) + 9
    assert torch.equal(pruned.model.module(x), reference(x))


class ThereAndBack(Stacked):
    """Runs the same blocks once more, backwards, off another list."""

    def __init__(self, blocks):
        super().__init__(blocks)
        self.back = nn.ModuleList(reversed(blocks))

    def forward(self, x):
        for block in [*self.blocks, *self.back]:
            x = block(x)
        return self.head(x)


def test_prune_block_that_stands_in_two_lists_is_replaced_in_both():
    built = redraw(ThereAndBack(_blocks()), 0).eval()
    pruned = _pruned(loaded(copy.deepcopy(built)), "0")
    assert [one.way for one in pruned.removals] == ["placeholder"]
    _assert_skips(built, pruned, 0, lambda x: x)


class Stored(Block):
    def forward(self, x):
        self.state = super().forward(x)
        return self.state


def test_prune_state_with_a_gradient_in_an_attribute_is_copied():
    built = redraw(Stacked(_blocks(Stored)), 0).eval()
    built(torch.randn(1, 5, 8))  # as a training loop leaves it
    _assert_skips(redraw(Stacked(_blocks(Stored)), 0).eval(), _pruned(loaded(built), "1"), 1, lambda x: x)


def test_prune_module_that_cant_be_copied_is_refused():
    built = redraw(Stacked(_blocks()), 0)
    built.lock = threading.Lock()
    model = loaded(built)  # enough to score it
    with pytest.raises(ShallowvitError, match=r"copy: Stacked can't be copied \(cannot pickle '_thread.lock' object\)"):
        _pruned(model, "1")


class Rollout(Stacked):
    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x) + sum(block.fc1.bias.sum() for block in self.blocks)


def test_prune_model_that_reads_a_blocks_weights_is_refused():
    model = loaded(Rollout(_blocks()), seed=0)
    with pytest.raises(ShallowvitError, match=r"isn't the model that skips them: deleted, .* no attribute 'fc1'"):
        _pruned(model, "1")


def test_load_example_in_float64_is_taken_in_fp32(tmp_path):
    source = tmp_path / "double_model.py"
    source.write_text(
        "import torch\nfrom tests.optimizer.small_models import Stacked, Block\n"
        "def build():\n"
        "    model = Stacked(torch.nn.ModuleList(Block() for _ in range(2))).double()\n"
        "    return model, torch.randn(1, 5, 8, dtype=torch.float64)\n"
    )
    assert shallowvit.load(f"{source}:build").example["x"].dtype == torch.float32


class AddedContexts(Contexts):
    """Adds a part of the context before each block, which only a place that stays can do."""

    def forward(self, x):
        context = x
        for block in self.blocks:
            x = block(context=context, hidden_states=x + 0.5 * context)
        return self.head(x)


def build_added_contexts():
    """Of other weights than those that were saved."""
    return redraw(AddedContexts(_blocks(Named)), 3), torch.randn(1, 5, 8)


def test_load_saved_placeholder_hands_on_what_it_did(tmp_path):
    built = _weak(redraw(AddedContexts(_blocks(Named)), 0)).eval()
    pruned = _pruned(loaded(built), "1")
    assert [one.way for one in pruned.removals] == ["placeholder"]
    save_pruned(pruned, tmp_path / "saved")
    again = shallowvit.load(tmp_path / "saved", arch=f"{__name__}:build_added_contexts")
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        assert torch.equal(again.module(x), pruned.model.module(x))
