"""Kernels of ours as an engine carries them: a launch (JSON) and its PTX, for one or more compute capabilities.

This file, ``plugin_launch.py`` and ``attention_plugin.py`` also run beside TensorRT while an engine is built, and travel in a
bundle for a Jetson: the standard library only. A newcomer's trap: sizes of batch and tokens aren't known before a launch, so
whatever depends on them is a product of sizes, worked out with numbers or with TensorRT's expressions.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Dims = Sequence[int | None]  # None: known at run time

__all__ = [
    "DTYPES",
    "NAMESPACE",
    "Argument",
    "Kernel",
    "PluginError",
    "Size",
    "Tensor",
    "check_shapes",
    "check_types",
    "choose_kernel",
    "kernel_from_text",
    "numbers_of",
    "operators_in",
    "read_kernel",
]

NAMESPACE = "shallowvit"  # of the graph's nodes and of the plugins
DTYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}  # ours -> TensorRT's
_SCHEMA = 1
_LARGEST_INT = 2**31 - 1  # what is passed to a kernel, and blocks of a grid
# Of the PTX: a node's name may hold its operator's too, also in an engine that TensorRT has written the node out in.
_ENTRY = re.compile(rb"\.entry (shallowvit_[a-z0-9_]+_d\d+_[0-9a-f]{8})\(")


class PluginError(Exception):
    """A kernel of ours can't be taken into an engine, or be launched from one: one sentence."""


@dataclass(frozen=True)
class Size:
    """A product of a number and of sizes (input, axis); ``rounded``, one of them, is divided first, and rounded up."""

    number: int
    dims: tuple[tuple[int, int], ...]
    divisor: int
    rounded: tuple[int, int] | None

    def of(self, shapes: Sequence[Sequence[int]]) -> int:
        """Work it out for the shapes of the inputs."""
        return int(self.express(lambda tensor, axis: shapes[tensor][axis], int, _times, _divided))

    def express(
        self,
        dim: Callable[[int, int], Any],
        constant: Callable[[int], Any],
        times: Callable[[Any, Any], Any],
        divided: Callable[[Any, Any], Any],
    ) -> Any:
        """Put it together in whatever ``dim`` and ``constant`` return."""
        factors = [
            divided(dim(*place), constant(self.divisor)) if place == self.rounded and self.divisor != 1 else dim(*place)
            for place in self.dims
        ]
        if self.number != 1 or not factors:
            factors.append(constant(self.number))
        result = factors[0]
        for factor in factors[1:]:
            result = times(result, factor)
        return result


def _times(one: int, other: int) -> int:
    return one * other


def _divided(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


@dataclass(frozen=True)
class Tensor:
    """An input or output: a letter an axis, as [b, h, n, d]; axes of ``broadcast`` are 1."""

    name: str
    axes: str
    dtype: str
    broadcast: str

    def __str__(self) -> str:
        broadcast = f", {', '.join(self.broadcast)} being 1" if self.broadcast else ""
        return f"{self.name} [{', '.join(self.axes)}]{broadcast}"


@dataclass(frozen=True)
class Argument:
    """What a kernel is called with: ``kind`` is ``input`` or ``output`` (by ``index``) or ``size``."""

    name: str
    kind: str
    index: int
    size: Size | None


@dataclass(frozen=True)
class Kernel:
    """A launch and its PTX.

    Args:
        operator: The node's operator, the plugin's name and the entry in the PTX.
        variant: What it computes, as the node's attribute says it too.
        sm: The compute capability, as 86 for 8.6; its PTX runs there and later, unless ``exact``.
        exact: Whether it runs on that one alone.
        ptx_version: As 80 for 8.0.
        threads: In a block.
        shared_bytes: Dynamic shared memory of a block.
        grid: Blocks.
        arguments: In order.
        inputs: In order, dense.
        outputs: Likewise.
        output_shapes: A size an axis.
        launch: The JSON that this was read from.
        ptx: Its code.
    """

    operator: str
    variant: str
    sm: int
    exact: bool
    ptx_version: int
    threads: int
    shared_bytes: int
    grid: Size
    arguments: tuple[Argument, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    output_shapes: tuple[tuple[Size, ...], ...]
    launch: str
    ptx: str


def kernel_from_text(launch: str, ptx: str, where: str) -> Kernel:
    """Return a kernel from the contents of its two files; ``where`` names them in a sentence.

    Raises:
        PluginError: the launch is damaged or of another version, or the PTX has no such entry.
    """
    try:
        record = json.loads(launch)
        if record["schema"] != _SCHEMA:
            raise PluginError(f"plugin: {where} has schema {record['schema']}, and this version reads {_SCHEMA}; build again")
        kernel = _kernel(record, launch, ptx)
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise PluginError(f"plugin: {where} is damaged ({err!r}); build again") from err
    if f".entry {kernel.operator}(" not in ptx:
        raise PluginError(f"plugin: the PTX of {where} has no entry {kernel.operator}; build again")
    return kernel


def read_kernel(launch: str, ptx: str) -> Kernel:
    """Return a kernel from the paths of its two files.

    Raises:
        PluginError: one can't be read, and as ``kernel_from_text``.
    """
    texts = []
    for path in (launch, ptx):
        try:
            with open(path, encoding="utf-8") as file:
                texts.append(file.read())
        except (OSError, UnicodeDecodeError) as err:
            said = err.strerror if isinstance(err, OSError) else str(err)
            raise PluginError(f"plugin: {path} can't be read ({said}); compile the kernel again") from err
    return kernel_from_text(texts[0], texts[1], launch)


def _kernel(record: dict[str, Any], launch: str, ptx: str) -> Kernel:
    return Kernel(
        operator=record["kernel"],
        variant=record["variant"],
        sm=record["sm"],
        exact=record["exact"],
        ptx_version=record["ptx_version"],
        threads=record["threads"],
        shared_bytes=record["shared_bytes"],
        grid=_size(record["grid"]),
        arguments=tuple(
            Argument(one["name"], one["kind"], one["index"], _size(one["size"]) if one["size"] else None)
            for one in record["arguments"]
        ),
        inputs=tuple(_tensor(one) for one in record["inputs"]),
        outputs=tuple(_tensor(one) for one in record["outputs"]),
        output_shapes=tuple(tuple(_size(one) for one in shape) for shape in record["output_shapes"]),
        launch=launch,
        ptx=ptx,
    )


def _size(record: dict[str, Any]) -> Size:
    dims = tuple((int(tensor), int(axis)) for tensor, axis in record["dims"])
    return Size(record["number"], dims, record["divisor"], tuple(record["rounded"]) if record["rounded"] else None)


def _tensor(record: dict[str, Any]) -> Tensor:
    return Tensor(record["name"], record["axes"], record["dtype"], record["broadcast"])


def operators_in(engine: bytes) -> list[str]:
    """Return the names of our operators whose kernels an engine's bytes hold, sorted."""
    return sorted({match.decode() for match in _ENTRY.findall(engine)})


def choose_kernel(kernels: Sequence[Kernel], sm: int) -> Kernel:
    """Return what suits a GPU best: its own kernel, else that of the nearest earlier GPU.

    Args:
        kernels: Of one operator.
        sm: The GPU's compute capability, as 86 for 8.6.

    Raises:
        PluginError: none of them runs there.
    """
    fitting = [one for one in kernels if one.sm == sm or (one.sm < sm and not one.exact)]
    if not fitting:
        found = ", ".join(f"{one.sm / 10:.1f}{' alone' if one.exact else ' and later'}" for one in kernels) or "none"
        name = kernels[0].operator if kernels else "the kernel"
        raise PluginError(
            f"plugin: the GPU has compute capability {sm / 10:.1f}, and {name} was compiled for {found}; build for it"
        )
    return max(fitting, key=lambda one: one.sm)


def check_types(kernel: Kernel, found: Sequence[str]) -> None:
    """Refuse inputs of other types, given as TensorRT names them.

    Raises:
        PluginError: a type or their number doesn't fit.
    """
    _check_count(kernel, len(found))
    ours = {theirs: one for one, theirs in DTYPES.items()}
    for spec, dtype in zip(kernel.inputs, found, strict=True):
        if dtype != DTYPES[spec.dtype]:
            raise PluginError(
                f"plugin: {spec.name} of {kernel.operator} is {ours.get(dtype, dtype)}, and {spec.dtype} is expected; "
                "export again"
            )


def _check_count(kernel: Kernel, found: int) -> None:
    if found != len(kernel.inputs):
        names = ", ".join(one.name for one in kernel.inputs)
        raise PluginError(f"plugin: {kernel.operator} takes {len(kernel.inputs)} inputs ({names}), found {found}; export again")


def check_shapes(kernel: Kernel, shapes: Sequence[Dims]) -> None:
    """Refuse inputs that a kernel can't take, by their shapes; sizes that aren't known yet are None.

    Raises:
        PluginError: their number, a number of axes or a size doesn't fit.
    """
    _check_count(kernel, len(shapes))
    known = _known_sizes(kernel)
    packed = "3" in kernel.inputs[0].axes
    for spec, shape in zip(kernel.inputs, shapes, strict=True):
        if len(shape) != len(spec.axes):
            raise PluginError(
                f"plugin: {spec} of {kernel.operator} has {len(spec.axes)} axes, found the shape {_list(shape)}; export again"
            )
        for letter, size in zip(spec.axes, shape, strict=True):
            if size is None:
                continue
            same = "n" if packed and letter == "m" else letter  # packed keys are as many as queries
            wanted = 1 if letter in spec.broadcast else known.setdefault(same, size)
            if size != wanted or size < 1:
                raise PluginError(
                    f"plugin: axis {letter} of {spec} of {kernel.operator} is {size}, and {max(wanted, 1)} is expected; "
                    f"found {_list(shape)}"
                )


def _known_sizes(kernel: Kernel) -> dict[str, int]:
    """Letters whose size is settled: those of the outputs, three tensors in one, and the head that products are over."""
    known = {"3": 3}
    for spec, sizes in zip(kernel.outputs, kernel.output_shapes, strict=True):
        known |= {letter: size.number for letter, size in zip(spec.axes, sizes, strict=True) if not size.dims}
    variant = json.loads(kernel.variant)
    return known | {"d": variant["head_size"], "e": variant["value_size"]}


def numbers_of(kernel: Kernel, shapes: Sequence[Sequence[int]]) -> tuple[dict[str, int], int]:
    """Return the whole numbers that a launch passes, by name, and its blocks.

    Raises:
        PluginError: one doesn't fit into 32 bits.
    """
    found = {one.name: one.size.of(shapes) for one in kernel.arguments if one.size is not None}
    blocks = kernel.grid.of(shapes)
    for name, number in (found | {"the grid": blocks}).items():
        if number > _LARGEST_INT:
            raise PluginError(
                f"plugin: {name} of {kernel.operator} is {number}, and {_LARGEST_INT} is the largest that is passed; "
                "use a smaller batch"
            )
    return found, blocks


def _list(shape: Dims) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
