"""The outputs of a graph: what ``--output NAME`` means for a model, where it stands in the pruned one, and how it is read.

A newcomer's trap: names are those of the unpruned model. A removed block's output is the state that its bypass hands on, so it
is read off the last kept block before it.
"""

from __future__ import annotations

import copy
import difflib
import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError
from ..models.outputs import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from ..models import LoadedModel
    from ..pruning import PrunedModel

__all__ = ["WantedOutput", "default_output", "observed", "values_of", "wanted_outputs"]

_PARTS = ("queries", "keys", "values")  # of a packed projection, in this order
_LAST = "last_hidden_state"
_FEATURES = "forward_features"  # timm's method


@dataclass(frozen=True)
class WantedOutput:
    """An output of the graph and how it comes out of a forward.

    Args:
        name: In the graph.
        source: As it was asked for, or ``logits`` or ``output`` by default.
        entry: Of the model's own output, with points between attributes, keys or places; empty: its first tensor.
        module: Path, in the pruned model, of the module whose output it is; None: the model's own.
        method: Of that module, if the output isn't what its ``forward`` returns.
        part: Place in ``queries``, ``keys``, ``values`` of a packed projection.
    """

    name: str
    source: str
    entry: str = ""
    module: str | None = None
    method: str | None = None
    part: int | None = None


def default_output(model: LoadedModel) -> WantedOutput:
    """Return what a graph gives unless something is asked for: the logits of a classifier, else the first tensor."""
    if model.origin.head == "none" or getattr(getattr(model.module, "config", None), "num_labels", None) == 0:
        return WantedOutput("features", "output")  # a classifier of transformers without labels hands on what it pooled
    head = getattr(model.module, "num_classes", 0) or hasattr(getattr(model.module, "config", None), "id2label")
    known = model.origin.family in ("timm", "torchvision")
    classifies = model.labels is not None or (isinstance(head, int) and head > 0 and known)
    classifies = classifies or model.origin.architecture.endswith("Classification")
    return WantedOutput("logits", "logits") if classifies else WantedOutput("features", "output")


def wanted_outputs(pruned: PrunedModel, names: Sequence[str]) -> tuple[WantedOutput, ...]:
    """Find the outputs that are asked for, by one forward of the model.

    Args:
        pruned: What is exported.
        names: Of the unpruned model: ``logits``; ``features``, the states before the head; an entry of the model's output; a
            module's path; ``PATH:queries``, ``:keys`` or ``:values`` of a packed projection. None of them: the default.

    Raises:
        ShallowvitError: there is no such output; the sentence lists what there is.
    """
    if not names:
        return (default_output(pruned.model),)
    model = pruned.model
    with torch.no_grad():
        output = model.module(**model.example)
    taken = set(model.example) | {"frames"}
    found: list[WantedOutput] = []
    for name in names:
        if any(one.source == name for one in found):
            raise ShallowvitError(f"export: --output {name} is given twice; give each once")
        one = _find(name, pruned, output)
        safe = _safe_name(name, taken)
        taken.add(safe)
        found.append(WantedOutput(safe, name, one.entry, one.module, one.method, one.part))
    _check_values(model, tuple(found))
    return tuple(found)


def _find(name: str, pruned: PrunedModel, output: object) -> WantedOutput:
    model = pruned.model
    path, _, part = name.partition(":")
    if part:
        if part not in _PARTS:
            raise ShallowvitError(f"export: --output {name}: no part {part!r} of a projection; choose {', '.join(_PARTS)}")
        if not _is_module(path, pruned):
            raise _unknown(name, pruned, output)
        return WantedOutput("", name, module=_path_now(name, path, pruned, whole=False), part=_PARTS.index(part))
    if name == "output":
        return WantedOutput("", name)
    if name == "logits" and not _has_entry(output, name) and default_output(model).source == "logits":
        return WantedOutput("", name)
    if name == "features":
        return _features(model, output) or _raise(_unknown(name, pruned, output))
    if _has_entry(output, name):
        return WantedOutput("", name, entry=name)
    if _is_module(name, pruned):
        return WantedOutput("", name, module=_path_now(name, name, pruned, whole=True))
    inner = getattr(model.module, "base_model_prefix", "")
    if name == _LAST and inner:  # of a model with a head, whose inner model has it
        found = _features(model, output)
        if found is not None:
            return found
    raise _unknown(name, pruned, output)


def _raise(err: ShallowvitError) -> WantedOutput:
    raise err


def _features(model: LoadedModel, output: object) -> WantedOutput | None:
    """The states before the head: transformers' ``last_hidden_state``, or what timm's ``forward_features`` gives."""
    if _has_entry(output, _LAST):
        return WantedOutput("", "features", entry=_LAST)
    inner = getattr(model.module, "base_model_prefix", "")
    if inner and hasattr(model.module, inner):
        return WantedOutput("", "features", entry=_LAST, module=inner)
    if callable(getattr(model.module, _FEATURES, None)):
        return WantedOutput("", "features", module="", method=_FEATURES)
    return None


def _is_module(path: str, pruned: PrunedModel) -> bool:
    """Whether it is a module's path, or may have been in a block that was removed."""
    gone = tuple(f"{pruned.plan.paths[number]}." for number in pruned.plan.gone)
    return path in _module_paths(pruned) or path.startswith(gone)


def _module_paths(pruned: PrunedModel) -> set[str]:
    """Paths of modules of the pruned model and of the unpruned model's blocks."""
    blocks = set(pruned.plan.paths)
    inside = {path for path, _module in pruned.model.module.named_modules() if path}
    for place, number in pruned.places.items():
        before = pruned.plan.paths[number]
        blocks |= {f"{before}{path[len(place) :]}" for path in inside if path.startswith(f"{place}.")}
    lists = tuple(f"{path.rpartition('.')[0]}." for path in pruned.plan.paths)
    # children of a list beside its blocks are known by their place in the unpruned model, and looked at in _unmoved
    return blocks | {path for path in inside if not path.startswith(lists)} | _fixed_children(pruned, inside)


def _fixed_children(pruned: PrunedModel, inside: set[str]) -> set[str]:
    """Modules in a list that holds blocks, in children of it that are none."""
    found = set()
    for path in inside:
        parts = path.split(".")
        heads = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        if not any(head in pruned.places or head in pruned.plan.paths for head in heads):
            found.add(path)
    return found


def _path_now(name: str, path: str, pruned: PrunedModel, *, whole: bool) -> str:
    """Where a module of the unpruned model stands now; of a removed block (``whole``) the last kept one before it."""
    plan = pruned.plan
    now = {number: place for place, number in pruned.places.items()}
    number = next((n for n, block in enumerate(plan.paths) if f"{path}.".startswith(f"{block}.")), None)
    if number is None:
        return _unmoved(name, path, pruned)
    block = plan.paths[number]
    if number in now:
        return now[number] + path[len(block) :]
    if not whole or path != block:
        raise ShallowvitError(
            f"export: --output {name}: block {number} ({block}) was removed, and nothing inside it is left; "
            f"{', '.join(plan.paths[one] for one in plan.kept)} stay"
        )
    for place in range(_place(block) - 1, -1, -1):
        before = f"{block.rpartition('.')[0]}.{place}"
        if before not in plan.paths:
            raise ShallowvitError(
                f"export: --output {name}: block {number} was removed, and what stands before it, {before}, is no block; name "
                f"that, or a block that stays: {', '.join(plan.paths[one] for one in plan.kept)}"
            )
        if (earlier := plan.paths.index(before)) in now:
            return now[earlier]
    raise ShallowvitError(
        f"export: --output {name}: block {number} was removed, and so was every block of its list before it; name one that "
        f"stays: {', '.join(plan.paths[one] for one in plan.kept)}"
    )


def _unmoved(name: str, path: str, pruned: PrunedModel) -> str:
    """A module outside the blocks; one that stands in a list behind removed blocks has another place now."""
    for number in pruned.plan.gone:
        stack, _, place = pruned.plan.paths[number].rpartition(".")
        rest = path.removeprefix(f"{stack}.").partition(".")[0]
        if path.startswith(f"{stack}.") and rest.isdecimal() and int(rest) > int(place):
            raise ShallowvitError(
                f"export: --output {name}: {stack}.{rest} is no block, and blocks before it were removed from its list; name a "
                f"block that stays: {', '.join(pruned.plan.paths[one] for one in pruned.plan.kept)}"
            )
    return path


def _place(path: str) -> int:
    last = path.rpartition(".")[2]
    return int(last) if last.isdecimal() else 0


def _unknown(name: str, pruned: PrunedModel, output: object) -> ShallowvitError:
    paths = sorted(_module_paths(pruned))
    near = difflib.get_close_matches(name.partition(":")[0], paths, n=4, cutoff=0.5)
    stacks = [f"{stack.list_path}.N" for stack in pruned.model.stacks]
    entries = [entry for entry in _entries(output) if _has_entry(output, entry)]
    known = ["features"] if _features(pruned.model, output) else []
    known = (["logits"] if default_output(pruned.model).source == "logits" else []) + known + entries
    return ShallowvitError(
        f"export: --output {name}: {pruned.model.origin.architecture} has no such output or module; its own outputs: "
        f"{', '.join(dict.fromkeys(known)) or 'one tensor'}; modules by path, as {', '.join(near or stacks)}; PATH:keys of a "
        "packed projection"
    )


def _entries(output: object) -> list[str]:
    if isinstance(output, dict):
        return [str(key) for key in output]
    return [str(place) for place in range(len(output))] if isinstance(output, list | tuple) else []


def _has_entry(output: object, entry: str) -> bool:
    try:
        return bool(tensors_in(_entry(output, entry)))
    except (AttributeError, KeyError, IndexError, ValueError, TypeError):
        return False


def _entry(output: Any, entry: str) -> Any:
    """Follow attributes, keys and places: ``text_model_output.pooler_output``, ``hidden_states.3``."""
    for key in entry.split(".") if entry else ():
        if isinstance(output, dict) and key in output:
            output = output[key]
        elif isinstance(output, list | tuple) and key.isdecimal():
            output = output[int(key)]
        else:
            output = getattr(output, key)
    return output


def _safe_name(name: str, taken: set[str]) -> str:
    """Letters, digits and underscores, and none that the graph has already."""
    safe = re.sub(r"\W+", "_", name, flags=re.ASCII)
    safe = f"output_{safe}" if safe[0].isdecimal() else safe
    while safe in taken:
        safe += "_out"
    return safe


def _check_values(model: LoadedModel, wanted: tuple[WantedOutput, ...]) -> None:
    """One forward that reads them all; what isn't there or can't be split is refused before the trace."""
    module, seen = observed(model.module, wanted)
    with torch.no_grad():
        output = module(**model.example)
    for one in wanted:
        try:
            values_of(output, (one,), seen)
        except (AttributeError, KeyError, IndexError, TypeError) as err:
            raise ShallowvitError(
                f"export: --output {one.source}: one forward of {model.origin.architecture} gives no tensor there; name a "
                "module that runs"
            ) from err


def observed(module: nn.Module, wanted: Sequence[WantedOutput]) -> tuple[nn.Module, dict[str, Any]]:
    """Return a module that leaves what the wanted modules give in the dict beside it, at every forward.

    A copy that shares all weights; the module itself where nothing inside it is wanted.
    """
    seen: dict[str, Any] = {}
    inner = [one for one in wanted if one.module is not None]
    if not inner:
        return module, seen
    tensors = [*module.parameters(), *module.buffers()]
    module = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    for key, one in {_key(one): one for one in inner}.items():
        child = module.get_submodule(one.module or "")
        if one.method is not None:
            setattr(child, one.method, functools.partial(_keep_result, seen, key, getattr(child, one.method)))
        else:
            child.register_forward_hook(functools.partial(_keep, seen, key))
    return module, seen


def _key(one: WantedOutput) -> str:
    return f"{one.module}:{one.method or ''}"


def _keep(seen: dict[str, Any], key: str, _module: nn.Module, _args: object, output: object) -> None:
    seen[key] = output


def _keep_result(seen: dict[str, Any], key: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    seen[key] = method(*args, **kwargs)
    return seen[key]


def values_of(output: object, wanted: Sequence[WantedOutput], seen: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """Return the wanted tensors of one forward of an ``observed`` module."""
    values = []
    for one in wanted:
        if one.module is None and not one.entry:
            logits = getattr(output, "logits", None) if one.source in ("logits", "output") else None
            value = logits if isinstance(logits, torch.Tensor) else tensors_in(output)[0]
        else:
            value = tensors_in(_entry(output if one.module is None else seen[_key(one)], one.entry))[0]
        values.append(value if one.part is None else _third(value, one))
    return tuple(values)


def _third(value: torch.Tensor, one: WantedOutput) -> torch.Tensor:
    width = value.shape[-1]
    if width % len(_PARTS):
        raise ShallowvitError(
            f"export: --output {one.source}: the output is {width} wide, which three parts don't share evenly; name a packed "
            "projection of queries, keys and values, or the module without a part"
        )
    return value.chunk(len(_PARTS), dim=-1)[one.part or 0]
