"""Load a timm model by name or from a folder that ``shallowvit prune`` or timm itself wrote."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import torch

from ..errors import MissingDependencyError, ShallowvitError
from .raw import RawModel
from .records import InputSpec, Preprocessing
from .weights import check_safetensors

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["input_spec_of", "load_timm", "parse_query"]


def load_timm(source: str, spec: str) -> RawModel:
    """Build ``NAME[?pretrained=true&depth=4...]`` or the folder ``source``; without pretrained, weights are drawn with seed 0.

    Raises:
        ShallowvitError: timm has no such model, doesn't take an argument, or can't fetch its weights.
    """
    try:
        import timm
    except ModuleNotFoundError as err:
        raise MissingDependencyError(f"load: {spec}", "timm", "timm") from err
    name, arguments = parse_query(source)
    pretrained = bool(arguments.pop("pretrained", False))
    folder = Path(name) if Path(name).is_dir() else None
    if folder:
        for file in folder.glob("*.safetensors"):
            check_safetensors(file)
        name, pretrained = f"local-dir:{folder}", True
    elif not timm.is_model(name.partition(".")[0]):
        near = ", ".join(timm.list_models(f"*{name[:12]}*")[:5]) or "none like it"
        raise ShallowvitError(f"load: {spec}: timm {timm.__version__} has no model {name} ({near})")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = timm.create_model(name, pretrained=pretrained, **arguments)
    except (RuntimeError, TypeError, OSError, ValueError, AssertionError) as err:
        raise ShallowvitError(f"load: {spec}: timm can't build it: {str(err).partition(chr(10))[0]}") from err
    arguments = {**getattr(module, "_model_args", {}), **arguments}
    input_spec = input_spec_of(module, arguments)
    architecture = module.pretrained_cfg.get("architecture") or name
    recipe = {"architecture": architecture, "arguments": arguments}
    return RawModel(module, "timm", input_spec, {"x": torch.zeros(1, *input_spec.shape)}, None, folder, recipe)


def input_spec_of(module: torch.nn.Module, arguments: Mapping[str, Any]) -> InputSpec:
    """Describe the input of a model of timm that was built with these arguments."""
    import timm
    from timm.layers import to_2tuple

    # the pretrained configuration goes on saying 224 and 3 when the model was built for another size
    channels, height, width = timm.data.resolve_model_data_config(module)["input_size"]
    height, width = to_2tuple(arguments.get("img_size") or (height, width))
    channels = arguments.get("in_chans") or channels
    config: dict[str, Any] = timm.data.resolve_model_data_config(module, {"input_size": (channels, height, width)})
    preprocessing = _preprocessing(config) if len(config["mean"]) == channels else None
    return InputSpec("x", "NCHW", (channels, height, width), preprocessing)


def parse_query(source: str) -> tuple[str, dict[str, Any]]:
    """Split ``NAME?a=1&b=true`` into the name and its arguments as Python values."""
    name, _, query = source.partition("?")
    return name, {key: _value(text) for key, text in parse_qsl(query, keep_blank_values=True)}


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _preprocessing(config: dict[str, Any]) -> Preprocessing:
    """Timm's evaluation transform: resize so that the crop takes ``crop_pct`` of it, centre crop, normalise."""
    channels, height, width = config["input_size"]
    share = config.get("crop_pct") or 0.875
    squash = config.get("crop_mode") == "squash"
    resize = (
        {"height": int(height / share), "width": int(width / share)}
        if squash
        else {"shortest_edge": int(min(height, width) / share)}
    )
    return Preprocessing(
        frame_shape=(height, width, channels),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resize=resize,
        crop={"height": height, "width": width},
        resample=config.get("interpolation", "bicubic"),
        crop_rounding="even",
    )
