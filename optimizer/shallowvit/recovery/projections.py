"""Find the linear layer that writes last into what a block hands on: what closed-form repair fits anew.

By what the code does: noise on the layer's answer must come out of the block token for token, times one number a channel (the
layer scale, or 1). A newcomer's trap: the attention's projection writes into the stream too, but what it writes changes what
the MLP answers, so it doesn't pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..models.branch_probe import captured_calls
from ..models.outputs import tensors_in

if TYPE_CHECKING:
    from ..models import LoadedModel
    from ..models.branch_probe import Call

__all__ = ["Projection", "find_projections"]

_NOISE = 1.0
_TOLERANCE = 1e-3  # of the noise, after a pass through fp32 states that may be a thousand times as large


@dataclass(frozen=True)
class Projection:
    """The last linear layer of a block.

    Args:
        path: Of the layer, in the model.
        scale: float64 [channels]: what its answer is multiplied by before it is added to the state.
    """

    path: str
    scale: torch.Tensor


def find_projections(model: LoadedModel) -> dict[str, Projection | str]:
    """Return for each block, by its path, its projection, or why it has none that can be fitted."""
    paths = [block.path for block in model.blocks]
    calls = captured_calls(model.module, model.example, paths)
    return {path: _search(model.module, path, calls.get(path)) for path in paths}


def _search(module: nn.Module, path: str, call: Call | None) -> Projection | str:
    if call is None:
        return "isn't called with a state of its own"
    block = module.get_submodule(path)
    layers = [(name, one) for name, one in block.named_modules() if isinstance(one, nn.Linear)]
    if not layers:
        return "has no linear layer"
    for name, layer in reversed(layers):
        scale = _scale_of(block, layer, call)
        if scale is not None:
            return Projection(f"{path}.{name}" if name else path, scale)
    return "has no linear layer whose answer comes out of it token for token (a norm behind the sum, or another layout)"


def _scale_of(block: nn.Module, layer: nn.Linear, call: Call) -> torch.Tensor | None:
    """What the layer's answer is multiplied by on its way out, a number a channel; None where it isn't that simple."""
    noise: list[torch.Tensor] = []

    def disturb(_module: nn.Module, _args: object, answer: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(noise))
        noise.append(_NOISE * torch.randn(answer.shape, generator=generator))
        return answer + noise[-1]

    plain = _run(block, call)
    handle = layer.register_forward_hook(disturb)
    try:
        disturbed = _run(block, call)
    finally:
        handle.remove()
    if len(noise) != 1 or plain is None or disturbed is None or plain.numel() != noise[0].numel():
        return None
    given, came = noise[0].flatten(0, -2).double(), (disturbed - plain).flatten(0, -2).double()
    if given.shape != came.shape:
        return None
    scale = (given * came).sum(0) / (given * given).sum(0)
    error = (came - given * scale).abs().max()
    return scale if float(error) <= _TOLERANCE * _NOISE and bool((scale != 0).any()) else None


@torch.no_grad()
def _run(block: nn.Module, call: Call) -> torch.Tensor | None:
    args, kwargs = call.with_state(None)
    tensors = tensors_in(block(*args, **kwargs))
    return tensors[0].clone() if tensors else None
