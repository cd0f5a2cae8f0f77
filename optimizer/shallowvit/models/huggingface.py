"""Load a transformers model from a folder or an id: the class its own configuration names, on the CPU, in fp32.

A newcomer's trap: a checkpoint that lacks weights (a new head) loads in transformers with a warning and random numbers; here
it is an error.
"""

from __future__ import annotations

import inspect
import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import MissingDependencyError, ShallowvitError
from .checkpoints import take_out_absent
from .raw import RawModel
from .records import InputSpec, Preprocessing
from .weights import check_safetensors

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["load_huggingface", "preprocessing_from_processor", "raw_from_module", "untrained_huggingface"]

_PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")
_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


def load_huggingface(source: str, spec: str) -> RawModel:
    """Load the folder or hub id ``source`` with its weights.

    Raises:
        ShallowvitError: it isn't there, isn't a transformers model, or lacks weights.
    """
    transformers = _transformers(spec)
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ShallowvitError(f"load: no config.json in {folder}; give a folder written by save_pretrained")
        for file in folder.glob("*.safetensors"):
            check_safetensors(file)
    elif folder.is_absolute() or source.startswith("."):
        raise ShallowvitError(f"load: no folder {folder}. Check the path")
    config, cls = _config_and_class(transformers, source, spec)
    try:
        module, info = cls.from_pretrained(source, config=config, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as err:
        raise ShallowvitError(f"load: {spec}: transformers can't load it: {_first_line(err)}") from err
    notes = take_out_absent(module, set(module.state_dict()) - set(info["missing_keys"]), spec)
    missing = sorted(name for name in info["missing_keys"] if name in module.state_dict())
    missing += sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise ShallowvitError(
            f"load: {spec}: the checkpoint has no fitting weights for {len(missing)} parameters of {cls.__name__} (first: "
            f"{missing[0]}), which would be random. Finetune and save the whole model first"
        )
    return replace(raw_from_module(module, folder if folder.is_dir() else None), notes=tuple(notes))


def untrained_huggingface(source: str, spec: str) -> RawModel:
    """Build the class that the configuration in ``source`` names without weights, for a state dict to fill."""
    transformers = _transformers(spec)
    config, cls = _config_and_class(transformers, source, spec)
    return raw_from_module(cls(config), Path(source) if Path(source).is_dir() else None)


def preprocessing_from_processor(processor: Mapping[str, Any], frame_shape: tuple[int, ...]) -> Preprocessing:
    """Turn an image processor's settings (``preprocessor_config.json``) into a ``Preprocessing`` record."""
    channels = frame_shape[-1]
    normalise = processor.get("do_normalize", True)
    size = processor.get("size") if processor.get("do_resize", True) else None
    if isinstance(size, int):
        size = {"shortest_edge": size}
    crop = processor.get("crop_size") if processor.get("do_center_crop", False) else None
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    return Preprocessing(
        frame_shape=frame_shape,
        rescale=processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0,
        mean=tuple(processor["image_mean"]) if normalise and processor.get("image_mean") else (0.0,) * channels,
        std=tuple(processor["image_std"]) if normalise and processor.get("image_std") else (1.0,) * channels,
        resize=dict(size) if size else None,
        crop=dict(crop) if crop else None,
        resample=_RESAMPLE.get(processor.get("resample", 2), "bilinear"),
    )


def _transformers(spec: str) -> Any:
    try:
        import transformers
    except ModuleNotFoundError as err:
        raise MissingDependencyError(f"load: {spec}", "transformers", "transformers") from err
    # its progress bars and notes would stand in the middle of ours; what matters is raised
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return transformers


def _config_and_class(transformers: Any, source: str, spec: str) -> tuple[Any, Any]:
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as err:
        raise ShallowvitError(f"load: {spec}: transformers finds no configuration there: {_first_line(err)}") from err
    name = (config.architectures or [None])[0]
    cls = getattr(transformers, name, None) if name else transformers.MODEL_MAPPING[type(config)]
    if cls is None:
        raise ShallowvitError(
            f"load: {spec}: its config.json names the class {name}, which transformers {transformers.__version__} doesn't have"
        )
    return config, cls


def raw_from_module(module: torch.nn.Module, folder: Path | None) -> RawModel:
    """Read the input, an example and the labels off a built module's configuration and its folder."""
    spec = _input_spec(module, folder)
    example: dict[str, Any] = {spec.name: torch.zeros(1, *spec.shape)}
    parameters = inspect.signature(module.forward).parameters
    if "bool_masked_pos" in parameters and type(module).__name__.endswith("ForPreTraining"):
        tokens = _tokens(module.config)
        example["bool_masked_pos"] = (torch.arange(tokens) % 2 == 1).expand(1, tokens)
    return RawModel(module, "transformers", spec, example, _labels(module.config), folder)


def _input_spec(module: torch.nn.Module, folder: Path | None) -> InputSpec:
    """Shape the main input from the configuration's own fields (those of its vision part, for a model of several)."""
    name: str = module.main_input_name  # type: ignore[assignment]
    config: Any = getattr(module.config, "vision_config", None) or module.config
    # a head over a backbone (UperNet, Depth Anything) often has no size of its own
    holders = (config, getattr(module.config, "backbone_config", None))
    sides = [getattr(holder, side, None) for holder in holders for side in ("image_size", "crop_size")]
    height, width = _pair(next((side for side in sides if side), 224))
    channels = getattr(config, "num_channels", None) or getattr(config, "in_chans", None) or 3
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
    if name == "input_values" and hasattr(config, "num_mel_bins"):  # audio spectrograms
        return InputSpec(name, "NTF", (config.max_length, config.num_mel_bins))
    if frames:
        preprocessing = _preprocessing(folder, (frames, height, width, channels))
        return InputSpec(name, "NTCHW", (frames, channels, height, width), preprocessing)
    return InputSpec(name, "NCHW", (channels, height, width), _preprocessing(folder, (height, width, channels)))


def _preprocessing(folder: Path | None, frame_shape: tuple[int, ...]) -> Preprocessing | None:
    for file in (folder / name for name in _PROCESSOR_FILES if folder):
        if file.is_file():
            return preprocessing_from_processor(json.loads(file.read_text()), frame_shape)
    return None


def _tokens(config: Any) -> int:
    height, width = _pair(config.image_size)
    rows, columns = _pair(config.patch_size)
    frames = getattr(config, "num_frames", 1) // getattr(config, "tubelet_size", 1)
    return int(frames * (height // rows) * (width // columns))


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _labels(config: Any) -> tuple[str, ...] | None:
    if not any(name.endswith("Classification") for name in config.architectures or []):
        return None
    names = config.id2label or {}  # some configurations come back from their file with None
    labels = tuple(names[index] for index in range(len(names)))
    return None if all(label == f"LABEL_{index}" for index, label in enumerate(labels)) else labels  # none at all: None


def _first_line(err: Exception) -> str:
    return str(err).strip().partition("\n")[0]
