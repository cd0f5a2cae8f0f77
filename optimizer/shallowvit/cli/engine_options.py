"""The options of building an engine, which ``build`` and ``export`` share; each is None where it wasn't given."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..engines.records import AttentionChoice, BatchRange, BuildConfig, Flavour, HardwareCompatibility
from ..errors import ShallowvitError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AllowUnfused",
    "Attention",
    "Batch",
    "ComputeCapability",
    "DlaCore",
    "Engine",
    "HardwareCompatible",
    "JetPack",
    "Level",
    "Python",
    "Shape",
    "Target",
    "TimeLimit",
    "TimingCache",
    "VersionCompatible",
    "Workspace",
    "build_config",
    "check_attention",
    "check_engine",
]

_DEFAULTS = BuildConfig()
_BATCH = _DEFAULTS.batches[0]

Engine = Annotated[
    str | None,
    typer.Option(
        metavar="rtx|tensorrt|auto",
        help="TensorRT-RTX builds anywhere, full TensorRT on the GPU it builds for; auto: what suits the target and is "
        "installed.",
    ),
]
Target = Annotated[str | None, typer.Option(metavar="KEY", help="The device, as shallowvit targets lists them.")]
JetPack = Annotated[
    str | None, typer.Option("--jetpack", metavar="VERSION", help="Of a Jetson target: the release on the board.")
]
Batch = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MIN:OPT:MAX",
        help="Batches of an optimisation profile; several times for several profiles.  "
        f"[default: {_BATCH.low}:{_BATCH.best}:{_BATCH.high}]",
    ),
]
Shape = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=MIN:OPT:MAX", help="Shapes of an input with more dynamic sizes than the batch: x=1x8x3x64x64:4x8x..:8x.."
    ),
]
Workspace = Annotated[int | None, typer.Option(metavar="MIB", help="The most scratch memory the engine may use, in MiB.")]
ComputeCapability = Annotated[
    list[str] | None,
    typer.Option(
        metavar="8.6", help="Of rtx: finish the engine for this GPU generation; several times for several.  [default: portable]"
    ),
]
Level = Annotated[int | None, typer.Option(help="The builder's optimisation level, 0 to 5.  [default: TensorRT's own]")]
TimingCache = Annotated[
    bool | None,
    typer.Option("--timing-cache/--no-timing-cache", help="Of tensorrt: keep timed tactics of this machine.  [default: keep]"),
]
DlaCore = Annotated[int | None, typer.Option(help="Of tensorrt: run on this DLA core what it can, the rest on the GPU.")]
VersionCompatible = Annotated[
    bool | None, typer.Option("--version-compatible", help="An engine that later versions of TensorRT load too.")
]
HardwareCompatible = Annotated[
    str | None,
    typer.Option(
        "--hardware-compatibility", metavar="|".join(HardwareCompatibility), help="Of tensorrt: run on other GPUs too."
    ),
]
AllowUnfused = Annotated[
    bool | None, typer.Option("--allow-unfused", help="Accept an engine in which not every attention is fused.")
]
Attention = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(AttentionChoice),
        help="Who computes attention in engines: TensorRT, our kernels as plugins, or auto: ours where TensorRT doesn't fuse "
        "and, on a GPU, ours is measured faster.  [default: native in export, as the graph has it in build]",
    ),
]
TimeLimit = Annotated[
    float | None, typer.Option(metavar="SECONDS", help=f"Stop a build after this.  [default: {_DEFAULTS.time_limit_s:g}]")
]
Python = Annotated[
    str | None, typer.Option(metavar="PATH", help="Another interpreter that has TensorRT, such as a Jetson's /usr/bin/python3.")
]


def check_engine(engine: str | None, none: bool = False) -> Flavour | None:
    """Return the flavour that --engine names; None for ``auto`` and, where the command takes it, ``none``."""
    choices = (*(("none",) if none else ()), *Flavour, "auto")
    if engine is not None and engine not in choices:
        command = "export" if none else "build"
        raise ShallowvitError(f"{command}: unknown engine {engine!r}; choose from {', '.join(choices)}")
    return Flavour(engine) if engine in list(Flavour) else None


def check_attention(attention: str | None, command: str) -> AttentionChoice | None:
    """Return the choice that --attention names, None where it wasn't given."""
    if attention is not None and attention not in list(AttentionChoice):
        raise ShallowvitError(f"{command}: unknown --attention {attention!r}; choose from {', '.join(AttentionChoice)}")
    return AttentionChoice(attention) if attention is not None else None


def build_config(base: BuildConfig, given: dict[str, Any]) -> BuildConfig:
    """Return ``base`` with what was given on the command line, by the names of ``BuildConfig``; None isn't given."""
    changes = {name: value for name, value in given.items() if value is not None}
    for name, read in (("batches", _batches), ("shapes", _shapes), ("compute_capabilities", _compute_capabilities)):
        if name in changes:
            changes[name] = read(changes[name])
    if "hardware_compatibility" in changes:
        changes["hardware_compatibility"] = _hardware(changes["hardware_compatibility"])
    return replace(base, **changes)


def _batches(texts: Sequence[str]) -> tuple[BatchRange, ...]:
    found = []
    for text in texts:
        parts = text.split(":")
        if not all(part.isdecimal() for part in parts) or len(parts) not in (1, 3):
            raise ShallowvitError(
                f"build: --batch {text!r} isn't min:opt:max; write --batch 1:4:8, or one number for all three"
            )
        low, best, high = map(int, parts * (3 // len(parts)))
        found.append(BatchRange(low, best, high))
    return tuple(found)


def _shapes(texts: Sequence[str]) -> tuple[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...]:
    found = []
    for text in texts:
        name, _, shapes = text.rpartition("=")
        parts = shapes.split(":")
        if not name or len(parts) != 3 or not all(size.isdecimal() for part in parts for size in part.split("x")):
            raise ShallowvitError(
                f"build: --shape {text!r} isn't name=min:opt:max; write --shape x=1x3x64x64:4x3x64x64:8x3x64x64"
            )
        low, best, high = (tuple(map(int, part.split("x"))) for part in parts)
        found.append((name, low, best, high))
    return tuple(found)


def _compute_capabilities(texts: Sequence[str]) -> tuple[int, ...]:
    found = []
    for text in texts:
        major, _, minor = text.partition(".")
        if not (major.isdecimal() and minor.isdecimal() and len(minor) == 1):
            raise ShallowvitError(f"build: --compute-capability {text!r} isn't like 8.6; shallowvit targets lists them")
        found.append(int(major) * 10 + int(minor))
    return tuple(found)


def _hardware(text: str) -> HardwareCompatibility:
    if text not in list(HardwareCompatibility):
        raise ShallowvitError(f"build: unknown hardware compatibility {text!r}; choose from {', '.join(HardwareCompatibility)}")
    return HardwareCompatibility(text)
