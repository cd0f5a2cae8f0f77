"""What a kernel computes, on which operands, and how it is launched: records that are data, so that a file can hold them.

A newcomer's trap: a ``Variant`` is settled when a kernel is compiled, sizes of batch and tokens only when it is launched. So
what depends on them (strides, the grid) is written down as a product of sizes, which numbers, symbols of TensorRT and a reader
can each work out.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from .errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DOMAIN", "Argument", "Dtype", "FeatureMap", "Kernel", "Layout", "Modifier", "Operand", "Size", "Tile", "Variant"]

DOMAIN = "shallowvit"  # of nodes of our own in a graph
_SCHEMA = 1


class Kernel(StrEnum):
    """One file each in this folder."""

    ATTENTION = "attention"  # softmax over the keys, with score modifiers
    GAUSSIAN = "gaussian"  # exp(-|q - k|^2 / 2 * scale), without softmax
    LINEAR = "linear"  # a feature map of queries and keys, linear in the tokens


class Dtype(StrEnum):
    """What queries, keys, values and the output are stored in; sums and exponentials are fp32 in each."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"

    @property
    def bytes(self) -> int:
        """Of one number."""
        return 4 if self is Dtype.FP32 else 2


class Layout(StrEnum):
    """The order in which queries, keys, values or the output lie in memory.

    b batch, h heads, n tokens, d numbers a head; ``PACKED`` is one tensor of queries, keys and values.
    """

    HEADS_FIRST = "bhnd"
    TOKENS_FIRST = "bnhd"
    PACKED = "bn3hd"


class Modifier(StrEnum):
    """What is done to scores or probabilities, in this order; each has one operand."""

    SCORE_MASK = "score_mask"  # scores times it
    BIAS = "bias"  # plus it, behind the soft cap
    PROBABILITY_MASK = "probability_mask"  # probabilities times it
    POSITIONS = "positions"  # (1 - gate) * probabilities + gate * it; see Variant.gated


class FeatureMap(StrEnum):
    """Of the linear kernel: what queries and keys go through."""

    RELU = "relu"
    ELU_PLUS_ONE = "elu+1"


@dataclass(frozen=True)
class Operand:
    """The tensor of a modifier: [b, h, n, m] (``n`` queries, ``m`` keys), each of a letter in ``broadcast`` being 1."""

    modifier: Modifier
    broadcast: str = ""
    dtype: Dtype = Dtype.FP32

    def __post_init__(self) -> None:
        wrong = sorted(set(self.broadcast) - set("bhnm"))
        if wrong:
            raise KernelError(f"variant: {self.modifier} is broadcast over {''.join(wrong)}, and its axes are b, h, n and m")


@dataclass(frozen=True)
class Variant:
    """What a kernel computes, all that is settled at compile time.

    Args:
        kernel: Which.
        dtype: Of queries, keys, values and the output.
        head_size: Numbers a head of queries and keys; any, padded to a power of two inside the kernel.
        value_size: Of values and the output; by default as ``head_size``.
        scale: Scores are multiplied by it.
        layout: Of queries, keys and values.
        output_layout: Of the output: heads first or tokens first.
        operands: At most one a modifier, in the order of ``Modifier``.
        soft_cap: Scores become cap * tanh(scores / cap), in front of a bias.
        renormalise: Masked probabilities are divided by their sum again.
        log_sum_exp: A second output [b, h, n] in fp32: the logarithm of the sum of exponentials.
        feature_map: Of the linear kernel.
        epsilon: Of the linear kernel and of ``renormalise``: added to the sum that is divided by.
    """

    kernel: Kernel
    dtype: Dtype
    head_size: int
    value_size: int = 0
    scale: float = 1.0
    layout: Layout = Layout.HEADS_FIRST
    output_layout: Layout = Layout.HEADS_FIRST
    operands: tuple[Operand, ...] = ()
    soft_cap: float | None = None
    renormalise: bool = False
    log_sum_exp: bool = False
    feature_map: FeatureMap | None = None
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "value_size", self.value_size or self.head_size)
        self._check_numbers()
        self._check_modifiers()

    def _check_numbers(self) -> None:
        if self.head_size < 1 or self.value_size < 1:
            raise KernelError(f"variant: head sizes of {self.head_size} and {self.value_size}; both must be 1 or more")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise KernelError(f"variant: a scale of {self.scale:g}; it must be a finite number above 0")
        if self.soft_cap is not None and not (math.isfinite(self.soft_cap) and self.soft_cap > 0):
            raise KernelError(f"variant: a soft cap of {self.soft_cap:g}; it must be a finite number above 0, or None")
        if self.output_layout is Layout.PACKED:
            raise KernelError("variant: an output can't be packed; choose bhnd or bnhd")
        if self.layout is Layout.PACKED and self.value_size != self.head_size:
            raise KernelError(
                f"variant: packed queries, keys and values share one head size; found {self.head_size} and {self.value_size}"
            )

    def _check_modifiers(self) -> None:
        given = [operand.modifier for operand in self.operands]
        if given != sorted(set(given), key=list(Modifier).index):
            names = ", ".join(given)
            raise KernelError(f"variant: the modifiers {names} repeat or aren't in the order {', '.join(Modifier)}")
        softmax = self.kernel is Kernel.ATTENTION
        if not softmax and (given or self.soft_cap or self.log_sum_exp or self.renormalise):
            raise KernelError(f"variant: the kernel {self.kernel} takes no score modifiers, soft cap or log-sum-exp")
        if self.renormalise and Modifier.PROBABILITY_MASK not in given:
            raise KernelError("variant: renormalise is of a probability mask, and there is none")
        if self.epsilon and not (self.renormalise or self.kernel is Kernel.LINEAR):
            raise KernelError(f"variant: {self.epsilon:g} is added to a sum, and the kernel {self.kernel} divides by none")
        if self.kernel is Kernel.LINEAR and self.scale != 1:
            raise KernelError(f"variant: a scale of {self.scale:g}; in the linear kernel it cancels, so give 1")
        if (self.feature_map is not None) != (self.kernel is Kernel.LINEAR):
            raise KernelError("variant: a feature map belongs to the linear kernel, which needs one")

    @property
    def gated(self) -> bool:
        """Whether there is a gate, an operand [h] in fp32, which mixes probabilities and positions."""
        return any(operand.modifier is Modifier.POSITIONS for operand in self.operands)

    @property
    def name(self) -> str:
        """What tells it from others, also as an operator of a graph: what it computes and a digest of all of it."""
        words = [str(self.kernel), *(str(operand.modifier) for operand in self.operands)]
        words += ["soft_cap"] if self.soft_cap else []
        words += [str(self.feature_map).replace("+", "_")] if self.feature_map else []
        digest = hashlib.sha256(self.to_json().encode()).hexdigest()[:8]
        return "_".join([DOMAIN, *words, str(self.dtype), f"d{self.head_size}", digest])

    def to_json(self) -> str:
        """Return it as one line, the same for the same variant."""
        return json.dumps({"schema": _SCHEMA} | asdict(self), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Variant:
        """Return what ``to_json`` wrote.

        Raises:
            KernelError: it isn't that, or of another version.
        """
        try:
            record = json.loads(text)
            schema = record.pop("schema")
            if schema != _SCHEMA:
                raise KernelError(f"variant: schema {schema}, and this version reads {_SCHEMA}; export again")
            return _variant(record)
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise KernelError(f"variant: damaged ({err!r}); export again") from err


def _variant(record: dict[str, Any]) -> Variant:
    operands = tuple(
        Operand(Modifier(one["modifier"]), one["broadcast"], Dtype(one["dtype"])) for one in record.pop("operands")
    )
    feature_map = record.pop("feature_map")
    return Variant(
        kernel=Kernel(record.pop("kernel")),
        dtype=Dtype(record.pop("dtype")),
        layout=Layout(record.pop("layout")),
        output_layout=Layout(record.pop("output_layout")),
        operands=operands,
        feature_map=FeatureMap(feature_map) if feature_map else None,
        **record,
    )


@dataclass(frozen=True)
class Tile:
    """How the work is cut: queries and keys a program works on at a time, warps a program, loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Size:
    """A product of numbers and of sizes of inputs, divided by ``divisor`` and rounded up.

    Args:
        number: The product of what is known.
        dims: (input, axis), by the input's place; an axis as often as it is a factor.
        divisor: See above.
        rounded: The dim, of ``dims``, that is divided before it is multiplied; None where nothing is divided.
    """

    number: int = 1
    dims: tuple[tuple[int, int], ...] = ()
    divisor: int = 1
    rounded: tuple[int, int] | None = None

    def of(self, shapes: Sequence[Sequence[int]]) -> int:
        """Work it out for the shapes of the inputs."""
        result = self.number
        for place in self.dims:
            dim = int(shapes[place[0]][place[1]])
            result *= -(-dim // self.divisor) if place == self.rounded else dim
        return result


@dataclass(frozen=True)
class Argument:
    """What a kernel is called with, in its order: the inputs, then whole numbers (int32), then the outputs.

    Args:
        name: The kernel's parameter.
        kind: ``input``, ``size`` or ``output``.
        index: Of an input or output: its place among them.
        size: Of a whole number, for tensors that are contiguous in their layout.
        stride: Of a whole number that is one: (parameter of the tensor's pointer, letter of the axis), for tensors that aren't.
        divisor: A number's, or a pointer's in bytes, divisor that is known when the kernel is compiled.
    """

    name: str
    kind: str
    index: int = 0
    size: Size | None = None
    stride: tuple[str, str] | None = None
    divisor: int = 1
