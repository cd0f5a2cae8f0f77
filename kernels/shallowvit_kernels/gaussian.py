"""Softmax-free attention whose weights are a Gaussian kernel of queries and keys, as SOFT's (Lu et al., arXiv 2110.11945).

    output = exp(-scale / 2 * |q - k|^2) v = exp(scale * q k^T - scale / 2 * |q|^2 - scale / 2 * |k|^2) v

Nothing is normalised. ``landmark_attention`` is the paper's linear form: the same kernel launched twice, over a few landmarks.
A newcomer's trap: the exponent is the difference of large numbers, so norms are summed in fp32 inside the kernel from the very
numbers whose product is taken; norms that come from elsewhere would make weights above 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from .attention import narrowed
from .records import Layout
from .tiles import padded

if TYPE_CHECKING:
    from .records import Tile, Variant

__all__ = ["gaussian_constants", "gaussian_kernel", "gaussian_reference"]

_LOG2_E = 1 / math.log(2)


@triton.jit
def gaussian_kernel(
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
    FACTOR: tl.constexpr,
    PACKED: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    PADDED_HEAD: tl.constexpr,
    PADDED_VALUE: tl.constexpr,
    TILE_QUERIES: tl.constexpr,
    TILE_KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One tile of queries of one head of one item.

    ``FACTOR`` is the scale for powers of 2. ``WIDEN`` multiplies matrices in fp32, for Triton's interpreter, whose bf16
    products are wrong.
    """
    tiles = tl.cdiv(queries, TILE_QUERIES)
    program = tl.program_id(0)
    first = program % tiles * TILE_QUERIES
    head = (program // tiles % heads).to(tl.int64)
    item = (program // tiles // heads).to(tl.int64)
    row_axis, key_axis = tl.arange(0, TILE_QUERIES), tl.arange(0, TILE_KEYS)
    head_axis, value_axis = tl.arange(0, PADDED_HEAD), tl.arange(0, PADDED_VALUE)
    row_here = (first + row_axis < queries)[:, None]
    head_here, value_here = head_axis < HEAD_SIZE, (value_axis < VALUE_SIZE)[None, :]

    start = first.to(tl.int64)  # offsets pass 2^31 sooner than one thinks
    if PACKED:
        k_ptr = q_ptr + part
        v_ptr = k_ptr + part
    q_ptr += item * q_b + head * q_h + start * q_n
    k_ptr += item * k_b + head * k_h
    v_ptr += item * v_b + head * v_h
    q = tl.load(q_ptr + row_axis[:, None] * q_n + head_axis[None, :], mask=row_here & head_here[None, :], other=0.0)
    q_norm = 0.5 * tl.sum(q.to(tl.float32) * q.to(tl.float32), 1)
    if WIDEN:
        q = q.to(tl.float32)
    result = tl.zeros([TILE_QUERIES, PADDED_VALUE], tl.float32)

    for seen in range(0, keys, TILE_KEYS):
        columns = (seen + key_axis).to(tl.int64)
        key_here = columns < keys
        k = tl.load(k_ptr + columns[None, :] * k_n + head_axis[:, None], mask=key_here[None, :] & head_here[:, None], other=0.0)
        v = tl.load(v_ptr + columns[:, None] * v_n + value_axis[None, :], mask=key_here[:, None] & value_here, other=0.0)
        k_norm = 0.5 * tl.sum(k.to(tl.float32) * k.to(tl.float32), 0)
        if WIDEN:
            k, v = k.to(tl.float32), v.to(tl.float32)
        nearness = tl.dot(q, k, input_precision=PRECISION) - q_norm[:, None] - k_norm[None, :]
        # rounding may put a query above 0, nearer than at the key itself; weights behind the last key meet values of 0
        weights = tl.exp2(tl.minimum(nearness, 0.0) * FACTOR)
        result = tl.dot(narrowed(weights, v.dtype, WIDEN), v, result, input_precision=PRECISION)

    out_ptr += item * out_b + head * out_h + start * out_n
    places = row_axis[:, None] * out_n + value_axis[None, :]
    result = narrowed(result, out_ptr.dtype.element_ty, WIDEN).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + places, result, mask=row_here & value_here)


def gaussian_constants(variant: Variant, tile: Tile, precision: str, *, widen: bool = False) -> dict[str, Any]:
    """Return the kernel's parameters in capitals.

    Args:
        variant: What is computed.
        tile: How the work is cut.
        precision: Of fp32 products, in Triton's words.
        widen: See the kernel.
    """
    return {
        "FACTOR": variant.scale * _LOG2_E,
        "PACKED": variant.layout is Layout.PACKED,
        "HEAD_SIZE": variant.head_size,
        "VALUE_SIZE": variant.value_size,
        "PADDED_HEAD": padded(variant.head_size),
        "PADDED_VALUE": padded(variant.value_size),
        "TILE_QUERIES": tile.queries,
        "TILE_KEYS": tile.keys,
        "PRECISION": precision,
        "WIDEN": widen,
    }


def gaussian_reference(variant: Variant, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Compute the same in fp32 with all of it in memory, from the distances themselves.

    Args:
        variant: What is computed; its layouts aren't looked at.
        q: [b, h, n, d] of any float type.
        k: [b, h, m, d].
        v: [b, h, m, e].

    Returns:
        The output [b, h, n, e] in fp32, or fp64 if ``q`` is.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v = q.to(wide), k.to(wide), v.to(wide)
    distances = (q[..., :, None, :] - k[..., None, :, :]).square().sum(-1)
    return torch.exp(-variant.scale / 2 * distances) @ v
