"""Read the inputs that a criterion runs the model on, through the preprocessing that the exported graph has, and feed them.

A newcomer's trap: scoring on ``demo``, the clips that accuracy is measured on, makes the pruned model's accuracy look better
than it is; ``demo:train`` shares no digit image with them. A ``Calibration`` of one's own tensors is used whole, whatever
``samples`` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shallowvit_bench.datasets import open_dataset
from shallowvit_bench.errors import BenchError

from ..errors import ShallowvitError
from ..exporting.frames import FramesToInput
from .records import Calibration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..models import InputSpec, LoadedModel, Preprocessing
    from .criteria import ScoreConfig

__all__ = ["ModelTaker", "check_calibration", "forward_arguments", "read_calibration", "taker_of"]

_PREPARED = 64  # items that are turned into floats at a time
_DRAWN_FROM = 4  # clips of demo to draw from for each that is wanted: all 40,000 take 4 s to make, and differ by chance alone


@dataclass(frozen=True)
class ModelTaker:
    """What ``open_dataset`` needs to know of a model."""

    name: str
    input: InputSpec
    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None


def taker_of(model: LoadedModel) -> ModelTaker:
    """Describe a model to ``open_dataset``."""
    return ModelTaker(model.origin.spec, model.input_spec, model.input_spec.preprocessing, model.labels)


def read_calibration(model: LoadedModel, config: ScoreConfig, *, labelled: bool) -> Calibration:
    """Draw ``config.samples`` items of ``config.data`` by ``config.seed``, spread over the whole set, and preprocess them.

    Args:
        model: Says what an item looks like and which classes there are.
        config: ``data`` is what ``open_dataset`` opens: ``demo:train``, a ``.npz``, a folder of those, or images. For
            ``oracle`` its ``finetune_items`` are drawn too, and stand first.
        labelled: Whether labels are needed; without, those that are there and fit the model are kept all the same.

    Returns:
        All items where the data holds fewer than ``samples``.

    Raises:
        ShallowvitError: no data is named, it isn't there or doesn't fit the model, or it holds too few items for ``oracle``.
    """
    settings = model.input_spec.preprocessing
    if config.data is None:
        raise ShallowvitError(f"score: no data is named for {config.criterion}; give a data set or a Calibration of your own")
    if settings is None:
        raise ShallowvitError(
            f"score: {model.origin.spec} comes without preprocessing settings (preprocessor_config.json), so frames can't be "
            "fed to it; add them, or give a Calibration of tensors in Python"
        )
    try:
        wanted = config.samples + (config.finetune_items if config.criterion == "oracle" else 0)
        dataset = open_dataset(config.data, taker_of(model), labelled=labelled, enough=_DRAWN_FROM * wanted)
        if config.criterion == "oracle" and dataset.count <= config.finetune_items:
            raise ShallowvitError(
                f"score: oracle finetunes on {config.finetune_items} items and measures on others, but {dataset.name} holds "
                f"{dataset.count}; give more data or lower --finetune-items"
            )
        # every item as likely as any other, so sorted sets (a class after the other) are seen in all their parts
        chosen = np.random.default_rng(config.seed).permutation(dataset.count)[:wanted]
        prepare = FramesToInput(model.input_spec, settings)
        parts = [dataset.take(chosen[start : start + _PREPARED].tolist()) for start in range(0, len(chosen), _PREPARED)]
        inputs = torch.cat([prepare(torch.from_numpy(part)) for part in parts])
    except BenchError as err:
        raise ShallowvitError(str(err)) from err
    labels = torch.from_numpy(dataset.labels[chosen]) if len(dataset.labels) else None
    return Calibration(dataset.name, inputs, labels)


def check_calibration(model: LoadedModel, data: Calibration | None, config: ScoreConfig) -> Calibration:
    """Return the data, or refuse data that isn't there or isn't what the model takes."""
    expected = model.input_spec.shape
    if data is None:
        raise ShallowvitError(f"score: {config.criterion} runs the model on inputs and got none; give data")
    if not data.inputs.is_floating_point() or tuple(data.inputs.shape[1:]) != tuple(expected) or not len(data):
        raise ShallowvitError(
            f"score: the inputs of {data.name} are {data.inputs.dtype} {list(data.inputs.shape)}, {model.origin.spec} takes "
            f"torch.float32 [N, {', '.join(map(str, expected))}], N at least 1; preprocess them as the model was trained"
        )
    if not bool(torch.isfinite(data.inputs).all()):
        raise ShallowvitError(f"score: the inputs of {data.name} hold NaN or Inf; remove those items")
    labels = data.labels
    if labels is not None and (labels.dtype != torch.int64 or tuple(labels.shape) != (len(data),)):
        raise ShallowvitError(
            f"score: the labels of {data.name} are {labels.dtype} {list(labels.shape)}; expected torch.int64 [{len(data)}]"
        )
    return data


def forward_arguments(model: LoadedModel, data: Calibration, batch: int) -> Iterator[dict[str, Any]]:
    """Yield the keyword arguments of a forward, ``batch`` items at a time; what else the model takes is repeated an item."""
    spec = model.input_spec
    for start in range(0, len(data), batch):
        inputs = data.inputs[start : start + batch].float()
        others = {name: _repeated(value, len(inputs)) for name, value in model.example.items() if name != spec.name}
        yield {spec.name: inputs, **others}


def _repeated(value: Any, items: int) -> Any:
    """Repeat a tensor of the example, whose batch is 1, for each item."""
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == 1:
        return value.expand(items, *value.shape[1:])
    return value
