"""Find the two halves of a block, what mixes its tokens (attention) and what works on each token (MLP), and where to cut them.

By what the code does, never by names: a cut is right where silencing every branch leaves exactly the state that the block was
given. A newcomer's trap: the obvious place is often wrong. VideoMAE's ``output`` adds the state itself, Swin v2 normalises what
its attention answers, and a norm of the sum (post-norm) leaves no exact cut at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..errors import ShallowvitError
from .branch_probe import Probe, captured_calls, same
from .flops import flop_counter
from .outputs import tensors_in
from .zero_branch import HalfRemoval, Zeroed, zeros_in_place

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from contextlib import AbstractContextManager

    from .branch_probe import Call
    from .records import Block, LoadedModel

__all__ = ["Half", "find_halves", "halves_of", "without_half"]

_DEPENDS = 0.99  # share of the answer's numbers that must move with the state


_ATTENTION, _MLP = "attention", "mlp"
_PARTS = (_ATTENTION, _MLP)


@dataclass(frozen=True)
class Half:
    """A branch of a block that can be cut out exactly.

    ``parameters`` and ``flops`` (of an item) are what goes with it; ``weights`` names its parameters within the block.
    """

    block: int
    part: str
    removal: HalfRemoval
    parameters: int
    flops: int
    weights: tuple[str, ...]


@dataclass(frozen=True)
class _Cut:
    """Where the branches of one kind of block are cut; paths are within the block."""

    writers: tuple[str, ...]  # every branch of the block
    sites: dict[str, tuple[Zeroed, ...]]  # by part
    emptied: dict[str, tuple[Zeroed, ...]]
    flops: dict[str, int]


class _NoCutError(Exception):
    """Why a block has no such half."""


# Found once a model: score, plan and prune ask one after the other.
_FOUND: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], dict[str, tuple[Half | str, ...]]]] = WeakKeyDictionary()


def find_halves(model: LoadedModel, part: str, blocks: Collection[int] | None = None) -> dict[int, Half]:
    """Return the ``attention`` or ``mlp`` half of each block, or of these blocks, by the block's number.

    Raises:
        ShallowvitError: a block has no such half that can be cut out exactly; says which and why.
    """
    found: dict[int, Half] = {}
    for block, half in zip(model.blocks, halves_of(model, part), strict=True):
        if blocks is not None and block.index not in blocks:
            continue
        if isinstance(half, str):
            raise ShallowvitError(
                f"halves: the {part} of block {block.index} ({block.path}, {block.class_name}) can't be removed by itself: "
                f"{half}. Remove whole blocks, with --granularity block"
            )
        found[block.index] = half
    return found


def halves_of(model: LoadedModel, part: str) -> tuple[Half | str, ...]:
    """Return each block's half, or the reason why it has none."""
    key = (model.sha256, tuple(block.path for block in model.blocks))
    known = _FOUND.setdefault(model.module, {})
    if key not in known:
        rows = _search(model)
        known[key] = {one: tuple(row[one] for row in rows) for one in _PARTS}
    return known[key][part]


def without_half(model: LoadedModel, half: Half) -> AbstractContextManager[None]:
    """Cut the half out of the model in memory inside a ``with``; also of a copy of the model that it was found in."""
    return zeros_in_place(model.module.get_submodule(half.removal.block_path), half.removal.zeroed)


def _search(model: LoadedModel) -> list[dict[str, Half | str]]:
    """Find the cuts once for each kind of block, and try them on each."""
    paths = [
        f"{block.path}.{name}" if name else block.path for block in model.blocks for name in model.modes_of(block.index) or [""]
    ]
    calls = captured_calls(model.module, model.example, paths)
    cuts: dict[object, _Cut | str] = {}
    found: list[dict[str, Half | str]] = []
    for block in model.blocks:
        module = model.block(block.index)
        if model.modes_of(block.index):
            found.append({part: _of_composite(model, block, part, calls) for part in _PARTS})
        elif block.path not in calls:
            found.append(dict.fromkeys(_PARTS, "it isn't called with a state"))
        else:
            key = _kind(module, calls[block.path])
            if key not in cuts:
                cuts[key] = _cut_or_reason(module, calls[block.path])
            found.append({part: _tried(module, block, part, calls[block.path], cuts[key]) for part in _PARTS})
    return found


def _kind(module: nn.Module, call: Call) -> object:
    shapes = tuple((name, type(child).__name__) for name, child in module.named_modules())
    sizes = tuple((name, tuple(parameter.shape)) for name, parameter in module.named_parameters())
    return type(module), shapes, sizes, tuple(call.state.shape)


def _cut_or_reason(module: nn.Module, call: Call) -> _Cut | str:
    try:
        return _find_cut(module, call)
    except _NoCutError as err:
        return str(err)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as err:
        return f"it fails with a branch silenced ({str(err).splitlines()[0] if str(err) else type(err).__name__})"


def _find_cut(module: nn.Module, call: Call) -> _Cut:
    probe = Probe(module, call, redrawn=True)
    watched = probe.watch()
    rules = {path: rule for path, rule in watched.rules.items() if rule is not None and watched.calls[path] == 1}
    writers = _branches(probe, list(rules))
    if len(writers) < 2:
        raise _NoCutError("it adds one branch alone to its state, so that removing this is removing the block")
    writers = [_lifted(probe, path, rules) for path in writers]
    by_part = _sorted_by_part(probe, Probe(module, call, redrawn=True, centred=True), writers, watched.calls)
    if not by_part[_MLP] or not by_part[_ATTENTION]:
        raise _NoCutError(
            "each of its branches mixes tokens, so that none is known to be the attention"
            if by_part[_ATTENTION]
            else "none of its branches mixes tokens by anything but convolutions, so that it has no attention"
        )
    sites = {part: tuple(rules[path] for path in paths) for part, paths in by_part.items()}
    emptied = {
        part: _replaceable(module, _emptied(probe, paths, watched.calls), watched.rules, watched.calls, paths)
        for part, paths in by_part.items()
    }
    whole = _count_flops(module, call, ())
    flops = {part: whole - _count_flops(module, call, (*sites[part], *emptied[part])) for part in sites}
    return _Cut(tuple(writers), sites, emptied, flops)


def _branches(probe: Probe, order: Sequence[str]) -> list[str]:
    """Return the writers; where one alone writes the sum of two branches, those of the branches, if they can be cut."""
    found = writers = _writers(probe, order)
    while len(found) < 2:
        order = [path for path in order if path not in found]
        try:
            found = _writers(probe, order)
        except _NoCutError:
            return writers
    return found


def _writers(probe: Probe, order: Sequence[str]) -> list[str]:
    """Return the modules whose answers are added to the state: with all of them silenced the block hands its state on.

    From the last to answer on: what stands before a branch's end in that branch no longer matters once the end is silent.
    """
    other = torch.randn(probe.state.shape, generator=torch.Generator().manual_seed(2)).to(probe.state.dtype)
    silent: list[str] = []
    answer = probe.run()
    if answer.shape != probe.state.shape:
        raise _NoCutError("its state changes shape")
    for path in reversed(order):
        if same(answer, probe.state):
            break
        trial = probe.run([*silent, path])
        if same(trial, answer) or not bool(torch.isfinite(trial).all()):
            continue
        given = probe.answer_of(path, silent)
        if given is not None and same(given, probe.state):
            continue  # a shortcut
        moved = (probe.run([*silent, path], state=other) - trial).abs() > 0
        if float(moved.float().mean()) < _DEPENDS:
            continue  # the state itself runs through this one
        silent.append(path)
        answer = trial
    if not same(answer, probe.state):
        raise _NoCutError(
            "with its branches silenced it still changes its state, as blocks do that normalise the sum (post-norm)"
            if silent
            else "no module of it adds to the state"
        )
    for path in list(silent):  # what was only a part of another one's branch
        rest = [one for one in silent if one != path]
        if rest and same(probe.run(rest), probe.state):
            silent = rest
    return silent


def _lifted(probe: Probe, path: str, rules: dict[str, Zeroed]) -> str:
    """The outermost module that answers with nothing else than this one's branch."""
    while (parent := path.rpartition(".")[0]) and parent in rules:
        answer = probe.answer_of(parent, [path])
        if answer is None or bool(answer.any()):
            break
        path = parent
    return path


def _sorted_by_part(probe: Probe, centred: Probe, writers: Sequence[str], calls: dict[str, int]) -> dict[str, list[str]]:
    """Which branches mix tokens, and which work on each by itself; an MLP may look at a token's neighbours by a convolution."""
    by_part: dict[str, list[str]] = {_ATTENTION: [], _MLP: []}
    for path in writers:
        others = [one for one in writers if one != path]  # a branch sees what those before it have added
        if not _mixes(probe, others):
            by_part[_MLP].append(path)
        elif _mixes(centred, others):
            by_part[_ATTENTION].append(path)
        elif _matrices(probe.block, [path, *_emptied(probe, [path], calls)]) > 1:
            by_part[_MLP].append(path)
        # else a convolution that tells tokens their places: it stays with either half
    return by_part


def _mixes(probe: Probe, silent: Sequence[str] = ()) -> bool:
    """Whether changing one token of the state changes more than one token of the answer, the other branches silenced."""
    before = probe.run(silent)
    scale = 1e-6 * float(before.abs().max())
    fewest = before.numel()
    for axis in {-1, 1 if probe.state.ndim > 2 else -1}:  # width is the last one, or that of [B, C, H, W]
        state = probe.state.clone()
        token = state.movedim(axis, -1)  # a view
        place = tuple(0 if n == 0 else size // 2 for n, size in enumerate(token.shape[:-1]))
        token[place] = torch.randn(token.shape[-1], generator=torch.Generator().manual_seed(3)).to(state.dtype) * 3
        moved = (probe.run(silent, state=state) - before).abs() > scale
        fewest = min(fewest, int(moved.movedim(axis, -1).any(-1).sum()))
    return fewest > 1


def _matrices(block: nn.Module, paths: Sequence[str]) -> int:
    weights = {parameter for path in paths for parameter in block.get_submodule(path).parameters()}
    return sum(weight.ndim >= 2 and weight.shape[0] > 1 and weight.shape[1] > 1 for weight in weights)


def _emptied(probe: Probe, sites: Sequence[str], calls: dict[str, int]) -> list[str]:
    """The modules with weights whose answers matter, but no longer with these branches silenced."""
    holders = [
        path
        for path, part in probe.block.named_modules()
        if path in calls and path not in sites and any(True for _ in part.parameters())
    ]
    whole, silent = probe.run(), probe.run(sites)
    inside = [path for path in holders if any(path.startswith(f"{site}.") for site in sites)]
    found: list[str] = []
    for path in holders:
        if path in inside or any(path.startswith(f"{one}.") for one in found):
            continue
        if not same(probe.run(sites, noisy=[path]), silent) or same(probe.run(noisy=[path]), whole):
            continue
        found.append(path)
    return found


def _replaceable(
    block: nn.Module,
    paths: Sequence[str],
    rules: dict[str, Zeroed | None],
    calls: dict[str, int],
    sites: Sequence[str],
) -> tuple[Zeroed, ...]:
    """Rules for these modules, or where zeros can't stand for one's answer, for the modules in it."""
    found: list[Zeroed] = []
    for path in paths:
        rule = rules.get(path)
        if rule is not None and not any(site.startswith(f"{path}.") for site in sites):
            found.append(rule)
            continue
        children = [f"{path}.{name}" for name, child in block.get_submodule(path).named_children() if any(child.parameters())]
        inner = [child for child in children if child in calls and child not in sites]
        found += _replaceable(block, inner, rules, calls, sites)
    return tuple(found)


def _count_flops(module: nn.Module, call: Call, zeroed: Sequence[Zeroed]) -> int:
    with flop_counter() as counter, zeros_in_place(module, zeroed):
        Probe(module, call, redrawn=False).run()
    return int(counter.get_total_flops())


def _tried(module: nn.Module, block: Block, part: str, call: Call, cut: _Cut | str) -> Half | str:
    """Make the cut in this block, with its own weights: exactly its branch must be missing."""
    if isinstance(cut, str):
        return cut
    zeroed = (*cut.sites[part], *cut.emptied[part])
    probe = Probe(module, call, redrawn=False)
    wanted = probe.run([site.path for site in cut.sites[part]])
    if not same(probe.run(cut.writers), probe.state):
        return "with its branches silenced it still changes its state"
    before = dict(module.named_parameters())
    try:
        with zeros_in_place(module, zeroed), torch.no_grad():
            args, kwargs = call.with_state(None)
            found = tensors_in(module(*args, **kwargs))[0]
            left = set(dict(module.named_parameters()))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as err:
        return f"its code reaches into the modules of the branch ({str(err).splitlines()[0]})"
    if not same(found, wanted):
        return "the block without it isn't the block with a branch of zeros"
    gone = [name for name in before if name not in left]
    removal = HalfRemoval(part, block.path, cut.sites[part], cut.emptied[part])
    size = sum(parameter.numel() for parameter in {before[name] for name in gone})
    return Half(block.index, part, removal, size, cut.flops[part], tuple(gone))


def _of_composite(model: LoadedModel, block: Block, part: str, calls: dict[str, Call]) -> Half | str:
    """A list of parts that the forward around it walks: its branches are parts, or lie in parts that add the state."""
    module = model.block(block.index)
    sites: dict[str, list[Zeroed]] = {_ATTENTION: [], _MLP: []}
    emptied: dict[str, list[Zeroed]] = {_ATTENTION: [], _MLP: []}
    flops = 0
    for name, mode in model.modes_of(block.index).items():
        child, call = module.get_submodule(name), calls.get(f"{block.path}.{name}")
        if not any(True for _ in child.parameters()):
            continue
        if call is None:
            return f"its part {name} isn't called with a state"
        probe = Probe(child, call, redrawn=True)
        if mode == "zero":
            kind = _ATTENTION if _mixes(probe) else _MLP
            sites[kind].append(Zeroed(name))
            flops += (kind == part) * _count_flops(child, call, ())
            continue
        watched = probe.watch()
        rules = {path: rule for path, rule in watched.rules.items() if rule is not None and watched.calls[path] == 1}
        try:
            writers = [_lifted(probe, path, rules) for path in _writers(probe, list(rules))]
        except _NoCutError as err:
            return f"its part {name}: {err}"
        kind = _ATTENTION if _mixes(probe) else _MLP
        before = _replaceable(child, _emptied(probe, writers, watched.calls), watched.rules, watched.calls, writers)
        own = tuple(rules[path] for path in writers)
        flops += (kind == part) * (_count_flops(child, call, ()) - _count_flops(child, call, (*own, *before)))
        sites[kind] += [replace(one, path=f"{name}.{one.path}") for one in own]
        emptied[kind] += [replace(one, path=f"{name}.{one.path}") for one in before]
    if not sites[_ATTENTION] or not sites[_MLP]:
        return "its parts aren't some that mix tokens and some that work on each by itself"
    removal = HalfRemoval(part, block.path, tuple(sites[part]), tuple(emptied[part]))
    gone = [name for name, _ in module.named_parameters() if any(name.startswith(f"{one.path}.") for one in removal.zeroed)]
    size = sum(module.get_parameter(name).numel() for name in gone)
    return Half(block.index, part, removal, size, flops, tuple(gone))
