"""The configuration of the stage *build* and the records it returns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from pathlib import Path

    from .profiles import Profile

__all__ = [
    "AttentionChoice",
    "AttentionFusion",
    "BatchRange",
    "BuildConfig",
    "EngineBuild",
    "Flavour",
    "FusionReport",
    "HardwareCompatibility",
    "Layer",
    "PluginKernel",
    "PluginTiming",
]


class Flavour(StrEnum):
    """Which TensorRT: RTX builds anywhere, the full one on the GPU it builds for."""

    RTX = "rtx"
    TENSORRT = "tensorrt"


class AttentionChoice(StrEnum):
    """Who computes attention in an engine: TensorRT's own kernels, or ours inside it as plugins."""

    NATIVE = "native"
    PLUGIN = "plugin"  # every attention that is understood
    AUTO = "auto"  # those that TensorRT doesn't fuse, and on a GPU only where the plugin is measured to be faster


class HardwareCompatibility(StrEnum):
    """Of full TensorRT: other GPUs the engine may run on, at the price of speed."""

    AMPERE_PLUS = "ampere-plus"
    SAME_COMPUTE_CAPABILITY = "same-compute-capability"


@dataclass(frozen=True)
class BatchRange:
    """The smallest, the usual and the largest batch of an optimisation profile."""

    low: int = 1
    best: int = 1
    high: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.best <= self.high:
            raise ShallowvitError(
                f"build: batches {self.low}:{self.best}:{self.high} aren't min <= opt <= max from 1 up; write --batch 1:4:8"
            )


@dataclass(frozen=True)
class BuildConfig:
    """How to build an engine.

    Args:
        flavour: By default what suits the target and is installed.
        target: A key of the registry (``shallowvit targets``); by default any GPU the flavour reaches.
        jetpack: Of a Jetson target: the release on the board; by default the newest whose TensorRT is known.
        batches: One optimisation profile each.
        shapes: Whole shapes (min, opt, max) of inputs with more dynamic sizes than the batch, by name: one profile more.
        workspace_mib: Limit of the builder's scratch memory in MiB; TensorRT's own by default.
        compute_capabilities: Of RTX, as 86 for 8.6: finish for these ahead of time; by default the target's, or portable.
        level: The builder's optimisation level, 0 to 5; TensorRT's own by default.
        timing_cache: Keep timed tactics of this machine and use them again (full TensorRT).
        dla_core: Run what it can on this DLA core and the rest on the GPU (full TensorRT).
        version_compatible: The engine also loads in later versions.
        hardware_compatibility: Of full TensorRT, see ``HardwareCompatibility``.
        allow_unfused: Accept an engine in which some attention isn't fused.
        time_limit_s: Stop a build after so many seconds.
        python: Another interpreter that has TensorRT, such as a Jetson's own ``/usr/bin/python3``.
        attention: See ``AttentionChoice``; by default as the graph has it, which ``export`` has settled.
    """

    flavour: Flavour | None = None
    target: str | None = None
    jetpack: str | None = None
    batches: tuple[BatchRange, ...] = (BatchRange(),)
    shapes: tuple[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...] = ()
    workspace_mib: int | None = None
    compute_capabilities: tuple[int, ...] = ()
    level: int | None = None
    timing_cache: bool = True
    dla_core: int | None = None
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility | None = None
    allow_unfused: bool = False
    time_limit_s: float = 3600.0
    python: str | None = None
    attention: AttentionChoice | None = None

    def __post_init__(self) -> None:
        if self.level is not None and not 0 <= self.level <= 5:
            raise ShallowvitError(f"build: builder level {self.level} is not in 0 to 5; leave --level out for TensorRT's own")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ShallowvitError(f"build: a workspace of {self.workspace_mib} MiB is none; give --workspace 1 or more")
        if self.jetpack is not None and self.target is None:
            raise ShallowvitError(f"build: --jetpack {self.jetpack} is of a Jetson; name which with --target")
        if not self.time_limit_s > 0:
            raise ShallowvitError(f"build: a time limit of {self.time_limit_s:g} s is none; give --time-limit 60 or more")
        if not self.batches and not self.shapes:
            raise ShallowvitError("build: no batches and no shapes for an optimisation profile; give --batch 1:4:8")


@dataclass(frozen=True)
class Layer:
    """A layer of an engine: the kernel (``tactic``) and the ONNX nodes that it runs."""

    name: str
    type: str
    tactic: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class PluginKernel:
    """A kernel of ours in an engine, by its operator's name: the attentions it computes, the compute capabilities (86 for 8.6)
    it was compiled for, and in the words of the compiler what it takes; ``spilled_bytes`` and ``registers`` are a thread's.
    """

    operator: str
    nodes: tuple[str, ...]
    sm: tuple[int, ...]
    registers: int
    spilled_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class PluginTiming:
    """The engine with a plugin against the engine without, in alternation: medians of a run in milliseconds."""

    operator: str
    native_ms: float
    plugin_ms: float

    @property
    def plugin_is_faster(self) -> bool:
        """Whether the plugin stays."""
        return self.plugin_ms < self.native_ms


@dataclass(frozen=True)
class AttentionFusion:
    """One attention of the graph in the engine: its kernel where it is fused, the reason where it isn't.

    ``block`` is the block's number in the unpruned model, None outside the blocks; sizes are None where they are dynamic.
    """

    path: str
    block: int | None
    node: str
    fused: bool
    kernel: str | None
    reason: str | None
    dtype: str
    heads: int | None
    head_size: int | None
    queries: int | None
    keys: int | None


@dataclass(frozen=True)
class FusionReport:
    """What became of every attention of the graph.

    Args:
        source: ``builder log`` without a GPU, ``engine inspector`` on one.
        attentions: In the order of the graph.
        kernels: Names of the attention kernels found in the engine's bytes; None where the flavour's kernels carry no name
            that can be searched for.
    """

    source: str
    attentions: tuple[AttentionFusion, ...]
    kernels: tuple[str, ...] | None

    @property
    def fused(self) -> int:
        """How many attentions are one kernel."""
        return sum(attention.fused for attention in self.attentions)

    @property
    def expected(self) -> int:
        """How many attentions the graph has."""
        return len(self.attentions)

    @property
    def whole(self) -> bool:
        """Whether all of them are fused."""
        return self.fused == self.expected


@dataclass(frozen=True)
class EngineBuild:
    """An engine on disk and what is known of it.

    ``activation_bytes`` and ``weights_bytes`` are what TensorRT says it will take on the device at the largest profile, None
    where it doesn't say; ``sm`` are compute capabilities as 86 for 8.6, empty for a portable engine. ``plugins_refused`` are
    the attentions, by node, that have no kernel of ours though one was wanted, and why.
    """

    path: Path
    flavour: Flavour
    version: str
    target: str | None
    sm: tuple[int, ...]
    built_on: str
    profiles: tuple[Profile, ...]
    options: dict[str, int | float | str | bool | None]
    fusion: FusionReport
    layers: tuple[Layer, ...]
    bytes: int
    activation_bytes: int | None
    weights_bytes: int | None
    build_s: float
    not_inspected: str | None
    plugins: tuple[PluginKernel, ...] = ()
    plugins_refused: tuple[tuple[str, str], ...] = ()
    plugin_timings: tuple[PluginTiming, ...] = ()
