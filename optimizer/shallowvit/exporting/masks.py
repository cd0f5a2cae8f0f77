"""Make one additive mask for an ``Attention`` node, or the pattern, out of everything that was added to its scores.

A newcomer's trap: -3.4e38, which models write for "not this key", is minus infinity in fp16, and a row of nothing but minus
infinity gives NaN. So masks are clipped before they are cast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .attention import UnfitError
from .values import constant_of, dims_of, finite_limit, fixed_dims

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    import onnx_ir

    from .attention import AttentionSite, MaskTerm
    from .values import Dim, Emitter

__all__ = ["additive_mask", "constant_behind", "drop_neutral_masks", "narrowed", "no_row_is_empty"]

_FILL = -1e30
_ELEMENTWISE = ("Where", "Add", "Mul", "And", "Or", "Not", "Cast", "Unsqueeze")


def drop_neutral_masks(model: onnx_ir.Model) -> int:
    """Take masks that hide and change nothing away from ``Attention`` nodes, in place; return how many.

    Transformers gives some encoders a mask that is true everywhere, [batch, 1, N, N], which a kernel then reads for nothing.
    """
    import onnx_ir.passes.common

    dropped = 0
    for node in model.graph:
        mask = node.inputs[3] if node.op_type == "Attention" and len(node.inputs) > 3 else None
        if mask is not None and _is_neutral(constant_behind(mask)):
            if any(value is not None for value in node.inputs[4:]):
                node.replace_input_with(3, None)
            else:
                node.resize_inputs(3)
            dropped += 1
    if dropped:
        onnx_ir.passes.common.RemoveUnusedNodesPass()(model)
    return dropped


def additive_mask(
    emitter: Emitter, site: AttentionSite, dtype: onnx_ir.DataType, *, spread: bool = True
) -> onnx_ir.Value | None:
    """Emit the sum of the site's masks, [1 or B, 1 or heads, N, M] in ``dtype``; None where it comes to nothing.

    Without ``spread`` N and M may be 1 as well.

    Raises:
        UnfitError: a mask's shape isn't known well enough to be spread over queries and keys.
    """
    total: onnx_ir.Value | None = None
    for term in site.masks:
        if term.fill is None and _is_neutral(constant_behind(term.value)):
            continue
        value = _in_scores_dims(emitter, _sum_term(emitter, term, dtype), term, site)
        total = value if total is None else emitter.op("Add", [total, value], dims=_broadcast(total, value))
    return total if total is None or not spread else _spread(emitter, total, site)


def narrowed(emitter: Emitter, mask: onnx_ir.Value, dtype: onnx_ir.DataType) -> onnx_ir.Value:
    """Emit a float mask in ``dtype``, clipped so that it stays finite; a boolean one and one of the type stay."""
    import numpy as np
    import onnx_ir

    if mask.dtype in (dtype, onnx_ir.DataType.BOOL):
        return mask
    limit = finite_limit(dtype)
    if mask.dtype is not None and finite_limit(mask.dtype) <= limit:
        return emitter.cast(mask, dtype)
    numbers = constant_of(mask)
    if numbers is not None:
        return emitter.constant(np.clip(numbers.astype(np.float32), -limit, limit), _typed(dtype))
    low, high = (emitter.constant(np.float32(number), mask) for number in (-limit, limit))
    return emitter.cast(emitter.op("Clip", [mask, low, high]), dtype)


def no_row_is_empty(site: AttentionSite) -> bool:
    """Whether every query provably sees a key: then a guard against rows of NaN guards against nothing."""
    hiding = 0
    for term in site.masks:
        numbers = constant_behind(term.value)
        if numbers is None:
            return False
        seen = (numbers.astype(bool) != term.fill_where) if term.fill is not None else numbers > -1e4
        if not seen.any(axis=-1).all():
            return False
        hiding += not seen.all()
    return hiding < 2  # two leave a key each, but perhaps not the same


def constant_behind(value: onnx_ir.Value | None) -> np.ndarray[Any, Any] | None:
    """Return a mask's numbers, up to repetition, where they depend on nothing but the batch size; else None."""
    import numpy as np

    numbers = constant_of(value)
    node = value.producer() if value is not None else None
    if numbers is not None or node is None:
        return numbers
    if node.op_type in ("Expand", "Identity"):
        return constant_behind(node.inputs[0])
    if node.op_type not in _ELEMENTWISE:
        return None
    inputs = [constant_behind(one) for one in node.inputs]
    if any(one is None for one in inputs):
        return None
    if node.op_type == "Cast":
        dtype = node.outputs[0].dtype
        return None if dtype is None else np.asarray(inputs[0]).astype(dtype.numpy())
    if node.op_type == "Unsqueeze":
        return np.expand_dims(np.asarray(inputs[0]), tuple(int(axis) for axis in np.asarray(inputs[1]).reshape(-1)))
    functions: dict[str, Any] = {"Where": np.where, "Add": np.add, "Mul": np.multiply, "And": np.logical_and}
    functions |= {"Or": np.logical_or, "Not": np.logical_not}
    return np.asarray(functions[node.op_type](*inputs))


def _is_neutral(numbers: np.ndarray[Any, Any] | None) -> bool:
    return numbers is not None and bool(numbers.all() if numbers.dtype == bool else not numbers.any())


def _typed(dtype: onnx_ir.DataType) -> onnx_ir.Value:
    import onnx_ir

    return onnx_ir.Value(type=onnx_ir.TensorType(dtype))


def _sum_term(emitter: Emitter, term: MaskTerm, dtype: onnx_ir.DataType) -> onnx_ir.Value:
    """The mask as numbers to add, in ``dtype``, with its factor."""
    import numpy as np

    if term.fill is not None:
        limit = finite_limit(dtype)
        # so low that nothing is left of a score it is added to: a query that sees no key then looks at all alike, as before
        fill = emitter.constant(np.float32(max(min(term.fill * term.factor, _FILL), -limit)), _typed(dtype))
        zero = emitter.constant(np.float32(0), _typed(dtype))
        choices = [fill, zero] if term.fill_where else [zero, fill]
        return emitter.op("Where", [term.value, *choices], dims=term.value.shape, dtype=dtype)
    value = term.value
    if term.factor != 1:
        numbers = constant_of(value)
        if numbers is not None:
            value = emitter.constant(numbers.astype(np.float32) * term.factor, value)
        else:
            value = emitter.op("Mul", [value, emitter.constant(np.float32(term.factor), value)])
    return narrowed(emitter, value, dtype)


def _in_scores_dims(emitter: Emitter, mask: onnx_ir.Value, term: MaskTerm, site: AttentionSite) -> onnx_ir.Value:
    """The mask with as many dimensions as an ``Attention`` node's, windows folded back into the batch."""
    scores = site.scores_dims
    if term.view is not None:
        folded = _windows_folded if len(term.view) == 5 else _grids_folded
        return folded(emitter, mask, term.view, site)
    dims = dims_of(mask)
    if len(scores) == 3 and len(dims) == 3:  # [B, N, M]: the one head of the node stands between
        return _unsqueezed(emitter, mask, [1])
    if len(dims) > 4:
        raise _unknown(site, mask)
    return _unsqueezed(emitter, mask, list(range(4 - len(dims))))


def _windows_folded(emitter: Emitter, mask: onnx_ir.Value, view: tuple[Dim, ...], site: AttentionSite) -> onnx_ir.Value:
    """[1 or batch, windows, 1 or heads, N, M] -> [batch * windows, 1 or heads, N, M]; windows alone are repeated."""
    import onnx_ir

    mask = _unsqueezed(emitter, mask, list(range(5 - len(dims_of(mask)))))
    heads = dims_of(mask)[2]
    _, windows, _, queries, keys = view
    fixed = fixed_dims((windows, heads, queries, keys))
    if fixed is None or len(dims_of(mask)) != 5 or len(dims_of(site.query)) != 4:
        raise _unknown(site, mask)
    size = emitter.op("Shape", [site.query], {"start": 0, "end": 1}, dims=[1], dtype=onnx_ir.DataType.INT64)
    batch = emitter.op("Div", [size, emitter.constant(fixed[:1])])
    shape = emitter.op("Concat", [batch, emitter.constant([fixed[0], 1, 1, 1])], {"axis": 0}, dims=[5])
    spread = emitter.op("Expand", [mask, shape], dims=[view[0], *fixed])
    return emitter.op("Reshape", [spread, emitter.constant([-1, *fixed[1:]])], dims=[dims_of(site.query)[0], *fixed[1:]])


def _grids_folded(emitter: Emitter, mask: onnx_ir.Value, view: tuple[Dim, ...], site: AttentionSite) -> onnx_ir.Value:
    """[1 or B, 1 or heads, rows, columns, rows, columns], each of them or 1, -> [1 or B, 1 or heads, N, M]."""
    mask = _unsqueezed(emitter, mask, list(range(6 - len(dims_of(mask)))))
    fixed = fixed_dims(view[2:])
    if fixed is None or len(dims_of(mask)) != 6:
        raise _unknown(site, mask)
    outer = dims_of(mask)[:2]
    spread = emitter.op("Expand", [mask, emitter.constant([1, 1, *fixed])], dims=[*outer, *fixed])
    tokens = [fixed[0] * fixed[1], fixed[2] * fixed[3]]
    return emitter.op("Reshape", [spread, emitter.constant([0, 0, *tokens])], dims=[*outer, *tokens])


def _unsqueezed(emitter: Emitter, value: onnx_ir.Value, axes: list[int]) -> onnx_ir.Value:
    if not axes:
        return value
    dims = list(dims_of(value))
    for axis in axes:
        dims.insert(axis, 1)
    numbers, fixed = constant_of(value), fixed_dims(dims)
    if numbers is not None and fixed is not None:
        return emitter.constant(numbers.reshape(fixed), value)
    return emitter.op("Unsqueeze", [value, emitter.constant(axes)], dims=dims)


def _spread(emitter: Emitter, mask: onnx_ir.Value, site: AttentionSite) -> onnx_ir.Value:
    """Repeat a mask of one query, or one key, over all: MatMul's sum broadcasts there, ``Attention`` doesn't."""
    wanted, found = site.scores_dims[-2:], dims_of(mask)[-2:]
    if found == wanted:
        return mask
    fixed = fixed_dims((*wanted, *found))
    if fixed is None:
        raise _unknown(site, mask)
    return emitter.op("Expand", [mask, emitter.constant([1, 1, *fixed[:2]])], dims=[*dims_of(mask)[:2], *wanted])


def _broadcast(one: onnx_ir.Value, other: onnx_ir.Value) -> list[Dim]:
    return [a if b == 1 else b for a, b in zip(dims_of(one), dims_of(other), strict=True)]


def _unknown(site: AttentionSite, mask: onnx_ir.Value) -> UnfitError:
    return UnfitError(
        f"a mask of {list(dims_of(mask))} can't be spread over scores of {list(site.scores_dims)} while those are dynamic"
    )
