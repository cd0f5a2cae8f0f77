"""The tensors of a variant, and what a kernel's parameters are for them.

Kernels keep one convention, so that launching needs no code of its own for each: ``x_ptr`` points to the tensor ``x``, ``x_b``,
``x_h`` and ``x_n`` are its strides over batch, heads and tokens (the last axis is dense), ``heads``, ``queries`` and ``keys``
are sizes, ``part`` is the way from queries to keys in a packed tensor, and what is written in capitals is settled when the
kernel is compiled. A parameter of a tensor that a variant doesn't have is None or 0 then, and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .records import Argument, Dtype, Layout, Size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .records import Variant

__all__ = ["TensorSpec", "arguments_of", "grid_of", "inputs_of", "outputs_of", "size_of"]

_ALIGNED_BYTES = 16  # pointers of torch, CUDA and TensorRT are aligned to more
_DIVISOR = 16


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a kernel.

    Args:
        name: As in its parameters.
        axes: Its letters in the order of memory: b batch, h heads, n queries, m keys, d numbers a head, e those of values, 3.
        dtype: Of its numbers.
        broadcast: Letters whose size is 1.
    """

    name: str
    axes: str
    dtype: Dtype
    broadcast: str = ""


def inputs_of(variant: Variant) -> tuple[TensorSpec, ...]:
    """Return the inputs of a variant in the order of its kernel's parameters; of packed ones the first stands for three."""
    dtype = variant.dtype
    if variant.layout is Layout.PACKED:
        main: tuple[TensorSpec, ...] = (TensorSpec("q", "bn3hd", dtype),)
    else:
        axes = str(variant.layout)
        keys, values = axes.replace("n", "m"), axes.replace("n", "m").replace("d", "e")
        main = (TensorSpec("q", axes, dtype), TensorSpec("k", keys, dtype), TensorSpec("v", values, dtype))
    modifiers = tuple(TensorSpec(str(one.modifier), "bhnm", one.dtype, one.broadcast) for one in variant.operands)
    gate = (TensorSpec("gate", "h", Dtype.FP32),) if variant.gated else ()
    return (*main, *modifiers, *gate)


def outputs_of(variant: Variant) -> tuple[TensorSpec, ...]:
    """Return the outputs of a variant."""
    out = TensorSpec("out", str(variant.output_layout).replace("d", "e"), variant.dtype)
    return (out, TensorSpec("lse", "bhn", Dtype.FP32)) if variant.log_sum_exp else (out,)


def size_of(letter: str, variant: Variant) -> Size:
    """Return the size of an axis from the shapes of the inputs."""
    known = {"d": variant.head_size, "e": variant.value_size, "3": 3}
    if letter in known:
        return Size(known[letter])
    inputs = inputs_of(variant)
    letter = "n" if letter == "m" and variant.layout is Layout.PACKED else letter
    place = next((at, one.axes.index(letter)) for at, one in enumerate(inputs) if letter in one.axes)
    return Size(dims=(place,))


def arguments_of(names: Sequence[str], variant: Variant) -> dict[str, Argument | None]:
    """Return what each of a kernel's parameters in small letters is for contiguous tensors; None where there is no such tensor.

    Args:
        names: The kernel's parameters; those in capitals are left out.
        variant: What is computed.
    """
    inputs, outputs = inputs_of(variant), outputs_of(variant)
    tensors = {one.name: one for one in (*inputs, *outputs)}
    if variant.layout is Layout.PACKED:
        tensors |= {"k": tensors["q"], "v": tensors["q"]}  # their strides; their pointers are worked out in the kernel
    found: dict[str, Argument | None] = {}
    for name in names:
        if name.isupper():
            continue
        tensor, _, last = name.rpartition("_")
        if name in _SIZES:
            found[name] = Argument(name, "size", size=size_of(_SIZES[name], variant))
        elif name == "part":
            packed = variant.layout is Layout.PACKED
            found[name] = _stride(name, tensors["q"], "3", variant) if packed else None
        elif last == "ptr":
            places = [one.name for one in inputs], [one.name for one in outputs]
            kind = next((kind for kind, known in zip(("input", "output"), places, strict=True) if tensor in known), None)
            index = 0 if kind is None else places[kind == "output"].index(tensor)
            found[name] = None if kind is None else Argument(name, kind, index, divisor=_ALIGNED_BYTES)
        else:
            letter = "m" if last == "n" and tensor in ("k", "v") and variant.layout is not Layout.PACKED else last
            found[name] = _stride(name, tensors[tensor], letter, variant) if tensor in tensors else None
    return found


_SIZES = {"heads": "h", "queries": "n", "keys": "m"}


def _stride(name: str, tensor: TensorSpec, letter: str, variant: Variant) -> Argument:
    """The product of the sizes behind an axis; 0 for an axis that is broadcast."""
    stride = (f"{tensor.name}_ptr", letter)
    if letter in tensor.broadcast:
        return Argument(name, "size", size=Size(0), stride=stride)
    number, dims = 1, list[tuple[int, int]]()
    for behind in tensor.axes[tensor.axes.index(letter) + 1 :]:
        if behind not in tensor.broadcast:
            size = size_of(behind, variant)
            number *= size.number
            dims += size.dims
    divisor = next(power for power in (_DIVISOR, 8, 4, 2, 1) if number % power == 0)
    return Argument(name, "size", size=Size(number, tuple(dims)), stride=stride, divisor=divisor)


def grid_of(variant: Variant, tile_queries: int) -> Size:
    """Return how many programs there are: one a tile of queries, head and item."""
    queries = size_of("n", variant).dims[0]
    batch, heads = size_of("b", variant).dims[0], size_of("h", variant).dims[0]
    return Size(1, (queries, batch, heads), divisor=tile_queries, rounded=queries)
