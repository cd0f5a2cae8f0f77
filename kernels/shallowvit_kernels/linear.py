"""Attention without softmax in time linear in the tokens: a feature map of queries and keys, and one small state a head.

    output = f(q) sum(f(k) v^T) / (f(q) sum f(k) + epsilon)

f is elu + 1 (Katharopoulos et al., arXiv 2006.16236) or relu (EfficientViT, Cai et al., arXiv 2205.14756). One launch: each
program sums the state over all keys and then serves its share of the queries, so a share is several tiles. A newcomer's trap:
the state grows with the tokens and passes fp16's largest number, so it is divided by its own largest before it is rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from .attention import narrowed
from .records import FeatureMap, Layout
from .tiles import padded

if TYPE_CHECKING:
    from .records import Tile, Variant

__all__ = ["linear_constants", "linear_kernel", "linear_reference"]


@triton.jit
def _features(x, ELU: tl.constexpr):
    """The feature map in fp32."""
    x = x.to(tl.float32)
    if ELU:
        return tl.where(x > 0.0, x + 1.0, tl.exp(tl.minimum(x, 0.0)))
    return tl.maximum(x, 0.0)


@triton.jit
def linear_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    heads,
    queries,
    keys,
    part,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    out_b,
    out_h,
    out_n,
    out_ptr,
    ELU: tl.constexpr,
    EPSILON: tl.constexpr,
    PACKED: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    PADDED_HEAD: tl.constexpr,
    PADDED_VALUE: tl.constexpr,
    SHARE: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """A share of the queries of one head of one item, and its own copy of the state; both go by in tiles of ``TILE`` tokens.

    ``WIDEN`` multiplies matrices in fp32, for Triton's interpreter, whose bf16 products are wrong.
    """
    shares = tl.cdiv(queries, SHARE)
    program = tl.program_id(0)
    first = program % shares * SHARE
    head = (program // shares % heads).to(tl.int64)
    item = (program // shares // heads).to(tl.int64)
    axis, head_axis, value_axis = tl.arange(0, TILE), tl.arange(0, PADDED_HEAD), tl.arange(0, PADDED_VALUE)
    head_here, value_here = head_axis < HEAD_SIZE, (value_axis < VALUE_SIZE)[None, :]
    if PACKED:
        k_ptr = q_ptr + part
        v_ptr = k_ptr + part
    q_ptr += item * q_b + head * q_h
    k_ptr += item * k_b + head * k_h
    v_ptr += item * v_b + head * v_h
    out_ptr += item * out_b + head * out_h

    state = tl.zeros([PADDED_HEAD, PADDED_VALUE], tl.float32)
    total = tl.zeros([PADDED_HEAD], tl.float32)
    for seen in range(0, keys, TILE):
        tokens = (seen + axis).to(tl.int64)
        here = tokens < keys
        k_here = here[None, :] & head_here[:, None]
        k = tl.load(k_ptr + tokens[None, :] * k_n + head_axis[:, None], mask=k_here, other=0.0)
        v = tl.load(v_ptr + tokens[:, None] * v_n + value_axis[None, :], mask=here[:, None] & value_here, other=0.0)
        features = tl.where(k_here, _features(k, ELU), 0.0)  # of elu + 1 nothing isn't 0
        total += tl.sum(features, 1)
        features = narrowed(features, v.dtype, WIDEN)
        if WIDEN:
            v = v.to(tl.float32)
        state = tl.dot(features, v, state, input_precision=PRECISION)

    largest = tl.max(tl.max(tl.abs(state), 1), 0)
    largest = tl.where(largest == 0.0, 1.0, largest)
    state = narrowed(state / largest, v_ptr.dtype.element_ty, WIDEN)
    for served in range(first, tl.minimum(first + SHARE, queries), TILE):
        tokens = (served + axis).to(tl.int64)
        here = (tokens < queries)[:, None]
        q = tl.load(q_ptr + tokens[:, None] * q_n + head_axis[None, :], mask=here & head_here[None, :], other=0.0)
        features = tl.where(head_here[None, :], _features(q, ELU), 0.0)
        share = tl.sum(features * total[None, :], 1) + EPSILON
        features = narrowed(features, q.dtype, WIDEN)
        result = tl.dot(features, state, input_precision=PRECISION) * (largest / tl.where(share == 0.0, 1.0, share))[:, None]
        places = tokens[:, None] * out_n + value_axis[None, :]
        result = narrowed(result, out_ptr.dtype.element_ty, WIDEN).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + places, result, mask=here & value_here)


def linear_constants(variant: Variant, tile: Tile, precision: str, *, widen: bool = False) -> dict[str, Any]:
    """Return the kernel's parameters in capitals.

    Args:
        variant: What is computed.
        tile: A program's share of the queries, and how many tokens it works on at a time.
        precision: Of fp32 products, in Triton's words.
        widen: See the kernel.
    """
    return {
        "ELU": variant.feature_map is FeatureMap.ELU_PLUS_ONE,
        "EPSILON": variant.epsilon,
        "PACKED": variant.layout is Layout.PACKED,
        "HEAD_SIZE": variant.head_size,
        "VALUE_SIZE": variant.value_size,
        "PADDED_HEAD": padded(variant.head_size),
        "PADDED_VALUE": padded(variant.value_size),
        "SHARE": tile.queries,
        "TILE": tile.keys,
        "PRECISION": precision,
        "WIDEN": widen,
    }


def linear_reference(variant: Variant, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Compute the same in fp32, by way of the weight of each key for each query.

    Args:
        variant: What is computed; its layouts aren't looked at.
        q: [b, h, n, d] of any float type.
        k: [b, h, m, d].
        v: [b, h, m, e].

    Returns:
        The output [b, h, n, e] in fp32, or fp64 if ``q`` is. A query whose weights are all 0 gets zeros.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    features = torch.relu if variant.feature_map is FeatureMap.RELU else lambda x: torch.nn.functional.elu(x) + 1
    weights = features(q.to(wide)) @ features(k.to(wide)).transpose(-1, -2)
    total = weights.sum(-1, keepdim=True) + variant.epsilon
    return weights @ v.to(wide) / torch.where(total == 0, 1.0, total)
