"""Draw real inputs to calibrate on, through the preprocessing that the graph is deployed with, and remember which they were.

A newcomer's trap: an item is known by the hash of its frames, not by the name of its file, so the check on other data finds a
calibration item again under any name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from shallowvit_bench.bundles import BundleInfo, GraphInput, Preprocessing
from shallowvit_bench.datasets import open_dataset
from shallowvit_bench.errors import BenchError
from shallowvit_bench.feeding import batch_beside
from shallowvit_bench.preprocessing import input_from_frames

from ..errors import ShallowvitError
from .inputs import sample_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from shallowvit_bench.feeding import Batch

    from ..models import LoadedModel
    from . import records
    from .quantize_records import QuantizeConfig

__all__ = ["CalibrationInputs", "info_of_graph", "item_hashes", "read_calibration_inputs"]

_DRAWN_FROM = 4  # clips of demo to draw from for each that is wanted: all 40,000 take 4 s to make, and differ by chance alone

_SAMPLES = 4  # items of each input, as in a bundle


@dataclass(frozen=True)
class CalibrationInputs:
    """Items to calibrate on: uint8 frames [N, (T,) H, W, C], the sha256 of each, and the graph that they are for."""

    data: str
    frames: np.ndarray[Any, Any] = field(repr=False)
    item_sha256: tuple[str, ...] = field(repr=False)
    info: BundleInfo = field(repr=False)
    beside: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.frames)

    def batches(self, size: int = 8) -> Iterator[Batch]:
        """Yield the graph's inputs; made as they are asked for, since floats take four times the frames' memory."""
        for first in range(0, len(self.frames), size):
            main = input_from_frames(self.frames[first : first + size], self.info)
            yield batch_beside(main, self.info, {name: array[first : first + size] for name, array in self.beside.items()})


def info_of_graph(
    model: LoadedModel, graph_inputs: records.GraphInput | Sequence[records.GraphInput], path: Path, precision: str
) -> BundleInfo:
    """Describe an exported graph to the harness as it would stand in a bundle, before there is one.

    Args:
        model: What was exported.
        graph_inputs: What ``export_onnx`` gave the graph, the main one first.
        path: The graph.
        precision: What it computes in.
    """
    inputs = graph_inputs if isinstance(graph_inputs, tuple | list) else (graph_inputs,)
    graph_input = inputs[0]
    settings, embedded = model.input_spec.preprocessing, graph_input.name == "frames" and graph_input.dtype == "uint8"
    preprocessing = None
    if settings is not None:
        preprocessing = Preprocessing(
            in_graph=embedded,
            frame_shape=graph_input.least_shape if embedded else settings.frame_shape,
            rescale=settings.rescale,
            mean=settings.mean,
            std=settings.std,
            resize=settings.resize,
            crop=settings.crop,
            resample=settings.resample,
            crop_rounding=settings.crop_rounding,
        )
    return BundleInfo(
        path=path.parent,
        name=model.origin.spec,
        model_path=path,
        model_sha256="",
        precision=precision,
        inputs=tuple(GraphInput(one.name, one.dtype, one.layout, one.shape, one.batch, one.ranges) for one in inputs),
        preprocessing=preprocessing,
        labels=model.labels,
        flops_before=model.flops,
        flops_after=model.flops,
        manifest={},
        samples=sample_inputs(tuple(inputs), model, _SAMPLES)[0] if len(inputs) > 1 else {},
    )


def read_calibration_inputs(info: BundleInfo, config: QuantizeConfig) -> CalibrationInputs:
    """Draw ``config.samples`` items of ``config.data`` by ``config.seed``, spread over the whole set.

    Args:
        info: The graph that they are for: a bundle's, or ``info_of_graph``.
        config: ``data`` is what ``open_dataset`` opens; labels aren't needed.

    Raises:
        ShallowvitError: no data is named, it isn't there, or it doesn't fit.
    """
    if config.data is None:
        raise ShallowvitError(
            f"quantize: {config.precision} needs real inputs to find the ranges of activations, and no data is named; give a "
            "data set with --calibration, or use --precision int4, which needs none"
        )
    try:
        dataset = open_dataset(config.data, info, labelled=False, enough=_DRAWN_FROM * config.samples)
        # every item as likely as any other, so sorted sets (a class after the other) are seen in all their parts
        chosen = np.random.default_rng(config.seed).permutation(dataset.count)[: config.samples]
        frames, beside = dataset.take(chosen.tolist()), dataset.beside_of(chosen.tolist())
        batch_beside(input_from_frames(frames[:1], info), info, {name: array[:1] for name, array in beside.items()})
    except BenchError as err:
        raise ShallowvitError(f"quantize: {err}") from err
    return CalibrationInputs(config.data, frames, item_hashes(frames), info, beside)


def item_hashes(frames: np.ndarray[Any, Any]) -> tuple[str, ...]:
    """Return the sha256 of each item of uint8 frames [N, ...]."""
    return tuple(hashlib.sha256(np.ascontiguousarray(item).data).hexdigest() for item in frames)
