"""How ``shallowvit targets`` shows a target: the list, one explained, the estimate, and each as a record for ``--json``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..engines.target_traps import build_steps, dla_refusal, traps_of
from ..engines.targets import (
    JETPACKS,
    PRECISIONS,
    Kind,
    flavours,
    jetpack_for,
    opset_for,
    precision_refusal,
    rtx_compute_capability,
    strongly_typed,
    tensorrt_of,
)
from .printing import print_line, print_table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ..engines.roofline import RooflineEstimate
    from ..engines.targets import Figure, PowerMode, Target

__all__ = ["estimate_of_bundle", "print_estimate", "print_estimate_line", "print_target", "print_targets", "record_from_target"]

_GRADES = "behind a figure: A NVIDIA's own table, B several sources, C one source, D derived, - not graded"


def record_from_target(target: Target, jetpack: str | None = None) -> dict[str, Any]:
    """Return everything that is known of a target and follows from it, for ``--json``; None is unknown.

    Raises:
        ShallowvitError: no such JetPack, or not for this target.
    """
    assumed = jetpack_for(target, jetpack)
    facts = asdict(target)
    facts["peaks"] = {precision: _figure_record(figure) for precision, figure in target.peaks}
    facts["memory"], facts["bandwidth"] = _figure_record(target.memory), _figure_record(target.bandwidth)
    return facts | {
        "compute_capability": target.compute_capability,
        "flavours": flavours(target),
        "rtx_compute_capability": rtx_compute_capability(target),
        "jetpack": assumed.version if assumed else None,
        "tensorrt": tensorrt_of(target, jetpack),
        "opset": opset_for(target, jetpack),
        "strongly_typed": strongly_typed(target, jetpack),
        "refused": {name: precision_refusal(target, name, jetpack) for name in PRECISIONS},
        "dla_refused": dla_refusal(target, jetpack),
        "jetpacks": [
            asdict(release) | {"opset": opset_for(target, release.version)}
            for release in JETPACKS
            if release.version in target.jetpacks
        ],
        "build": build_steps(target, jetpack),
        "traps": traps_of(target, jetpack),
    }


def _figure_record(figure: Figure) -> dict[str, Any]:
    known = figure.value is not None
    return {
        "value": figure.value,
        "provenance": str(figure.provenance) if known else None,
        "grade": figure.provenance.letter if known else None,
        "note": figure.note or None,
    }


def print_targets(targets: Iterable[Target]) -> None:
    """Print one line a target; the letter behind a figure says how it is known."""
    table = Table(title="targets; rates are dense and of the GPU alone", title_justify="left")
    table.add_column("key", no_wrap=True)
    table.add_column("SM", justify="right")
    for head in ("memory GB", "GB/s", "fp16 TFLOPS", "int8 TOPS"):
        table.add_column(head, justify="right")
    table.add_column("engine")
    for target in targets:
        figures = (target.memory, target.bandwidth, target.peak("fp16"), target.peak("int8"))
        table.add_row(target.key, target.compute_capability, *map(_short, figures), ", ".join(flavours(target)))
    print_table(table)
    print_line(_GRADES)
    print_line("explain one with: shallowvit targets KEY")


def _short(figure: Figure) -> str:
    return "unknown" if figure.value is None else f"{figure.value:g} {figure.provenance.letter}"


def _long(figure: Figure, unit: str) -> str:
    note = f" ({figure.note})" if figure.note else ""
    if figure.value is None:
        return f"unknown{note}"
    return f"{figure.value:g} {unit}, {figure.provenance}{note}"


def print_target(target: Target, jetpack: str | None = None) -> None:
    """Explain one target.

    Raises:
        ShallowvitError: no such JetPack, or not for this target.
    """
    assumed = jetpack_for(target, jetpack)
    print_line(f"{target.key}: {target.title}, compute capability {target.compute_capability}")
    print_line("facts (rates are dense and of the GPU alone; behind each, how it is known)")
    for name, text in _facts(target):
        print_line(f"  {name:<21} {text}")
    if target.kind is Kind.JETSON:
        _print_jetpacks(target, assumed.version if assumed else None)
    under = f" under JetPack {assumed.version} (TensorRT {assumed.tensorrt or 'unknown'})" if assumed else ""
    print_line(f"precisions{under}")
    for name in PRECISIONS:
        print_line(f"  {name:<21} {precision_refusal(target, name, jetpack) or 'runs'}")
    print_line("engine")
    print_line(f"  flavour               {', then '.join(flavours(target))}")
    print_line(f"  opset                 {opset_for(target, jetpack)}")
    for line in build_steps(target, jetpack):
        print_line(f"  {line}")
    print_line("traps")
    for trap in traps_of(target, jetpack):
        print_line(f"  - {trap}")


def _facts(target: Target) -> list[tuple[str, str]]:
    shared = ", shared with the CPU" if target.shared_memory else ""
    rows = [("memory", _long(target.memory, "GB as sold") + shared), ("bandwidth", _long(target.bandwidth, "GB/s"))]
    shown = [*dict.fromkeys(["fp16", "int8", *(name for name, _ in target.peaks)])]
    for name in shown:
        rows.append((f"{name} rate", _long(target.peak(name), "TOPS" if name == "int8" else "TFLOPS")))
    if target.kind is Kind.JETSON:
        rows.append(("DLA", ", ".join(filter(None, ("unknown" if target.dla is None else str(target.dla), target.dla_note)))))
        modes = ", ".join(_mode(mode) for mode in target.power_modes) or "unknown"
        rows.append(("power modes", modes + (f"; {target.power_note}" if target.power_note else "")))
        rows.append(("modules", ", ".join(target.modules) or "unknown"))
    else:
        rows.append(("power limit", "unknown" if target.board_w is None else f"{target.board_w:g} W"))
    return rows + [("note", note) for note in target.notes]


def _mode(mode: PowerMode) -> str:
    number = "" if mode.number is None else f"{mode.number}:"
    return f"{number}{mode.name}{' (default)' if mode.default else ''}"


def _print_jetpacks(target: Target, assumed: str | None) -> None:
    table = Table(title="JetPack releases for it (* is assumed here)", title_justify="left")
    for head in ("JetPack", "L4T", "CUDA", "TensorRT", "Python", "opset"):
        table.add_column(head)
    for release in JETPACKS:
        if release.version not in target.jetpacks:
            continue
        table.add_row(
            release.version + (" *" if release.version == assumed else ""),
            ", ".join(release.l4t) or "unknown",
            release.cuda or "unknown",
            release.tensorrt or "unknown",
            release.python or "unknown",
            str(opset_for(target, release.version)),
        )
    print_table(table)


def estimate_of_bundle(bundle: Path, target: Target, batch: int) -> RooflineEstimate:
    """Estimate the latency of a bundle's graph on a target.

    Raises:
        BenchError: no bundle there, or a damaged one.
        ShallowvitError: the target can't run the bundle's precision, or the graph's sizes aren't known.
    """
    from shallowvit_bench.bundles import read_bundle

    from ..engines.roofline import estimate

    info = read_bundle(bundle)
    return estimate(info.model_path, info.flops_after, target, info.precision, batch)


def print_estimate(found: RooflineEstimate) -> None:
    """Print a roofline estimate, called an estimate in its first line."""
    print_line(f"roofline of {found.precision}, batch {found.batch} ({found.kind})")
    rows = [
        ("operations", f"{found.flops / 1e9:,.4g} GFLOP, {found.intensity:,.4g} a byte (the ridge is {_number(found.ridge)})"),
        ("weights", f"{found.weight_bytes / 1e6:,.4g} MB"),
        ("inputs and outputs", f"{found.io_bytes / 1e6:,.4g} MB"),
        ("compute at least", _milliseconds(found.compute_ms)),
        ("memory at least", _milliseconds(found.memory_ms)),
        ("latency at least", _milliseconds(found.bound_ms) + (f", limited by {found.limited_by}" if found.limited_by else "")),
        ("if nothing is fused", f"memory {_milliseconds(found.unfused_memory_ms)}, {_activations(found)}"),
    ]
    for name, text in rows:
        print_line(f"  {name:<19} {text}")
    for reason in found.unknown:
        print_line(f"  unknown: {reason}")
    for caution in found.cautions:
        print_line(f"  caution: {caution}")


def print_estimate_line(bundle: Path, key: str) -> None:
    """Print the roofline of one item on a target in a line, called an estimate, and the command that shows all of it."""
    from ..engines.targets import find_target

    found = estimate_of_bundle(bundle, find_target(key), 1)
    limited = f", limited by {found.limited_by}" if found.limited_by else ""
    bound = "unknown, for want of the target's rates" if found.bound_ms is None else f"at least {_milliseconds(found.bound_ms)}"
    print_line(f"  estimate, not a measurement: one item takes {bound}{limited} (shallowvit targets {key} --bundle {bundle})")


def _activations(found: RooflineEstimate) -> str:
    if found.activation_bytes is None:
        return "intermediate results unknown"
    return f"{found.activation_bytes / 1e6:,.4g} MB of intermediate results written and read"


def _milliseconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g} ms"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.4g}"
