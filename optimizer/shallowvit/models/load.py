"""Turn what the user points at into a ``LoadedModel``: built, checked for NaN, hashed, with its stacks of blocks found.

A newcomer's trap: ``module:function`` and ``file.py:function`` run the user's own code, which is what they are for; no other
kind of source runs anything.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import MissingDependencyError, ShallowvitError
from .blocks import StackSearch, find_stacks, measured_flops
from .changes import Changes, changed, changes_from_lineage
from .checkpoints import load_checkpoint
from .raw import RawModel
from .rebuild import LINEAGE_FILE, read_lineage, rebuild_pruned
from .records import InputSpec, LoadedModel, Origin, Preprocessing
from .skeletons import skeleton
from .token_reducer import all_tokens
from .weights import check_finite, hash_state, read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["FAMILIES", "checkpoint_of", "load", "loaded_from_module"]

_DEMO = Path(__file__).parent / "demo"
_FORMS = (
    "demo, hf:FOLDER_OR_ID, timm:NAME, torchvision:NAME, a .safetensors/.pt/.pth file with --arch, module:function or "
    "file.py:function"
)


def load(
    source: str | Path, *, arch: str | None = None, blocks: Sequence[str] = (), changes: Changes | None = None
) -> LoadedModel:
    """Load a vision transformer and find its blocks.

    Args:
        source: ``demo`` (finetuned) or ``demo:pretrained``; ``hf:FOLDER_OR_ID``; ``timm:NAME[?pretrained=true&...]``;
            ``torchvision:NAME[?weights=DEFAULT]``; a folder that ``prune`` wrote; a ``.safetensors``, ``.pt`` or ``.pth`` state
            dict, with ``arch``; ``module:function`` or ``file.py:function``, a function without arguments that returns
            ``(module, example)``, the example a tensor, a tuple or a dict with a batch of 1.
        arch: What to build for a state dict: ``hf:DIR``, ``timm:NAME``, ``torchvision:NAME`` or ``module:function``.
        blocks: Module paths of the lists to work on; the longest stack by default.
        changes: Another head, image size or number of frames.

    Raises:
        ShallowvitError: the source can't be read or built, holds NaN or Inf, or has no removable blocks.
    """
    spec = str(source)
    path = Path(spec)
    if path.suffix in (".safetensors", ".pt", ".pth"):
        if arch is None:
            read_checkpoint(path)  # a broken file is the first thing to say
            raise ShallowvitError(
                f"load: {spec} holds weights without a model. Say which with --arch hf:DIR, timm:NAME or module:function"
            )
        checkpoint = read_checkpoint(path)
        raw = _build(arch, untrained=True)
        raw = replace(raw, notes=(*raw.notes, *load_checkpoint(raw.module, checkpoint, spec).notes))
    elif path.is_dir() and spec not in FAMILIES:  # a folder that happens to be called demo is ./demo
        raw = _load_folder(path, spec, arch)
    elif arch is not None:
        raise ShallowvitError(f"load: --arch {arch} goes with a state-dict file or a pruned folder; {spec} is neither")
    else:
        raw = _build(spec, untrained=False)
    return loaded_from_module(raw, spec, arch, blocks, changes)


def checkpoint_of(source: str | Path) -> Path | None:
    """Return where a source's weights lie on this disk, None where its library has to find or make them."""
    spec = str(source)
    if spec in ("demo", "demo:finetuned", "demo:pretrained"):
        return _DEMO / (spec.partition(":")[2] or "finetuned")
    path = Path(spec.removeprefix("hf:"))
    if path.is_dir():
        return path if any(path.glob("*.safetensors")) else None
    return path if path.suffix in (".safetensors", ".pt", ".pth") or path.name.endswith(".safetensors.index.json") else None


def _search(module: torch.nn.Module, example: dict[str, Any], blocks: Sequence[str]) -> StackSearch:
    """Look at a copy, since a forward may change buffers; at the model itself where hooks keep a copy from running.

    A block that hands on fewer tokens is one of its stack all the same; its operations are counted with those that it gets.
    """
    with all_tokens(module) as reduced:
        try:
            found = find_stacks(skeleton(module), example, blocks)
        except ShallowvitError:
            found = find_stacks(module, example, blocks)
    if not reduced:
        return found
    flops, counted = measured_flops(skeleton(module), example, found.blocks)
    return replace(found, flops=flops, blocks=counted)


def loaded_from_module(
    raw: RawModel, spec: str, arch: str | None, blocks: Sequence[str], changes: Changes | None = None
) -> LoadedModel:
    """Check a built model's weights, make the changes, find its stacks and make the record."""
    check_finite(raw.module.float().eval().requires_grad_(False), spec)
    raw = changed(raw, changes or Changes())
    module = raw.module.float().eval().requires_grad_(False)
    example = {name: _in_fp32(value) for name, value in raw.example.items()}
    search = _search(module, example, blocks)
    origin = Origin(spec, raw.family, type(module).__name__, arch, tuple(blocks), **vars(_all_changes(raw, changes)))
    return LoadedModel(
        module=module,
        origin=origin,
        stacks=search.stacks,
        blocks=search.blocks,
        input_spec=raw.input_spec,
        example=example,
        sha256=hash_state(module),
        flops=search.flops,
        pairs=search.pairs,
        output_shapes=search.output_shapes,
        labels=raw.labels,
        folder=raw.folder,
        recipe=raw.recipe,
        notes=raw.notes,
    )


def _in_fp32(value: Any) -> Any:
    """An input as the weights are, which ``load`` makes fp32."""
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _all_changes(raw: RawModel, changes: Changes | None) -> Changes:
    """These and, of a folder that needs its source to be built again, those it was pruned with."""
    changes = changes or Changes()
    if raw.folder is None or not (raw.folder / LINEAGE_FILE).is_file() or (raw.folder / "config.json").is_file():
        return changes
    return changes.over(changes_from_lineage(read_lineage(raw.folder)["source"]))


def _build(spec: str, *, untrained: bool) -> RawModel:
    """Build by the family that the text before the colon names; anything else before a colon is a module or a file."""
    family, _, rest = spec.partition(":")
    if family in FAMILIES and (rest or family == "demo"):
        return FAMILIES[family](rest, spec, untrained)
    if family and rest.isidentifier():
        return _load_callable(family, rest, spec)
    if Path(spec).suffix or "/" in spec:
        raise ShallowvitError(f"load: no file or folder {spec}. Check the path")
    raise ShallowvitError(f"load: {spec!r} is no known source; give {_FORMS}")


def _load_folder(folder: Path, spec: str, arch: str | None) -> RawModel:
    """A folder of transformers, of timm, or one that ``prune`` wrote for a model that neither can rebuild."""
    if (folder / LINEAGE_FILE).is_file() and not (folder / "config.json").is_file():
        if arch is None:
            raise ShallowvitError(
                f"load: {folder} holds pruned weights of a model that isn't stock. Say how to build it with --arch"
            )
        before = changes_from_lineage(read_lineage(folder)["source"])
        raw = replace(changed(_build(arch, untrained=True), before), notes=())
        rebuild_pruned(raw.module, raw.example, folder)
        return replace(raw, folder=folder)
    config = folder / "config.json"
    if not config.is_file():
        raise ShallowvitError(
            f"load: no config.json in {folder}; give a folder written by save_pretrained, timm or shallowvit prune"
        )
    try:
        settings = json.loads(config.read_text())
    except ValueError as err:
        raise ShallowvitError(f"load: {config} is not JSON ({err}). Copy or download it again") from err
    family = "timm" if "architecture" in settings and "model_type" not in settings else "hf"
    raw = FAMILIES[family](str(folder), spec, False)
    if not (folder / LINEAGE_FILE).is_file():
        return raw
    before = changes_from_lineage(read_lineage(folder)["source"])
    return changed(raw, Changes(image_size=before.image_size))  # no change where the library's own files say the size


def _demo(rest: str, spec: str, untrained: bool) -> RawModel:
    if rest not in ("", "finetuned", "pretrained"):
        raise ShallowvitError(f"load: no {spec}; choose demo or demo:pretrained")
    return _huggingface(str(_DEMO / (rest or "finetuned")), spec, untrained)


def _huggingface(rest: str, spec: str, untrained: bool) -> RawModel:
    from .huggingface import load_huggingface, untrained_huggingface

    return untrained_huggingface(rest, spec) if untrained else load_huggingface(rest, spec)


def _timm(rest: str, spec: str, untrained: bool) -> RawModel:
    from .timm_models import load_timm

    return load_timm(rest, spec)


def _torchvision(rest: str, spec: str, untrained: bool) -> RawModel:
    try:
        import torchvision
    except ModuleNotFoundError as err:
        raise MissingDependencyError(f"load: {spec}", "torchvision", "timm") from err
    from .timm_models import parse_query

    name, arguments = parse_query(rest)
    if name not in torchvision.models.list_models():
        raise ShallowvitError(f"load: {spec}: torchvision {torchvision.__version__} has no model {name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            module = torchvision.models.get_model(name, **arguments)
        except (TypeError, ValueError, KeyError, OSError) as err:
            raise ShallowvitError(f"load: {spec}: torchvision can't build it: {err}") from err
    default = torchvision.models.get_model_weights(name)["DEFAULT"]
    settings = default.transforms()
    if not hasattr(settings, "crop_size"):
        raise ShallowvitError(f"load: {spec} isn't an image classifier. Give it as file.py:function with example inputs")
    size = getattr(module, "image_size", None) or settings.crop_size[0]
    preprocessing = Preprocessing(
        (size, size, 3),
        mean=tuple(settings.mean),
        std=tuple(settings.std),
        resize={"shortest_edge": settings.resize_size[0]},
        crop={"height": size, "width": size},
        resample=settings.interpolation.value,
        crop_rounding="even",
    )
    names = tuple(default.meta["categories"])
    labels = names if arguments.get("num_classes", len(names)) == len(names) else None  # of another head than these are of
    spec_ = InputSpec("x", "NCHW", (3, size, size), preprocessing)
    recipe = {"architecture": name, "arguments": arguments}
    return RawModel(module, "torchvision", spec_, {"x": torch.zeros(1, 3, size, size)}, labels, recipe=recipe)


FAMILIES: Mapping[str, Callable[[str, str, bool], RawModel]] = {
    "demo": _demo,
    "hf": _huggingface,
    "timm": _timm,
    "torchvision": _torchvision,
}


def _load_callable(where: str, function: str, spec: str) -> RawModel:
    """Call the user's function and read the input's name, layout and shape off its example."""
    result = _import(where, spec, function)()
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], torch.nn.Module)):
        raise ShallowvitError(f"load: {spec} returned {type(result).__name__}, expected (module, example inputs)")
    module, example = result
    if isinstance(example, torch.Tensor):
        example = (example,)
    if isinstance(example, tuple | list):
        try:
            example = inspect.signature(module.forward).bind(*example).arguments
        except TypeError as err:
            raise ShallowvitError(f"load: {spec}: the example doesn't fit {type(module).__name__}.forward: {err}") from err
    name, main = next(((k, v) for k, v in example.items() if isinstance(v, torch.Tensor)), (None, None))
    if name is None or main is None or main.ndim < 2 or main.shape[0] != 1:
        raise ShallowvitError(
            f"load: {spec}: the first tensor of the example needs a batch of 1 in front, e.g. torch.zeros(1, 3, 224, 224)"
        )
    shape = tuple(main.shape[1:])
    layout = {4: "NCHW", 5: "NTCHW"}.get(main.ndim, "N" + "D" * (main.ndim - 1))
    return RawModel(module, "module", InputSpec(name, layout, shape), dict(example))


def _import(where: str, spec: str, function: str) -> Callable[[], object]:
    try:
        if where.endswith(".py"):
            if not Path(where).is_file():
                raise ShallowvitError(f"load: no file {where}. Check the path")
            found = importlib.util.spec_from_file_location(Path(where).stem, where)
            assert found is not None and found.loader is not None
            module = importlib.util.module_from_spec(found)
            sys.modules.setdefault(found.name, module)  # dataclasses and pickling look their module up there
            found.loader.exec_module(module)
        else:
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            module = importlib.import_module(where)
    except ModuleNotFoundError as err:
        raise ShallowvitError(f"load: {spec}: no module {err.name}; a source is {_FORMS}") from err
    if not callable(getattr(module, function, None)):
        raise ShallowvitError(f"load: {spec}: {where} has no function {function}")
    return getattr(module, function)
