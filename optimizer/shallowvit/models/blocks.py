"""Find a model's stacks of removable blocks by structure: what a list holds and what one forward does, never a class name.

A stack is a ``ModuleList`` or ``Sequential`` of two or more children of one type, each with weights of its own and an output of
its input's shape. A newcomer's trap: a list that looks right but isn't called by ``forward`` (a decoder that is switched off)
is no stack, because removing from it changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import ShallowvitError
from .outputs import shapes_in
from .records import Block, BlockStack

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["StackSearch", "find_stacks"]


@dataclass(frozen=True)
class StackSearch:
    """What one forward showed: every stack, the longest first; the blocks of the chosen ones; floating-point operations of
    an item.
    """

    stacks: tuple[BlockStack, ...]
    blocks: tuple[Block, ...]
    flops: int
    output_shapes: tuple[tuple[int, ...], ...]


@dataclass
class _Calls:
    """Input and output shapes of one child, a pair a call."""

    shapes: list[tuple[tuple[int, ...] | None, tuple[int, ...] | None]] = field(default_factory=list)


def find_stacks(module: nn.Module, example: Mapping[str, Any], chosen: Sequence[str] = ()) -> StackSearch:
    """Run one forward with hooks and return the stacks; ``blocks`` are those of ``chosen`` paths, else of the longest stack.

    Args:
        module: The model in eval mode; left as it was.
        example: The keyword arguments of one forward.
        chosen: Module paths of lists to use; each must be a stack.

    Raises:
        ShallowvitError: no list qualifies, or a chosen path doesn't; the sentence says why for each list looked at.
    """
    lists = {path: child for path, child in module.named_modules() if _is_list(child, 1 if path in chosen else 2)}
    for place, path in enumerate(chosen):
        inside = next((other for other in chosen[:place] if path == other or _nested(path, other)), None)
        if inside is not None:
            raise ShallowvitError(f"load: --blocks names {path} beside {inside}, so some blocks would count twice; give one")
        if path not in lists:
            raise ShallowvitError(f"load: --blocks {path}: no ModuleList or Sequential with modules there; {_seen(lists)}")
    calls, counts, output_shapes = _observe(module, example, lists)
    root = type(module).__name__
    verdicts = {path: _why_not(child, calls) for path, child in lists.items()}
    for path in chosen:
        if verdicts[path]:
            raise ShallowvitError(f"load: --blocks {path}: not a stack of removable blocks: {verdicts[path]}")
    sizes = {path: _parameters(lists[path]) for path, why in verdicts.items() if not why}
    stacks: list[BlockStack] = []
    # most blocks first: a hierarchical model's redundancy is in its longest stage, not in its widest
    for path in sorted(sizes, key=lambda p: (-len(list(lists[p].children())), -sizes[p])):
        if path not in chosen and any(_nested(path, other.path) for other in stacks):
            continue
        children = list(lists[path].children())
        flops = sum(counts.get(_joined(root, path, name), 0) for name, _ in lists[path].named_children())
        stacks.append(BlockStack(path, type(children[0]).__name__, len(children), sizes[path], flops))
    if not stacks:
        reasons = (
            "; ".join(f"{path}: {why}" for path, why in list(verdicts.items())[:5]) or "it has no ModuleList or Sequential"
        )
        raise ShallowvitError(
            f"load: no removable blocks found in {root} ({reasons}). Name the list with --blocks path.to.list"
        )
    used = [next(stack for stack in stacks if stack.path == path) for path in chosen] or stacks[:1]
    return StackSearch(tuple(stacks), tuple(_blocks(used, lists, counts, root)), counts.get("Global", 0), output_shapes)


def _blocks(used: Iterable[BlockStack], lists: Mapping[str, nn.Module], counts: Mapping[str, int], root: str) -> list[Block]:
    blocks: list[Block] = []
    for stack in used:
        for position, (name, child) in enumerate(lists[stack.path].named_children()):
            path = _joined(stack.path, name)
            flops = counts.get(_joined(root, path), 0)
            blocks.append(Block(len(blocks), position, stack.path, path, stack.class_name, _parameters(child), flops))
    return blocks


def _joined(*parts: str) -> str:
    """Join module paths; a model that is itself the list of blocks has the path ""."""
    return ".".join(part for part in parts if part)


def _is_list(module: nn.Module, least: int) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential) and len(module) >= least


def _nested(one: str, other: str) -> bool:
    return one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _seen(lists: Mapping[str, nn.Module]) -> str:
    return f"lists in the model: {', '.join(lists) or 'none'}"


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _observe(
    module: nn.Module, example: Mapping[str, Any], lists: Mapping[str, nn.Module]
) -> tuple[dict[nn.Module, _Calls], dict[str, int], tuple[tuple[int, ...], ...]]:
    """Run one forward: each child's calls, operations by module path (two a multiply-add), shapes of the outputs."""
    calls: dict[nn.Module, _Calls] = {child: _Calls() for parent in lists.values() for child in parent.children()}

    def note(child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        calls[child].shapes.append((_shape((*args, *kwargs.values())), _shape((output,))))

    handles = [child.register_forward_hook(note, with_kwargs=True) for child in calls]
    counter = FlopCounterMode(display=False)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operator hides nn.MultiheadAttention from the counter
    try:
        with torch.no_grad(), counter:
            output = module(**example)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError) as err:
        raise ShallowvitError(
            f"load: one forward of {type(module).__name__} with {_described(example)} failed: {err}. Give the model with "
            "example inputs it takes, as file.py:function returning (module, example)"
        ) from err
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()
    counts = {path: sum(by_operator.values()) for path, by_operator in counter.get_flop_counts().items()}
    return calls, counts, shapes_in(output)


def _described(example: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {tuple(getattr(value, 'shape', ()))}" for name, value in example.items())


def _shape(values: Iterable[object]) -> tuple[int, ...] | None:
    """The shape of the first tensor among the values, looking into tuples, lists and mappings."""
    for value in values:
        if isinstance(value, torch.Tensor):
            return tuple(value.shape)
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
        shape = _shape(inner)
        if shape is not None:
            return shape
    return None


def _why_not(parent: nn.Module, calls: Mapping[nn.Module, _Calls]) -> str | None:
    """Return why a list isn't a stack, or None when it is."""
    children = list(parent.children())
    types = {type(child).__name__ for child in children}
    if len({type(child) for child in children}) > 1:
        return f"children of different types ({', '.join(sorted(types))})"
    if len(set(children)) < len(parent):  # type: ignore[arg-type]
        return "the same module stands in it more than once"
    if not all(any(True for _ in child.children()) for child in children):
        return f"its children are single layers ({types.pop()})"
    if not all(any(parameter.ndim >= 2 for parameter in child.parameters()) for child in children):
        return "its children have no weight matrices"
    for position, child in enumerate(children):
        if not calls[child].shapes:
            return f"child {position} ({types.pop()}) isn't called as a module in forward"
        for before, after in calls[child].shapes:
            if before is None or before != after:
                return f"child {position} ({types.pop()}) turns shape {before} into {after}"
    return None
