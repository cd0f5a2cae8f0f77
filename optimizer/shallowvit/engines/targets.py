"""Look a target up, and say what follows from its facts: precisions, engine flavour, opset, TensorRT.

A newcomer's trap: compute capability alone doesn't decide. On a Jetson the JetPack brings the TensorRT, and with it the opset
and the precisions; everywhere else the newest TensorRT can be installed.
"""

from __future__ import annotations

import difflib

from shallowvit_bench.jetpack import JETPACKS, JetPack, jetpack_from_l4t, version_tuple

from ..errors import ShallowvitError
from .devices import DEVICES
from .target_records import UNKNOWN, Figure, Kind, PowerMode, Provenance, Target

__all__ = [
    "JETPACKS",
    "PRECISIONS",
    "RTX_COMPUTE_CAPABILITIES",
    "UNKNOWN",
    "Figure",
    "JetPack",
    "Kind",
    "PowerMode",
    "Provenance",
    "Target",
    "all_targets",
    "find_jetpack",
    "find_target",
    "flavours",
    "jetpack_for",
    "jetpack_from_l4t",
    "opset_for",
    "opset_of_tensorrt",
    "precision_refusal",
    "rtx_compute_capability",
    "same_board",
    "strongly_typed",
    "targets_table",
    "tensorrt_of",
    "typing_refusal",
]

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")

# What TensorRT-RTX 1.7 takes as an explicit target; it refuses 87, 90, 100 and 110. With none set an engine is portable to
# compute capability 8.0 and later.
RTX_COMPUTE_CAPABILITIES = (75, 80, 86, 89, 120, 121)
_RTX_PORTABLE_FROM = 80

_OPSET_23_FROM = (10, 14)
_STRONGLY_TYPED_FROM = (10, 0)

# int8 is 75 for TensorRT-RTX and desktop TensorRT. Xavier (72) is below it and yet has published INT8 rates, so on a Jetson
# the limit is what Nano and TX2 lack.
_MINIMUM_SM = {"int8": 75, "bf16": 80, "fp8": 89, "int4": 80}
_MINIMUM_JETSON_SM = _MINIMUM_SM | {"int8": 72}
_MINIMUM_TENSORRT = {"bf16": (10, 0), "int4": (10, 0), "fp8": (8, 6)}


def all_targets() -> tuple[Target, ...]:
    """Return every target, the Jetson boards first."""
    return DEVICES


def find_target(key: str) -> Target:
    """Return the target with this key.

    Raises:
        ShallowvitError: no such target; the sentence names near ones.
    """
    wanted = key.strip().lower()
    for target in DEVICES:
        if target.key == wanted:
            return target
    keys = [target.key for target in DEVICES]
    near = [name for name in keys if wanted and wanted in name] or difflib.get_close_matches(wanted, keys, n=4, cutoff=0.5)
    meant = f" Near ones: {', '.join(near)}." if near else ""
    raise ShallowvitError(f"targets: no target {key!r} among the {len(keys)} known.{meant} List all with: shallowvit targets")


def find_jetpack(version: str) -> JetPack:
    """Return the JetPack release of that version.

    Raises:
        ShallowvitError: no such release in the table.
    """
    for release in JETPACKS:
        if release.version == version.strip().lower():
            return release
    known = ", ".join(release.version for release in JETPACKS)
    raise ShallowvitError(f"targets: no JetPack {version!r} in the table; choose from {known}")


def same_board(one: Target, other: Target) -> bool:
    """Return whether two targets are the same board: an Orin Nano with and without its Super modes is."""
    return one.key == other.key or bool(set(one.modules) & set(other.modules))


def jetpack_for(target: Target, jetpack: str | None = None) -> JetPack | None:
    """Return the JetPack to assume for a Jetson: the named one, else the newest whose TensorRT is known.

    None for what is no Jetson.

    Raises:
        ShallowvitError: no such JetPack, or not for this target.
    """
    if jetpack is not None:
        release = find_jetpack(jetpack)
        if release.version not in target.jetpacks:
            those = ", ".join(target.jetpacks) or "none, it is no Jetson"
            raise ShallowvitError(
                f"targets: JetPack {release.version} doesn't run on {target.key}; its releases: {those}. Name one of them"
            )
        return release
    known = [release for release in JETPACKS if release.version in target.jetpacks and release.tensorrt]
    return known[-1] if known else None


def tensorrt_of(target: Target, jetpack: str | None = None) -> str | None:
    """Return the TensorRT version of a Jetson under a JetPack (by default the newest with a known one).

    None where it was not read, and for what is no Jetson: there the newest can be installed.
    """
    release = jetpack_for(target, jetpack)
    return release.tensorrt if release else None


def opset_for(target: Target, jetpack: str | None = None) -> int:
    """Return 23 where TensorRT is 10.14 or later and parses ``Attention``, else 18; 18 too where its version is unknown."""
    if target.kind is not Kind.JETSON:
        return 23
    return opset_of_tensorrt(tensorrt_of(target, jetpack) or "")


def opset_of_tensorrt(version: str) -> int:
    """Return the opset to export for a version of TensorRT: 23 from 10.14 on, which parses ``Attention``, else 18."""
    return 23 if version_tuple(version) >= _OPSET_23_FROM else 18


def strongly_typed(target: Target, jetpack: str | None = None) -> bool:
    """Return whether its TensorRT takes precision from the graph (10.0 and later); False where the version is unknown."""
    if target.kind is not Kind.JETSON:
        return True
    version = tensorrt_of(target, jetpack)
    return version_tuple(version or "") >= _STRONGLY_TYPED_FROM


def typing_refusal(version: str) -> str | None:
    """Return why a version of TensorRT can't build this project's graphs, which carry their precision, or None if it can."""
    if version_tuple(version) >= _STRONGLY_TYPED_FROM:
        return None
    return f"TensorRT {version} takes precision from builder flags; graphs that carry theirs need 10.0, on a Jetson JetPack 6.1"


def rtx_compute_capability(target: Target) -> int | None:
    """Return what to give TensorRT-RTX as the explicit compute capability, or None: leave it out."""
    return target.sm if target.kind is not Kind.JETSON and target.sm in RTX_COMPUTE_CAPABILITIES else None


def flavours(target: Target) -> tuple[str, ...]:
    """Return the engine flavours for a target, the one to try first in front: ``rtx``, ``tensorrt``.

    Compute capabilities 9.0 and 10.0 can only be reached by a portable RTX engine, so full TensorRT comes first there.
    """
    if target.kind is Kind.JETSON:
        return ("tensorrt",)
    if rtx_compute_capability(target) is not None:
        return ("rtx", "tensorrt")
    return ("tensorrt", "rtx") if target.sm >= _RTX_PORTABLE_FROM else ("tensorrt",)


def precision_refusal(target: Target, precision: str, jetpack: str | None = None) -> str | None:
    """Return why a target can't run a precision, or None when it can.

    Args:
        target: The device.
        precision: One of ``PRECISIONS``; int4 is of weights only.
        jetpack: Of a Jetson; by default the newest whose TensorRT is known.

    Raises:
        ShallowvitError: unknown precision or JetPack.
    """
    if precision not in PRECISIONS:
        raise ShallowvitError(f"targets: unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    jetson = target.kind is Kind.JETSON
    minimum = (_MINIMUM_JETSON_SM if jetson else _MINIMUM_SM).get(precision, 0)
    release = jetpack_for(target, jetpack)
    if target.sm < minimum:
        needs = f"{minimum // 10}.{minimum % 10}"
        return f"{target.title} has compute capability {target.compute_capability}; {precision} needs {needs} or later"
    needed = _MINIMUM_TENSORRT.get(precision, ())
    if release and release.tensorrt and version_tuple(release.tensorrt) < needed:
        return (
            f"JetPack {release.version} has TensorRT {release.tensorrt}; {precision} needs "
            f"{'.'.join(map(str, needed))} or later"
        )
    return None


def targets_table() -> str:
    """Return every target and every JetPack release as two Markdown tables; what was not read stands as unknown."""
    lines = [
        "| target | SM | memory GB | GB/s | fp16 TFLOPS | int8 TOPS | DLA | doesn't run | engine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for target in DEVICES:
        figures = [_graded(figure) for figure in (target.memory, target.bandwidth, target.peak("fp16"), target.peak("int8"))]
        refused = ", ".join(name for name in PRECISIONS if precision_refusal(target, name)) or "-"
        dla = "unknown" if target.dla is None else str(target.dla)
        cells = [f"`{target.key}`", target.compute_capability, *figures, dla, refused, ", ".join(flavours(target))]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| JetPack | L4T | CUDA | TensorRT | Python | boards |", "|---|---|---|---|---|---|"]
    for release in JETPACKS:
        known = [", ".join(release.l4t), release.cuda, release.tensorrt, release.python]
        lines.append(f"| {release.version} | {' | '.join(text or 'unknown' for text in known)} | {', '.join(release.boards)} |")
    return "\n".join(lines) + "\n"


def _graded(figure: Figure) -> str:
    return "unknown" if figure.value is None else f"{figure.value:g} {figure.provenance.letter}"
