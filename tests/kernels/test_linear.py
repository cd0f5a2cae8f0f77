"""The linear kernel by Triton's interpreter against its reference in fp64.

What is compared: the root mean square of errors and (but in fp32) the largest, at most twice those of the formula in single
operations of torch in the same type.
"""

import pytest
import torch
import torch.nn.functional as F

from shallowvit_kernels.calling import DTYPES, run_variant
from shallowvit_kernels.calls import linear_attention
from shallowvit_kernels.errors import KernelError
from shallowvit_kernels.linear import linear_reference
from shallowvit_kernels.records import Dtype, FeatureMap, Kernel, Layout, Tile, Variant

from .launching_from_data import launch_from_data
from .tensors_at_random import assert_errs_at_most_twice, guarded, heads_first, random_inputs, seeded

SMALL = Tile(32, 16, 4, 1)  # a share of two tiles


def _variant(dtype=Dtype.FP32, head_size=24, feature_map=FeatureMap.ELU_PLUS_ONE, **given):
    return Variant(Kernel.LINEAR, dtype, head_size, feature_map=feature_map, **({"epsilon": 1e-6} | given))


def _torch(variant, q, k, v):
    q, k, v = (one.to(DTYPES[variant.dtype]) for one in (q, k, v))
    q, k = (F.relu(one) if variant.feature_map is FeatureMap.RELU else F.elu(one) + 1 for one in (q, k))
    return q @ (k.transpose(-1, -2) @ v) / (q @ k.sum(-2)[..., None] + variant.epsilon)


def _check(variant, sizes, tile=SMALL):
    with seeded() as seed:
        tensors = random_inputs(variant, *sizes)
        outputs, fences = guarded(variant, *sizes)
        run_variant(variant, *tensors, outputs=outputs, tile=tile)
        main, _ = heads_first(variant, tensors)
        expected = linear_reference(variant, *main)
        got = outputs[0] if variant.output_layout is Layout.HEADS_FIRST else outputs[0].transpose(1, 2)
        assert_errs_at_most_twice(got, expected, _torch(variant, *main), seed)
        assert all(bool((fence == 7.0).all()) for fence in fences), seed


@pytest.mark.parametrize("dtype", Dtype)
@pytest.mark.parametrize("head_size", [8, 40, 64])
@pytest.mark.parametrize("feature_map", FeatureMap)
def test_linear_errs_at_most_twice_as_torch(dtype, head_size, feature_map):
    _check(_variant(dtype, head_size, feature_map), (2, 2, 37, 50))


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 50), (50, 1), (65, 33)])
def test_linear_across_two_lengths_is_right(queries, keys):
    _check(_variant(Dtype.FP16, value_size=40), (1, 2, queries, keys))


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("output_layout", [Layout.HEADS_FIRST, Layout.TOKENS_FIRST])
def test_linear_reads_and_writes_each_layout(layout, output_layout):
    _check(_variant(Dtype.BF16, layout=layout, output_layout=output_layout), (2, 3, 35, 35))


@pytest.mark.parametrize("layout", Layout)
def test_linear_launched_from_its_data_gives_what_strides_give(layout):
    variant = _variant(Dtype.FP16, layout=layout)
    tensors = random_inputs(variant, 2, 3, 35, 35)
    outputs, fences = guarded(variant, 2, 3, 35, 35)
    launch_from_data(variant, tensors, outputs, SMALL)
    assert torch.equal(outputs[0], run_variant(variant, *tensors, tile=SMALL)[0])
    assert all(bool((fence == 7.0).all()) for fence in fences)


def test_linear_in_fp16_holds_a_state_above_the_types_largest():
    q, k, v = torch.rand(1, 1, 20, 16), 50 + 50 * torch.rand(1, 1, 600, 16), 50 + 50 * torch.rand(1, 1, 600, 16)
    assert (k.transpose(-1, -2) @ v).min() > torch.finfo(torch.float16).max
    expected = linear_reference(_variant(head_size=16), q.half(), k.half(), v.half())
    torch.testing.assert_close(linear_attention(q.half(), k.half(), v.half()).float(), expected, rtol=2e-3, atol=0)


def test_linear_with_relu_of_a_query_below_0_gives_zeros():
    q, k, v = torch.randn(1, 1, 5, 8), torch.randn(1, 1, 9, 8), torch.randn(1, 1, 9, 8)
    q[:, :, 2] = -1.0
    out = linear_attention(q, k, v, feature_map=FeatureMap.RELU, epsilon=0.0)
    assert bool((out[0, 0, 2] == 0).all())
    torch.testing.assert_close(out, linear_reference(_variant(head_size=8, feature_map=FeatureMap.RELU), q, k, v))


def test_linear_attention_of_a_head_whose_state_is_too_large_is_refused():
    q = torch.zeros(1, 1, 4, 72)
    with pytest.raises(
        KernelError, match=r"a head size of 72 is padded to 128, .* in fp32 for the kernel linear; 64 is the largest"
    ):
        linear_attention(q, q, q)


def test_variant_of_linear_attention_with_a_scale_is_refused():
    with pytest.raises(KernelError, match=r"a scale of 0\.5; in the linear kernel it cancels, so give 1"):
        Variant(Kernel.LINEAR, Dtype.FP32, 16, scale=0.5, feature_map=FeatureMap.RELU)
