"""Drop a model's output head, or put a new one of another width in its place, before its blocks are looked for.

A newcomer's trap: a new head is random, so what the model answers is noise until it is finetuned; scores of the blocks' weights
don't depend on it.
"""

from __future__ import annotations

import copy
import inspect
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import ShallowvitError
from .outputs import tensors_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .raw import RawModel

__all__ = ["find_head", "parse_head", "with_head"]

# The library's own tables from a configuration to its classifier, by what the main input is.
_CLASSIFIERS = {
    "NCHW": "AutoModelForImageClassification",
    "NTCHW": "AutoModelForVideoClassification",
    "NTF": "AutoModelForAudioClassification",
}


def parse_head(text: str) -> int:
    """Return the number of outputs that ``linear:N`` names, 0 for ``none``.

    Raises:
        ShallowvitError: it is neither.
    """
    found = re.fullmatch(r"linear:(\d+)", text)
    if text != "none" and (found is None or int(found[1]) < 1):
        raise ShallowvitError(f"load: --head {text!r} is no head; write none, or linear:N with N outputs, 1 or more")
    return int(found[1]) if found else 0


def with_head(raw: RawModel, head: str) -> RawModel:
    """Return the model with ``none`` (its output is what went into the head) or a new ``linear:N``, drawn with seed 0.

    The module that is handed in may be changed. What its library can build stays stock: timm by ``num_classes``, transformers
    by ``num_labels`` or the class of the model without its head.

    Raises:
        ShallowvitError: the text is no head, or the model has none.
    """
    outputs = parse_head(head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if raw.family == "timm" and hasattr(raw.module, "reset_classifier"):
            changed = _timm_head(raw, outputs)
        elif raw.family == "transformers":
            changed = _transformers_head(raw, outputs)
        else:
            changed = _last_linear(raw, outputs)
    note = f"its head of {outputs} outputs is new and random: finetune before use"
    return replace(changed, labels=None, notes=(*raw.notes, *((note,) if outputs else ())))


def _timm_head(raw: RawModel, outputs: int) -> RawModel:
    """Models of timm replace their heads themselves, and take the number as an argument when they are built."""
    module: Any = raw.module
    if not outputs and not module.num_classes:
        raise ShallowvitError(f"load: --head none: {type(module).__name__} has no head; leave it out")
    module.reset_classifier(outputs)
    module.pretrained_cfg = {**module.pretrained_cfg, "num_classes": outputs}
    return replace(raw, recipe={**raw.recipe, "arguments": {**raw.recipe["arguments"], "num_classes": outputs}})


def _transformers_head(raw: RawModel, outputs: int) -> RawModel:
    """By the number of labels in the configuration where the class has them, else by the class without, or with, a head."""
    module: Any = raw.module
    base = module.base_model
    relabelled = _relabelled(module, outputs)
    if relabelled is not None:
        return replace(raw, module=relabelled)
    if _is_classifier(module):  # of a head that isn't one layer less
        return _last_linear(raw, outputs)
    if not outputs:
        if base is module:
            raise ShallowvitError(f"load: --head none: {type(module).__name__} has no head; leave it out")
        # a decoder goes, and with it the mask that only it needs
        return replace(raw, module=base, example=_taken(base, raw.example))
    classifier = _classifier(raw, outputs)
    return replace(raw, module=classifier, example=_taken(classifier, raw.example))


def _is_classifier(module: Any) -> bool:
    return type(module).__name__.endswith("Classification")


def _relabelled(module: Any, outputs: int) -> nn.Module | None:
    """The same class with another number of labels; None where its weights don't depend on that number alone."""
    config = copy.deepcopy(module.config)
    before = config.num_labels
    config.num_labels = outputs
    try:
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in type(module)(config).state_dict().items()}
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError):
        return None
    own = module.state_dict()
    new = {name for name, shape in shapes.items() if name not in own or own[name].shape != shape}
    gone = set(own) - set(shapes)
    if any(0 in shapes[name] for name in new):
        return None
    if not new and not gone:  # as many labels as before: the head is drawn anew all the same
        new = {name for name in _relabelled_names(module, before + 1)} if _is_classifier(module) else set()
    if not new and not gone:
        return None
    built: nn.Module = type(module)(config)
    return _filled(built, {name: tensor for name, tensor in own.items() if name in shapes and name not in new})


def _relabelled_names(module: Any, labels: int) -> set[str]:
    """The weights whose shapes follow the number of labels."""
    config = copy.deepcopy(module.config)
    config.num_labels = labels
    with torch.device("meta"):
        other = type(module)(config).state_dict()
    return {name for name, tensor in module.state_dict().items() if other[name].shape != tensor.shape}


def _classifier(raw: RawModel, outputs: int) -> nn.Module:
    """The library's classifier of this configuration, with the weights of the model that it has in common."""
    import transformers

    module: Any = raw.module
    auto = getattr(transformers, _CLASSIFIERS.get(raw.input_spec.layout, ""), None)
    config = copy.deepcopy(module.config)
    config.num_labels = outputs
    if auto is None or type(config) not in auto._model_mapping:
        raise ShallowvitError(
            f"load: --head linear:{outputs}: {type(module).__name__} has no head, and transformers has no classifier for "
            f"{type(config).__name__}. Load a classifier, or add the head in a file.py:function"
        )
    built = auto.from_config(config, dtype=torch.float32)
    prefix = f"{built.base_model_prefix}."
    state = {prefix + name: tensor for name, tensor in module.base_model.state_dict().items()}
    own = built.state_dict()
    inside = {name for name in own if name.startswith(prefix)}
    lacking = sorted(name for name in inside if name not in state or state[name].shape != own[name].shape)
    if lacking:
        raise ShallowvitError(
            f"load: --head linear:{outputs}: {type(built).__name__} has {len(lacking)} weights that {type(module).__name__} "
            f"lacks (first: {lacking[0]}). Add the head in a file.py:function"
        )
    return _filled(built, {name: state[name] for name in inside})  # without a pooler that the classifier doesn't use


def _filled(built: nn.Module, state: Mapping[str, torch.Tensor]) -> nn.Module:
    built.load_state_dict(dict(state), strict=False)
    return built.eval()


def _taken(module: nn.Module, example: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of the example that the module takes, a mask of an autoencoder aside."""
    names = inspect.signature(module.forward).parameters
    return {name: value for name, value in example.items() if name in names and name != "bool_masked_pos"}


def _last_linear(raw: RawModel, outputs: int) -> RawModel:
    """Replace the last Linear whose output is the model's first output, as one forward shows."""
    module = raw.module.eval()
    path, head = find_head(module, raw.example)
    new: nn.Module = nn.Linear(head.in_features, outputs, bias=head.bias is not None) if outputs else nn.Identity()
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)
    return replace(raw, module=module)


def find_head(module: nn.Module, example: Mapping[str, Any]) -> tuple[str, nn.Linear]:
    """Return the path and the module of the last Linear whose output is the model's first output, as one forward shows.

    Raises:
        ShallowvitError: there is none.
    """
    calls: list[tuple[nn.Linear, torch.Tensor]] = []

    def note(layer: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        calls.append((layer, output))

    handles = [layer.register_forward_hook(note) for layer in module.modules() if isinstance(layer, nn.Linear)]
    try:
        answer = _forward(module, example)
    finally:
        for handle in handles:
            handle.remove()
    head = next((layer for layer, output in reversed(calls) if _same(output, answer)), None)
    if head is None:
        last = f"; the last of its {len(calls)} linear layers answers something else" if calls else ""
        raise ShallowvitError(
            f"load: --head: no linear layer of {type(module).__name__} gives the model's output{last}. Change the head in a "
            "file.py:function"
        )
    return next(path for path, layer in module.named_modules() if layer is head), head


def _forward(module: nn.Module, example: Mapping[str, Any]) -> torch.Tensor:
    """The main output on numbers that differ from one another, so that layers aren't alike by chance."""
    inputs = {
        name: torch.randn(value.shape) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in example.items()
    }
    try:
        with torch.no_grad():
            output = module(**inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as err:
        raise ShallowvitError(f"load: --head: one forward of {type(module).__name__} failed: {err}") from err
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, torch.Tensor) else tensors_in(output)[0]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.numel() == other.numel() and torch.equal(one.flatten(), other.flatten())
