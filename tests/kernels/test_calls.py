"""The kernels as functions: what they take, where they write, and what they refuse before a launch."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import shallowvit_kernels
from shallowvit_kernels import KernelError, fused_attention, gaussian_attention, linear_attention
from shallowvit_kernels.records import Dtype, Kernel, Layout, Variant


def _qkv(queries=9, keys=13, head_size=8, dtype=torch.float32):
    return [torch.randn(2, 3, tokens, head_size).to(dtype) for tokens in (queries, keys, keys)]


def test_fused_attention_without_modifiers_is_torchs():
    q, k, v = _qkv()
    torch.testing.assert_close(fused_attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_fused_attention_takes_all_modifiers_at_once():
    q, k, v = _qkv()
    score_mask, bias, mask = torch.rand(13), torch.randn(3, 9, 13), torch.rand(2, 1, 9, 1)
    positions, gate = torch.rand(1, 1, 9, 13), torch.rand(3)
    out, lse = fused_attention(
        q, k, v, scale=0.5, score_mask=score_mask, bias=bias, probability_mask=mask, positions=positions, gate=gate,
        soft_cap=2.0, renormalise=True, log_sum_exp=True,
    )  # fmt: skip
    scores = 2 * torch.tanh(q @ k.mT * 0.5 * score_mask / 2) + bias
    shares = scores.softmax(-1) * mask
    shares = shares / shares.sum(-1, keepdim=True)
    shares = (1 - gate.view(3, 1, 1)) * shares + gate.view(3, 1, 1) * positions
    torch.testing.assert_close(out, shares @ v)
    torch.testing.assert_close(lse, scores.logsumexp(-1))


def test_fused_attention_reads_an_expanded_mask_unexpanded():
    q, k, v = _qkv()
    for narrow in (torch.rand(9, 1), torch.rand(1, 13), torch.rand(3, 1, 1), torch.rand(2, 1, 1, 13)):
        whole = narrow.expand(2, 3, 9, 13)
        torch.testing.assert_close(fused_attention(q, k, v, bias=whole), fused_attention(q, k, v, bias=narrow))


def test_fused_attention_of_views_writes_in_the_order_of_the_queries():
    packed = torch.randn(2, 9, 3, 3, 8)
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    out = fused_attention(q, k, v)
    assert out.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("call", [fused_attention, gaussian_attention, linear_attention])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_calls_return_the_type_and_shape_of_their_input(call, dtype):
    out = call(*_qkv(dtype=dtype))
    assert (out.dtype, out.shape) == (dtype, (2, 3, 9, 8))


Q, K, V = torch.zeros(2, 3, 9, 8), torch.zeros(2, 3, 13, 8), torch.zeros(2, 3, 13, 8)
REFUSED = {
    "rank": ((Q[0], K, V), {}, r"q has shape \(3, 9, 8\), and four axes of 1 or more are expected: b, h, n, d"),
    "no_query": ((Q[:, :, :0], K, V), {}, r"q has shape \(2, 3, 0, 8\), and four axes of 1 or more"),
    "no_key": ((Q, K[:, :, :0], V[:, :, :0]), {}, r"k has shape \(2, 3, 0, 8\), and four axes of 1 or more"),
    "no_item": ((Q[:0], K[:0], V[:0]), {}, r"q has shape \(0, 3, 9, 8\), and four axes of 1 or more"),
    "double": ((Q.double(), K, V), {}, r"q is torch.float64; choose from torch.float32, torch.float16, torch.bfloat16"),
    "mixed_types": ((Q, K.half(), V), {}, r"k is torch.float16, and torch.float32 is expected; convert it"),
    "heads": ((Q, K[:, :2], V), {}, r"k has shape \(2, 2, 13, 8\) with the axes b, h, m, d; h is 2, and 3 is expected"),
    "head_size": ((Q, K[..., :7], V), {}, r"k has shape .* with the axes b, h, m, d; d is 7, and 8 is expected"),
    "lengths": ((Q, K, V[:, :, :12]), {}, r"v has shape \(2, 3, 12, 8\) with the axes b, h, m, e; m is 12, and 13 is expected"),
    "strides": ((Q.mT.contiguous().mT, K, V), {}, r"q has a stride of 9 over its last axis, and 1 is expected; call .contigu"),
    "device": ((Q, K.to("meta"), V), {}, r"k is on meta, and another tensor on cpu; move it there"),
    "gradient": (
        (Q, K, V.clone().requires_grad_()),
        {},
        r"v wants a gradient, and kernels only run forward; call them in torch",
    ),
    "head_too_large": ((torch.zeros(1, 1, 2, 600),) * 3, {}, r"a head size of 600 is padded to 1024, whose tiles don't fit"),
    "scale": ((Q, K, V), {"scale": 0.0}, r"a scale of 0; it must be a finite number above 0"),
    "soft_cap": ((Q, K, V), {"soft_cap": -1.0}, r"a soft cap of -1; it must be a finite number above 0, or None"),
    "unknown": ((Q, K, V), {"mask": Q}, r"fused_attention: unknown mask; choose from score_mask, soft_cap, bias"),
    "bool": ((Q, K, V), {"bias": torch.ones(9, 13).bool()}, r"bias is bool, and numbers are expected: a bias of 0 where"),
    "integers": ((Q, K, V), {"score_mask": torch.ones(9, 13).int()}, r"score_mask is torch.int32; choose from torch.float32"),
    "mask_shape": (
        (Q, K, V),
        {"bias": torch.ones(9, 12)},
        r"bias has shape \(9, 12\), which can't be broadcast to .*\(2, 3, 9, 13\)",
    ),
    "mask_rank": (
        (Q, K, V),
        {"bias": torch.ones(1, 2, 3, 9, 13)},
        r"bias has shape .*, which can't be broadcast to the scores'",
    ),
    "mask_strides": ((Q, K, V), {"bias": torch.ones(13, 9).T}, r"bias has a stride of 9 over its last axis, and 1 is expected"),
    "positions": ((Q, K, V), {"positions": torch.ones(9, 13)}, r"positions without gate, and one mixes by the other"),
    "gate": ((Q, K, V), {"gate": torch.ones(3)}, r"gate without positions, and one mixes by the other; give both or neither"),
    "gates": (
        (Q, K, V),
        {"gate": torch.ones(2), "positions": torch.ones(9, 13)},
        r"gate has shape \(2,\), and one number a head, \(3,\), is expected",
    ),
    "renormalise": ((Q, K, V), {"renormalise": True}, r"renormalise is of a probability mask, and there is none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_fused_attention_refuses_what_a_kernel_would_read_wrongly(name):
    tensors, given, words = REFUSED[name]
    with pytest.raises(KernelError, match=words):
        fused_attention(*tensors, **given)


def test_fused_attention_refuses_strides_that_pass_32_bits():
    bias = torch.empty(0, device="meta").new_empty_strided((2, 3, 9, 13), (2**31, 0, 13, 1))
    q, k, v = (one.to("meta") for one in (Q, K, V))
    with pytest.raises(
        KernelError, match=r"bias has a stride of 2147483648, and 2147483647 is the largest; split batch or heads"
    ):
        fused_attention(q, k, v, bias=bias)


def test_fused_attention_with_a_parameter_runs_without_gradients():
    with torch.no_grad():
        assert not fused_attention(Q.clone().requires_grad_(), K, V).requires_grad


def test_run_variant_with_too_few_tensors_names_those_it_takes():
    variant = Variant(Kernel.ATTENTION, Dtype.FP32, 8)
    with pytest.raises(KernelError, match=r"2 tensors given, and shallowvit_attention_fp32_d8_\w+ takes 3: q, k, v"):
        shallowvit_kernels.run_variant(variant, Q, K)


def test_variant_refuses_an_epsilon_that_is_added_to_nothing():
    with pytest.raises(KernelError, match=r"0.1 is added to a sum, and the kernel attention divides by none"):
        Variant(Kernel.ATTENTION, Dtype.FP32, 8, epsilon=0.1)


def test_run_variant_checks_where_it_is_to_write():
    variant = Variant(Kernel.ATTENTION, Dtype.FP32, 8)
    with pytest.raises(
        KernelError, match=r"out has shape \(2, 3, 13, 8\) with the axes b, h, n, e; n is 13, and 9 is expected"
    ):
        shallowvit_kernels.run_variant(variant, Q, K, V, outputs=(torch.zeros(2, 3, 13, 8),))


def test_run_variant_of_packed_tensors_without_tokens_is_refused():
    variant = Variant(Kernel.ATTENTION, Dtype.FP32, 8, layout=Layout.PACKED)
    with pytest.raises(
        KernelError, match=r"q has shape \(2, 0, 3, 3, 8\) with the axes b, n, 3, h, d; n is 0, and 1 or more is"
    ):
        shallowvit_kernels.run_variant(variant, torch.zeros(2, 0, 3, 3, 8))


def test_run_variant_of_other_axes_than_the_layouts_is_refused():
    variant = Variant(Kernel.ATTENTION, Dtype.FP32, 8)
    with pytest.raises(KernelError, match=r"q has shape \(3, 9, 8\), 3 axes, and 4 are expected: b, h, n, d"):
        shallowvit_kernels.run_variant(variant, Q[0], K, V)


def test_run_variant_without_gpu_and_interpreter_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(
        KernelError, match=r"the tensors are on cpu, and kernels run on CUDA; set TRITON_INTERPRET=1 before Python"
    ):
        fused_attention(Q, K, V)


def test_import_of_the_package_loads_neither_torch_nor_triton():
    script = "import sys, shallowvit_kernels as one; print(one.Variant.__name__, {'torch', 'triton'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Variant set()"


@pytest.mark.parametrize("name", shallowvit_kernels.__all__)
def test_every_public_name_is_there(name):
    assert getattr(shallowvit_kernels, name) is not None
    assert name in dir(shallowvit_kernels)


def test_unknown_public_name_raises():
    with pytest.raises(AttributeError, match="module 'shallowvit_kernels' has no attribute 'flash'"):
        shallowvit_kernels.flash  # noqa: B018 - the access is what is tested
