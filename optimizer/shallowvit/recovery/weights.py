"""The weights that a training changes: which they are, their running mean, and what a checkpoint holds of them.

A newcomer's trap: weights that don't ask for gradients are in no checkpoint; the run's identity says which they were.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TrainedWeights", "trained"]

_State = dict[str, torch.Tensor]


@contextmanager
def trained(module: torch.nn.Module) -> Iterator[None]:
    """Have the parameters that ask for gradients trained, or all where none does; ask as before behind the block."""
    parameters = [parameter for parameter in module.parameters() if parameter.is_floating_point()]
    frozen = [] if any(parameter.requires_grad for parameter in parameters) else parameters
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        module.zero_grad(set_to_none=True)
        module.eval()


class TrainedWeights:
    """The trained parameters and the buffers of a module, shared with it, and their running mean where one is asked for."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        # in a module of their own, since the mean is a copy: one of the whole would copy teachers and hooks, too
        self._own = torch.nn.Module()
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                self._own.register_parameter(name.replace(".", "/"), parameter)
        for name, buffer in module.named_buffers():
            self._own.register_buffer(name.replace(".", "/"), buffer)
        self._mean: Any = None  # timm's, where one is kept
        if decay:
            from timm.utils import ModelEmaV3

            # warmed up: a short training would else keep more of its start than of what it learnt
            self._mean = ModelEmaV3(self._own, decay=decay, use_warmup=True)

    def follow(self, step: int) -> None:
        """Move the mean towards the weights behind this many steps."""
        if self._mean is not None:
            self._mean.update(self._own, step)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the mean in the weights' place within the block; nothing where there is none."""
        if self._mean is None:
            yield
            return
        own = self.copy()
        self.load(self._mean.module.state_dict())
        try:
            yield
        finally:
            self.load(own)

    def broken(self) -> str | None:
        """Return the name of a trained weight that isn't finite, None where all are."""
        for name, parameter in self._own.named_parameters():  # buffers may hold infinities, as masks do
            if not bool(parameter.isfinite().all()):
                return name.replace("/", ".")
        return None

    def copy(self) -> _State:
        """Return a copy of the weights as they stand, on the CPU."""
        return _on_cpu(self._own)

    def load(self, state: _State) -> None:
        """Put weights that ``copy`` returned in place."""
        self._own.load_state_dict(state)

    def state(self) -> dict[str, _State]:
        """Return what ``restore`` takes."""
        return {"own": self.copy(), **({"mean": _on_cpu(self._mean.module)} if self._mean is not None else {})}

    def restore(self, state: dict[str, _State]) -> None:
        """Put weights and mean back as they were."""
        self.load(state["own"])
        if self._mean is not None:
            self._mean.module.load_state_dict(state["mean"])


def _on_cpu(module: torch.nn.Module) -> _State:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.state_dict().items()}
