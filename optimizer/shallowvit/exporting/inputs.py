"""The inputs of a graph: one for each tensor of a model's example, and items to run it on.

A newcomer's trap: a tensor whose first size is 1 has a batch there, which is dynamic in the graph; any other tensor is the same
for every item, and what isn't a tensor is a constant of the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import ShallowvitError
from .records import GraphInput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..models import LoadedModel

__all__ = ["MOST_INPUTS", "graph_inputs_of", "sample_inputs", "tensors_of_example", "with_tensors"]

MOST_INPUTS = 7
_DTYPES = {
    torch.float32: "float32",
    torch.float16: "float32",  # the model computes in fp32, and what the graph takes stays fp32
    torch.bfloat16: "float32",
    torch.float64: "float32",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.bool: "bool",
    torch.uint8: "uint8",
}
_LAYOUTS = {3: "NCHW", 4: "NTCHW"}  # by the sizes behind the batch
_CHANNELS = (1, 3)


def tensors_of_example(model: LoadedModel) -> dict[str, torch.Tensor]:
    """Return every tensor of the model's example by the name of its input, the main one first.

    Tensors in a list, tuple or dict are named after it and their place in it: ``views_0``.
    """
    found = {"_".join(place): tensor for place, tensor in _tensors((), model.example)}
    main = model.input_spec.name
    if main not in found:
        raise ShallowvitError(
            f"export: the example of {model.origin.spec} has no tensor {main}, which is the model's main input; it has "
            f"{', '.join(found) or 'none'}"
        )
    if len(found) > MOST_INPUTS:
        raise ShallowvitError(
            f"export: {model.origin.architecture} takes {len(found)} tensors ({', '.join(found)}), and a graph here has "
            f"{MOST_INPUTS} inputs at most; wrap it into a module that makes the others itself (file.py:function)"
        )
    return {main: found[main], **{name: tensor for name, tensor in found.items() if name != main}}


def _tensors(place: tuple[str, ...], value: object) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield place, value
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, entry in entries:
        yield from _tensors((*place, str(key)), entry)


def with_tensors(value: Any, tensors: dict[str, torch.Tensor], place: tuple[str, ...] = ()) -> Any:
    """Return an example with other tensors, by the names of ``tensors_of_example``; constants stay."""
    if isinstance(value, torch.Tensor):
        return tensors["_".join(place)]
    if isinstance(value, dict):
        return {key: with_tensors(entry, tensors, (*place, str(key))) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [with_tensors(entry, tensors, (*place, str(key))) for key, entry in enumerate(value)]
        return entries if isinstance(value, list) else tuple(entries)
    return value


def graph_inputs_of(model: LoadedModel) -> tuple[GraphInput, ...]:
    """Return the inputs of the model's graph, the main one first, without preprocessing in front of it.

    Raises:
        ShallowvitError: the model takes too many, or one of a type that a graph here doesn't have.
    """
    found = []
    for name, tensor in tensors_of_example(model).items():
        if tensor.dtype not in _DTYPES:
            raise ShallowvitError(
                f"export: the input {name} of {model.origin.architecture} is {str(tensor.dtype).removeprefix('torch.')}; "
                f"graphs here take {', '.join(dict.fromkeys(_DTYPES.values()))}"
            )
        dtype = _DTYPES[tensor.dtype]
        if name == model.input_spec.name:
            found.append(GraphInput(name, dtype, model.input_spec.layout, model.input_spec.shape))
            continue
        batch = tensor.ndim > 0 and tensor.shape[0] == 1
        shape = tuple(tensor.shape[1:] if batch else tensor.shape)
        found.append(GraphInput(name, dtype, _layout(tensor, batch), shape, batch=batch))
    return tuple(found)


def _layout(tensor: torch.Tensor, batch: bool) -> str:
    """``NCHW`` or ``NTCHW`` of pictures and clips, else D for each size."""
    sizes = tensor.shape[1:] if batch else tensor.shape
    if batch and tensor.is_floating_point() and len(sizes) in _LAYOUTS and sizes[-3] in _CHANNELS:
        return _LAYOUTS[len(sizes)]
    return ("N" if batch else "") + "D" * len(sizes)


def sample_inputs(
    inputs: tuple[GraphInput, ...], model: LoadedModel, count: int
) -> tuple[dict[str, np.ndarray[Any, Any]], str]:
    """Return ``count`` items of every input by its name, and where those of the main one come from.

    The main input is as in ``real_inputs``. Of the others, whole numbers are drawn from 0 to the largest in the example, what
    is all 0 and 1 there (masks) stays as it is, floats are pictures of digits or drawn from a normal distribution, and what has
    no batch is the example's.
    """
    from .parity import real_inputs

    main, *others = inputs
    first, inputs_from = real_inputs(main, model.input_spec, count, _largest(model, main))
    found = {main.name: first}
    examples = tensors_of_example(model)
    for number, one in enumerate(others, 1):
        example = examples[one.name].detach().cpu()
        array = example.to(getattr(torch, one.dtype)).numpy()
        if not one.batch:
            found[one.name] = array
        elif _is_mask(array):
            found[one.name] = np.repeat(array, count, axis=0)
        elif array.dtype.kind in "iu":
            drawn = np.random.default_rng(number).integers(0, max(0, int(array.max())) + 1, (count, *array.shape[1:]))
            found[one.name] = drawn.astype(array.dtype)
        elif one.layout in _LAYOUTS.values():
            found[one.name] = real_inputs(one, None, count)[0]
        else:
            found[one.name] = np.random.default_rng(number).standard_normal((count, *array.shape[1:]), dtype=np.float32)
    return found, inputs_from


def _largest(model: LoadedModel, main: GraphInput) -> int:
    """The largest number in the example of a main input of whole numbers."""
    example = tensors_of_example(model)[model.input_spec.name]
    return max(1, int(example.max())) if main.dtype in ("int32", "int64") and example.numel() else 1


def _is_mask(array: np.ndarray[Any, Any]) -> bool:
    """Whether it holds nothing but 0 and 1; of floats not 0 alone, which is a place-holder."""
    if array.dtype == np.bool_:
        return True
    return bool(np.isin(array, (0, 1)).all()) and (array.dtype.kind != "f" or bool(array.any()))
