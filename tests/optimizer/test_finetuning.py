import copy
import math

import pytest
import torch
from torch import nn

from shallowvit import ShallowvitError
from shallowvit.exporting import deployable
from shallowvit.recovery import FinetuneConfig, evaluate, finetune
from shallowvit.recovery.finetuning import cosine_with_warmup, item_results, weight_decay_groups


def model(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)).eval()


def items(count=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator)
    return inputs, inputs[:, :3].argmax(1)


def config(**changes):
    return FinetuneConfig(**({"epochs": 3, "batch": 8, "learning_rate": 1e-2} | changes))


def weights(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_finetune_learns():
    module, (inputs, labels) = model(), items(400)
    before = evaluate(module, inputs, labels)
    losses = finetune(module, inputs, labels, config(epochs=5))
    after = evaluate(module, inputs, labels)
    assert losses == sorted(losses, reverse=True)
    assert after.top1 > 0.9 > before.top1
    assert after.loss < before.loss


def test_finetune_equals_a_loop_written_out():
    module, (inputs, labels) = model(), items(20)
    other = copy.deepcopy(module).train()
    found = finetune(module, inputs, labels, config(epochs=1, batch=20, warmup_share=0, label_smoothing=0.2, clip_norm=0.1))
    groups = [
        {"params": [other[0].weight, other[3].weight], "weight_decay": 0.05},
        {"params": [other[0].bias, other[3].bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    loss = nn.functional.cross_entropy(other(inputs), labels, label_smoothing=0.2)
    loss.backward()
    nn.utils.clip_grad_norm_(other.parameters(), 0.1)
    optimizer.step()
    assert found == pytest.approx([loss.item()], rel=1e-5)
    # AdamW divides a gradient by itself: one is 2e-8, where another CPU's order of additions shows in the step (3e-6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights(module), weights(other), strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_finetune_does_not_depend_on_the_callers_random_state(dropout):
    runs = []
    for caller in (1, 2):
        module = model(dropout=dropout)
        torch.manual_seed(caller)
        state = torch.get_rng_state()
        runs.append((finetune(module, *items(), config()), weights(module)))
        assert torch.equal(torch.get_rng_state(), state)
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_finetune_differs_by_the_seed(dropout):
    runs = [finetune(model(dropout=dropout), *items(), config(seed=seed)) for seed in (0, 1)]
    assert runs[0] != runs[1]


def test_finetune_resumes_after_a_finished_epoch_with_the_same_losses(tmp_path):
    whole = model(dropout=0.3)
    expected = finetune(whole, *items(), config())
    killed = model(dropout=0.3)
    seen = []

    def stop(*_args):
        seen.append(1)
        if len(seen) == 2 * 6 + 3:  # in the third of three epochs of 6 steps
            raise KeyboardInterrupt

    handle = killed.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        finetune(killed, *items(), config(), tmp_path / "run" / "a.pt")
    handle.remove()
    resumed = model(seed=9, dropout=0.3)
    assert finetune(resumed, *items(), config(), tmp_path / "run" / "a.pt") == expected
    assert same(weights(resumed), weights(whole))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["a.pt"]


def test_finetune_runs_nothing_again_that_is_finished(tmp_path):
    first = model()
    losses = finetune(first, *items(), config(), tmp_path / "a.pt")
    again = model(seed=4)
    again.register_forward_hook(lambda *_args: pytest.fail("ran again"))
    assert finetune(again, *items(), config(), tmp_path / "a.pt") == losses
    assert same(weights(again), weights(first))


def test_finetune_refuses_a_checkpoint_of_another_run(tmp_path):
    finetune(model(), *items(), config(), tmp_path / "a.pt")
    with pytest.raises(ShallowvitError, match=r"a.pt is of a run with epochs 3, this one has 4; remove it or give another"):
        finetune(model(), *items(), config(epochs=4), tmp_path / "a.pt")


def test_finetune_refuses_a_checkpoint_of_another_model(tmp_path):
    finetune(model(), *items(), config(), tmp_path / "a.pt")
    with pytest.raises(ShallowvitError, match=r"a.pt is of another model than this Linear; remove it or give another"):
        finetune(nn.Linear(4, 3), *items(), config(), tmp_path / "a.pt")


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_finetune_refuses_a_file_that_is_no_checkpoint(tmp_path, content):
    if content is None:
        torch.save({"weights": 1}, tmp_path / "a.pt")
    else:
        (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ShallowvitError, match=r"a.pt can't be read as a checkpoint \(.*\); remove it"):
        finetune(model(), *items(), config(), tmp_path / "a.pt")


def test_finetune_trains_all_where_none_asks_for_gradients_and_leaves_it_so():
    module = model().requires_grad_(False)
    before = weights(module)
    finetune(module, *items(), config())
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(module), strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
    assert not any(part.training for part in module.modules())


def test_finetune_trains_what_asks_for_gradients_alone():
    module = model()
    module[0].requires_grad_(False)
    before = weights(module)
    finetune(module, *items(), config())
    assert [torch.equal(a, b) for a, b in zip(before, weights(module), strict=True)] == [True, True, False, False]


def test_finetune_takes_frames_for_a_deployable_model(video_model):
    module = copy.deepcopy(deployable(video_model, preprocess=True))
    frames = torch.randint(0, 256, (6, 4, 16, 16, 3), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    before = evaluate(module, frames, labels).loss
    finetune(module, frames, labels, config(epochs=10, learning_rate=1e-3))
    assert evaluate(module, frames, labels).loss < before


def test_finetune_with_fewer_items_than_a_batch_takes_them_all():
    assert len(finetune(model(), *items(5), config(batch=64, epochs=1))) == 1


def test_finetune_reports_a_loss_that_is_not_finite():
    module = model()
    with torch.no_grad():
        module[0].weight[0, 0] = math.inf
    with pytest.raises(ShallowvitError, match=r"the loss is nan in step 0 of epoch 0; lower the learning rate of 0.01"):
        finetune(module, *items(), config())


def test_evaluate_is_the_mean_loss_and_the_share_of_right_answers():
    module, (inputs, labels) = model(), items(10)
    with torch.no_grad():
        logits = module(inputs)
    found = evaluate(module, inputs, labels, batch=3)
    assert found.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found.top1 == pytest.approx((logits.argmax(1) == labels).double().mean().item())


def test_item_results_does_not_depend_on_the_batch_and_leaves_the_mode():
    module, (inputs, labels) = model(dropout=0.5).train(), items(10)
    losses, right = item_results(module, inputs, labels, 3)
    others = item_results(module, inputs, labels, 10)
    assert torch.allclose(losses, others[0])
    assert torch.equal(right, others[1])
    assert module.training


@pytest.mark.parametrize("labels", [torch.zeros(4, dtype=torch.int64), torch.zeros(5), torch.zeros(5, 1, dtype=torch.int64)])
def test_finetune_refuses_labels_that_do_not_match(labels):
    with pytest.raises(ShallowvitError, match=r"finetune: labels are .* for 5 inputs; expected torch.int64 \[5\]"):
        finetune(model(), torch.zeros(5, 4), labels)


def test_evaluate_refuses_labels_out_of_range():
    with pytest.raises(ShallowvitError, match=r"evaluate: labels run from 0 to 3, but Sequential has 3 classes"):
        evaluate(model(), torch.zeros(2, 4), torch.tensor([0, 3]))


def test_evaluate_refuses_what_is_no_classifier():
    with pytest.raises(
        ShallowvitError, match=r"Identity gives \[2, 4, 4\] for 2 items, expected \[2, classes\]; give a classifier"
    ):
        evaluate(nn.Identity(), torch.zeros(2, 4, 4), torch.tensor([0, 1]))


@pytest.mark.parametrize("name", ["epochs", "batch"])
def test_finetune_config_refuses_less_than_one(name):
    with pytest.raises(ShallowvitError, match=f"{name} 0 is too few; give at least 1"):
        FinetuneConfig(**{name: 0})


@pytest.mark.parametrize("name", ["learning_rate", "clip_norm"])
def test_finetune_config_refuses_what_moves_nothing(name):
    with pytest.raises(ShallowvitError, match=f"{name} 0 moves nothing; give more than 0"):
        FinetuneConfig(**{name: 0})


def test_cosine_with_warmup_rises_and_falls():
    factors = [cosine_with_warmup(step, 4, 20) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[12] == pytest.approx(0.5)
    assert factors[4:] == sorted(factors[4:], reverse=True)


def test_weight_decay_groups_spare_vectors():
    module = model()
    groups = weight_decay_groups(module, 0.3)
    assert [(group["weight_decay"], [p.ndim for p in group["params"]]) for group in groups] == [(0.3, [2, 2]), (0.0, [1, 1])]
