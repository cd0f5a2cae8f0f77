"""The Gaussian kernel by Triton's interpreter against its reference in fp64.

What is compared: the root mean square of errors and (but in fp32) the largest, at most twice those of the formula in single
operations of torch in the same type, whose exponent is worked out in fp32 there too (in the narrow type it is hardly right).
"""

import pytest
import torch

from shallowvit_kernels.calling import DTYPES, run_variant
from shallowvit_kernels.calls import gaussian_attention, landmark_attention
from shallowvit_kernels.errors import KernelError
from shallowvit_kernels.gaussian import gaussian_reference
from shallowvit_kernels.records import Dtype, Kernel, Layout, Tile, Variant

from .launching_from_data import launch_from_data
from .tensors_at_random import assert_errs_at_most_twice, guarded, heads_first, random_inputs, rms, seeded

SMALL = Tile(16, 16, 4, 1)


def _variant(dtype=Dtype.FP32, head_size=24, **given):
    return Variant(Kernel.GAUSSIAN, dtype, head_size, **({"scale": head_size**-0.5} | given))


def _torch(variant, q, k, v):
    dtype = DTYPES[variant.dtype]
    q, k, v = (one.to(dtype) for one in (q, k, v))
    norms = q.float().square().sum(-1)[..., :, None] + k.float().square().sum(-1)[..., None, :]
    return torch.exp(variant.scale * (q.float() @ k.float().transpose(-1, -2) - norms / 2)).to(dtype) @ v


def _check(variant, sizes, tile=SMALL):
    with seeded() as seed:
        tensors = random_inputs(variant, *sizes)
        outputs, fences = guarded(variant, *sizes)
        run_variant(variant, *tensors, outputs=outputs, tile=tile)
        main, _ = heads_first(variant, tensors)
        expected = gaussian_reference(variant, *main)
        got = outputs[0] if variant.output_layout is Layout.HEADS_FIRST else outputs[0].transpose(1, 2)
        assert_errs_at_most_twice(got, expected, _torch(variant, *main), seed)
        assert all(bool((fence == 7.0).all()) for fence in fences), seed


@pytest.mark.parametrize("dtype", Dtype)
@pytest.mark.parametrize("head_size", [8, 40, 64])
def test_gaussian_errs_at_most_twice_as_torch(dtype, head_size):
    _check(_variant(dtype, head_size), (2, 2, 20, 37))


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 50), (50, 1), (65, 33)])
def test_gaussian_across_two_lengths_is_right(queries, keys):
    _check(_variant(Dtype.FP16, value_size=40), (1, 2, queries, keys))


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("output_layout", [Layout.HEADS_FIRST, Layout.TOKENS_FIRST])
def test_gaussian_reads_and_writes_each_layout(layout, output_layout):
    _check(_variant(Dtype.BF16, layout=layout, output_layout=output_layout), (2, 3, 19, 19))


@pytest.mark.parametrize("layout", Layout)
def test_gaussian_launched_from_its_data_gives_what_strides_give(layout):
    variant = _variant(Dtype.FP16, layout=layout)
    tensors = random_inputs(variant, 2, 3, 19, 19)
    outputs, fences = guarded(variant, 2, 3, 19, 19)
    launch_from_data(variant, tensors, outputs, SMALL)
    assert torch.equal(outputs[0], run_variant(variant, *tensors, tile=SMALL)[0])
    assert all(bool((fence == 7.0).all()) for fence in fences)


def test_gaussian_of_queries_that_are_keys_far_from_0_weighs_each_by_1():
    q = 30 * torch.randn(1, 1, 20, 16)
    out = gaussian_attention(q, q, torch.ones(1, 1, 20, 4))  # others are too far to count
    torch.testing.assert_close(out, torch.ones_like(out), rtol=0, atol=1e-2)
    assert out.max() <= 1.0


def test_landmark_attention_is_nystroms_approximation():
    with seeded() as seed:
        q, k, v = torch.randn(2, 2, 33, 16), torch.randn(2, 2, 40, 16), torch.randn(2, 2, 40, 8)
        landmarks = 1.5 * torch.randn(2, 2, 6, 16)
        got = landmark_attention(q, k, v, landmarks, iterations=30)
        one = _variant(head_size=16)
        tokens, alike = torch.eye(40).expand(2, 2, 40, 40), torch.eye(6).expand(2, 2, 6, 6)
        middle = torch.linalg.pinv(gaussian_reference(one, landmarks.double(), landmarks, alike))
        right = gaussian_reference(one, landmarks.double(), k, tokens) @ v.double()
        expected = gaussian_reference(one, q.double(), landmarks, middle @ right)
        assert rms(got - expected) <= 1e-4 * rms(expected), seed


def test_landmark_attention_over_all_tokens_is_the_dense_one():
    with seeded() as seed:
        q, v = torch.randn(1, 2, 10, 16), torch.randn(1, 2, 10, 8)
        k = 2 * torch.randn(1, 2, 10, 16)
        dense = gaussian_attention(q, k, v)
        assert rms(landmark_attention(q, k, v, k, iterations=40) - dense) <= 1e-3 * rms(dense), seed


def test_landmark_attention_in_fp16_survives_an_inverse_of_large_numbers():
    landmarks = torch.randn(1, 1, 1, 16).expand(1, 1, 4, 16) + 0.02 * torch.randn(1, 1, 4, 16)  # nearly alike
    tokens = torch.randn(1, 1, 30, 16)
    out = landmark_attention(tokens.half(), tokens.half(), 1000 * torch.randn(1, 1, 30, 8).half(), landmarks.half())
    assert torch.isfinite(out).all()


def test_landmark_attention_without_iterations_is_refused():
    tokens = torch.zeros(1, 1, 3, 8)
    with pytest.raises(KernelError, match=r"landmark_attention: 0 iterations of the inverse; 1 or more are needed"):
        landmark_attention(tokens, tokens, tokens, tokens, iterations=0)
