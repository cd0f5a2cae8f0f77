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

import math
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from .records import Dtype, Layout, Modifier
from .tiles import padded

if TYPE_CHECKING:
    from .records import Tile, Variant

__all__ = ["attention_constants", "attention_kernel", "attention_reference", "narrowed"]

_LOG2_E = 1 / math.log(2)
LOG2_E = tl.constexpr(_LOG2_E)  # for kernels, which read no other globals


@triton.jit
def _tile_of(ptr, rows, columns, DENSE: tl.constexpr, inside):
    """A tile of a modifier's operand in fp32."""
    return tl.load(ptr + rows + columns[None, :] * DENSE, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def narrowed(x, dtype: tl.constexpr, WIDEN: tl.constexpr):
    """Fp32 in a narrower type; with ``WIDEN`` fp32 of the nearest numbers that bf16 has, since the interpreter cuts digits."""
    if WIDEN:
        bits = x.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000  # to even, where two are as near
        return tl.where(x == x, nearest.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def _tanh(x, CLOSE: tl.constexpr):
    """Triton has no tanh of its own; this one is right at both infinities, and errs by 1e-7 near 0, whatever x is.

    ``CLOSE`` takes a polynomial there, fitted to |x| < 0.6, which errs by 1e-7 of x.
    """
    result = 1.0 - 2.0 / (tl.exp2(x * 2.8853900817779268) + 1.0)
    if CLOSE:
        y = x * x
        bent = 0.13331880 + y * (-0.053780399 + y * (0.020785148 + y * -0.0058832331))
        result = tl.where(y < 0.36, x + x * y * (-0.33333296 + y * bent), result)
    return result


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
    FACTOR: tl.constexpr,
    POWER: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    CLOSE: tl.constexpr,
    RENORMALISE: tl.constexpr,
    EPSILON: tl.constexpr,
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

    Exponentials are powers of 2, which the hardware has: ``FACTOR`` and ``SOFT_CAP`` bring scores to that base, except where
    there is a bias, whose least number would pass into infinity; there ``POWER`` does it behind the maximum.
    ``WIDEN`` multiplies matrices in fp32, for Triton's interpreter, whose bf16 products are wrong.
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

    # Where a tile begins takes 64 bits, since a mask passes 2^31 sooner than one thinks. Places of keys are worked out anew in
    # each round: kept from one to the next, they take a third more registers.
    start = first.to(tl.int64)
    if PACKED:
        k_ptr = q_ptr + part
        v_ptr = k_ptr + part
    k_ptr += item * k_b + head * k_h
    v_ptr += item * v_b + head * v_h
    if score_mask_ptr is not None:
        score_mask_ptr += item * score_mask_b + head * score_mask_h + start * score_mask_n
        score_mask_rows = row_axis[:, None] * score_mask_n
    if bias_ptr is not None:
        bias_ptr += item * bias_b + head * bias_h + start * bias_n
        bias_rows = row_axis[:, None] * bias_n
    if probability_mask_ptr is not None:
        probability_mask_ptr += item * probability_mask_b + head * probability_mask_h + start * probability_mask_n
        probability_mask_rows = row_axis[:, None] * probability_mask_n
    if positions_ptr is not None:
        positions_ptr += item * positions_b + head * positions_h + start * positions_n
        positions_rows = row_axis[:, None] * positions_n
        placed = tl.zeros([TILE_QUERIES, PADDED_VALUE], tl.float32)

    q_ptr += item * q_b + head * q_h + start * q_n
    q = tl.load(q_ptr + row_axis[:, None] * q_n + head_axis[None, :], mask=row_here & head_here[None, :], other=0.0)
    if WIDEN:
        q = q.to(tl.float32)
    top = tl.full([TILE_QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([TILE_QUERIES], tl.float32)
    kept = tl.zeros([TILE_QUERIES], tl.float32)  # of the probabilities that a mask leaves
    result = tl.zeros([TILE_QUERIES, PADDED_VALUE], tl.float32)

    for seen in range(0, keys, TILE_KEYS):
        columns = seen + key_axis
        far = columns.to(tl.int64)
        key_here = columns < keys
        inside = row_here & key_here[None, :]
        k = tl.load(k_ptr + far[None, :] * k_n + head_axis[:, None], mask=key_here[None, :] & head_here[:, None], other=0.0)
        v = tl.load(v_ptr + far[:, None] * v_n + value_axis[None, :], mask=key_here[:, None] & value_here, other=0.0)
        if WIDEN:
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(q, k, input_precision=PRECISION) * FACTOR
        if score_mask_ptr is not None:
            scores *= _tile_of(score_mask_ptr, score_mask_rows, columns, SCORE_MASK_M, inside)
        if SOFT_CAP is not None:
            scores = SOFT_CAP * _tanh(scores, CLOSE)
        if bias_ptr is not None:
            scores += _tile_of(bias_ptr, bias_rows, columns, BIAS_M, inside)
        scores = tl.where(key_here[None, :], scores, float("-inf"))

        higher = tl.maximum(top, tl.max(scores, 1))
        # a row that has seen no key yet would subtract one infinity from another; only a bias makes them
        safe = tl.where(higher == float("-inf"), 0.0, higher) if bias_ptr is not None else higher
        weights = tl.exp2((scores - safe[:, None]) * POWER)
        shrunk = tl.exp2((top - safe) * POWER)
        top = higher
        total = total * shrunk + tl.sum(weights, 1)
        if probability_mask_ptr is not None:
            weights *= _tile_of(probability_mask_ptr, probability_mask_rows, columns, PROBABILITY_MASK_M, inside)
            if RENORMALISE:
                kept = kept * shrunk + tl.sum(weights, 1)
        weights = narrowed(weights, v.dtype, WIDEN)
        result = tl.dot(weights, v, result * shrunk[:, None], input_precision=PRECISION)
        if positions_ptr is not None:
            there = _tile_of(positions_ptr, positions_rows, columns, POSITIONS_M, inside)
            placed = tl.dot(narrowed(there, v.dtype, WIDEN), v, placed, input_precision=PRECISION)

    share = kept if RENORMALISE else total
    if EPSILON > 0:
        share += EPSILON * total  # it was added to the sum of probabilities, which are weights over their total
    result = result / tl.where(share == 0.0, 1.0, share)[:, None]
    if positions_ptr is not None:
        gate = tl.load(gate_ptr + head)
        result = (1.0 - gate) * result + gate * placed
    out_ptr += item * out_b + head * out_h + start * out_n
    places = row_axis[:, None] * out_n + value_axis[None, :]
    result = narrowed(result, out_ptr.dtype.element_ty, WIDEN).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + places, result, mask=row_here & value_here)
    if lse_ptr is not None:
        lse = top * (POWER / LOG2_E) + tl.log2(total) / LOG2_E
        tl.store(lse_ptr + (item * heads + head) * queries + start + row_axis, lse, mask=first + row_axis < queries)


def attention_constants(variant: Variant, tile: Tile, precision: str, *, widen: bool = False) -> dict[str, Any]:
    """Return the kernel's parameters in capitals.

    Args:
        variant: What is computed.
        tile: How the work is cut.
        precision: Of fp32 products, in Triton's words.
        widen: See the kernel.
    """
    cap = variant.soft_cap
    base = 1.0 if any(one.modifier is Modifier.BIAS for one in variant.operands) else _LOG2_E
    dense = {str(one.modifier): int("m" not in one.broadcast) for one in variant.operands}
    return {
        "FACTOR": variant.scale * base if cap is None else variant.scale / cap,
        "POWER": _LOG2_E / base,
        "SOFT_CAP": None if cap is None else cap * base,
        "CLOSE": variant.dtype is Dtype.FP32,
        "RENORMALISE": variant.renormalise,
        "EPSILON": variant.epsilon,
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
        The output [b, h, n, e] and the log-sum-exp [b, h, n], both fp32, or fp64 if ``q`` is. A query that sees no
        key gets zeros.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v = q.to(wide), k.to(wide), v.to(wide)
    given = {name: one.to(wide) for name, one in operands.items()}
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
            left = probabilities.sum(-1, keepdim=True) + variant.epsilon
            probabilities = probabilities / torch.where(left == 0, 1.0, left)
    if "positions" in given:
        gate = given["gate"].view(-1, 1, 1)
        probabilities = (1 - gate) * probabilities + gate * given["positions"]
    return probabilities @ v, torch.logsumexp(scores, -1)
