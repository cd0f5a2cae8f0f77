"""Put a module without weights in a block's place that hands its input on: for blocks whose place the model relies on.

A newcomer's trap: it is still an instance of the block's class, with the block's plain attributes and hooks, since the code
around it may look at any of these. In an exported graph nothing is left of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .bypass import Route, hand_on
from .outputs import tensors_in

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["is_placeholder", "put_placeholder"]

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class _PassThrough(nn.Module):
    """Mixed in before the block's own class."""

    _route: Route

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Hand the arguments on."""
        return hand_on(self._route, tensors_in((args, kwargs)))


class _Zero(nn.Module):
    """A branch that adds nothing."""

    def forward(self, x: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Return zeros like the first argument."""
        return torch.zeros_like(x)


class _First(nn.Module):
    """A layer that does nothing."""

    def forward(self, x: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Return the first argument."""
        return x


def put_placeholder(module: nn.Module, path: str, route: Route | None, modes: Mapping[str, str]) -> None:
    """Replace the block at ``path``, in place.

    Args:
        module: The model.
        path: The block's module path.
        route: How the block hands on; None for a composite block, whose parts are replaced by ``modes``.
        modes: ``zero`` or ``pass`` for each part of a composite block.
    """
    block = module.get_submodule(path)
    if modes:
        for name, mode in modes.items():
            block._modules[name] = _Zero() if mode == "zero" else _First()
        return
    assert route is not None
    stub = _placeholder(block, route)
    for parent in list(module.modules()):  # a second list may hold the same block
        for name, child in parent._modules.items():
            if child is block:
                parent._modules[name] = stub


def is_placeholder(module: nn.Module) -> bool:
    """Whether a module stands in a removed block's place."""
    return isinstance(module, _PassThrough) or (
        len(module._modules) > 0 and all(isinstance(part, _Zero | _First) for part in module.children())
    )


def _placeholder(block: nn.Module, route: Route) -> nn.Module:
    kind: Any = type(type(block).__name__, (_PassThrough, type(block)), {"__module__": __name__})
    stub: nn.Module = kind.__new__(kind)
    nn.Module.__init__(stub)
    plain = {name: value for name, value in vars(block).items() if not name.startswith("_") and name != "forward"}
    vars(stub).update({name: value for name, value in plain.items() if not isinstance(value, torch.Tensor | nn.Module)})
    for name in _HOOKS:
        vars(stub)[name] = vars(block)[name].copy()
    stub.training = block.training
    stub._route = route  # type: ignore[assignment]
    return stub
