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
from .records import Dtype
from .tensors import arguments_of, grid_of, inputs_of, outputs_of, size_of
from .tiles import check_target, precision_for, tile_for

if TYPE_CHECKING:
    from .records import Tile, Variant

__all__ = ["DTYPES", "run_variant"]

DTYPES = {Dtype.FP32: torch.float32, Dtype.FP16: torch.float16, Dtype.BF16: torch.bfloat16}
_INTERPRETED_AS = 80  # tiles of the interpreter


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
    interpreted = _interpreted(inputs[0])
    sm = (
        _INTERPRETED_AS
        if interpreted
        else 10 * torch.cuda.get_device_capability(inputs[0].device)[0]
        + (torch.cuda.get_device_capability(inputs[0].device)[1])
    )
    if not interpreted:
        check_target(sm, variant.dtype)
    shapes = [tuple(one.shape) for one in inputs]
    tile = tile or tile_for(variant, sm)
    definition = definition_of(variant.kernel)
    constants = definition.constants(variant, tile, precision_for(sm), widen=interpreted and variant.dtype is Dtype.BF16)
    arguments = arguments_of(definition.kernel.arg_names, variant)
    outputs = outputs or _new_outputs(variant, shapes, inputs[0].device)
    tensors = {f"{spec.name}_ptr": (spec, one) for spec, one in zip(inputs_of(variant), inputs, strict=True)}
    tensors |= {f"{spec.name}_ptr": (spec, one) for spec, one in zip(outputs_of(variant), outputs, strict=True)}
    values: dict[str, object] = {}
    for name, argument in arguments.items():
        if argument is None:
            values[name] = None if name.endswith("_ptr") else 0
        elif argument.kind != "size":
            values[name] = tensors[name][1]
        elif argument.stride is None:
            assert argument.size is not None
            values[name] = argument.size.of(shapes)
        else:
            spec, one = tensors[argument.stride[0]]
            letter = argument.stride[1]
            values[name] = 0 if letter in spec.broadcast else one.stride(spec.axes.index(letter))
    grid = (grid_of(variant, tile.queries).of(shapes),)
    options = {} if interpreted else {"num_warps": tile.warps, "num_stages": tile.stages}
    definition.kernel[grid](**values, **constants, **options)
    return outputs


def _interpreted(first: torch.Tensor) -> bool:
    if first.is_cuda:
        return False
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise KernelError(
            f"kernels: the tensors are on {first.device.type}, and kernels run on CUDA; set TRITON_INTERPRET=1 before Python "
            "starts to run them slowly on the CPU"
        )
    return True


def _new_outputs(variant: Variant, shapes: list[tuple[int, ...]], device: torch.device) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.empty([size_of(letter, variant).of(shapes) for letter in spec.axes], dtype=DTYPES[spec.dtype], device=device)
        for spec in outputs_of(variant)
    )
