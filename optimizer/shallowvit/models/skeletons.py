"""Copy a tree of modules to try something on, with the weights of the original and everything else its own.

A newcomer's trap: a forward may leave something behind in eval mode too (running statistics, a cache, an attention map, a flag
"already initialised"), so buffers and plain attributes are copied; weights aren't, since no forward writes to them.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["skeleton"]


def skeleton(module: nn.Module) -> nn.Module:
    """Return a copy of the module tree that shares every weight with the original, and no buffer or attribute.

    Raises:
        ShallowvitError: the module holds what can't be copied.
    """
    known: dict[int, Any] = {id(weight): weight for weight in module.parameters()}
    for part in module.modules():
        for value in (*vars(part).values(), *part._buffers.values()):
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:  # such a tensor can't be copied as it is
                known[id(value)] = value.detach().clone()
    try:
        copied: nn.Module = copy.deepcopy(module, known)
    except (TypeError, RuntimeError) as err:  # a lock, an open file, a tensor of a graph in a list
        raise ShallowvitError(
            f"copy: {type(module).__name__} can't be copied ({str(err).partition(chr(10))[0]}), so nothing can be tried on it. "
            "Take what can't be copied out of the module's attributes"
        ) from err
    return copied
