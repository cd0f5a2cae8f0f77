"""Look at a model before anything is done to it: its stacks, inputs and outputs, what each block costs, and what would become
of each block if it were removed.

A newcomer's trap: the last is tried, not guessed. Each block is removed from a copy that shares the weights, and the copy is
compared with the model whose block hands its input on, so it takes about two forwards a block.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from .errors import ShallowvitError
from .models.halves import halves_of
from .models.outputs import tensors_in
from .pruning.removal import remove_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .models import Block, LoadedModel

__all__ = ["BlockOutlook", "Inspection", "TensorFacts", "inspect_model"]

_NORMS = ("LayerNorm", "RMSNorm", "BatchNorm", "GroupNorm")


@dataclass(frozen=True)
class TensorFacts:
    """An input or output of one forward; ``shape`` with a batch of 1."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class BlockOutlook:
    """What would become of a block.

    Args:
        block: The block.
        pair: The block's number and those that go with it by default; itself alone in most models.
        way: ``deleted``, ``placeholder`` (its place stays with a module without weights) or ``refused``; None if not tried.
        reason: Why it isn't deleted; empty where it is.
        pair_way: ``way`` of the whole pair; None where the block goes alone or nothing was tried.
        halves: Parameters that would go with its ``attention`` or its ``mlp`` alone, or the reason why it can't be cut out;
            empty if not tried.
    """

    block: Block
    pair: tuple[int, ...]
    way: str | None
    reason: str
    pair_way: str | None = None
    halves: dict[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """What ``inspect_model`` found."""

    model: LoadedModel
    inputs: tuple[TensorFacts, ...]
    constants: dict[str, str]
    outputs: tuple[TensorFacts, ...]
    blocks: tuple[BlockOutlook, ...]
    notes: tuple[str, ...]


def inspect_model(model: LoadedModel, *, removal: bool = True, on_block: Callable[[int], object] | None = None) -> Inspection:
    """Describe a loaded model.

    Args:
        model: Left as it is.
        removal: Try to remove each block of the chosen stacks, and each pair.
        on_block: Called with each block's number when it has been tried.
    """
    outlooks = []
    pairs: dict[tuple[int, ...], _Outcome] = {}
    halves = _halves(model) if removal else []
    for block in model.blocks:
        pair = next((pair for pair in model.pairs if block.index in pair), (block.index,))
        outlook = BlockOutlook(block, pair, None, "")
        if removal:
            found = _tried(model, (block.index,))
            outlook = BlockOutlook(block, pair, found.way, found.reason)
            if len(pair) > 1:
                pairs[pair] = pairs.get(pair) or _tried(model, pair)
                outlook = replace(outlook, pair_way=pairs[pair].way)
            outlook = replace(outlook, halves=halves[block.index])
        outlooks.append(outlook)
        if on_block:
            on_block(block.index)
    tensors = {name: value for name, value in model.example.items() if isinstance(value, torch.Tensor)}
    return Inspection(
        model=model,
        inputs=tuple(_facts(name, value) for name, value in tensors.items()),
        constants={name: repr(value) for name, value in model.example.items() if name not in tensors},
        outputs=_outputs(model),
        blocks=tuple(outlooks),
        notes=_notes(model),
    )


class _Outcome(NamedTuple):
    way: str
    reason: str


def _tried(model: LoadedModel, removed: tuple[int, ...]) -> _Outcome:
    """Remove the blocks from a copy."""
    try:
        removals = remove_blocks(model, removed).removals
    except ShallowvitError as err:
        return _Outcome("refused", str(err).partition(": ")[2])
    last = next((one for one in removals if one.way != "deleted"), removals[0])
    return _Outcome(last.way, last.reason)


def _halves(model: LoadedModel) -> list[dict[str, int | str]]:
    """What each block's halves would save, or why there is no such half."""
    found = {part: halves_of(model, part) for part in ("attention", "mlp")}
    return [
        {part: half if isinstance(half, str) else half.parameters for part, halves in found.items() for half in [halves[index]]}
        for index in range(len(model.blocks))
    ]


def _facts(name: str, value: torch.Tensor) -> TensorFacts:
    return TensorFacts(name, str(value.dtype).removeprefix("torch."), tuple(value.shape))


def _outputs(model: LoadedModel) -> tuple[TensorFacts, ...]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        output = model.module(**model.example)
    return tuple(_facts(name, tensor) for name, tensor in _named(output))


def _named(output: object, name: str = "") -> list[tuple[str, torch.Tensor]]:
    """Every tensor of an output with its name or place: ``logits``, ``hidden_states.3``, ``1``."""
    if isinstance(output, torch.Tensor):
        return [(name or "output", output)]
    items: Mapping[Any, Any] | dict[int, Any] = (
        output if isinstance(output, dict) else dict(enumerate(output)) if isinstance(output, tuple | list) else {}
    )
    return [found for key, value in items.items() for found in _named(value, f"{name}.{key}".lstrip("."))]


def _notes(model: LoadedModel) -> tuple[str, ...]:
    """What a careful expert would say about the architecture."""
    notes = list(model.notes)
    ends_in_norm = _post_norm_blocks(model)
    if ends_in_norm:
        notes.append(
            f"{len(ends_in_norm)} blocks normalise their sum (post-norm, the first is {ends_in_norm[0]}): the block after a "
            "removed one sees a state of another scale than in training; measure before deciding"
        )
    copies = _copies_elsewhere(model)
    if copies:
        notes.append(
            f"{', '.join(copies[:4])} {'is' if len(copies) == 1 else 'are'} of the blocks' class but outside their list, so "
            "removing a block of the list leaves them running"
        )
    others = [stack.path for stack in model.stacks if stack.path not in {block.stack for block in model.blocks}]
    if others:
        notes.append(f"the blocks below are of the longest stack; choose others with --blocks {','.join(others[:3])}")
    if model.pairs:
        notes.append(
            f"{len(model.pairs)} pairs of windows and shifted windows: they are removed as pairs unless --split-pairs is given"
        )
    return tuple(notes)


def _post_norm_blocks(model: LoadedModel) -> list[str]:
    """Paths of the blocks whose output is that of a normalisation inside them."""
    last: dict[str, torch.Tensor] = {}  # held, or a tensor made later could have its id
    found: list[str] = []
    handles = []

    def watch(path: str, part: nn.Module, kind: str) -> None:
        def note(_part: nn.Module, _args: Any, output: object) -> None:
            tensors = tensors_in(output)
            if kind == "norm" and tensors:
                last[path] = tensors[0]
            elif tensors and last.get(path) is tensors[0] and path not in found:
                found.append(path)

        handles.append(part.register_forward_hook(note))

    for block in model.blocks:
        module = model.module.get_submodule(block.path)
        for part in module.modules():
            if part is not module and any(norm in type(part).__name__ for norm in _NORMS):
                watch(block.path, part, "norm")
        watch(block.path, module, "block")
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.module(**model.example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _copies_elsewhere(model: LoadedModel) -> list[str]:
    """Paths of modules of the blocks' class and shapes that stand in no list of the model's stacks."""
    lists = {stack.list_path for stack in model.stacks}
    first = model.module.get_submodule(model.blocks[0].path)
    shapes = [tuple(parameter.shape) for parameter in first.parameters()]
    if isinstance(first, nn.ModuleList | nn.ModuleDict):
        return []
    return [
        path
        for path, part in model.module.named_modules()
        if type(part) is type(first)
        and not any(path.startswith(f"{one}." if one else "") for one in lists)
        and [tuple(parameter.shape) for parameter in part.parameters()] == shapes
    ]
