"""The kernels there are, in one literal table: name -> the file's kernel, its constants and its reference."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .records import Kernel

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Definition", "definition_of"]


@dataclass(frozen=True)
class Definition:
    """A kernel: the Triton function, what its parameters in capitals are, and the same computed plainly in fp32."""

    kernel: Any
    constants: Callable[..., dict[str, Any]]
    reference: Callable[..., Any]


# Triton is imported by these modules, and the interpreter has to be asked for before that.
_MODULES = {Kernel.ATTENTION: "attention", Kernel.GAUSSIAN: "gaussian", Kernel.LINEAR: "linear"}


def definition_of(kernel: Kernel) -> Definition:
    """Return a kernel's definition, importing its file."""
    name = _MODULES[kernel]
    module = importlib.import_module(f".{name}", __package__)
    return Definition(
        getattr(module, f"{name}_kernel"), getattr(module, f"{name}_constants"), getattr(module, f"{name}_reference")
    )
