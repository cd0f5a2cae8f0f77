"""Graphs that take pictures of many sizes, or clips of many lengths: the library interpolates positions inside.

A newcomer's trap: a size is a multiple of the patch, and tracing at a square or at the model's own size would fix what depends
on that, so the trace is made at another one and the graph is compared with torch at the least, the own and the greatest size.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError
from ..models.positions import grid_of

if TYPE_CHECKING:
    import onnx_ir

    from ..models import LoadedModel
    from .records import ExportConfig, GraphInput

__all__ = ["check_traced", "checked_shapes", "dynamic_input", "dynamic_model", "dynamic_options"]

_REFUSALS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, AttributeError)


def dynamic_options(config: ExportConfig) -> str:
    """Return the options that ask for dynamic sizes, for sentences; empty where none does."""
    named = {"--dynamic-size": config.dynamic_size, "--dynamic-frames": config.dynamic_frames}
    return " ".join(f"{name} {sizes[0]}-{sizes[1]}" for name, sizes in named.items() if sizes)


def dynamic_input(main: GraphInput, model: LoadedModel, config: ExportConfig) -> GraphInput:
    """Return the main input with the sizes that ``config`` makes dynamic by name, with their ranges.

    Raises:
        ShallowvitError: the model takes no pictures, or a bound isn't whole patches.
    """
    if not dynamic_options(config):
        return main
    spec = model.input_spec
    found = grid_of(model.module, spec.layout, spec.shape)
    if found is None:
        raise ShallowvitError(
            f"export: {dynamic_options(config)}: {model.origin.architecture} cuts no pictures into patches ({spec.layout}); "
            "export one size"
        )
    if config.dynamic_frames and spec.layout != "NTCHW":
        raise ShallowvitError(f"export: {dynamic_options(config)}: {model.origin.architecture} takes pictures, not clips")
    patch = found[1]
    shape: list[int | str] = list(main.shape)
    ranges = {}
    for name, place, bounds in (
        ("frames", 0, config.dynamic_frames),
        ("height", -2, config.dynamic_size),
        ("width", -1, config.dynamic_size),
    ):
        if bounds is None:
            continue
        step = patch[place] if name != "frames" else patch[0] if len(patch) == 3 else 1
        if any(bound % step for bound in bounds):
            raise ShallowvitError(
                f"export: {dynamic_options(config)}: {name} goes by {step}, the patch of {model.origin.architecture}; give two "
                "multiples of it"
            )
        shape[place] = name
        ranges[name] = (*bounds, step)
    return replace(main, shape=tuple(shape), ranges=ranges, native=spec.shape)


def dynamic_model(model: LoadedModel, config: ExportConfig) -> LoadedModel:
    """Return the model ready for any size: timm's built with ``dynamic_img_size``, transformers' told to interpolate.

    Others are handed back as they are. One forward at the greatest width and least height shows whether it runs.

    Raises:
        ShallowvitError: it doesn't run at a size that isn't its own.
    """
    if not dynamic_options(config):
        return model
    if config.dynamic_size and model.origin.family == "timm":
        model = _with_dynamic_size(model)
    if "interpolate_pos_encoding" in inspect.signature(model.module.forward).parameters and config.dynamic_size:
        model = replace(model, example={**model.example, "interpolate_pos_encoding": True})
    shape: list[int] = list(model.input_spec.shape)
    if config.dynamic_size:
        shape[-2:] = config.dynamic_size
    if config.dynamic_frames:
        shape[0] = config.dynamic_frames[1]
    try:
        with torch.no_grad():
            model.module(**{**model.example, model.input_spec.name: torch.zeros(1, *shape)})
    except _REFUSALS as err:
        size, first = "x".join(map(str, shape)), str(err).strip().partition("\n")[0]
        raise ShallowvitError(
            f"export: {dynamic_options(config)}: {model.origin.architecture} doesn't run at {size} ({first}). "
            "Export one size, with --image-size or --frames"
        ) from err
    return model


def _with_dynamic_size(model: LoadedModel) -> LoadedModel:
    """The same weights in timm's model that resamples its positions in forward; a model without that option stays."""
    import timm

    if not model.recipe.get("stock", True):
        return model
    arguments: dict[str, Any] = {**model.recipe["arguments"], "dynamic_img_size": True}
    try:
        module = timm.create_model(model.recipe["architecture"], pretrained=False, **arguments)
    except TypeError:
        return model
    module.load_state_dict(model.module.state_dict())
    return replace(model, module=module.eval().requires_grad_(False))


def check_traced(graph: onnx_ir.Model, main: GraphInput) -> None:
    """Refuse a graph in which a size that should be dynamic became a number.

    Raises:
        ShallowvitError: names the first such size.
    """
    value = next(one for one in graph.graph.inputs if one.name == main.name)
    assert value.shape is not None
    for wanted, found in zip(main.shape, list(value.shape)[1:], strict=True):
        if isinstance(wanted, str) and isinstance(found, int):
            raise ShallowvitError(f"its {wanted} became {found} in the trace")


def checked_shapes(main: GraphInput) -> tuple[tuple[int, ...], ...]:
    """Return the shapes to compare at beside the least: a flat and a tall one, the model's own, and the greatest of all."""
    if not main.ranges:
        return ()

    def shape(place: dict[str, int]) -> tuple[int, ...]:
        return tuple(
            size if isinstance(size, int) else main.ranges[size][place.get(size, place["others"])] for size in main.shape
        )

    found = [shape({"others": 1})]
    if {"height", "width"} <= set(main.ranges):
        found += [shape({"height": 0, "others": 1}), shape({"width": 0, "others": 1})]
    native = main.native or found[0]
    inside = all(
        isinstance(size, int) or main.ranges[size][0] <= own <= main.ranges[size][1]
        for size, own in zip(main.shape, native, strict=True)
    )
    return tuple(one for one in dict.fromkeys([*([native] if inside else []), *found]) if one != main.least_shape)
