"""Run one block again and again with some of its modules silenced, disturbed or watched, to learn which of them adds what.

Its weights are drawn anew for that, since a layer scale of 1e-5 or a projection that starts at zero hides what the code does. A
newcomer's trap: an answer may be the very tensor that the block was given, so both are copied around each run.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import ShallowvitError
from .bypass import find_route
from .outputs import tensors_in, with_tensors
from .probes import random_like
from .zero_branch import Zeroed, zeroed_like

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

__all__ = ["Call", "Probe", "captured_calls", "same"]

_TOLERANCE = 1e-5  # of the largest number, for weights and states of about 1 in fp32
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a block, and which of their tensors is the state that it hands on."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    source: int

    @property
    def state(self) -> torch.Tensor:
        """The state that the block is given."""
        return tensors_in((self.args, self.kwargs))[self.source]

    def with_state(self, state: torch.Tensor | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return copies of the arguments, with another state if one is given."""
        args, kwargs = pytree.tree_map(_copied, (self.args, self.kwargs))
        if state is None:
            return args, kwargs
        tensors: list[torch.Tensor | None] = list(tensors_in((args, kwargs)))
        tensors[self.source] = state.clone()
        changed: tuple[tuple[Any, ...], dict[str, Any]] = with_tensors((args, kwargs), tensors)
        return changed


@dataclass
class _Watched:
    """What one run showed of a block's modules, by path, in the order in which they answered."""

    calls: dict[str, int] = field(default_factory=dict)
    rules: dict[str, Zeroed | None] = field(default_factory=dict)


def captured_calls(module: nn.Module, example: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Call]:
    """Run one forward on random inputs and return the first call of each module at these paths."""
    found: dict[str, Call] = {}

    def note(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if path not in given:
            given[path] = pytree.tree_map(_copied, (args, kwargs))

    def route(path: str, output: object) -> None:
        if path not in found and path in given:
            args, kwargs = given[path]
            try:
                source = find_route(tensors_in((args, kwargs)), output, path).sources[0]
            except ShallowvitError:
                return  # it hands no state on
            found[path] = Call(args, kwargs, source or 0)

    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    with ExitStack() as stack, torch.no_grad(), torch.random.fork_rng(devices=[]):
        for path in paths:
            part = module.get_submodule(path)
            before = part.register_forward_pre_hook(lambda _m, args, kwargs, p=path: note(p, args, kwargs), with_kwargs=True)
            after = part.register_forward_hook(lambda _m, _args, output, p=path: route(p, output))
            stack.callback(before.remove)
            stack.callback(after.remove)
        module(**random_like(example))
    return found


class Probe:
    """One block with weights drawn anew (``redrawn``) or its own, and one call of it; the block itself stays as it is."""

    def __init__(self, block: nn.Module, call: Call, *, redrawn: bool, centred: bool = False) -> None:
        self.block = block
        self.call = call
        self._weights = _redrawn(block, centred) if redrawn else {}

    @property
    def state(self) -> torch.Tensor:
        """The state that the block is given."""
        return self.call.state

    def run(
        self, silent: Collection[str] = (), *, state: torch.Tensor | None = None, noisy: Collection[str] = ()
    ) -> torch.Tensor:
        """Return the block's answer with the answers of some modules set to zero, or drowned in noise."""
        with ExitStack() as stack:
            for path in silent:
                stack.enter_context(_answering(self.block.get_submodule(path), torch.zeros_like))
            for path in noisy:
                stack.enter_context(_answering(self.block.get_submodule(path), _drowned))
            return tensors_in(self._answer(state))[0].clone()

    def watch(self) -> _Watched:
        """Return which modules answer, in which order, and how zeros can stand for what they answer."""
        watched = _Watched()

        def note(path: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
            given = tensors_in((args, kwargs))
            watched.calls[path] = watched.calls.get(path, 0) + 1
            watched.rules.pop(path, None)
            floats = given and given[0].is_floating_point()
            watched.rules[path] = zeroed_like(path, given[0], output) if floats else None

        with ExitStack() as stack:
            for path, part in self.block.named_modules():
                if path:
                    handle = part.register_forward_hook(
                        lambda _m, args, kwargs, output, p=path: note(p, args, kwargs, output), with_kwargs=True
                    )
                    stack.callback(handle.remove)
            self._answer(None)
        return watched

    def answer_of(self, path: str, silent: Collection[str]) -> torch.Tensor | None:
        """Return the first tensor of one module's answer."""
        found: list[torch.Tensor] = []
        part = self.block.get_submodule(path)
        handle = part.register_forward_hook(lambda _m, _args, output: found.append(tensors_in(output)[0].clone()))
        try:
            self.run(silent)
        finally:
            handle.remove()
        return found[0] if found else None

    def _answer(self, state: torch.Tensor | None) -> object:
        args, kwargs = self.call.with_state(state)
        with torch.no_grad(), _slow_path():
            if self._weights:
                return torch.func.functional_call(self.block, self._weights, args, kwargs)
            return self.block(*args, **kwargs)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two answers are equal but for rounding."""
    if one.shape != other.shape or not bool(torch.isfinite(one).all() and torch.isfinite(other).all()):
        return False
    scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
    return bool((one - other).abs().max() <= _TOLERANCE * scale) if one.numel() else True


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _redrawn(block: nn.Module, centred: bool) -> dict[str, torch.Tensor]:
    """Weights that keep numbers near 1 and leave nothing at zero; ``centred`` convolutions see no neighbours."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in block.named_parameters():
        if not parameter.is_floating_point():
            continue
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        weights[name] = (drawn / fan_in**0.5 if fan_in > 1 else 0.5 + 0.25 * drawn).to(parameter.dtype)
    if centred:
        for path, part in block.named_modules():
            if isinstance(part, _CONVOLUTIONS) and max(part.kernel_size) > 1:
                weight = weights[f"{path}.weight" if path else "weight"]
                middle: tuple[slice | int, ...] = (slice(None), slice(None), *(size // 2 for size in part.kernel_size))
                kept = weight[middle].clone()
                weight.zero_()
                weight[middle] = kept
    return weights


def _drowned(answer: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return answer + torch.randn(answer.shape, generator=generator, dtype=answer.dtype) * (1 + answer.abs().mean())


@contextmanager
def _answering(module: nn.Module, change: Any) -> Iterator[None]:
    """Change the first floating-point tensor of a module's answers."""

    def changed(_module: nn.Module, _args: object, output: object) -> object:
        tensors: list[torch.Tensor | None] = list(tensors_in(output))
        place = next((n for n, one in enumerate(tensors) if one is not None and one.is_floating_point()), None)
        if place is None:
            return output
        tensors[place] = change(tensors[place])
        return with_tensors(output, tensors)

    handle = module.register_forward_hook(changed)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _slow_path() -> Iterator[None]:
    """The fused operator of nn.TransformerEncoderLayer calls none of its modules."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
