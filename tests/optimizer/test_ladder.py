"""The export ladder: one small module for each way the plain exporter fails, and what becomes of it."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from shallowvit.errors import ShallowvitError
from shallowvit.exporting.dft import LONGEST_DFT, dft_to_matmul
from shallowvit.exporting.graph import _quiet
from shallowvit.exporting.ladder import RUNGS, export_program
from shallowvit.exporting.settled import settled_random

TOKENS, WIDTH = 16, 16


class _Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)


def _exported(module, opset=23, inputs=1, outputs=1):
    torch.manual_seed(0)
    batch = torch.export.Dim("batch")
    with _quiet():
        return export_program(
            module,
            tuple(torch.zeros(2, TOKENS, WIDTH) for _ in range(inputs)),
            tuple({0: batch} for _ in range(inputs)),
            opset=opset,
            input_names=["x", "y"][:inputs],
            output_names=["answer", "other"][:outputs],
            samples=[tuple(torch.randn(2, TOKENS, WIDTH) for _ in range(inputs))],
        )


def _outcomes(steps):
    return {step.name: step.outcome for step in steps if step.outcome != "not needed"}


def _detail(steps, name):
    return next(step.detail for step in steps if step.name == name)


def _assert_answers_as_torch(model, module, batches=(1, 3), inputs=1):
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in batches:
        generator = torch.Generator().manual_seed(batch)
        fresh = [torch.randn(batch, TOKENS, WIDTH, generator=generator) for _ in range(inputs)]
        with torch.no_grad(), settled_random(batch=batch):
            expected = module.eval()(*fresh)
        expected = expected if isinstance(expected, tuple) else (expected,)
        found = session.run(None, {name: one.numpy() for name, one in zip("xy", fresh, strict=False)})
        for one, other in zip(found, expected, strict=True):
            assert one.shape == tuple(other.shape)
            np.testing.assert_allclose(one, other.numpy(), atol=2e-5 * float(other.abs().max()))


class _TwoAndTwo(_Linear):
    def forward(self, x, y):
        pairs = torch.view_as_complex(self.linear(x).reshape(*x.shape[:-1], -1, 2))
        turns = torch.outer(torch.arange(TOKENS).float(), torch.linspace(1, 0.01, WIDTH // 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(turns), turns)).flatten(-2) + y, x * y


def test_export_program_module_that_exports_needs_the_plain_rung_alone():
    module = _TwoAndTwo()
    model, steps = _exported(module, inputs=2, outputs=2)
    assert _outcomes(steps) == {"plain": "used"}
    assert tuple(step.name for step in steps)[: len(RUNGS)] == RUNGS
    assert [str(value.shape[0]) for value in (*model.graph.inputs, *model.graph.outputs)] == ["batch"] * 4
    _assert_answers_as_torch(model, module, inputs=2)


# ---- attention


class _OtherDimensions(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x):
        query, key, value = self.qkv(x).reshape(x.shape[0], 4, 4, 3, 2, 8).permute(3, 0, 4, 2, 1, 5).unbind(0)
        mask = torch.ones(1, 1, 1, 4, 4).tril().log()
        x = functional.scaled_dot_product_attention(query, key, value, mask).transpose(1, 3).reshape(x.shape)
        return functional.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))


class _AttentionWithBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.bias = nn.Parameter(torch.randn(TOKENS, TOKENS))

    def forward(self, x):
        return self.attention(x, x, x, attn_mask=self.bias, need_weights=False)[0]


@pytest.mark.parametrize(("kind", "attentions"), [(_OtherDimensions, 2), (_AttentionWithBias, 1)])
def test_export_program_attention_the_exporter_lacks_is_mended(kind, attentions):
    module = kind().train()
    model, steps = _exported(module)
    assert _outcomes(steps) == {"plain": "failed", "attention": "used"}
    assert sum(node.op_type == "Attention" for node in model.graph.all_nodes()) == attentions
    assert module.training
    assert all(weight.requires_grad for weight in module.parameters())
    assert "forward" not in module.__dict__
    _assert_answers_as_torch(model, module)


# ---- random numbers


class _RandomMask(_Linear):
    def forward(self, x):
        kept = torch.rand(x.shape[0], TOKENS).argsort(1)[:, :4]
        return self.linear(x.gather(1, kept[..., None].repeat(1, 1, WIDTH)))


class _EveryDraw(_Linear):
    def forward(self, x):
        x = (
            x
            + torch.randn_like(x)
            + torch.normal(0.0, 1.0, (1, WIDTH)) * torch.rand_like(x)
            + torch.randn(x.shape[0], 1, WIDTH)
        )
        x = x * torch.bernoulli(torch.full(x.shape[:2], 0.5))[..., None]
        x = x[:, torch.randperm(TOKENS)[:4]] * torch.randint(1, 5, (4, 1))
        x = functional.dropout(self.linear(x), 0.5, training=True)
        return x * torch.empty(x.shape[0], 4, 1).uniform_(1, 2) + torch.empty(WIDTH).exponential_()


class _NumpyMask(_Linear):
    def forward(self, x):
        return self.linear(x[:, torch.from_numpy(np.random.permutation(TOKENS)[:4])])


@pytest.mark.parametrize("kind", [_RandomMask, _EveryDraw, _NumpyMask])
def test_export_program_random_numbers_become_constants(kind):
    module = kind()
    model, steps = _exported(module)
    assert _outcomes(steps) == {"plain": "failed", "random numbers": "used"}
    assert "would draw random numbers" in _detail(steps, "plain")
    assert "seed 0 for one item" in _detail(steps, "random numbers")
    assert not any("Random" in node.op_type or node.op_type == "Bernoulli" for node in model.graph.all_nodes())
    _assert_answers_as_torch(model, module)


def test_export_program_random_numbers_are_the_same_in_every_run():
    module = _RandomMask()
    first, second = (onnx_ir.to_proto(_exported(module)[0]).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_settled_random_items_of_a_batch_have_the_numbers_of_one():
    with settled_random(batch=1):
        one = torch.rand(1, 5), torch.randn(3, 5)
    with settled_random(batch=4):
        four = torch.rand(4, 5), torch.randn(3, 5)
    assert torch.equal(four[0], one[0].expand(4, 5))
    assert torch.equal(four[1], one[1])
    assert one[1].std() > 0.1


def test_settled_random_leaves_what_comes_after_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(0)
    np.random.seed(0)
    with settled_random():
        torch.rand(3), np.random.rand(3), torch.rand(3).cauchy_()
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])


class _ShuffledBatch(_Linear):
    def forward(self, x):
        return self.linear(x[torch.randperm(x.shape[0])])


def test_export_program_permutation_of_the_batch_is_refused():
    with pytest.raises(ShallowvitError, match="randperm over the batch mixes items"):
        _exported(_ShuffledBatch())


class _Poisson(_Linear):
    def forward(self, x):
        return self.linear(torch.poisson(x.abs()))


def test_export_program_numbers_that_follow_from_data_are_refused():
    with pytest.raises(ShallowvitError, match="poisson can't be drawn in advance"):
        _exported(_Poisson())


class _ManyNumbers(_Linear):
    def forward(self, x):
        return self.linear(x) + torch.rand(x.shape[0], x.shape[1], 1)


def test_export_program_number_of_draws_that_is_dynamic_is_refused():
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    with _quiet(), pytest.raises(ShallowvitError, match="more than the batch is dynamic; fix the input's size"):
        export_program(
            _ManyNumbers(),
            (torch.zeros(2, TOKENS, WIDTH),),
            ({0: batch, 1: tokens},),
            opset=23,
            input_names=["x"],
            output_names=["answer"],
        )


# ---- values taken from tensors


class _Newton(_Linear):
    """Square roots by iteration, which need more steps the larger the number is."""

    def forward(self, x):
        wanted = self.linear(x).pow(2).sum(-1) + 1
        root, error = wanted, torch.tensor(1.0)
        while error > 1e-4:
            following = 0.5 * (root + wanted / root)
            error, root = (following - root).abs().max(), following
        return root


class _NewtonByItem(_Newton):
    def forward(self, x):
        wanted = self.linear(x).pow(2).sum(-1) + 1
        root = wanted
        for _ in range(50):
            following = 0.5 * (root + wanted / root)
            error = (following - root).abs().max().item()
            root = following
            if error < 1e-4:
                break
        return root


class _Roots(_Linear):
    """Square roots of the squares of large and of small numbers in two calls, of which the first may reach its limit."""

    def _root(self, wanted, most=9):
        root = wanted
        for _ in range(most):
            following = 0.5 * (root + wanted / root)
            error, root = (following - root).abs().max(), following
            if error < 1e-5:
                break
        return root

    def forward(self, x):
        wanted = self.linear(x).pow(2).sum(-1) + 1
        return self._root(5 * wanted) + self._root(wanted.sqrt())


class _Positions(_Linear):
    def forward(self, x):
        places = torch.arange(x.shape[1]).expand(x.shape[0], -1)
        table = torch.outer(torch.arange(int(places.max()) + 1).float(), torch.linspace(1, 0.01, WIDTH))
        return self.linear(x) * functional.embedding(places, table.cos())


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (_Newton, "runs [5-9] times"),
        (_NewtonByItem, "runs [5-9] times"),
        (_Roots, r"runs \d, \d times"),
        (_Positions, "fixed at 15"),
    ],
)
def test_export_program_values_taken_from_tensors_are_recorded(kind, told):
    module = kind()
    model, steps = _exported(module)
    assert _outcomes(steps) == {"plain": "failed", "recorded values": "used"}
    detail = _detail(steps, "recorded values")
    assert "optimizer/test_ladder.py:" in detail
    assert re.search(told, detail)
    _assert_answers_as_torch(model, module)


class _Branch(_Linear):
    def forward(self, x):
        x = self.linear(x)
        return x if x.sum() > 0 else -x


class _BranchByItem(_Linear):
    def forward(self, x):
        x = self.linear(x)
        if x.sum().item() > 0:
            return x
        return -x


@pytest.mark.parametrize(("kind", "line"), [(_Branch, "return x if x.sum"), (_BranchByItem, r"if x.sum\(\).item\(\) > 0")])
def test_export_program_branch_on_data_is_refused_with_its_line(kind, line):
    with pytest.raises(
        ShallowvitError, match=rf"test_ladder.py:\d+ `{line}.*` depends on its input's values \((True|False) for"
    ):
        _exported(kind())


class _Halving(_Linear):
    def forward(self, x):
        x = self.linear(x).abs().amax() * x
        while x.amax() > 1e-2:
            x = x / 2
        return x


def test_export_program_loop_that_does_not_converge_is_refused():
    with pytest.raises(ShallowvitError, match=r"`while x.amax\(\) > 1e-2:` runs \d+ times.* so it isn't convergence"):
        _exported(_Halving())


class _Endless(_Linear):
    def forward(self, x):
        x = self.linear(x)
        while x.abs().max() >= 0:
            x = x * 0.5
        return x


def test_export_program_loop_without_an_end_is_refused():
    with pytest.raises(ShallowvitError, match="times without an end; does it converge"):
        _exported(_Endless())


class _Ragged(_Linear):
    def forward(self, x):
        count = int((self.linear(x)[0, :, 0] > 0).sum())
        return x[:, : max(count, 1)].mean(1)


def test_export_program_length_that_follows_from_data_is_refused_with_its_line():
    with pytest.raises(ShallowvitError, match=r"test_ladder.py:\d+ `count = int\(.*depends on its input's values \(\d+ for"):
        _exported(_Ragged())


class _CountOfTheBatch(_Linear):
    def forward(self, x):
        count = int(torch.ones(x.shape[0]).sum())
        return self.linear(x).reshape(count, -1, WIDTH) if count > 0 else x


def test_export_program_value_that_is_the_batchs_fixes_the_batch():
    module = _CountOfTheBatch()
    model, steps = _exported(module)
    outcomes = _outcomes(steps)
    assert outcomes["plain"] == "failed"
    assert "used" in (outcomes.get("fixed batch"), outcomes.get("strict capture"))
    _assert_answers_as_torch(model, module, batches=(1,))


# ---- capture


class _ByItem(_Linear):
    def forward(self, x):
        return torch.stack([self.linear(item) for item in x])


def test_export_program_batch_that_is_specialised_is_fixed_and_says_so():
    module = _ByItem()
    model, steps = _exported(module)
    outcomes = _outcomes(steps)
    assert outcomes["plain"] == "failed"
    assert outcomes["fixed batch"] == "used"
    assert _detail(steps, "fixed batch") == "the batch is fixed at 1"
    assert list(model.graph.inputs[0].shape) == [1, TOKENS, WIDTH]
    _assert_answers_as_torch(model, module, batches=(1,))


class _RoundedBatch(_Linear):
    """Torch traces the rounding with the example's batch and gives a graph whose output has that one."""

    def forward(self, x):
        return self.linear(x).view(int(x.shape[0] / 4 * 4), -1, WIDTH)


def test_export_program_output_with_the_examples_batch_is_noticed():
    module = _RoundedBatch()
    model, steps = _exported(module)
    assert "traced as a constant, 2" in _detail(steps, "plain")
    assert _outcomes(steps)["fixed batch"] == "used"
    _assert_answers_as_torch(model, module, batches=(1,))


class _BatchOfWindows(_Linear):
    def forward(self, x):
        windows = self.linear(x).view(-1, 4, WIDTH)
        return windows.view(int(windows.shape[0] / 4), TOKENS, WIDTH)


def test_export_program_strict_capture_traces_what_the_other_can_not():
    module = _BatchOfWindows()
    model, steps = _exported(module)
    assert _outcomes(steps) == {"plain": "failed", "strict capture": "used"}
    _assert_answers_as_torch(model, module)


# ---- complex numbers and transforms


class _GlobalFilter(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, WIDTH, 2))

    def forward(self, x):
        spectrum = torch.fft.rfft2(x.view(-1, 4, 4, WIDTH), dim=(1, 2), norm="ortho")
        spectrum = spectrum * torch.view_as_complex(self.weight)
        return torch.fft.irfft2(spectrum, s=(4, 4), dim=(1, 2), norm="ortho").reshape(x.shape)


class _LongConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(WIDTH, TOKENS))

    def forward(self, x):
        length = 2 * TOKENS
        kernel = torch.fft.rfft(self.kernel, n=length) / length
        spectrum = torch.fft.rfft(x.transpose(1, 2), n=length)
        return torch.fft.irfft(spectrum * kernel, n=length, norm="forward")[..., :TOKENS].transpose(1, 2)


class _Mixing(nn.Module):
    def forward(self, x):
        x = torch.fft.ifft(torch.fft.fft2(x, dim=(-1, -2)), n=11, dim=1).real
        return torch.fft.irfft(torch.fft.rfft(x, dim=1), n=11, dim=1)


@pytest.mark.parametrize(("kind", "opset"), [(_GlobalFilter, 23), (_LongConvolution, 18), (_Mixing, 23)])
def test_export_program_transforms_become_products(kind, opset):
    module = kind()
    model, steps = _exported(module, opset)
    assert _outcomes(steps)["plain"] == "used"
    assert not any(node.op_type == "DFT" for node in model.graph.all_nodes())
    assert _outcomes(steps)["DFT as MatMul"] == "used"
    _assert_answers_as_torch(model, module)


class _Complex(_Linear):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, WIDTH, dtype=torch.cfloat))
        self.bias = nn.Parameter(torch.randn(WIDTH, dtype=torch.cfloat))

    def forward(self, x):
        turned = torch.complex(self.linear(x), x) * torch.exp(1j * x) / (2 - 1j * x)
        x = turned.real + (turned**2).conj().imag - (1j - turned).imag
        mixed = torch.einsum("bnc,cd->bnd", torch.fft.rfft(x), self.weight) + self.bias
        mixed = torch.fft.fftshift(mixed @ mixed.transpose(-1, -2).conj(), dim=(-2, -1))
        mixed[:, 4:12, 4:12] = 0
        return torch.fft.ifft(mixed).real


def test_export_program_complex_numbers_the_exporter_lacks_are_mended():
    module = _Complex()
    model, steps = _exported(module)
    outcomes = _outcomes(steps)
    assert outcomes["plain"] == "failed"
    assert outcomes["complex numbers"] == "used"
    _assert_answers_as_torch(model, module)


def _dft_model(shape, length, axis, **attributes):
    x = onnx_ir.Value(name="x", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape(shape))
    values = [
        onnx_ir.Value(name=name, const_value=onnx_ir.tensor(np.array(number, np.int64), name=name))
        for name, number in (("length", length), ("axis", axis))
    ]
    node = onnx_ir.node("DFT", [x, *values], attributes=attributes, name="dft")
    out = node.outputs[0]
    out.name, out.type = "y", x.type
    graph = onnx_ir.Graph([x], [out], nodes=[node], initializers=values, opset_imports={"": 20}, name="g")
    return onnx_ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(("onesided", "inverse"), [(0, 0), (1, 0), (0, 1)])
@pytest.mark.parametrize("length", [5, 8, 11])
def test_dft_to_matmul_any_length_and_direction_is_the_transform(parts, onesided, inverse, length):
    if onesided and parts == 2:
        pytest.skip("a spectrum of complex numbers has no half")
    model = _dft_model(["batch", 8, 3, parts], length, 1, onesided=onesided, inverse=inverse)
    assert dft_to_matmul(model) == 1
    x = np.random.default_rng(0).standard_normal((2, 8, 3, parts)).astype(np.float32)
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x})[0]
    signal = x[..., 0] + (1j * x[..., 1] if parts == 2 else 0)
    expected = (np.fft.rfft if onesided else np.fft.ifft if inverse else np.fft.fft)(signal, length, axis=1)
    np.testing.assert_allclose(found[..., 0] + 1j * found[..., 1], expected, atol=5e-6)


def test_dft_to_matmul_length_beyond_the_limit_stays():
    assert dft_to_matmul(_dft_model(["batch", LONGEST_DFT + 1, 1], LONGEST_DFT + 1, 1)) == 0


# ---- when nothing helps


class _Unknown(_Linear):
    def forward(self, x):
        return self.linear(torch.special.airy_ai(x))


def test_export_program_operator_no_rung_knows_names_the_models_line():
    with pytest.raises(
        ShallowvitError, match=r"can't export x -> answer: .*test_ladder.py:\d+ `return .*airy_ai\(x\)\)`: .*airy"
    ):
        _exported(_Unknown())


class _Broken(_Linear):
    def forward(self, x):
        return self.linear(x)[:, torch.arange(TOKENS), None] @ x.unknown


def test_export_program_error_of_the_model_itself_names_its_line():
    with pytest.raises(ShallowvitError, match=r"test_ladder.py:\d+ `return .* @ x.unknown`: .*no attribute 'unknown'"):
        _exported(_Broken())
