"""Rebuild a model for pictures of another size or clips of another length, its tables of positions interpolated once.

A newcomer's trap: nothing is interpolated in the graph afterwards; a model that is to take many sizes there is exported with a
dynamic size instead.
"""

from __future__ import annotations

import copy
import inspect
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError
from .positions import Grid, fill_resampled, grid_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from .raw import RawModel
    from .records import InputSpec, Preprocessing

__all__ = ["processor_settings", "with_size"]

_FRAMES = ("num_frames", "frames_per_clip")
_SIZES = ("crop_size", "image_size")  # V-JEPA 2 has both, and takes its crop
_REFUSALS = (RuntimeError, TypeError, ValueError, AssertionError, IndexError, AttributeError, ZeroDivisionError)


def with_size(raw: RawModel, image_size: tuple[int, int] | None, frames: int | None) -> RawModel:
    """Return the model for this height and width, or this many frames; at the size it has it is handed back as it is.

    timm's models are resized by timm, those of transformers by their configuration, torchvision's by its own function where
    they have positions; a model without positions takes the size as it is. The module that is handed in may be changed.

    Raises:
        ShallowvitError: the size isn't whole patches, or the model can't be built for it.
    """
    spec = raw.input_spec
    if spec.layout not in ("NCHW", "NTCHW"):
        raise ShallowvitError(
            f"load: --image-size: {spec.name} of {type(raw.module).__name__} is {spec.layout} {spec.shape}, neither pictures "
            "nor clips; build it for another size in a file.py:function"
        )
    if frames is not None and spec.layout != "NTCHW":
        raise ShallowvitError(f"load: --frames {frames}: {type(raw.module).__name__} takes pictures, not clips; leave it out")
    *lead, height, width = spec.shape
    after = (frames or lead[0], *lead[1:]) if spec.layout == "NTCHW" else tuple(lead)
    shape = (*after, *(image_size or (height, width)))
    if shape == spec.shape:
        return raw
    _check_whole(raw, shape)
    resize = {"timm": _timm, "transformers": _transformers, "torchvision": _torchvision}.get(raw.family, _reshaped)
    try:
        resized = resize(raw, shape)
        _check_runs(resized, spec, shape)
    except (ShallowvitError, *_REFUSALS) as err:
        inside = _interpolating(raw, shape)
        if inside is not None:
            return inside
        if isinstance(err, ShallowvitError):
            raise
        raise ShallowvitError(f"load: {_what(spec, shape)}: {raw.family} refuses it: {_first_line(err)}") from err
    return resized


def processor_settings(settings: Mapping[str, Any], preprocessing: Preprocessing) -> dict[str, Any]:
    """Return an image processor's settings with the sizes of ``preprocessing``, for a model that was resized."""
    changed = dict(settings)
    if preprocessing.resize and "size" in changed:
        changed["size"] = preprocessing.resize
    if preprocessing.crop and "crop_size" in changed:
        changed["crop_size"] = preprocessing.crop
    return changed


def _check_whole(raw: RawModel, shape: tuple[int, ...]) -> None:
    """Refuse what isn't a whole number of patches, where patches don't overlap."""
    found = grid_of(raw.module, raw.input_spec.layout, shape)
    if found is None or not found[2]:
        return
    patch = found[1]
    sizes = shape[-2:] if len(patch) == 2 else (shape[0], *shape[-2:])
    if any(size % side for size, side in zip(sizes, patch, strict=True)):
        option = "--frames" if len(patch) == 3 and sizes[0] % patch[0] else "--image-size"
        raise ShallowvitError(
            f"load: {option}: {'x'.join(map(str, sizes))} is no multiple of the patch size {'x'.join(map(str, patch))} of "
            f"{type(raw.module).__name__}; choose one that is"
        )


def _check_runs(raw: RawModel, before: InputSpec, shape: tuple[int, ...]) -> None:
    """One forward at the new size."""
    if raw.input_spec.shape != shape:
        raise ShallowvitError(
            f"load: {_what(before, shape)}: {type(raw.module).__name__} goes on taking {raw.input_spec.shape}; its "
            "configuration has no size that it follows"
        )
    try:
        with torch.no_grad():
            raw.module.eval()(**raw.example)
    except (*_REFUSALS, KeyError) as err:
        raise ShallowvitError(
            f"load: {_what(before, shape)}: {type(raw.module).__name__} doesn't run at that size ({_first_line(err)}); it was "
            f"built for {before.shape}"
        ) from err


def _what(before: InputSpec, shape: tuple[int, ...]) -> str:
    size = f"--image-size {shape[-2]}x{shape[-1]}" if shape[-2:] != before.shape[-2:] else ""
    frames = f"--frames {shape[0]}" if before.layout == "NTCHW" and shape[0] != before.shape[0] else ""
    return " ".join(filter(None, (size, frames)))


def _timm(raw: RawModel, shape: tuple[int, ...]) -> RawModel:
    """By the model's own ``set_input_size``, or built anew with ``img_size`` and filled by timm's filter of checkpoints."""
    from .timm_models import input_spec_of

    module: Any = raw.module
    size = shape[-2:]
    arguments = {**raw.recipe["arguments"], "img_size": size}
    with torch.device("meta"):
        built = _timm_built(raw, arguments)
    if built is None:  # no argument img_size: a convolutional model, which takes any
        arguments = raw.recipe["arguments"]
    else:
        state = dict(module.state_dict())
        if hasattr(module, "set_input_size"):
            module.set_input_size(img_size=size)
        if _shapes(module) != _shapes(built):  # windows that timm would scale with the picture, where an argument fixes them
            module = _timm_filled(raw, arguments, state, shape)
    module.pretrained_cfg = {**module.pretrained_cfg, "input_size": shape}
    spec = input_spec_of(module, arguments)
    recipe = {**raw.recipe, "arguments": arguments}
    return replace(raw, module=module, recipe=recipe, input_spec=spec, example={"x": torch.zeros(1, *shape)})


def _timm_built(raw: RawModel, arguments: Mapping[str, Any]) -> nn.Module | None:
    import timm

    try:
        built: nn.Module = timm.create_model(raw.recipe["architecture"], pretrained=False, **arguments)
    except TypeError:
        return None
    return built


def _timm_filled(
    raw: RawModel, arguments: Mapping[str, Any], state: dict[str, torch.Tensor], shape: tuple[int, ...]
) -> nn.Module:
    built = _timm_built(raw, arguments)
    assert built is not None  # it was on the meta device
    own_filter = getattr(sys.modules[type(built).__module__], "checkpoint_filter_fn", None)
    if own_filter is not None:
        state = own_filter(state, built)
    fill_resampled(built, state, *_grids(raw, shape))
    return built.eval()


def _transformers(raw: RawModel, shape: tuple[int, ...]) -> RawModel:
    """Change the configuration, build the class anew and carry the weights over."""
    from .huggingface import raw_from_module

    module: Any = raw.module
    config = _resized_config(module.config, raw.input_spec, shape)
    built = type(module)(config).eval()
    before, after = _grids(raw, shape)
    state = dict(module.state_dict())
    sized = _sized_names(module, raw.input_spec) if before != after else set()
    for name in sized & set(state):
        table = _by_the_library(module, name, shape) if raw.input_spec.layout == "NCHW" else None
        if table is not None and table.shape == built.state_dict()[name].shape:
            state[name] = table
            sized = sized - {name}
    fill_resampled(built, state, before, after, sized)
    fresh = raw_from_module(built, raw.folder)
    spec = replace(fresh.input_spec, preprocessing=_scaled(raw.input_spec, shape))
    example = {name: fresh.example[name] for name in raw.example if name in fresh.example}
    return replace(raw, module=built, input_spec=spec, example=example)


def _resized_config(config: Any, spec: InputSpec, shape: tuple[int, ...]) -> Any:
    """A copy of the configuration whose own fields, or those of its vision part, say the new size."""
    config = copy.deepcopy(config)
    vision = getattr(config, "vision_config", None) or config
    size: int | list[int] = shape[-1] if shape[-1] == shape[-2] else list(shape[-2:])
    named = [name for name in _SIZES if hasattr(vision, name)] or ["image_size"]
    if shape[-2:] != spec.shape[-2:]:
        for name in named:
            setattr(vision, name, size)
    if spec.layout == "NTCHW" and shape[0] != spec.shape[0]:
        setattr(vision, next(name for name in _FRAMES if hasattr(vision, name)), shape[0])
    return config


def _sized_names(module: Any, spec: InputSpec) -> set[str]:
    """The weights whose shapes follow the size, as the class built for twice the size shows."""
    *lead, height, width = spec.shape
    doubled = (*((2 * lead[0], *lead[1:]) if spec.layout == "NTCHW" else lead), 2 * height, 2 * width)
    with torch.device("meta"):
        other = type(module)(_resized_config(module.config, spec, doubled)).state_dict()
    return {name for name, tensor in module.state_dict().items() if name in other and other[name].shape != tensor.shape}


def _by_the_library(module: nn.Module, name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
    """The table as the library's own ``interpolate_pos_encoding`` gives it; None where it has none, or none for such a grid."""
    owner_path = name.rpartition(".")[0]
    for path in (owner_path, owner_path.rpartition(".")[0]):  # an Embedding's owner is one further up
        owner: Any = module.get_submodule(path)
        if not hasattr(owner, "interpolate_pos_encoding"):
            continue
        weight = module.state_dict()[name]
        # only its number of tokens is looked at, which is to differ from now
        tokens = weight.new_zeros(1, weight.shape[-2] + 1, weight.shape[-1])
        try:
            with torch.no_grad():
                table: torch.Tensor = owner.interpolate_pos_encoding(tokens, *shape[-2:])
        except _REFUSALS:
            return None
        return table.reshape(table.shape[-weight.ndim :])
    return None


def _torchvision(raw: RawModel, shape: tuple[int, ...]) -> RawModel:
    """By torchvision's own resampling where the model is built for a size; else the size is taken as it is."""
    if not hasattr(raw.module, "image_size"):
        return _reshaped(raw, shape)
    from torchvision.models import get_model
    from torchvision.models.vision_transformer import interpolate_embeddings

    height, width = shape[-2:]
    if height != width:
        raise ValueError(f"its ViT takes squares only, not {height}x{width}")
    arguments = {name: value for name, value in raw.recipe["arguments"].items() if name != "weights"}
    built = get_model(raw.recipe["architecture"], **arguments, image_size=height)
    built.load_state_dict(interpolate_embeddings(height, raw.module.patch_size, raw.module.state_dict()))
    return _reshaped(replace(raw, module=built.eval()), shape)


def _interpolating(raw: RawModel, shape: tuple[int, ...]) -> RawModel | None:
    """A model of transformers as it is, which interpolates its positions in every forward; None where it doesn't.

    For rectangles that its library can't be built for. In a graph of one size the result is a constant.
    """
    if raw.family != "transformers":
        return None
    resized = _reshaped(raw, shape)
    if "interpolate_pos_encoding" in inspect.signature(raw.module.forward).parameters:
        resized = replace(resized, example={**resized.example, "interpolate_pos_encoding": True})
    try:
        _check_runs(resized, raw.input_spec, shape)
    except ShallowvitError:
        return None
    kind, now = type(raw.module).__name__, "x".join(map(str, raw.input_spec.shape[-2:]))
    note = f"{kind} can't be built for {shape[-2]}x{shape[-1]}, so it interpolates its positions for {now} in forward"
    return replace(resized, notes=(*raw.notes, note))


def _grids(raw: RawModel, shape: tuple[int, ...]) -> tuple[Grid, Grid]:
    spec = raw.input_spec
    before, after = (grid_of(raw.module, spec.layout, sizes) for sizes in (spec.shape, shape))
    if before is None or after is None:
        raise ValueError("no convolution in it cuts pictures into patches, so the grid isn't known")
    return before[0], after[0]


def _reshaped(raw: RawModel, shape: tuple[int, ...]) -> RawModel:
    """The same model with an input and an example of this shape."""
    spec = replace(raw.input_spec, shape=shape, preprocessing=_scaled(raw.input_spec, shape))
    example = dict(raw.example)
    example[spec.name] = torch.zeros(1, *shape)
    return replace(raw, input_spec=spec, example=example)


def _scaled(spec: InputSpec, shape: tuple[int, ...]) -> Preprocessing | None:
    """The same share of a picture as before: resize and crop follow the size."""
    if spec.preprocessing is None:
        return None
    settings = spec.preprocessing
    rows, columns = (new / old for new, old in zip(shape[-2:], spec.shape[-2:], strict=True))
    factors = {"height": rows, "width": columns, "shortest_edge": max(rows, columns), "longest_edge": max(rows, columns)}

    def scaled(sizes: dict[str, int] | None) -> dict[str, int] | None:
        return {name: round(size * factors[name]) for name, size in sizes.items()} if sizes else sizes

    frame = (*((shape[0],) if spec.layout == "NTCHW" else ()), *shape[-2:], settings.frame_shape[-1])
    return replace(settings, frame_shape=frame, resize=scaled(settings.resize), crop=scaled(settings.crop))


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _first_line(err: Exception) -> str:
    return str(err).strip().partition("\n")[0]
