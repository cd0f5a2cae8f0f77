"""What goes wrong on a target, and what has to be done where to get an engine for it.

Each sentence is a fact of the reference pages on targets and TensorRT, put where a user of that target meets it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .targets import (
    Kind,
    flavours,
    jetpack_for,
    rtx_compute_capability,
    strongly_typed,
    tensorrt_of,
    typing_refusal,
    version_tuple,
)

if TYPE_CHECKING:
    from .target_records import Target

__all__ = ["build_steps", "dla_refusal", "traps_of"]

_OWN_PYTHON = (3, 11)  # of pyproject.toml
_LAST_DLA_10 = (10, 7)
_FIRST_DLA_11 = (11, 4, 1)

_JETSON = (
    "nvpmodel's mode 0 is not always MAXN (on an Orin Nano it is 15W): go by the name of the mode.",
    "MAXN allows the highest clocks but doesn't lock them: run sudo jetson_clocks before measuring.",
    "The GPU shares its memory with the CPU, and the system shows less than is sold.",
)
_ORIN_NVML = "NVML answers but gives no power, temperature, memory use or clocks on Orin: read the board's power rails."
_FAMILIES: dict[str, tuple[str, ...]] = {
    "nano": (),
    "tx2": (),
    "xavier-nx": (),
    "agx-xavier": (),
    "orin-nano": (_ORIN_NVML,),
    "orin-nx": (_ORIN_NVML,),
    "agx-orin": (
        _ORIN_NVML,
        "No rail of an AGX Orin is its total power; the sum of its rails leaves the carrier board out.",
    ),
    "thor": (
        "TensorRT 10.13.3.9 takes its FP8 and FP4 builder flags and silently builds fp32: check the layer types of the engine.",
        "NVML gives no memory use, temperature, power or SM clock on Thor.",
        "T4000 and T5000 look alike in the device tree: /etc/nv_boot_control.conf tells them apart.",
    ),
}


def traps_of(target: Target, jetpack: str | None = None) -> tuple[str, ...]:
    """Return what to know before building and measuring on a target, as sentences.

    Raises:
        ShallowvitError: no such JetPack, or not for this target.
    """
    if target.kind is Kind.JETSON:
        return (*_JETSON, *_FAMILIES[target.family], *_jetpack_traps(target, jetpack))
    traps = ["An engine runs on the operating system and kind of CPU that it was built on."]
    if target.kind is Kind.GEFORCE:
        traps.append(
            "On GeForce fp16 with fp32 accumulation runs at half the rate of fp16 with fp16 accumulation, and TensorRT may use "
            "either."
        )
    if rtx_compute_capability(target) is None and "rtx" in flavours(target):
        traps.append(
            f"TensorRT-RTX refuses {target.compute_capability} as an explicit target; whether its portable engines run there "
            "was not tried."
        )
    if target.sm < 80:
        traps.append("TensorRT-RTX's portable engines start at compute capability 8.0: name this target when building.")
    if target.kind is Kind.DATACENTER and target.bandwidth_gb_s is None:
        traps.append("Its memory bandwidth was not read: a roofline has no memory side.")
    return tuple(traps)


def _jetpack_traps(target: Target, jetpack: str | None) -> list[str]:
    release = jetpack_for(target, jetpack)
    if release is None:
        return []
    traps = []
    if release.tensorrt is None:
        traps.append(f"The TensorRT of JetPack {release.version} was not read: ask the board with shallowvit doctor.")
    elif not strongly_typed(target, jetpack):
        traps.append(
            f"TensorRT {release.tensorrt} of JetPack {release.version} takes precision from builder flags, not from the graph "
            "(strong typing starts at 10.0); whether its parser takes opset 18 was not read."
        )
    if version_tuple(release.version.partition("-")[0])[0] == 6:
        traps.append("On JetPack 6 an Orin stays on TensorRT 10: no 11.x supports it.")
    if release.python and version_tuple(release.python)[:2] < _OWN_PYTHON:
        traps.append(
            f"JetPack {release.version} comes with Python {release.python}, and its TensorRT bindings are for that one; "
            "shallowvit needs 3.11. Build with --python /usr/bin/python3, or with recipe/build_engine.py of the bundle alone."
        )
    refusal = dla_refusal(target, jetpack)
    if refusal and target.dla != 0:
        traps.append(f"{refusal}.")
    return traps


def dla_refusal(target: Target, jetpack: str | None = None) -> str | None:
    """Return why a target's DLA can't be used under a JetPack, or None when it can or nothing is known against it.

    Raises:
        ShallowvitError: no such JetPack, or not for this target.
    """
    if target.dla == 0:
        return f"{target.title} has no DLA"
    version = version_tuple(tensorrt_of(target, jetpack) or "")
    if not version or version[:2] <= _LAST_DLA_10:
        return None
    if version >= _FIRST_DLA_11 and target.family == "agx-orin":
        return None
    release = jetpack_for(target, jetpack)
    assert release is not None
    return (
        f"TensorRT {release.tensorrt} of JetPack {release.version} has no DLA on {target.title}: 10.7 was the last 10.x with "
        "it, and 11.4.1 has it on AGX Orin alone"
    )


def build_steps(target: Target, jetpack: str | None = None) -> tuple[str, ...]:
    """Return how to get an engine for a target, as lines to run; a JetPack that is named stands in them."""
    key = target.key if jetpack is None else f"{target.key} --jetpack {jetpack}"
    if target.kind is Kind.JETSON:
        version = tensorrt_of(target, jetpack)
        if version and (refusal := typing_refusal(version)):
            return (f"none: {refusal}",)
        return (
            "engines for a Jetson are built on the Jetson, with the TensorRT of its JetPack",
            f"here:          shallowvit export MODEL --target {key} -o BUNDLE",
            "then:          copy the folder BUNDLE to the board",
            "on the board:  shallowvit build BUNDLE",
        )
    if flavours(target)[0] == "rtx":
        return (
            "TensorRT-RTX builds for it ahead of time, on a machine with no GPU",
            f"here:          shallowvit export MODEL --engine rtx --target {key} -o BUNDLE",
            "or, with TensorRT on a machine with this GPU:  shallowvit build BUNDLE",
        )
    return (
        "TensorRT builds for it on a machine with this GPU",
        f"here:          shallowvit export MODEL --target {key} -o BUNDLE",
        "on the machine:  shallowvit build BUNDLE",
    )
