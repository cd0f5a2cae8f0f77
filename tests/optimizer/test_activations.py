import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import shallowvit
from shallowvit import ScoreConfig, ShallowvitError
from shallowvit.scoring import Calibration
from shallowvit.scoring.activations import angular, block_influence, cka, item_tokens, probe_influence, residual_norm

from .small_models import Stacked, loaded, stacked

ALL = (block_influence, angular, cka, residual_norm)


class Scaled(nn.Module):
    """A block that multiplies by a number; its weights are there to be a block."""

    def __init__(self, factor):
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Turned(Scaled):
    def __init__(self, factor):
        super().__init__(factor)
        self.turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)))[0]

    def forward(self, x):
        return x @ self.turn


class InPlace(Scaled):
    def forward(self, x):
        return x.mul_(self.factor)


class Answering(Scaled):
    """Called by keyword with a mask behind, answers with a tuple."""

    def forward(self, mask=None, *, hidden):
        return hidden * self.factor, None


class Calling(Stacked):
    def forward(self, x):
        for block in self.blocks:
            x = block(hidden=x)[0]
        return self.head(x)


def scaling(*factors, kind=Scaled, model=Stacked):
    return loaded(model(nn.ModuleList(kind(factor) for factor in factors)), seed=1)


def items(count=6, shape=(5, 8), seed=0):
    return Calibration("own", torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)))


def scores(criterion, model, data=None, **changes):
    found = criterion(model, items() if data is None else data, ScoreConfig("block-influence", **changes))
    return found[0] if isinstance(found, tuple) else found


def states(model, data):
    """The input of each block and the last output, float64 [items, tokens, width], by hand."""
    x = data.inputs
    found = [x]
    with torch.no_grad():
        for block in model.module.blocks:
            found.append(block(found[-1]))
    return [state.double().numpy() for state in found]


def cosines(x, y):
    return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))


def test_block_influence_is_one_less_the_mean_cosine():
    model, data = stacked(3), items()
    before, after = states(model, data)[1:3]
    by_item = (1 - cosines(before, after)).mean(1)
    found = scores(block_influence, model, data)[1]
    assert found.score == pytest.approx(by_item.mean(), rel=1e-6)
    assert found.noise == pytest.approx(by_item.std(ddof=1) / np.sqrt(6), rel=1e-6)


def test_residual_norm_is_the_mean_share_added():
    model, data = stacked(3), items()
    before, after = states(model, data)[:2]
    by_item = (np.linalg.norm(after - before, axis=-1) / np.linalg.norm(before, axis=-1)).mean(1)
    found = scores(residual_norm, model, data)[0]
    assert found.score == pytest.approx(by_item.mean(), rel=1e-6)
    assert found.noise == pytest.approx(by_item.std(ddof=1) / np.sqrt(6), rel=1e-6)


def test_angular_judges_every_run_of_blocks():
    model, data = stacked(4), items()
    steps = states(model, data)
    blocks, intervals = angular(model, data, ScoreConfig("angular"))
    expected = {
        (first, last): (np.arccos(cosines(steps[first], steps[last + 1])) / np.pi).mean()
        for first in range(4)
        for last in range(first, 4)
    }
    assert {(run.first, run.last): run.score for run in intervals} == pytest.approx(expected, rel=1e-6)
    assert [block.score for block in blocks] == pytest.approx([expected[i, i] for i in range(4)], rel=1e-6)


def test_cka_equals_its_form_over_pairs_of_tokens():
    model, data = stacked(3), items(20)
    before, after = (state.reshape(100, 8) for state in states(model, data)[1:3])
    # over the kernels [tokens, tokens] instead of [width, width]: HSIC of centred kernels
    centre = np.eye(100) - 1 / 100
    k, m = (centre @ state @ state.T @ centre for state in (before, after))
    expected = 1 - (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert scores(cka, model, data, batch=7)[1].score == pytest.approx(expected, rel=1e-9)


def test_cka_is_zero_for_a_rotation():
    assert [found.score for found in scores(cka, scaling(1, 1, kind=Turned))] == pytest.approx([0, 0], abs=1e-6)


def test_cka_noise_is_the_standard_error_of_whole_batches():
    model, data = stacked(2), items(11)
    parts = [scores(cka, model, Calibration("part", data.inputs[i : i + 4]))[0].score for i in (0, 4)]
    assert scores(cka, model, data, batch=4)[0].noise == pytest.approx(np.std(parts, ddof=1) / np.sqrt(2))


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [(block_influence, [0, 2, 0]), (residual_norm, [0, 2, 2]), (angular, [0, 1, 0]), (cka, [0, 0, 0])],
)
def test_criterion_of_a_scaling_has_its_closed_form(criterion, expected):
    found = scores(criterion, scaling(1, -1, 3))
    assert [one.score for one in found] == pytest.approx(expected, abs=1e-7)


@settings(max_examples=8, deadline=None)
@given(batch=st.integers(1, 9), seed=st.integers(0, 3))
@pytest.mark.parametrize("criterion", ALL)
def test_criterion_does_not_depend_on_the_batches(criterion, batch, seed):
    model, data = stacked(3), items(7, seed=seed)
    whole = [found.score for found in scores(criterion, model, data, batch=7)]
    assert [found.score for found in scores(criterion, model, data, batch=batch)] == pytest.approx(whole, rel=1e-6)


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(6)))
@pytest.mark.parametrize("criterion", ALL)
def test_criterion_does_not_depend_on_the_order_of_items(criterion, order):
    model, data = stacked(3), items(6)
    whole = [found.score for found in scores(criterion, model, data)]
    found = scores(criterion, model, Calibration("own", data.inputs[list(order)]))
    assert [one.score for one in found] == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("criterion", ALL)
def test_criterion_leaves_the_model_and_the_random_state_as_they_were(criterion):
    model = stacked(2)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    scores(criterion, model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())


def test_criterion_removes_its_hooks_after_an_error(monkeypatch):
    model = stacked(2)
    monkeypatch.setattr(model.module.head, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scores(block_influence, model)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())


def test_residual_norm_sees_a_block_that_works_in_place():
    data = items()
    kept = data.inputs.clone()
    found = scores(residual_norm, scaling(-1, 2, kind=InPlace), Calibration("own", kept))
    assert [one.score for one in found] == pytest.approx([2, 1])


def test_residual_norm_reads_keywords_and_tuples():
    found = scores(residual_norm, scaling(2, 4, kind=Answering, model=Calling))
    assert [one.score for one in found] == pytest.approx([1, 3])


def test_residual_norm_leaves_out_tokens_of_zeros():
    data = items(4)
    data.inputs[:, 0] = 0
    assert scores(residual_norm, scaling(3, 1), data)[0].score == pytest.approx(2 * 4 / 5)


def test_block_influence_of_one_item_has_no_noise():
    assert scores(block_influence, stacked(2), items(1))[0].noise is None


def test_item_tokens_tells_feature_maps_from_channels_last():
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())

        def forward(self, x):
            return x + self.inner(x)

    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(Mapped(), Mapped())

        def forward(self, x):
            return self.blocks(x)

    model = loaded(Maps(), torch.zeros(1, 8, 4, 6), seed=0)
    maps = torch.randn(2, 8, 4, 6)
    assert torch.equal(item_tokens(model, 0, maps, 2), maps.flatten(2).transpose(1, 2))
    rows = torch.randn(2, 4, 6, 8)
    assert torch.equal(item_tokens(model, 0, rows, 2), rows.flatten(1, 2))


def test_item_tokens_reads_sequences_and_windows():
    model = stacked(2)
    sequence = torch.randn(5, 3, 8)
    assert torch.equal(item_tokens(model, 0, sequence, 3), sequence.transpose(0, 1))
    windows = torch.randn(6, 5, 8)
    assert torch.equal(item_tokens(model, 0, windows, 3)[1], windows[2:4].flatten(0, 1))


def test_item_tokens_refuses_states_without_an_axis_of_items():
    with pytest.raises(
        ShallowvitError, match=r"block blocks.1 is given \[5, 4, 8\] for 3 items, .* use a criterion of the weights"
    ):
        item_tokens(stacked(2), 1, torch.zeros(5, 4, 8), 3)


@pytest.mark.parametrize("criterion", ALL)
@pytest.mark.parametrize(
    "source",
    [
        "timm:vit_tiny_patch16_224?img_size=32&depth=3&embed_dim=48&num_heads=3",
        "timm:swin_tiny_patch4_window7_224?img_size=56&embed_dim=24&depths=(2,2,2,2)&window_size=7&num_heads=(1,2,2,2)",
    ],
)
def test_criterion_runs_on_timm(criterion, source):
    stacks = ("layers.0.blocks", "layers.1.blocks") if "swin" in source else ()
    model = shallowvit.load(source, blocks=stacks)
    data = Calibration("own", torch.randn(4, *model.input_spec.shape, generator=torch.Generator().manual_seed(0)))
    found = scores(criterion, model, data, batch=2)
    assert len(found) == len(model.blocks)
    assert all(one.score > 1e-6 and one.noise is not None for one in found)


def test_angular_keeps_runs_within_a_stack():
    model = shallowvit.load(
        "timm:swin_tiny_patch4_window7_224?img_size=56&embed_dim=24&depths=(2,2,2,2)&num_heads=(1,2,2,2)",
        blocks=("layers.0.blocks", "layers.1.blocks"),
    )
    data = Calibration("own", torch.randn(2, 3, 56, 56))
    found = angular(model, data, ScoreConfig("angular"))[1]
    assert [run[:2] for run in found] == [
        (0, 0),
        (0, 1),
        (1, 1),
        (2, 2),
        (2, 3),
        (3, 3),
    ]


def test_score_by_block_influence_runs_on_a_video_model(video_model):
    data = Calibration("own", torch.randn(3, *video_model.input_spec.shape))
    found = shallowvit.score(video_model, ScoreConfig("angular"), data)
    assert [row.score > 0 for row in found.blocks] == [True] * 4
    assert len(found.intervals) == 10


def _inputs_seen(model, name):
    """The inputs that probes give a model."""
    seen = []
    handle = model.module.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append({**kwargs, **dict(enumerate(args))}), with_kwargs=True
    )
    try:
        probe_influence(model, None, ScoreConfig("probe-influence"))
    finally:
        handle.remove()
    return torch.cat([given[name] for given in seen])


def test_probe_influence_shows_a_video_model_plain_colours(video_model):
    seen = _inputs_seen(video_model, "pixel_values")  # [N, T, C, H, W]
    assert seen.shape == (64, 4, 3, 16, 16)
    assert torch.equal(seen, seen[:, :1, :, :1, :1].expand_as(seen))
    assert len(seen[:, 0, :, 0, 0].unique()) == 64 * 3
    assert seen.std() == pytest.approx(1, abs=0.2)


def test_probe_influence_without_channels_varies_along_the_last_axis():
    seen = _inputs_seen(stacked(3), "x")  # [N, tokens, width]
    assert torch.equal(seen, seen[:, :1].expand_as(seen))
    assert len(seen[:, 0].unique()) == 64 * 8


def test_probe_influence_is_block_influence_on_the_probes():
    model = stacked(3)
    probes = Calibration("probes", _inputs_seen(model, "x"))
    expected = block_influence(model, probes, ScoreConfig("block-influence"))
    assert probe_influence(model, None, ScoreConfig("probe-influence")) == expected
    assert probe_influence(model, None, ScoreConfig("probe-influence", seed=1)) != expected


def test_score_by_probe_influence_needs_no_data(video_model):
    found = shallowvit.score(video_model, ScoreConfig("probe-influence"))
    assert (found.needs, found.settings) == ("nothing", {"seed": 0})
    assert all(row.score > 0 for row in found.blocks)
