"""The record of one model of the table of families, and how it is made and loaded as a user would load it.

A newcomer's trap: weights are drawn anew, since a library's own start (a head of zeros, layer scales of 1e-5, a spread of 0.02)
makes outputs so flat that deleting a block, or getting the export wrong, changes nothing that a comparison could see.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import shallowvit
from shallowvit import ShallowvitError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from shallowvit.models import LoadedModel

__all__ = ["Case", "Expected", "open_case", "redraw", "removed_of"]

_MATRIX_SPREAD = 0.2  # at most; wide matrices get 1 / sqrt(inputs), so that sums stay near 1
_VECTOR_SPREAD = 0.2


@dataclass(frozen=True)
class Expected:
    """What a test holds a case against; None is not checked.

    Args:
        stack: Name of the stack that is pruned.
        blocks: How many blocks that stack has.
        way: ``deleted``, ``placeholder`` or ``refused``.
        reason: Words that the reason for a placeholder or a refusal holds.
        export: Of the pruned model, or of the whole one where removal is refused: ``passes``, or words that the error holds.
        engine: The same of the engine; a reason is what the parser or the builder can't take.
    """

    stack: str | None = None
    blocks: int | None = None
    way: str = "deleted"
    reason: str | None = None
    export: str | None = None
    engine: str | None = None


@dataclass(frozen=True)
class Case:
    """One small model.

    Args:
        name: Key of its rows, such as ``vit-timm``.
        family: The table's heading it stands under.
        source: ``timm:NAME?...``, ``torchvision:NAME?...``, ``hf:CLASS`` (a class of transformers, built from ``settings``), or
            ``families.FILE:function``, a function without arguments that returns (module, example), its weights drawn.
        settings: Of ``hf:CLASS``: arguments of its configuration; a value with ``model_type`` becomes a configuration itself.
        blocks: Stacks to work on, as ``--blocks`` takes them.
        remove: Blocks to remove, as ``--remove`` takes them; by default the middle one of the longest stack, with its pair.
        note: What the case is there for, where the name doesn't say.
        expect: What a test holds it against.
    """

    name: str
    family: str
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    remove: str | None = None
    note: str = ""
    expect: Expected = Expected()

    @property
    def label(self) -> str:
        """Where the class comes from and its name, for the table."""
        library, _, name = self.source.partition(":")
        return (
            f"{library.replace('hf', 'transformers')} {name.partition('?')[0]}"
            if library in _STOCK
            else f"own: {name.removeprefix('build_')}"
        )


_STOCK = ("hf", "timm", "torchvision")


def open_case(case: Case, folder: Path) -> LoadedModel:
    """Make the case's model, save what a user would have of it into ``folder``, and load it from there.

    Raises:
        ShallowvitError: as ``shallowvit.load``.
    """
    library, _, name = case.source.partition(":")
    if library == "hf":
        _save_transformers(case, name, folder)
        return shallowvit.load(f"hf:{folder}", blocks=case.blocks)
    if library in _STOCK:
        return shallowvit.load(_save_state(case.source, folder), arch=case.source, blocks=case.blocks)
    return shallowvit.load(case.source, blocks=case.blocks)


def removed_of(case: Case, model: LoadedModel) -> tuple[int, ...]:
    """Return the blocks that the case removes: those it names, else the middle one of the first stack with its pair."""
    if case.remove is not None:
        return tuple(int(number) for number in case.remove.split(","))
    middle = sum(block.stack == model.blocks[0].stack for block in model.blocks) // 2
    return next((pair for pair in model.pairs if middle in pair), (middle,))


def _save_transformers(case: Case, name: str, folder: Path) -> None:
    import transformers

    cls = getattr(transformers, name, None)
    if cls is None:
        raise ShallowvitError(f"families: transformers {transformers.__version__} has no class {name}; mend {case.name}")
    settings = {key: _configuration(value) for key, value in case.settings.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = cls(cls.config_class(**settings))
    redraw(module)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    module.save_pretrained(folder)


def _configuration(value: Any) -> Any:
    """A backbone's settings become its configuration; sub-configurations that stay dicts are made by their owner."""
    if not (isinstance(value, dict) and "model_type" in value):
        return value
    import transformers

    settings = {key: one for key, one in value.items() if key != "model_type"}
    return transformers.AutoConfig.for_model(value["model_type"], **settings)


def _save_state(source: str, folder: Path) -> Path:
    """Draw the weights of a timm or torchvision model and save them as a state dict."""
    from urllib.parse import parse_qsl

    library, _, rest = source.partition(":")
    name, _, query = rest.partition("?")
    arguments = {key: _literal(value) for key, value in parse_qsl(query)}
    if library == "timm":
        import timm

        module = timm.create_model(name, **arguments)
    else:
        import torchvision

        module = torchvision.models.get_model(name, weights=None, **arguments)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "weights.pt"
    torch.save(redraw(module).state_dict(), path)
    return path


def _literal(text: str) -> Any:
    import ast

    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def redraw(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every weight anew, in place, wide enough that each block matters; single numbers and buffers stay."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 0 or not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            if parameter.ndim == 1:  # a norm's weight stays near 1, a bias near 0, a layer scale of 1e-5 grows
                parameter.add_(noise, alpha=_VECTOR_SPREAD)
                continue
            inputs = parameter.numel() / parameter.shape[0]
            # tokens and position tables have a first axis of 1 and aren't summed over
            spread = _MATRIX_SPREAD if parameter.shape[0] == 1 else min(_MATRIX_SPREAD, inputs**-0.5)
            parameter.copy_(noise * spread)
    return module
