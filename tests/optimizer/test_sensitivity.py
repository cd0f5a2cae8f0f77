import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import shallowvit
from shallowvit import ScoreConfig, ShallowvitError
from shallowvit.recovery import FinetuneConfig, evaluate, finetune
from shallowvit.scoring import Calibration
from shallowvit.scoring.sensitivity import ORACLE_LEARNING_RATE, bypass, oracle, taylor_activation, taylor_weight

from .small_models import Block, bypassed, loaded


class Classifier(nn.Module):
    """Blocks, the mean over tokens, a head of 3 classes."""

    def __init__(self, count=3):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(count))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def classifier(count=3, seed=0):
    return loaded(Classifier(count), seed=seed)


def labelled(count=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 5, 8, generator=generator)
    return Calibration("own", inputs, torch.randint(3, (count,), generator=generator))


def losses(module, data):
    return nn.functional.cross_entropy(module(data.inputs), data.labels, reduction="none")


def config(criterion, **changes):
    return ScoreConfig(criterion, **changes)


@torch.no_grad()
def test_bypass_is_the_rise_of_the_loss():
    model, data = classifier(), labelled()
    rises = (losses(bypassed(model, [1]), data) - losses(model.module, data)).double().numpy()
    found = bypass(model, data, config("bypass", batch=4))[1]
    assert found.score == pytest.approx(rises.mean(), rel=1e-5)
    assert found.noise == pytest.approx(rises.std(ddof=1) / np.sqrt(10), rel=1e-5)


@torch.no_grad()
def test_bypass_by_accuracy_is_the_drop_of_top1():
    model, data = classifier(), labelled(200)
    right = [module(data.inputs).argmax(-1) == data.labels for module in (model.module, bypassed(model, [2]))]
    drops = right[0].double().numpy() - right[1].double().numpy()
    found = bypass(model, data, config("bypass", metric="accuracy"))[2]
    assert drops.any()
    assert found.score == pytest.approx(drops.mean())
    assert found.noise == pytest.approx(drops.std(ddof=1) / np.sqrt(200))


def test_taylor_weight_is_the_sum_of_gradient_times_weight():
    model, data = classifier(), labelled()
    module = copy.deepcopy(model.module).requires_grad_(True)
    losses(module, data).mean().backward()
    expected = [sum((p.grad * p).abs().sum().item() for p in block.parameters()) for block in module.blocks]
    for batch in (3, 10):
        found = taylor_weight(model, data, config("taylor-weight", batch=batch))
        assert [one.score for one in found] == pytest.approx(expected, rel=1e-5)


def test_taylor_weight_noise_is_the_standard_error_of_the_batches_along_the_final_signs():
    model, data = classifier(), labelled(12)
    module = copy.deepcopy(model.module).requires_grad_(True)

    def products(part):
        module.zero_grad()
        part.mean().backward()
        return torch.cat([(p.grad * p).flatten() for p in module.blocks[1].parameters()]).double()

    signs = products(losses(module, data)).sign()
    values = [(products(losses(module, Calibration("p", *_part(data, i)))) * signs).sum().item() for i in range(0, 12, 4)]
    found = taylor_weight(model, data, config("taylor-weight", batch=4))[1]
    assert found.noise == pytest.approx(np.std(values, ddof=1) / math.sqrt(3), rel=1e-4)
    assert found.score == pytest.approx(np.mean(values), rel=1e-4)


def _part(data, start, size=4):
    return data.inputs[start : start + size], data.labels[start : start + size]


def test_taylor_activation_is_the_gradient_along_what_the_block_adds():
    model, data = classifier(), labelled()
    expected = []
    for block in range(3):
        values = []
        for item in range(10):  # by the derivative along the change, with numbers that autograd's graph isn't asked for
            change = _change(model, data.inputs[item : item + 1], block)
            share = torch.zeros((), dtype=torch.float64, requires_grad=True)
            loss = _loss_with(model, data, item, block, change, share)
            values.append(torch.autograd.grad(loss, share)[0].abs().item())
        expected.append(np.mean(values))
    found = taylor_activation(model, data, config("taylor-activation", batch=4))
    assert [one.score for one in found] == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def _change(model, x, block):
    for position in range(block):
        x = model.module.blocks[position](x)
    return model.module.blocks[block](x) - x


def _loss_with(model, data, item, block, change, share):
    """The loss when ``share`` more of what a block adds is added."""
    module = copy.deepcopy(model.module).double()
    x = data.inputs[item : item + 1].double()
    for position, part in enumerate(module.blocks):
        x = part(x)
        if position == block:
            x = x + share * change.double()
    return nn.functional.cross_entropy(module.head(x.mean(1)), data.labels[item : item + 1])


@pytest.mark.parametrize("criterion", [bypass, taylor_weight, taylor_activation])
def test_criterion_does_not_depend_on_the_order_of_items(criterion):
    model, data = classifier(), labelled()
    turned = Calibration("own", data.inputs.flip(0), data.labels.flip(0))
    found = [one.score for one in criterion(model, data, config("bypass", batch=4))]
    assert [one.score for one in criterion(model, turned, config("bypass", batch=4))] == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("criterion", [bypass, taylor_weight, taylor_activation, oracle])
def test_criterion_leaves_the_model_as_it_was(criterion):
    model, data = classifier(), labelled()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    criterion(model, data, config("bypass", finetune_items=6))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in model.module.parameters())
    assert not any(part.training or part._forward_hooks or "forward" in vars(part) for part in model.module.modules())


@pytest.mark.parametrize("criterion", [taylor_weight, taylor_activation])
def test_taylor_puts_gradients_back_after_an_error(criterion, monkeypatch):
    model, data = classifier(), labelled()
    monkeypatch.setattr(torch.autograd, "grad", lambda *_args, **_kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        criterion(model, data, config("bypass"))
    assert not any(p.requires_grad for p in model.module.parameters())
    assert not any(part._forward_hooks for part in model.module.modules())


def test_oracle_is_the_accuracy_lost_after_finetuning():
    model, data = classifier(), labelled(60)
    settings = FinetuneConfig(seed=2, epochs=2, learning_rate=ORACLE_LEARNING_RATE)

    def accuracy(module):
        finetune(module, data.inputs[:40], data.labels[:40], settings)
        return evaluate(module, data.inputs[40:], data.labels[40:]).top1

    whole = accuracy(copy.deepcopy(model.module))
    shallow = copy.deepcopy(model.module)
    del shallow.blocks[1]
    without = accuracy(shallow)
    found = oracle(model, data, config("oracle", finetune_items=40, finetune_epochs=2, seed=2))[1]
    assert found.score == pytest.approx(whole - without)
    assert found.noise == pytest.approx(math.sqrt((whole * (1 - whole) + without * (1 - without)) / 20))


def test_oracle_refuses_too_few_items():
    with pytest.raises(ShallowvitError, match=r"oracle finetunes on 4096 items and measures on others, but the data holds 10"):
        oracle(classifier(), labelled(), config("oracle"))


@pytest.mark.parametrize("criterion", [bypass, taylor_weight, taylor_activation])
def test_criterion_refuses_data_without_labels(criterion):
    with pytest.raises(ShallowvitError, match=r"bypass needs labels, own has none; give labelled data"):
        criterion(classifier(), Calibration("own", torch.zeros(2, 5, 8)), config("bypass"))


def test_bypass_refuses_labels_of_other_classes():
    data = Calibration("own", torch.zeros(2, 5, 8), torch.tensor([0, 3]))
    with pytest.raises(ShallowvitError, match=r"labels run from 0 to 3, and test:module has 3 classes"):
        bypass(classifier(), data, config("bypass"))


def test_bypass_refuses_a_model_without_a_row_of_logits():
    class Tokens(Classifier):
        def forward(self, x):
            return super().forward(x)[:, None]

    with pytest.raises(
        ShallowvitError, match=r"needs a classifier, and Tokens gives \[1, 1, 3\] for one item; load a finetuned"
    ):
        bypass(loaded(Tokens()), labelled(), config("bypass"))


def test_bypass_refuses_a_model_of_several_inputs(demo_source):
    model = shallowvit.load(f"{demo_source}:pretrained")
    data = Calibration("own", torch.zeros(2, 8, 3, 16, 16), torch.tensor([0, 1]))
    with pytest.raises(ShallowvitError, match=r"needs a classifier, and VideoMAEForPreTraining takes bool_masked_pos too"):
        bypass(model, data, config("bypass"))


@pytest.mark.parametrize("criterion", ["bypass", "taylor-weight", "taylor-activation"])
@pytest.mark.parametrize("make", ["video", "timm", "vit"])
def test_score_from_labels_runs_on_libraries(criterion, make, video_model, tmp_path):
    if make == "timm":
        model = shallowvit.load("timm:vit_tiny_patch16_224?img_size=32&depth=3&embed_dim=48&num_heads=3&num_classes=5")
    elif make == "vit":
        from transformers import ViTConfig, ViTForImageClassification

        settings = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
        ViTForImageClassification(ViTConfig(**settings, image_size=16, patch_size=4)).save_pretrained(tmp_path / "vit")
        model = shallowvit.load(f"hf:{tmp_path / 'vit'}")
    else:
        model = video_model
    data = Calibration("own", torch.randn(4, *model.input_spec.shape), torch.tensor([0, 1, 0, 1]))
    found = shallowvit.score(model, config(criterion, batch=2), data)
    assert all(row.score != 0 and row.noise for row in found.blocks)


def test_bypass_of_the_demo_needs_its_first_block_most(demo_source):
    found = shallowvit.score(shallowvit.load(demo_source), config("bypass", data="demo:train", samples=64))
    assert max(found.blocks, key=lambda row: row.score).block == 0
