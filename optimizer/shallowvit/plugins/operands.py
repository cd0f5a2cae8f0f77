"""Bring what modifies scores and probabilities into the shape of a kernel's operands, [b, h, n, m] with ones where it repeats.

A newcomer's trap: a size that isn't known could be 1 when the graph runs, and a kernel reads as many numbers as its variant
says; so every size must be 1 or provably that of the scores.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from shallowvit_kernels.functions import TYPES
from shallowvit_kernels.records import Modifier, Operand

from ..exporting.attention import UnfitError
from ..exporting.masks import additive_mask
from ..exporting.values import dims_of, is_float
from .folding import folded

if TYPE_CHECKING:
    import onnx_ir

    from ..exporting.attention import AttentionSite
    from ..exporting.values import Dim, Emitter
    from .found import Factor, Found

__all__ = ["gate_of", "hides_entirely", "operands_of"]

_LETTERS = "bhnm"


def operands_of(emitter: Emitter, found: Found) -> list[tuple[Operand, onnx_ir.Value]]:
    """Emit a variant's operands in their order.

    Raises:
        UnfitError: one can't be brought into the shape of the scores, or two masks into one.
    """
    site = found.site
    given = [
        (Modifier.SCORE_MASK, _factor(emitter, found.score_masks, site)),
        (Modifier.BIAS, _bias(emitter, site)),
        (Modifier.PROBABILITY_MASK, _factor(emitter, found.factors, site)),
        (Modifier.POSITIONS, None if found.gate is None else found.gate.positions),
    ]
    result = []
    for modifier, value in given:
        if value is not None:
            shaped = _in_scores_dims(emitter, value, site, modifier)
            result.append((_operand(modifier, shaped, site), shaped))
    return result


def gate_of(emitter: Emitter, found: Found) -> onnx_ir.Value | None:
    """Emit the gate as [h] in fp32; None where there is none.

    Raises:
        UnfitError: it isn't one number a head.
    """
    import onnx_ir

    if found.gate is None:
        return None
    heads, gate = _scores_dims(found.site)[1], found.gate.gate
    if not isinstance(heads, int):
        raise UnfitError("there is a gate of each head, and the number of heads isn't known")
    fp32 = onnx_ir.Value(type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT))
    numbers = folded(gate)
    if numbers is not None:
        if numbers.size not in (1, heads) or numbers.size != max(numbers.shape[-3:-2] or (1,)):
            raise UnfitError(f"the gate has the shape {list(numbers.shape)}, which isn't one number a head")
        return emitter.constant(np.broadcast_to(numbers.reshape(-1).astype(np.float32), (heads,)), fp32)
    dims = dims_of(gate)
    if dims[-3:] != (heads, 1, 1) or dims[:-3] not in ((), (1,)):
        raise UnfitError(f"the gate has the shape {list(dims)}, which isn't one number a head")
    flat = emitter.op("Reshape", [gate, emitter.constant([heads])], dims=[heads])
    return emitter.cast(flat, onnx_ir.DataType.FLOAT)


def hides_entirely(site: AttentionSite) -> bool:
    """Whether its masks are boolean and mean minus infinity: queries that see no key then give zeros in a kernel."""
    return bool(site.masks) and all(term.fill == -math.inf and term.view is None for term in site.masks)


def _bias(emitter: Emitter, site: AttentionSite) -> onnx_ir.Value | None:
    if not hides_entirely(site):
        return additive_mask(emitter, site, _bias_type(site), spread=False)
    import onnx_ir

    like = onnx_ir.Value(type=onnx_ir.TensorType(_bias_type(site)))
    numbers = [emitter.constant(np.float32(number), like) for number in (0, -np.inf)]
    total: onnx_ir.Value | None = None
    for term in site.masks:
        choices = numbers[::-1] if term.fill_where else numbers
        value = emitter.op("Where", [term.value, *choices], dims=term.value.shape, dtype=like.dtype)
        if len(site.masks) == 1:
            return value
        value = _in_scores_dims(emitter, value, site, Modifier.BIAS)
        dims = None if total is None else [y if x == 1 else x for x, y in zip(dims_of(total), dims_of(value), strict=True)]
        total = value if total is None else emitter.op("Add", [total, value], dims=dims)
    return total


def _bias_type(site: AttentionSite) -> onnx_ir.DataType:
    """Masks of numbers keep their type, those of booleans get that of the queries."""
    assert site.query.dtype is not None
    kinds = [term.value.dtype for term in site.masks if term.fill is None and term.value.dtype in TYPES.values()]
    first = kinds[0] if kinds else None
    return first if first is not None and set(kinds) == {first} else site.query.dtype


def _scores_dims(site: AttentionSite) -> tuple[Dim, ...]:
    dims = site.scores_dims
    return (dims[0], 1, *dims[1:]) if len(dims) == 3 else dims


def _factor(emitter: Emitter, factors: tuple[Factor, ...], site: AttentionSite) -> onnx_ir.Value | None:
    """One tensor of all factors, where their product is no larger than the largest of them or is constant."""
    total: onnx_ir.Value | None = None
    for factor in factors:
        value = _numbers(emitter, factor, site)
        if total is None:
            total = value
            continue
        a, b = (_in_scores_dims(emitter, one, site, Modifier.PROBABILITY_MASK) for one in (total, value))
        dims = [y if x == 1 else x for x, y in zip(dims_of(a), dims_of(b), strict=True)]
        constants = folded(a), folded(b)
        if tuple(dims) not in (dims_of(a), dims_of(b)) and (constants[0] is None or constants[1] is None):
            raise UnfitError("two masks together are larger than each of them")
        assert site.query.dtype is not None
        kinds = {one.dtype for one in (a, b)}
        if len(kinds) > 1:
            a, b = (emitter.cast(one, site.query.dtype) for one in (a, b))
        total = emitter.op("Mul", [a, b], dims=dims)
    return total


def _numbers(emitter: Emitter, factor: Factor, site: AttentionSite) -> onnx_ir.Value:
    """A factor to multiply by: booleans as 1 and 0, a divisor as its reciprocal."""
    value, dtype = factor.value, site.query.dtype
    assert dtype is not None
    if value.dtype is not None and value.dtype.name == "BOOL":
        value = emitter.op("Not", [value]) if factor.turned else value
        return emitter.cast(value, dtype)
    return emitter.op("Reciprocal", [value]) if factor.turned else value


def _in_scores_dims(emitter: Emitter, value: onnx_ir.Value, site: AttentionSite, what: str) -> onnx_ir.Value:
    """[b, h, n, m] or 1 for each; constant where it is the same for every item."""
    rank, scores = len(dims_of(value)), site.scores_dims
    if rank > 4 or (value.shape is None):
        raise UnfitError(f"its {what} has {rank if value.shape is not None else 'unknown'} dimensions")
    if not is_float(value) or value.dtype not in TYPES.values():
        name = value.dtype.name if value.dtype is not None else "unknown"
        raise UnfitError(f"its {what} is of the type {name}, and kernels read fp32, fp16 and bf16")
    numbers = folded(value)
    one_head = len(scores) == 3 and rank == 3  # [B, N, M]: the one head stands between
    if numbers is not None:
        shape = (1,) * (rank - numbers.ndim) + numbers.shape
        shape = (shape[0], 1, *shape[1:]) if one_head else (1,) * (4 - rank) + shape
        return emitter.constant(np.ascontiguousarray(numbers.reshape(shape)), value)
    axes = [1] if one_head else list(range(4 - rank))
    if not axes:
        return value
    dims = list(dims_of(value))
    for axis in axes:
        dims.insert(axis, 1)
    return emitter.op("Unsqueeze", [value, emitter.constant(axes)], dims=dims)


def _operand(modifier: Modifier, value: onnx_ir.Value, site: AttentionSite) -> Operand:
    scores, dims = _scores_dims(site), dims_of(value)
    for wanted, size in zip(scores, dims, strict=True):
        if size != 1 and (size is None or size != wanted):
            raise UnfitError(f"its {modifier} of {list(dims)} can't be held against scores of {list(scores)}")
    broadcast = "".join(letter for letter, size in zip(_LETTERS, dims, strict=True) if size == 1)
    names = {one: name for name, one in TYPES.items()}
    assert value.dtype is not None
    return Operand(modifier, broadcast, names[value.dtype])
