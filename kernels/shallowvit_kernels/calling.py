"""Call a kernel on torch tensors: on a GPU, or on the CPU by Triton's interpreter.

A newcomer's trap: the interpreter has to be asked for (``TRITON_INTERPRET=1``) before Triton is imported for the first time.
Strides come from the tensors themselves, so views of a packed qkv are taken as they are.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from .catalogue import definition_of
from .errors import KernelError
from .records import Dtype, Layout
from .tensors import arguments_of, grid_of, inputs_of, outputs_of, size_of
from .tiles import check_target, precision_for, tile_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .records import Argument, Tile, Variant
    from .tensors import TensorSpec

__all__ = ["DTYPES", "run_variant"]

DTYPES = {Dtype.FP32: torch.float32, Dtype.FP16: torch.float16, Dtype.BF16: torch.bfloat16}
_INTERPRETED_AS = 80  # tiles of the interpreter
_LARGEST_STRIDE = 2**31 - 1  # kernels take strides in 32 bits


def run_variant(
    variant: Variant, *inputs: torch.Tensor, outputs: tuple[torch.Tensor, ...] | None = None, tile: Tile | None = None
) -> tuple[torch.Tensor, ...]:
    """Run a variant's kernel on inputs in the order of ``inputs_of(variant)`` and return its outputs.

    Args:
        variant: What to compute.
        inputs: Each in the layout, type and shape that the variant says; the last axis dense, the others of any stride.
        outputs: Where to write, in the variant's layouts; by default new tensors.
        tile: How the work is cut; by default as ``tile_for`` says.

    Raises:
        KernelError: a shape, type, stride or place doesn't fit, or no GPU and no interpreter is there.
    """
    sizes = _check_tensors(variant, inputs_of(variant), inputs, {})
    if outputs is not None:
        _check_tensors(variant, outputs_of(variant), outputs, sizes)
    device = inputs[0].device
    interpreted = _interpreted(device)
    sm = _INTERPRETED_AS
    if not interpreted:
        major, minor = torch.cuda.get_device_capability(device)
        sm = 10 * major + minor
        check_target(sm, variant.dtype)
    tile = tile or tile_for(variant, sm)
    shapes = [tuple(one.shape) for one in inputs]
    outputs = outputs or _new_outputs(variant, shapes, device)
    definition = definition_of(variant.kernel)
    constants = definition.constants(variant, tile, precision_for(sm), widen=interpreted and variant.dtype is Dtype.BF16)
    specs = (*inputs_of(variant), *outputs_of(variant))
    tensors = {f"{spec.name}_ptr": (spec, one) for spec, one in zip(specs, (*inputs, *outputs), strict=True)}
    values = {
        name: _value(name, argument, tensors, shapes)
        for name, argument in arguments_of(definition.kernel.arg_names, variant).items()
    }
    options = {} if interpreted else {"num_warps": tile.warps, "num_stages": tile.stages}
    definition.kernel[grid_of(variant, tile.queries).of(shapes),](**values, **constants, **options)
    return outputs


def _value(
    name: str,
    argument: Argument | None,
    tensors: dict[str, tuple[TensorSpec, torch.Tensor]],
    shapes: list[tuple[int, ...]],
) -> torch.Tensor | int | None:
    if argument is None:
        return None if name.endswith("_ptr") else 0
    if argument.size is None:
        return tensors[name][1]
    if argument.stride is None:
        return argument.size.of(shapes)
    spec, one = tensors[argument.stride[0]]
    letter = argument.stride[1]
    return 0 if letter in spec.broadcast else one.stride(spec.axes.index(letter))


def _check_tensors(
    variant: Variant, specs: Sequence[TensorSpec], tensors: Sequence[torch.Tensor], sizes: dict[str, int]
) -> dict[str, int]:
    """Refuse what the kernel would read or write wrongly; return the size of each axis, those in ``sizes`` among them."""
    if len(tensors) != len(specs):
        names = ", ".join(spec.name for spec in specs)
        raise KernelError(f"kernels: {len(tensors)} tensors given, and {variant.name} takes {len(specs)}: {names}")
    sizes = {"d": variant.head_size, "e": variant.value_size, "3": 3} | sizes
    for spec, one in zip(specs, tensors, strict=True):
        _check_kind(spec, one, tensors[0].device)
        for letter, size in zip(spec.axes, one.shape, strict=True):
            # of packed tensors, keys are as many as queries
            known = "n" if letter == "m" and variant.layout is Layout.PACKED else letter
            expected = 1 if letter in spec.broadcast else sizes.setdefault(known, size)
            if size != expected or not size:
                needed = f"{expected}" if expected else "1 or more"
                raise KernelError(
                    f"kernels: {spec.name} has shape {tuple(one.shape)} with the axes {', '.join(spec.axes)}; {letter} is "
                    f"{size}, and {needed} is expected"
                )
    return sizes


def _check_kind(spec: TensorSpec, one: torch.Tensor, device: torch.device) -> None:
    if one.dim() != len(spec.axes):
        raise KernelError(
            f"kernels: {spec.name} has shape {tuple(one.shape)}, {one.dim()} axes, and {len(spec.axes)} are expected: "
            f"{', '.join(spec.axes)}"
        )
    if one.dtype != DTYPES[spec.dtype]:
        raise KernelError(f"kernels: {spec.name} is {one.dtype}, and {DTYPES[spec.dtype]} is expected; convert it")
    if one.device != device:
        raise KernelError(f"kernels: {spec.name} is on {one.device}, and another tensor on {device}; move it there")
    if torch.is_grad_enabled() and one.requires_grad:
        raise KernelError(f"kernels: {spec.name} wants a gradient, and kernels only run forward; call them in torch.no_grad()")
    if one.shape[-1] > 1 and one.stride(-1) != 1:
        raise KernelError(
            f"kernels: {spec.name} has a stride of {one.stride(-1)} over its last axis, and 1 is expected; call .contiguous()"
        )
    largest = max(one.stride())
    if largest > _LARGEST_STRIDE:
        raise KernelError(
            f"kernels: {spec.name} has a stride of {largest}, and {_LARGEST_STRIDE} is the largest; split batch or heads"
        )


def _interpreted(device: torch.device) -> bool:
    if device.type == "cuda":
        return False
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise KernelError(
            f"kernels: the tensors are on {device.type}, and kernels run on CUDA; set TRITON_INTERPRET=1 before Python "
            "starts to run them slowly on the CPU"
        )
    return True


def _new_outputs(variant: Variant, shapes: list[tuple[int, ...]], device: torch.device) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.empty([size_of(letter, variant).of(shapes) for letter in spec.axes], dtype=DTYPES[spec.dtype], device=device)
        for spec in outputs_of(variant)
    )
