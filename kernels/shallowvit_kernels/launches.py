"""How a compiled kernel is launched, as data: what a file holds beside the PTX, read by whoever has only the two.

The same record is read by PyCUDA's launcher here, by the plugins inside TensorRT, and by people.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from .errors import KernelError
from .records import Argument, Dtype, Size, Variant
from .tensors import TensorSpec

__all__ = ["Launch", "launch_from_json"]

_SCHEMA = 1


@dataclass(frozen=True)
class Launch:
    """A compiled kernel's call.

    Args:
        kernel: Its name in the PTX: ``variant.name``.
        variant: What it computes.
        sm: The compute capability it was compiled for, as 86 for 8.6; its PTX runs there and later, unless ``exact``.
        exact: Whether the PTX has instructions of that generation alone (``sm_90a``).
        ptx_version: The PTX ISA, as 80 for 8.0: the driver must know it.
        threads: In a block, all along x.
        shared_bytes: Dynamic shared memory of a block.
        grid: Blocks, all along x.
        arguments: In order: inputs, whole numbers (int32), outputs.
        inputs: The tensors, contiguous in their layout.
        outputs: Likewise.
        output_shapes: A size an axis of each output, from the inputs' shapes.
    """

    kernel: str
    variant: Variant
    sm: int
    exact: bool
    ptx_version: int
    threads: int
    shared_bytes: int
    grid: Size
    arguments: tuple[Argument, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    output_shapes: tuple[tuple[Size, ...], ...]

    def to_json(self) -> str:
        """Return it as text, the same for the same launch."""
        record = asdict(self) | {"schema": _SCHEMA, "variant": self.variant.to_json()}
        return json.dumps(record, sort_keys=True, indent=1) + "\n"


def launch_from_json(text: str) -> Launch:
    """Return what ``Launch.to_json`` wrote.

    Raises:
        KernelError: it isn't that, or of another version.
    """
    try:
        record = json.loads(text)
        schema = record.pop("schema")
        if schema != _SCHEMA:
            raise KernelError(f"launch: schema {schema}, and this version reads {_SCHEMA}; compile the kernel again")
        return Launch(
            variant=Variant.from_json(record.pop("variant")),
            grid=_size(record.pop("grid")),
            arguments=tuple(_argument(one) for one in record.pop("arguments")),
            inputs=tuple(_tensor(one) for one in record.pop("inputs")),
            outputs=tuple(_tensor(one) for one in record.pop("outputs")),
            output_shapes=tuple(tuple(_size(one) for one in shape) for shape in record.pop("output_shapes")),
            **record,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise KernelError(f"launch: damaged ({err!r}); compile the kernel again") from err


def _size(record: dict[str, Any]) -> Size:
    rounded = record["rounded"]
    dims = tuple((int(tensor), int(axis)) for tensor, axis in record["dims"])
    return Size(record["number"], dims, record["divisor"], tuple(rounded) if rounded else None)


def _argument(record: dict[str, Any]) -> Argument:
    size, stride = record.pop("size"), record.pop("stride")
    return Argument(**record, size=_size(size) if size else None, stride=tuple(stride) if stride else None)


def _tensor(record: dict[str, Any]) -> TensorSpec:
    return TensorSpec(record["name"], record["axes"], Dtype(record["dtype"]), record["broadcast"])
