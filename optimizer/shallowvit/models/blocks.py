"""Find a model's stacks of removable blocks by structure: what a list holds and what one forward does, never a class name.

A stack is two or more like children of a ``ModuleList`` or ``Sequential``, each with weights of its own and an output of its
input's shape; the list's other children (a downsampling layer, blocks of another width) stay where they are. A newcomer's trap:
a list that looks right but isn't called by ``forward`` (a decoder that is switched off) is no stack, because removing from it
changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import ShallowvitError
from .composite import composite_modes
from .flops import flop_counter
from .outputs import shapes_in
from .placeholder import is_placeholder
from .records import Block, BlockStack
from .windows import window_pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["StackSearch", "find_stacks", "measured_flops"]

_Shape = tuple[int, ...]


@dataclass(frozen=True)
class StackSearch:
    """What one forward showed: every stack, the longest first; the blocks of the chosen ones; floating-point operations of
    an item; blocks that go together.
    """

    stacks: tuple[BlockStack, ...]
    blocks: tuple[Block, ...]
    flops: int
    output_shapes: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[int, ...], ...]


@dataclass
class _Calls:
    """Shapes of one child's state before and after, a pair a call, and when it was called first and last."""

    shapes: list[tuple[_Shape | None, _Shape | None]] = field(default_factory=list)
    times: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Group:
    """Like blocks of one list, by their places among its children."""

    list_path: str
    places: tuple[int, ...]
    whole: bool  # the list holds nothing else
    modes: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        return self.list_path if self.whole else f"{self.list_path}[{_spans(self.places)}]"


def find_stacks(module: nn.Module, example: Mapping[str, Any], chosen: Sequence[str] = ()) -> StackSearch:
    """Run one forward with hooks and return the stacks; ``blocks`` are those of ``chosen`` paths, else of the longest stack.

    Args:
        module: The model in eval mode; left as it was.
        example: The keyword arguments of one forward.
        chosen: Module paths of lists to use, or names of stacks (``blocks[3-13]``); each must be a stack.

    Raises:
        ShallowvitError: no list qualifies, or a chosen path doesn't; the sentence says why for each list looked at.
    """
    wanted = [name.partition("[")[0] for name in chosen]
    lists = {path: child for path, child in module.named_modules() if _is_list(child, 1 if path in wanted else 2)}
    _check_chosen(chosen, wanted, lists)
    calls, counts, output_shapes = _observe(module, example, lists)
    root = type(module).__name__
    groups: list[_Group] = []
    verdicts: dict[str, str] = {}
    for path, parent in lists.items():
        found, verdict = _groups(module, example, path, parent, calls)
        least = 2 if path not in wanted or any(len(group.places) > 1 for group in found) else 1
        usable = [group for group in found if len(group.places) >= least]
        groups += usable
        if not usable:
            verdicts[path] = verdict or f"children of different types ({', '.join(_types(parent))})"
    by_path = {path: [group for group in groups if group.list_path == path] for path in lists}
    for name, path in zip(chosen, wanted, strict=True):
        if path in verdicts:
            raise ShallowvitError(f"load: --blocks {name}: not a stack of removable blocks: {verdicts[path]}")
        if name != path and name not in [group.name for group in by_path[path]]:
            names = ", ".join(group.name for group in by_path[path])
            raise ShallowvitError(f"load: --blocks {name}: no such stack in the list {path}; it has {names}")
    stacks = _ranked(groups, lists, counts, root, wanted)
    if not stacks:
        reasons = (
            "; ".join(f"{path}: {why}" for path, why in list(verdicts.items())[:5]) or "it has no ModuleList or Sequential"
        )
        raise ShallowvitError(
            f"load: no removable blocks found in {root} ({reasons}). Name the list with --blocks path.to.list"
        )
    picked = [stack for name in chosen for stack in stacks if name in (stack.path, stack.list_path)] or stacks[:1]
    used = list(dict.fromkeys(picked))
    places = {group.name: group.places for group in groups}
    blocks = tuple(_blocks([(stack, places[stack.path]) for stack in used], lists, counts, root))
    return StackSearch(tuple(stacks), blocks, counts.get("Global", 0), output_shapes, window_pairs(module, blocks))


def measured_flops(module: nn.Module, example: Mapping[str, Any], blocks: Sequence[Block]) -> tuple[int, tuple[Block, ...]]:
    """Run one forward and return the operations of an item, and the blocks with theirs counted anew."""
    counts = _observe(module, example, {})[1]
    root = type(module).__name__
    counted = [
        replace(block, flops=_flops(counts, root, *block.path.rpartition(".")[::2], module.get_submodule(block.path)))
        for block in blocks
    ]
    return counts.get("Global", 0), tuple(counted)


def _check_chosen(chosen: Sequence[str], wanted: Sequence[str], lists: Mapping[str, nn.Module]) -> None:
    for place, (name, path) in enumerate(zip(chosen, wanted, strict=True)):
        earlier = list(zip(chosen, wanted, strict=True))[:place]
        inside = next(
            (other for other, its in earlier if name == other or _nested(path, its) or (path == its and its in (name, other))),
            None,
        )
        if inside is not None:
            raise ShallowvitError(f"load: --blocks names {name} beside {inside}, so some blocks would count twice; give one")
        if path not in lists:
            raise ShallowvitError(f"load: --blocks {name}: no ModuleList or Sequential with modules there; {_seen(lists)}")


def _ranked(
    groups: Sequence[_Group], lists: Mapping[str, nn.Module], counts: Mapping[str, int], root: str, wanted: Sequence[str]
) -> list[BlockStack]:
    """The most blocks first: a hierarchical model's redundancy is in its longest stage, not in its widest."""
    made: list[BlockStack] = []
    for group in groups:
        named = list(lists[group.list_path].named_children())
        children = [named[place] for place in group.places]
        flops = sum(_flops(counts, root, group.list_path, name, child) for name, child in children)
        size = sum(_parameters(child) for _, child in children)
        kind = type(children[0][1]).__name__
        made.append(BlockStack(group.name, kind, len(children), size, flops, group.list_path, group.modes))
    stacks: list[BlockStack] = []
    for stack in sorted(made, key=lambda one: (-one.length, -one.parameters)):
        if stack.list_path in wanted or not any(_nested(stack.list_path, other.list_path) for other in stacks):
            stacks.append(stack)
    return stacks


def _blocks(
    used: Iterable[tuple[BlockStack, Sequence[int]]], lists: Mapping[str, nn.Module], counts: Mapping[str, int], root: str
) -> list[Block]:
    blocks: list[Block] = []
    for stack, places in used:
        named = list(lists[stack.list_path].named_children())
        for place in places:
            name, child = named[place]
            flops = _flops(counts, root, stack.list_path, name, child)
            path = _joined(stack.list_path, name)
            blocks.append(Block(len(blocks), place, stack.path, path, stack.class_name, _parameters(child), flops))
    return blocks


def _flops(counts: Mapping[str, int], root: str, path: str, name: str, child: nn.Module) -> int:
    """Those of a child; a list of parts isn't called itself, so those of its parts."""
    own = counts.get(_joined(root, path, name), 0)
    return own or sum(counts.get(_joined(root, path, name, part), 0) for part, _ in child.named_children())


def _spans(places: Sequence[int]) -> str:
    """``0,2-5`` for 0, 2, 3, 4, 5."""
    spans: list[list[int]] = []
    for place in places:
        if spans and place == spans[-1][1] + 1:
            spans[-1][1] = place
        else:
            spans.append([place, place])
    return ",".join(f"{first}-{last}" if first < last else str(first) for first, last in spans)


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


def _types(parent: nn.Module) -> list[str]:
    return sorted({type(child).__name__ for child in parent.children()})


def _observe(
    module: nn.Module, example: Mapping[str, Any], lists: Mapping[str, nn.Module]
) -> tuple[dict[nn.Module, _Calls], dict[str, int], tuple[tuple[int, ...], ...]]:
    """Run one forward: each child's calls, operations by module path (two a multiply-add), shapes of the outputs."""
    children = [child for parent in lists.values() for child in parent.children()]
    parts = [part for child in children if _walked(child) for part in child.children()]
    calls: dict[nn.Module, _Calls] = {child: _Calls() for child in (*children, *parts)}
    clock = 0

    def note(child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        nonlocal clock
        clock += 1
        calls[child].shapes.append(_states(shapes_in((args, kwargs)), output))
        calls[child].times.append(clock)

    handles = [child.register_forward_hook(note, with_kwargs=True) for child in calls]
    counter = flop_counter()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operator hides nn.MultiheadAttention from the counter
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), counter:
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


def _states(given: Sequence[_Shape], output: object) -> tuple[_Shape | None, _Shape | None]:
    """The shapes of the state before and after a call: after is the first tensor, before an argument like it or the first."""
    after = next(iter(shapes_in(output)), None)
    return (after if after in given else next(iter(given), None)), after


def _walked(child: nn.Module) -> bool:
    """Whether a child is a list of parts that has no forward of its own."""
    return isinstance(child, nn.ModuleList | nn.ModuleDict)


def _groups(
    module: nn.Module, example: Mapping[str, Any], path: str, parent: nn.Module, calls: Mapping[nn.Module, _Calls]
) -> tuple[list[_Group], str | None]:
    """The groups of like blocks in a list, and why the first child that is in none of them isn't."""
    children = list(parent.children())
    if len(children) < len(parent):  # type: ignore[arg-type]  # named children leave out what stood before
        return [], "the same module stands in it more than once"
    reason: str | None = None
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, child in enumerate(children):
        why = _why_not(place, child, calls)
        if why is None:
            shapes = calls[child].shapes or calls[next(child.children())].shapes
            alike.setdefault((type(child), shapes[0]), []).append(place)
        reason = reason or why
    groups = []
    for places in alike.values():
        modes: tuple[tuple[str, str], ...] = ()
        if _walked(children[places[0]]):
            named = list(parent.named_children())
            paths = [_joined(path, named[place][0]) for place in places]
            found = composite_modes(module, example, paths, [children[place] for place in places])
            if found is None:
                reason = (
                    reason or f"its children are lists ({type(children[places[0]]).__name__}) that no forward calls as blocks"
                )
                continue
            modes = found
        groups.append(_Group(path, tuple(places), len(places) == len(children), modes))
    return groups, reason


def _why_not(place: int, child: nn.Module, calls: Mapping[nn.Module, _Calls]) -> str | None:
    """Return why a child of a list isn't a block, or None when it is."""
    name = f"child {place} ({type(child).__name__})"
    if is_placeholder(child):
        return f"{name} stands in the place of a block that was removed"
    if not any(True for _ in child.children()):
        return f"its children are single layers ({type(child).__name__})"
    if not any(parameter.ndim >= 2 for parameter in child.parameters()):
        return "its children have no weight matrices"
    if _walked(child):
        return next((f"{name} isn't called in forward" for part in child.children() if not calls[part].shapes), None)
    if not calls[child].shapes:
        return f"{name} isn't called as a module in forward"
    for before, after in calls[child].shapes:
        if before is None or before != after:
            return f"{name} turns shape {before} into {after}"
    return None
