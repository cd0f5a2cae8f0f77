"""Wrap a model into what is deployed: tensors in, tensors out, optionally with the preprocessing in front.

A newcomer's trap: the wrapped model must see exactly what it was trained on, so resize, crop, mean and deviation come from the
checkpoint's own settings, in the checkpoint's own order, and never from a default of ours.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import ShallowvitError
from .frames import FramesToInput
from .inputs import tensors_of_example, with_tensors
from .outputs import default_output, observed, values_of
from .records import Precision
from .upcast import upcast_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..models import LoadedModel, Preprocessing
    from .outputs import WantedOutput

__all__ = ["deployable", "frame_shape"]

_DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}


def deployable(
    model: LoadedModel,
    precision: Precision = Precision.FP32,
    *,
    keep_precise: tuple[str, ...] = (),
    preprocess: bool = False,
    frame_size: tuple[int, int] | None = None,
    outputs: Sequence[WantedOutput] = (),
) -> nn.Module:
    """Return a module from the model's input tensors, by position, the main one first, to its outputs, floats in fp32.

    With one output it returns that tensor, else a tuple.

    Args:
        model: Left as it is; below fp32 a copy is converted.
        precision: What the model computes in; inputs and outputs stay fp32.
        keep_precise: Submodules by path that compute in fp32 all the same.
        preprocess: Take uint8 frames of ``frame_shape(...)`` with a batch in front instead of normalised floats.
        frame_size: (height, width) of those frames; by default the model's own, which needs no resize.
        outputs: What ``wanted_outputs`` returned for this model; by default the logits, else the first output.

    Raises:
        ShallowvitError: the model takes too many inputs, has no preprocessing settings, or overflows in fp16.
    """
    module, wanted = model.module, tuple(outputs) or (default_output(model),)
    names = tuple(tensors_of_example(model))
    if precision is not Precision.FP32:
        module = copy.deepcopy(module).to(_DTYPES[precision])
        upcast_blocks(module, model.module, keep_precise)
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ShallowvitError(f"export: {name} overflows in {precision}; use --precision bf16 or fp32")
    prepare = FramesToInput(model.input_spec, _settings(model), frame_size) if preprocess else None
    module, seen = observed(module, wanted)
    deployed = _Deployable(module, _DTYPES[precision], prepare)
    deployed.take_example(names, model.example)
    deployed.give(wanted, seen)
    return deployed.eval()


def frame_shape(model: LoadedModel, frame_size: tuple[int, int] | None = None) -> tuple[int, ...]:
    """Return the shape of one uint8 item: [T, H, W, C] or [H, W, C].

    Raises:
        ShallowvitError: the checkpoint came without preprocessing settings.
    """
    shape = _settings(model).frame_shape
    return (*shape[:-3], *frame_size, shape[-1]) if frame_size else shape


def _settings(model: LoadedModel) -> Preprocessing:
    if model.input_spec.preprocessing is None:
        raise ShallowvitError(
            f"export: --embed-preprocessing: {model.origin.spec} comes without preprocessing settings "
            "(preprocessor_config.json)"
        )
    return model.input_spec.preprocessing


class _Deployable(nn.Module):
    def __init__(self, module: nn.Module, dtype: torch.dtype, prepare: nn.Module | None) -> None:
        super().__init__()
        self.model = module
        self.prepare = prepare
        self._dtype = dtype

    def take_example(self, names: tuple[str, ...], example: dict[str, Any]) -> None:
        """Keep the order of the tensors and the constants between them; of the tensors themselves nothing is kept."""
        self._names = names
        self._constants = with_tensors(example, dict.fromkeys(names, torch.empty(0)))

    def give(self, wanted: tuple[WantedOutput, ...], seen: dict[str, Any]) -> None:
        """Say what to return; ``seen`` is where hooks leave what modules inside give."""
        self._wanted, self._seen = wanted, seen

    # One parameter an input, since torch.export takes the dynamic sizes of each by its parameter; at most MOST_INPUTS.
    def forward(
        self,
        x: torch.Tensor,
        second: torch.Tensor | None = None,
        third: torch.Tensor | None = None,
        fourth: torch.Tensor | None = None,
        fifth: torch.Tensor | None = None,
        sixth: torch.Tensor | None = None,
        seventh: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Run the model on its inputs."""
        if self.prepare is not None:
            x = self.prepare(x)
        given = [one for one in (x, second, third, fourth, fifth, sixth, seventh) if one is not None]
        tensors = [one.to(self._dtype) if one.is_floating_point() else one for one in given]
        output = self.model(**with_tensors(self._constants, dict(zip(self._names, tensors, strict=True))))
        values = values_of(output, self._wanted, self._seen)
        self._seen.clear()  # what a trace left here would be taken for the module's state
        found = tuple(value.float() if value.is_floating_point() else value for value in values)
        return found[0] if len(found) == 1 else found
