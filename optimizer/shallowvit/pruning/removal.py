"""Take blocks out of a model so that what is left equals the model whose blocks hand their input on, or refuse.

Deleting is tried first; where it gives something else (blocks tapped by index, roles by parity, a token put in before block
N, lists walked with ``zip``, ``x = block(x + pos)``), the place stays with a module that hands on. A newcomer's trap: blocks
whose scale starts near zero hide every mistake, so such weights are drawn anew in the copies that are compared.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError
from ..models.bypass import Route, skipping
from ..models.deletion import TAP_MEANINGS, has_taps
from ..models.outputs import tensors_in
from ..models.probes import probe_inputs, random_like
from ..models.removals import Removal, apply_removal
from ..models.skeletons import skeleton
from .stock import mend_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from ..models import LoadedModel

__all__ = ["RUN_ERRORS", "Removed", "Seen", "difference", "paths_after", "remove_blocks", "woken"]

_TOLERANCE = 5e-5  # of the largest value; 1.1e-5 was seen of a deletion that was right, at 224 pixels
_ASLEEP = 1e-2  # weights that are all smaller than this are drawn anew for the comparison
RUN_ERRORS = (RuntimeError, IndexError, ValueError, TypeError, KeyError, AttributeError, AssertionError)


@dataclass(frozen=True)
class Removed:
    """A copy of the module that shares its weights, without the blocks; how it is built; what was done."""

    module: nn.Module
    recipe: dict[str, Any]
    removals: tuple[Removal, ...]
    forwards: int  # of the whole model, that the comparison took


@dataclass(frozen=True)
class Seen:
    """The outputs of a forward, and the states that blocks gave on the way."""

    tensors: list[torch.Tensor]

    @property
    def finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return all(bool(one.isfinite().all()) for one in self.tensors)


def remove_blocks(model: LoadedModel, removed: Sequence[int]) -> Removed:
    """Remove the blocks from a copy that shares the model's weights; deleted where that equals skipping them.

    Args:
        model: Left as it is.
        removed: Numbers of blocks.

    Raises:
        ShallowvitError: a block can't be skipped, or neither deleting it nor a module in its place equals skipping it.
    """
    trial = _Trial(model, removed)
    deleted = _removals(model, removed, "deleted")
    lengths = {removal.length for removal in deleted}
    meanings = ("", *TAP_MEANINGS) if any(has_taps(model.module, length) for length in lengths) else ("",)
    why = ""
    for taps in reversed(meanings):
        found = trial.tried([replace(removal, taps=taps) for removal in deleted])
        if isinstance(found, Removed):
            return found
        why = found
    kept = _removals(model, removed, "placeholder")
    if len(deleted) > 1:  # what can be deleted by itself is
        for place, one in enumerate(deleted):
            if isinstance(trial.tried([*kept[:place], one, *kept[place + 1 :]]), Removed):
                kept[place] = one
    kept = [replace(removal, reason=why) if removal.way == "placeholder" else removal for removal in kept]
    found = trial.tried(kept)
    if isinstance(found, Removed):
        return found
    blocks = ", ".join(model.blocks[number].path for number in removed)
    raise ShallowvitError(
        f"prune: {model.origin.architecture} without {blocks} isn't the model that skips them: deleted, {why}; with a "
        f"module in their places that hands on, {found}. Remove other blocks"
    )


def _removals(model: LoadedModel, removed: Sequence[int], way: str) -> list[Removal]:
    """One record a list."""
    stacks = {stack.path: stack for stack in model.stacks}
    gone: dict[str, list[int]] = {}
    modes: dict[str, tuple[tuple[str, str], ...]] = {}
    for block in (model.blocks[number] for number in removed):
        stack = stacks[block.stack]
        gone.setdefault(stack.list_path, []).append(block.position)
        modes[stack.list_path] = stack.modes if way == "placeholder" else ()
    return [
        Removal(path, len(list(model.module.get_submodule(path).children())), tuple(sorted(places)), way, modes=modes[path])
        for path, places in gone.items()
    ]


class _Trial:
    """One comparison: a copy with weights that are awake, inputs, and what the model gives when the blocks are skipped."""

    def __init__(self, model: LoadedModel, removed: Sequence[int]) -> None:
        self.model = model
        self.removed = removed
        self.awake, self.woken = woken(model.module), True
        self.inputs = probe_inputs(model.input_spec, model.example)
        self.forwards = 0
        self.routes: dict[str, Route] = {}
        self.idle: dict[str, list[str]] = {}  # by list of blocks: lists as long that no forward used
        self._expected: Seen | None = None
        if any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules()):
            self._check_copies()

    def tried(self, removals: Sequence[Removal]) -> Removed | str:
        """Return the model without the blocks if it equals the one that skips them, else what is different."""
        if self._expected is None and any(removal.way == "placeholder" for removal in removals):
            self._expected = self._skipped()
        module, _ = self._built(self.awake, removals)
        blocks = self._kept_blocks(module, removals)
        if self._expected is not None:
            # states that hooks left behind in the run before must not pass for this one's
            self._run(skeleton(self.awake), [], self.model.example)
        try:
            found = self._run(module, blocks, self.inputs)
            if self._expected is None and self.woken and not found.finite:  # weights drawn anew can overflow
                self.awake, self.woken = skeleton(self.model.module), False
                return self.tried(removals)
        except RUN_ERRORS as err:
            if self._expected is None and self._takes_one_only():
                self.inputs = random_like(self.model.example, 1)
                return self.tried(removals)
            return f"it doesn't run ({type(err).__name__}: {_first_line(err)})"
        if self._expected is None:
            self._expected = self._skipped()
        different = difference(found, self._expected)
        if different:
            return different
        unproven = next((self.idle[one.path] for one in removals if one.way == "deleted" and self.idle[one.path]), None)
        if unproven:
            return f"the forward that is compared doesn't use {unproven[0]}, which has as many entries as there are blocks"
        built, recipe = self._built(self.model.module, removals)
        return Removed(built, recipe, tuple(removals), self.forwards)

    def _check_copies(self) -> None:
        """Hooks may keep what they see in the model they were registered on; a copy then answers with stale states."""
        seen = [self._run(module, [], self.inputs) for module in (skeleton(self.model.module), self.model.module)]
        if difference(*seen):
            raise ShallowvitError(
                f"prune: a copy of {self.model.origin.architecture} doesn't answer as the model does, since its forward hooks "
                "keep states in the model they were registered on. Register them on modules of the model itself, or let "
                "forward collect the states"
            )

    def _takes_one_only(self) -> bool:
        """Whether the unpruned model doesn't run on these inputs, a batch of 2, but does on one item."""
        if self.inputs[self.model.input_spec.name].shape[0] == 1:
            return False
        try:
            self._run(skeleton(self.awake), [], self.inputs)
        except RUN_ERRORS:
            return True
        return False

    def _skipped(self) -> Seen:
        paths = {self.model.blocks[number].path: self.model.modes_of(number) for number in self.removed}
        whole = skeleton(self.awake)  # a forward may change buffers and attributes, which the next copy must not see
        blocks = [whole.get_submodule(b.path) for b in self.model.blocks if b.index not in self.removed]
        try:
            with (
                _idle_lists(whole, _removals(self.model, self.removed, "deleted")) as self.idle,
                skipping(whole, paths) as routes,
            ):
                seen = self._run(whole, blocks, self.inputs)
        except RUN_ERRORS as err:
            raise ShallowvitError(
                f"prune: {self.model.origin.architecture} doesn't run when {', '.join(paths)} hand their input on: "
                f"{_first_line(err)}. Remove other blocks"
            ) from err
        self.routes = dict(routes)
        return seen

    def _built(self, whole: nn.Module, removals: Sequence[Removal]) -> tuple[nn.Module, dict[str, Any]]:
        """The blocks taken out of a copy that shares the weights, its configuration mended where they are deleted."""
        module, recipe = skeleton(whole), self.model.recipe
        for removal in removals:
            apply_removal(module, removal, self.routes)
            if removal.way == "deleted":
                family, kept = self.model.origin.family, removal.kept
                recipe = mend_recipe(module, family, recipe, removal.path, removal.length, kept)
            else:
                recipe = recipe | {"stock": False}
        return module, recipe

    def _kept_blocks(self, module: nn.Module, removals: Sequence[Removal]) -> list[nn.Module]:
        """The blocks that stay, in the order of their numbers."""
        paths = paths_after(self.model, self.removed, removals)
        return [module.get_submodule(path) for _, _, path in paths]

    def _run(self, module: nn.Module, blocks: Sequence[nn.Module], inputs: Mapping[str, Any]) -> Seen:
        """One forward; what is drawn at random is drawn from the same seed each time."""
        states: list[torch.Tensor] = []

        def note(_block: nn.Module, _args: Any, output: object) -> None:
            states.extend(one.clone() for one in tensors_in(output)[:1])

        self.forwards += 1
        parts = [part for block in blocks for part in _called(block)]
        handles = [part.register_forward_hook(note) for part in parts]
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                outputs = tensors_in(module(**inputs))
        finally:
            for handle in handles:
                handle.remove()
        return Seen([*outputs, *states])


def paths_after(model: LoadedModel, removed: Sequence[int], removals: Sequence[Removal]) -> list[tuple[int, int, str]]:
    """Return each kept block's number, its place in its list and its module path once the others are gone."""
    by_list = {removal.path: removal for removal in removals}
    lists = {stack.path: stack.list_path for stack in model.stacks}
    found = []
    for block in model.blocks:
        if block.index in removed:
            continue
        path = lists[block.stack]
        removal = by_list.get(path)
        place, where = block.position, block.path
        if removal is not None and removal.way == "deleted":
            place -= sum(gone < block.position for gone in removal.gone)
            names = [name for name, _ in model.module.get_submodule(path).named_children()]
            where = f"{path}.{names[place]}" if path else names[place]
        found.append((block.index, place, where))
    return found


@contextmanager
def _idle_lists(module: nn.Module, removals: Sequence[Removal]) -> Iterator[dict[str, list[str]]]:
    """Find, for each list of blocks, the other lists as long whose children a forward inside the ``with`` doesn't call.

    Heads of an early exit, or of training alone: which block one of them goes with can't be seen. A list of blocks of the same
    class is a part of the model that is switched off.
    """
    found: dict[str, list[str]] = {removal.path: [] for removal in removals}
    called: set[nn.Module] = set()
    handles = [part.register_forward_hook(lambda one, _args, _output: called.add(one)) for part in module.modules()]
    yield found
    for handle in handles:
        handle.remove()
    for removal in removals:
        blocks = list(module.get_submodule(removal.path).children())
        kinds = {type(block) for block in blocks}
        for path, other in module.named_modules():
            if not isinstance(other, torch.nn.ModuleList) or len(other) != removal.length or path == removal.path:
                continue
            children = list(other.children())
            outside = not path.startswith(f"{removal.path}.") and not kinds & {type(child) for child in children}
            if outside and not any(part in called for child in children for part in child.modules()):
                found[removal.path].append(path)


def _called(block: nn.Module) -> list[nn.Module]:
    """The block, or its parts where it is a list of them."""
    is_list = isinstance(block, torch.nn.ModuleList | torch.nn.ModuleDict)
    return list(block.children()) if is_list else [block]


def woken(module: nn.Module) -> nn.Module:
    """Return a copy that shares the weights, but for those that are so small that a block of them changes nothing."""
    copied = skeleton(module)
    generator = torch.Generator().manual_seed(0)
    drawn: dict[int, torch.nn.Parameter] = {}
    for part in copied.modules():
        for name, weight in part._parameters.items():
            if weight is None or not weight.is_floating_point() or not weight.numel():
                continue
            if id(weight) not in drawn and _is_asleep(weight.detach()):
                deviation = 0.1 if weight.ndim < 2 else min(0.1, weight[0].numel() ** -0.5)
                values = torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * deviation
                drawn[id(weight)] = torch.nn.Parameter(values, requires_grad=False)
            part._parameters[name] = drawn.get(id(weight), weight)
    return copied


def _is_asleep(weight: torch.Tensor) -> bool:
    """Whether every weight is small; most aren't, which the first few show."""
    return all(float(part.abs().max()) < _ASLEEP for part in (weight.flatten()[:64], weight))


def difference(found: Seen, expected: Seen) -> str:
    """Say what is different between two forwards; empty where nothing is."""
    if len(found.tensors) != len(expected.tensors):
        return f"it gives {len(found.tensors)} outputs and states instead of {len(expected.tensors)}"
    for one, other in zip(found.tensors, expected.tensors, strict=True):
        if one.shape != other.shape:
            return f"an output or state has the shape {tuple(one.shape)} instead of {tuple(other.shape)}"
        if not one.is_floating_point():
            if not torch.equal(one, other):
                return "whole numbers among its outputs are others"
            continue
        if not torch.equal(one.isnan(), other.isnan()):
            return "its outputs or states hold NaN elsewhere"
        one, other = one.nan_to_num(), other.nan_to_num()
        scale = max(float(other.abs().max()), 1e-30) if other.numel() else 1.0
        error = float((one - other).abs().max()) if other.numel() else 0.0
        if error > _TOLERANCE * scale:
            return f"its outputs or states differ by {error / scale:.2g} of the largest"
    return ""


def _first_line(err: Exception) -> str:
    return str(err).strip().partition("\n")[0]
