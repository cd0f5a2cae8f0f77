"""What an engine's buffers look like and which of its profiles holds a batch: all that can be said without a GPU.

A newcomer's trap: numpy has no bf16, so such tensors are uint16 on the host and are widened when they are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "TensorPlan",
    "bytes_of",
    "choose_profile",
    "float_from_host",
    "host_from_batch",
    "profile_holding",
    "profile_ranges",
    "tensor_plans",
]

# TensorRT's DataType -> numpy's
_HOST_DTYPES: dict[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": np.uint16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class TensorPlan:
    """An input or output of an engine; ``kind`` is TensorRT's name of the type, ``dtype`` that of the host's buffer."""

    name: str
    is_input: bool
    kind: str
    dtype: np.dtype[Any]


def tensor_plans(engine: Any, where: str) -> tuple[TensorPlan, ...]:
    """Return the inputs and outputs of an engine, in its order.

    Raises:
        BenchError: it has no input or no output, or one has a type that a host can't hold.
    """
    plans = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = _last_name(engine.get_tensor_dtype(name))
        if kind not in _HOST_DTYPES:
            raise BenchError(f"open_engine: {where} has a tensor {name} of {kind}; it must be one of {', '.join(_HOST_DTYPES)}")
        is_input = _last_name(engine.get_tensor_mode(name)) == "INPUT"
        plans.append(TensorPlan(name, is_input, kind, np.dtype(_HOST_DTYPES[kind])))
    inputs = sum(plan.is_input for plan in plans)
    if inputs in (0, len(plans)):
        raise BenchError(
            f"open_engine: {where} has {inputs} inputs and {len(plans) - inputs} outputs; the harness runs engines of at least "
            "one of each"
        )
    return tuple(plans)


def choose_profile(engine: Any, shapes: Mapping[str, tuple[int, ...]], wanted: int | None, where: str) -> int:
    """Return the optimisation profile that holds a batch.

    Args:
        engine: Of TensorRT.
        shapes: Of the batch's arrays, by the names of the engine's inputs.
        wanted: The profile the user asked for; None: the first that holds it.
        where: The engine's path, for the sentence.

    Raises:
        BenchError: none does, or the wanted one doesn't.
    """
    fitting: list[set[int]] = []
    for name, shape in shapes.items():
        ranges = profile_ranges(engine, name)
        first = profile_holding(ranges, shape, wanted, where)  # raises where none does
        fitting.append({first, *(index for index in range(len(ranges)) if wanted is None and _holds(ranges[index], shape))})
    both = set.intersection(*fitting)
    if not both:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise BenchError(
            f"infer: no optimisation profile of {where} holds {listed} together; build the engine with a profile for them: "
            "shallowvit build BUNDLE --engine FLAVOUR --batch MIN:OPT:MAX"
        )
    return min(both)


def profile_ranges(engine: Any, name: str) -> list[tuple[tuple[int, ...], ...]]:
    """Return the least, best and greatest shape of an input in each optimisation profile."""
    return [
        tuple(tuple(int(size) for size in shape) for shape in engine.get_tensor_profile_shape(name, index))
        for index in range(engine.num_optimization_profiles)
    ]


def profile_holding(ranges: Sequence[Sequence[Sequence[int]]], shape: tuple[int, ...], wanted: int | None, where: str) -> int:
    """Return the first profile whose range holds a shape, or the wanted one.

    Args:
        ranges: The least, best and greatest shape of each profile.
        shape: Of the batch.
        wanted: A number, or None for the first that holds it.
        where: The engine's path, for the sentence.

    Raises:
        BenchError: none does, or the wanted one doesn't.
    """
    if wanted is not None and not 0 <= wanted < len(ranges):
        raise BenchError(f"infer: {where} has {len(ranges)} optimisation profiles, so there is no number {wanted}")
    for index in range(len(ranges)) if wanted is None else (wanted,):
        if _holds(ranges[index], shape):
            return index
    shown = "; ".join(
        f"{index}: {list(low)} to {list(high)}" for index, (low, _, high) in enumerate(ranges) if wanted in (None, index)
    )
    raise BenchError(
        f"infer: no optimisation profile of {where} holds a batch {list(shape)} ({shown}); choose a --batch within, or build "
        "the engine with a profile for it: shallowvit build BUNDLE --engine FLAVOUR --batch MIN:OPT:MAX"
    )


def _holds(ranges: Sequence[Sequence[int]], shape: tuple[int, ...]) -> bool:
    low, _, high = ranges
    return len(low) == len(shape) and all(small <= size <= big for small, size, big in zip(low, shape, high, strict=True))


def bytes_of(plan: TensorPlan, shape: tuple[int, ...]) -> int:
    """Return the size of a buffer.

    Raises:
        BenchError: the shape depends on the data, or is empty.
    """
    if min(shape, default=1) < 1:
        raise BenchError(
            f"infer: the engine gives {plan.name} the shape {list(shape)}, which depends on the data; export it fixed"
        )
    return prod(shape) * plan.dtype.itemsize


def host_from_batch(plan: TensorPlan, batch: np.ndarray[Any, Any], host: np.ndarray[Any, Any]) -> None:
    """Write a batch into a host buffer of an input, converted from one float type to another where they differ.

    Raises:
        BenchError: the batch isn't of floats where the engine wants them, or the other way round.
    """
    wants_floats = plan.kind in ("FLOAT", "HALF", "BF16")
    if wants_floats != (batch.dtype.kind == "f") or (not wants_floats and batch.dtype != plan.dtype):
        raise BenchError(f"infer: the engine's input {plan.name} is {plan.kind}, the batch is {batch.dtype}")
    if plan.kind != "BF16":
        np.copyto(host, batch, casting="same_kind")
        return
    bits = np.ascontiguousarray(batch, np.float32).view(np.uint32)
    host[...] = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)  # to the nearest, ties to even


def float_from_host(plan: TensorPlan, host: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a host buffer of an output, bf16 widened to float32; other types as they lie there."""
    if plan.kind != "BF16":
        return host
    return (host.astype(np.uint32) << 16).view(np.float32)


def _last_name(member: Any) -> str:
    """The name of a member of one of TensorRT's enumerations, which ``str`` gives as Kind.NAME."""
    return str(member).rpartition(".")[2]
