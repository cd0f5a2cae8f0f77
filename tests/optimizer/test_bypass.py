import pytest
import torch
from torch import nn

from shallowvit import ShallowvitError
from shallowvit.models.bypass import bypassing

from .small_models import Block, Stacked, bypassed, loaded, stacked


class Paired(Block):
    """Answers with its state and something else, as blocks of older libraries do."""

    def forward(self, x):
        return super().forward(x), x.sum()


class Named(Block):
    def forward(self, x):
        return {"note": None, "state": super().forward(x), "extra": x.sum()}


class Unpacking(Stacked):
    def forward(self, x):
        for block in self.blocks:
            answer = block(x)
            x = answer["state"] if isinstance(answer, dict) else answer[0]
        return self.head(x)


@torch.no_grad()
def test_bypassing_equals_handing_the_input_on():
    model = stacked(4)
    x = torch.randn(2, 5, 8)
    with bypassing(model, 0, 2):
        found = model.module(x)
    assert torch.equal(found, bypassed(model, [0, 2])(x))
    assert not torch.equal(found, model.module(x))


@pytest.mark.parametrize("kind", [Paired, Named])
@torch.no_grad()
def test_bypassing_answers_in_the_structure_of_the_block(kind):
    model = loaded(Unpacking(nn.ModuleList(kind() for _ in range(3))), seed=0)
    plain = loaded(Stacked(nn.ModuleList(Block() for _ in range(3))), seed=0)
    x = torch.randn(2, 5, 8)
    with bypassing(model, 1), bypassing(plain, 1):
        for _ in range(2):
            assert torch.equal(model.module(x), plain.module(x))


def test_bypassing_puts_forward_back_after_an_error():
    model = stacked(2)
    with pytest.raises(KeyError), bypassing(model, 1):
        raise KeyError
    assert "forward" not in vars(model.block(1))


def test_bypassing_puts_another_patch_back():
    model = stacked(2)
    other = model.block(1).forward = lambda x: x * 2
    with bypassing(model, 1):
        assert model.block(1).forward is not other
    assert model.block(1).forward is other


def test_bypassing_lets_gradients_through():
    model = stacked(2)
    x = torch.randn(1, 5, 8, requires_grad=True)
    with bypassing(model, 0, 1):
        (found,) = torch.autograd.grad(model.module(x).sum(), x)
    assert torch.allclose(found, model.module.head.weight.sum(0).expand_as(x))


def test_bypassing_a_transformers_block_returns_the_same_states(video_model):
    inputs = torch.randn(1, *video_model.input_spec.shape)
    with torch.no_grad(), bypassing(video_model, 2):
        states = video_model.module(inputs, output_hidden_states=True).hidden_states
    assert len(states) == 5
    assert torch.equal(states[2], states[3])


def test_bypassing_refuses_a_block_that_is_not_there():
    with pytest.raises(ShallowvitError, match="no block 7"), bypassing(stacked(2), 7):
        pass


def test_bypassing_refuses_a_block_called_without_a_tensor():
    model = stacked(2)
    with bypassing(model, 0), pytest.raises(ShallowvitError, match=r"block blocks.0 is called without a tensor"):
        model.block(0)(None)
