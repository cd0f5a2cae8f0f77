"""Softmax attention with score modifiers: one pass over the keys with a running maximum, nothing of size N times M in memory.

    scores = scale * q k^T,  * score_mask,  soft cap,  + bias
    probabilities = softmax(scores),  * probability_mask,  or mixed with positions by a gate
    output = probabilities v

The running softmax is Milakov and Gimelshein's (arXiv 1805.02867), the tiles are FlashAttention's (Dao et al., arXiv
2205.14135), the gate is ConViT's (d'Ascoli et al., arXiv 2103.10697), the soft cap Gemma 2's (arXiv 2408.00118). A newcomer's
trap: a mask on the probabilities doesn't touch the sum they were divided by, so the output is summed with the mask and the sum
without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from .records import Layout, Modifier
from .tiles import padded

if TYPE_CHECKING:
    from .records import Tile, Variant

__all__ = ["attention_constants", "attention_kernel", "attention_reference"]


@triton.jit
def _modifier_tile(ptr, item, head, rows, columns, stride_b, stride_h, stride_n, DENSE: tl.constexpr, inside):
    """A tile of a modifier's operand in fp32; rows are 64 bits wide, since a mask passes 2^31 sooner than one thinks."""
    place = ptr + item * stride_b + head * stride_h + rows[:, None] * stride_n + columns[None, :] * DENSE
    return tl.load(place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    score_mask_ptr,
    bias_ptr,
    probability_mask_ptr,
    positions_ptr,
    gate_ptr,
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
    score_mask_b,
    score_mask_h,
    score_mask_n,
    bias_b,
    bias_h,
    bias_n,
    probability_mask_b,
    probability_mask_h,
    probability_mask_n,
    positions_b,
    positions_h,
    positions_n,
    out_b,
    out_h,
    out_n,
    out_ptr,
    lse_ptr,
    SCALE: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    RENORMALISE: tl.constexpr,
    PACKED: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    PADDED_HEAD: tl.constexpr,
    PADDED_VALUE: tl.constexpr,
    TILE_QUERIES: tl.constexpr,
    TILE_KEYS: tl.constexpr,
    SCORE_MASK_M: tl.constexpr,
    BIAS_M: tl.constexpr,
    PROBABILITY_MASK_M: tl.constexpr,
    POSITIONS_M: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One tile of queries of one head of one item; ``*_M`` is the stride over the keys, 1 or 0.

    ``WIDEN`` multiplies matrices in fp32, for Triton's interpreter, whose bf16 products are wrong.
    """
    tiles = tl.cdiv(queries, TILE_QUERIES)
    program = tl.program_id(0)
    tile = program % tiles
    head = ((program // tiles) % heads).to(tl.int64)
    item = (program // tiles // heads).to(tl.int64)
    if PACKED:
        k_ptr = q_ptr + part
        v_ptr = k_ptr + part

    rows = (tile * TILE_QUERIES + tl.arange(0, TILE_QUERIES)).to(tl.int64)
    row_here = rows < queries
    head_axis = tl.arange(0, PADDED_HEAD)
    value_axis = tl.arange(0, PADDED_VALUE)
    head_here = head_axis < HEAD_SIZE
    value_here = value_axis < VALUE_SIZE

    q_ptr += item * q_b + head * q_h
    k_ptr += item * k_b + head * k_h
    v_ptr += item * v_b + head * v_h
    q = tl.load(q_ptr + rows[:, None] * q_n + head_axis[None, :], mask=row_here[:, None] & head_here[None, :], other=0.0)
    if WIDEN:
        q = q.to(tl.float32)

    top = tl.full([TILE_QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([TILE_QUERIES], tl.float32)
    kept = tl.zeros([TILE_QUERIES], tl.float32)  # of the probabilities that a mask leaves
    result = tl.zeros([TILE_QUERIES, PADDED_VALUE], tl.float32)
    if positions_ptr is not None:
        placed = tl.zeros([TILE_QUERIES, PADDED_VALUE], tl.float32)

    for start in range(0, keys, TILE_KEYS):
        columns = (start + tl.arange(0, TILE_KEYS)).to(tl.int64)
        column_here = columns < keys
        inside = row_here[:, None] & column_here[None, :]
        k = tl.load(
            k_ptr + columns[None, :] * k_n + head_axis[:, None], mask=column_here[None, :] & head_here[:, None], other=0.0
        )
        v = tl.load(
            v_ptr + columns[:, None] * v_n + value_axis[None, :], mask=column_here[:, None] & value_here[None, :], other=0.0
        )
        if WIDEN:
            k = k.to(tl.float32)
        scores = tl.dot(q, k, input_precision=PRECISION) * SCALE

        if score_mask_ptr is not None:
            scores *= _modifier_tile(
                score_mask_ptr, item, head, rows, columns, score_mask_b, score_mask_h, score_mask_n, SCORE_MASK_M, inside
            )
        if SOFT_CAP is not None:
            # tanh(x) = 1 - 2 / (exp(2 x) + 1), right at both infinities; Triton has no tanh of its own
            scores = SOFT_CAP * (1.0 - 2.0 / (tl.exp(scores * (2.0 / SOFT_CAP)) + 1.0))
        if bias_ptr is not None:
            scores += _modifier_tile(bias_ptr, item, head, rows, columns, bias_b, bias_h, bias_n, BIAS_M, inside)
        scores = tl.where(column_here[None, :], scores, float("-inf"))

        higher = tl.maximum(top, tl.max(scores, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen no key yet
        weights = tl.exp(scores - safe[:, None])
        shrunk = tl.exp(top - safe)
        total = total * shrunk + tl.sum(weights, 1)
        top = higher
        if probability_mask_ptr is not None:
            strides = (probability_mask_b, probability_mask_h, probability_mask_n)
            weights *= _modifier_tile(
                probability_mask_ptr, item, head, rows, columns, strides[0], strides[1], strides[2], PROBABILITY_MASK_M, inside
            )
            if RENORMALISE:
                kept = kept * shrunk + tl.sum(weights, 1)
        weights = weights.to(v.dtype)
        if WIDEN:
            weights = weights.to(tl.float32)
            v = v.to(tl.float32)
        result = result * shrunk[:, None] + tl.dot(weights, v, input_precision=PRECISION)
        if positions_ptr is not None:
            there = _modifier_tile(
                positions_ptr, item, head, rows, columns, positions_b, positions_h, positions_n, POSITIONS_M, inside
            )
            placed += tl.dot(there.to(v.dtype), v, input_precision=PRECISION)

    share = kept if RENORMALISE else total
    result = result / tl.where(share == 0.0, 1.0, share)[:, None]
    if positions_ptr is not None:
        gate = tl.load(gate_ptr + head)
        result = (1.0 - gate) * result + gate * placed
    out_ptr += item * out_b + head * out_h
    inside = row_here[:, None] & value_here[None, :]
    tl.store(out_ptr + rows[:, None] * out_n + value_axis[None, :], result.to(out_ptr.dtype.element_ty), mask=inside)
    if lse_ptr is not None:
        tl.store(lse_ptr + (item * heads + head) * queries + rows, top + tl.log(total), mask=row_here)


def attention_constants(variant: Variant, tile: Tile, precision: str, *, widen: bool = False) -> dict[str, Any]:
    """Return the kernel's parameters in capitals.

    Args:
        variant: What is computed.
        tile: How the work is cut.
        precision: Of fp32 products, in Triton's words.
        widen: See the kernel.
    """
    dense = {str(one.modifier): int("m" not in one.broadcast) for one in variant.operands}
    return {
        "SCALE": variant.scale,
        "SOFT_CAP": variant.soft_cap,
        "RENORMALISE": variant.renormalise,
        "PACKED": variant.layout is Layout.PACKED,
        "HEAD_SIZE": variant.head_size,
        "VALUE_SIZE": variant.value_size,
        "PADDED_HEAD": padded(variant.head_size),
        "PADDED_VALUE": padded(variant.value_size),
        "TILE_QUERIES": tile.queries,
        "TILE_KEYS": tile.keys,
        **{f"{modifier.name}_M": dense.get(str(modifier), 0) for modifier in Modifier},
        "PRECISION": precision,
        "WIDEN": widen,
    }


def attention_reference(
    variant: Variant, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **operands: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the same in fp32 with all of it in memory.

    Args:
        variant: What is computed; its layouts aren't looked at.
        q: [b, h, n, d] of any float type.
        k: [b, h, m, d].
        v: [b, h, m, e].
        operands: By the name of the modifier, broadcastable to [b, h, n, m]; ``gate`` is [h].

    Returns:
        The output [b, h, n, e] and the log-sum-exp [b, h, n], both fp32. A query that sees no key gets zeros.
    """
    q, k, v = q.float(), k.float(), v.float()
    given = {name: one.float() for name, one in operands.items()}
    scores = q @ k.transpose(-1, -2) * variant.scale
    if "score_mask" in given:
        scores = scores * given["score_mask"]
    if variant.soft_cap is not None:
        scores = variant.soft_cap * torch.tanh(scores / variant.soft_cap)
    if "bias" in given:
        scores = scores + given["bias"]
    probabilities = torch.softmax(scores, -1).nan_to_num(0.0)
    if "probability_mask" in given:
        probabilities = probabilities * given["probability_mask"]
        if variant.renormalise:
            left = probabilities.sum(-1, keepdim=True)
            probabilities = probabilities / torch.where(left == 0, 1.0, left)
    if "positions" in given:
        gate = given["gate"].view(-1, 1, 1)
        probabilities = (1 - gate) * probabilities + gate * given["positions"]
    return probabilities @ v, torch.logsumexp(scores, -1)
