"""Wrap a model into what is deployed: one input, one output, optionally with the preprocessing in front.

A newcomer's trap: the wrapped model must see exactly what it was trained on, so resize, crop, mean and deviation come from the
checkpoint's own settings, in the checkpoint's own order, and never from a default of ours.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import ShallowvitError
from ..models.outputs import tensors_in
from .frames import FramesToInput
from .records import Precision
from .upcast import upcast_blocks

if TYPE_CHECKING:
    from ..models import LoadedModel, Preprocessing

__all__ = ["deployable", "frame_shape"]

_DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}


def deployable(
    model: LoadedModel,
    precision: Precision = Precision.FP32,
    *,
    keep_precise: tuple[str, ...] = (),
    preprocess: bool = False,
    frame_size: tuple[int, int] | None = None,
) -> nn.Module:
    """Return a module from one tensor to one fp32 tensor (the logits, else the first output).

    Args:
        model: Left as it is; below fp32 a copy is converted.
        precision: What the model computes in; input and output stay fp32.
        keep_precise: Submodules by path that compute in fp32 all the same.
        preprocess: Take uint8 frames of ``frame_shape(...)`` with a batch in front instead of normalised floats.
        frame_size: (height, width) of those frames; by default the model's own, which needs no resize.

    Raises:
        ShallowvitError: the model needs more than one input, has no preprocessing settings, or overflows in fp16.
    """
    spec = model.input_spec
    extra = [name for name in model.example if name != spec.name]
    if extra:
        raise ShallowvitError(
            f"export: {model.origin.architecture} needs {', '.join(extra)} beside {spec.name}, so it can't be deployed as it "
            "is. Export a finetuned model or the encoder alone (file.py:function)"
        )
    module = model.module
    if precision is not Precision.FP32:
        module = copy.deepcopy(module).to(_DTYPES[precision])
        upcast_blocks(module, model.module, keep_precise)
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ShallowvitError(f"export: {name} overflows in {precision}; use --precision bf16 or fp32")
    prepare = FramesToInput(spec, _settings(model), frame_size) if preprocess else None
    return _Deployable(module, spec.name, _DTYPES[precision], prepare).eval()


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
    def __init__(self, module: nn.Module, name: str, dtype: torch.dtype, prepare: nn.Module | None) -> None:
        super().__init__()
        self.model = module
        self.prepare = prepare
        self._name = name
        self._dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.prepare is not None:
            x = self.prepare(x)
        output = self.model(**{self._name: x.to(self._dtype)})
        logits = getattr(output, "logits", None)
        return (logits if isinstance(logits, torch.Tensor) else tensors_in(output)[0]).float()
