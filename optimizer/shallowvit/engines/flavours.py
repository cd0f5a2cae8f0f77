"""Choose TensorRT's flavour by target and by what is installed, and refuse a target that can't be built for from here."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shallowvit_bench.jetpack import version_tuple

from ..errors import ShallowvitError
from .records import Flavour
from .targets import (
    RTX_COMPUTE_CAPABILITIES,
    Kind,
    find_target,
    flavours,
    precision_refusal,
    rtx_compute_capability,
    same_board,
    strongly_typed,
    tensorrt_of,
)

if TYPE_CHECKING:
    from .graph_check import GraphFacts
    from .records import BuildConfig
    from .target_records import Target

__all__ = ["MODULES", "Choice", "check_precision", "check_typing", "choose", "compute_capabilities", "installed"]

MODULES = {Flavour.RTX: "tensorrt_rtx", Flavour.TENSORRT: "tensorrt"}
_INSTALL = {
    Flavour.RTX: "pip install 'shallowvit[tensorrt]'",
    Flavour.TENSORRT: "pip install tensorrt, or on a Jetson sudo apt install nvidia-jetpack and --python /usr/bin/python3",
}
_FORMATS = {"BFLOAT16": "bf16", "INT8": "int8", "FLOAT8E4M3FN": "fp8", "INT4": "int4"}
_TURING = 75
_ATTENTION_FROM = (10, 14)  # the first TensorRT whose parser knows opset 23's Attention


@dataclass(frozen=True)
class Choice:
    """The flavour to build with, the target if one was named, and the compute capabilities to finish for (RTX)."""

    flavour: Flavour
    target: Target | None
    compute_capabilities: tuple[int, ...]


def choose(config: BuildConfig, root: Path = Path("/")) -> Choice:
    """Return what to build with.

    Args:
        config: Its flavour, target, compute capabilities and interpreter are looked at.
        root: Where ``proc`` and ``etc`` are found, which tell a Jetson.

    Raises:
        ShallowvitError: that flavour isn't installed, doesn't reach the target, or can't build for it on this machine.
    """
    target = find_target(config.target) if config.target else None
    suited = tuple(Flavour(name) for name in flavours(target)) if target else tuple(Flavour)
    if config.flavour and config.flavour not in suited:
        assert target is not None
        raise ShallowvitError(
            f"build: no {config.flavour} engine runs on {target.key} (compute capability {target.compute_capability}); use "
            f"--engine {suited[0]}"
        )
    if target and target.kind is Kind.JETSON:
        _check_board(target, root)
    wanted = (config.flavour,) if config.flavour else suited
    flavour = next((flavour for flavour in wanted if installed(flavour, config.python)), None)
    if flavour is None:
        where = f"for {config.python}" if config.python else "here"
        names = " nor ".join(MODULES[flavour] for flavour in wanted)
        raise ShallowvitError(f"build: {names} is not installed {where}. Run: {_INSTALL[wanted[0]]}")
    return Choice(flavour, target, compute_capabilities(config, flavour, target))


def installed(flavour: Flavour, python: str | None = None) -> bool:
    """Say whether an interpreter (by default this one) has a flavour's module, without importing it, since that may abort."""
    module = MODULES[flavour]
    if python is None:
        return importlib.util.find_spec(module) is not None
    command = shutil.which(python)
    if command is None:
        raise ShallowvitError(f"build: --python {python}: no such interpreter; give the path of one that has TensorRT")
    script = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([command, "-c", script], capture_output=True, timeout=60, check=False).returncode == 0


def check_precision(choice: Choice, facts: GraphFacts, jetpack: str | None) -> None:
    """Refuse a graph whose number formats or operators the target, or a named compute capability, doesn't have.

    Raises:
        ShallowvitError: names the format and what it needs.
    """
    target = choice.target
    for name in sorted(facts.formats & set(_FORMATS)):
        reason = precision_refusal(target, _FORMATS[name], jetpack) if target else None
        if reason:
            raise ShallowvitError(f"build: the graph holds {_FORMATS[name]}, but {reason}. Export with another --precision")
    low = [number for number in choice.compute_capabilities if number < facts.minimum_sm]
    if low:
        needs = next(text for name, text in _FORMATS.items() if name in facts.formats)
        raise ShallowvitError(
            f"build: compute capability {low[0] / 10:.1f} can't run the graph's {needs}, which needs "
            f"{facts.minimum_sm / 10:.1f}; one such target fails the whole engine. Leave it out or export "
            "with another --precision"
        )
    if _TURING in choice.compute_capabilities and facts.fp32_products:
        raise ShallowvitError(
            "build: TensorRT-RTX has no fp32 matrix products for compute capability 7.5; export with --precision fp16, or "
            "build there with --engine tensorrt"
        )
    if target and target.kind is Kind.JETSON:
        _check_jetpack(target, facts, jetpack)


def _check_jetpack(target: Target, facts: GraphFacts, jetpack: str | None) -> None:
    check_typing(target, jetpack)
    version = tensorrt_of(target, jetpack)
    if version is None:
        return
    if facts.needs_attention_operator and version_tuple(version) < _ATTENTION_FROM:
        raise ShallowvitError(
            f"build: the graph has opset {facts.opset} with Attention nodes, which TensorRT reads from 10.14 on, and "
            f"{target.key} has {version}; export again with --opset 18"
        )


def check_typing(target: Target, jetpack: str | None) -> None:
    """Refuse a Jetson whose TensorRT is known to be older than strongly typed networks, which all graphs here need.

    Raises:
        ShallowvitError: names its version.
    """
    version = tensorrt_of(target, jetpack)
    if version is not None and not strongly_typed(target, jetpack):
        raise ShallowvitError(
            f"build: {target.key} has TensorRT {version}, and graphs that decide their precision need 10.0 (JetPack 6.1); "
            "update JetPack or choose another target"
        )


def _check_board(target: Target, root: Path) -> None:
    from shallowvit_bench.boards import detect_jetson

    found = detect_jetson(root)
    if found is None or not same_board(find_target(found), target):
        here = f"this is {found}" if found else "this is none"
        raise ShallowvitError(
            f"build: an engine for {target.key} is built on the board itself, and {here}. Export with --target {target.key} "
            "and without --engine, copy the bundle there and run: shallowvit build BUNDLE"
        )


def compute_capabilities(config: BuildConfig, flavour: Flavour, target: Target | None) -> tuple[int, ...]:
    """Return what an RTX engine is finished for: what was asked, else the target's; empty for a portable or full engine.

    Raises:
        ShallowvitError: TensorRT-RTX takes no such number, or the flavour takes none.
    """
    wanted = config.compute_capabilities
    if flavour is not Flavour.RTX:
        if wanted:
            raise ShallowvitError(
                "build: --compute-capability is of RTX engines; full TensorRT builds for the GPU it runs on. Leave it out"
            )
        return ()
    refused = [number for number in wanted if number not in RTX_COMPUTE_CAPABILITIES]
    if refused:
        taken = ", ".join(f"{number / 10:.1f}" for number in RTX_COMPUTE_CAPABILITIES)
        raise ShallowvitError(
            f"build: TensorRT-RTX can't be told to build for compute capability {refused[0] / 10:.1f}; it takes {taken}, and "
            "without any the engine is portable from 8.0 up"
        )
    if wanted:
        return tuple(dict.fromkeys(wanted))
    number = rtx_compute_capability(target) if target else None
    return (number,) if number else ()
