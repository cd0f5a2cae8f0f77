"""``shallowvit bench``: measure a bundle here or on devices over SSH, alone or against other bundles, providers or torch."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shallowvit_bench.config import BenchConfig
from shallowvit_bench.errors import BenchError

from .options import Json, Quiet

if TYPE_CHECKING:
    from collections.abc import Callable

    from shallowvit_bench.gates import GateResult
    from shallowvit_bench.measurement import Measurement
    from shallowvit_bench.regressions import Regression

__all__ = ["bench"]

_DEFAULTS = BenchConfig()
_ALLOWED = ("5%", "1%")  # of regression, of accuracy


def bench(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder to measure.")],
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Another bundle; 'torch' or 'torch-compile': the full model; 'provider:NAME': this bundle there. "
            "Repeatable, the first is the one to beat."
        ),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            help="What runs the bundles; 'auto' measures what works here.  [default: the bundle's engine where it loads, "
            "else cpu]"
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="Measure there over SSH: user@host[:port] or a name from 'shallowvit devices'. Repeatable."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for others who measure on the device.")] = False,
    data: Annotated[
        str | None,
        typer.Option(help="What accuracy is measured on: 'demo', arrays, images, video lists; see docs/accuracy.md."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Items per inference; several, as 1,4,8, are a sweep.")] = "1",
    max_runs: Annotated[int, typer.Option(help="Timed runs a side at most.")] = _DEFAULTS.max_runs,
    max_seconds: Annotated[float, typer.Option(help="Timed seconds a side at most.")] = _DEFAULTS.max_seconds,
    threads: Annotated[int | None, typer.Option(help="Threads of each side.  [default: all usable cores]")] = None,
    copies: Annotated[bool, typer.Option(help="Count the copies to and from a GPU.")] = _DEFAULTS.copies,
    cuda_graph: Annotated[bool, typer.Option(help="Capture a GPU's run once and replay it.")] = _DEFAULTS.cuda_graph,
    power: Annotated[bool, typer.Option(help="Sample power, clocks and heat.")] = _DEFAULTS.power,
    scenario: Annotated[str | None, typer.Option(help="Also run MLPerf LoadGen: SingleStream, MultiStream or Offline.")] = None,
    scenario_seconds: Annotated[
        float, typer.Option(help="How long at least; a submission takes 600.")
    ] = _DEFAULTS.scenario_seconds,
    fail_if: Annotated[
        list[str] | None, typer.Option(help="Exit with 1 if it holds, as 'p99_ms > 10' or 'top1 < 0.80'. Repeatable.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="Rows of an earlier run to hold this one against.")] = None,
    max_regression: Annotated[str, typer.Option(help="How much worse than the baseline is allowed.")] = _ALLOWED[0],
    max_accuracy_drop: Annotated[
        str, typer.Option(help="How far an accuracy may fall below the baseline's; 1% is a point.")
    ] = _ALLOWED[1],
    lock_clocks: Annotated[
        bool, typer.Option("--lock-clocks", help="Tell which commands would lock clocks and power mode, and stop.")
    ] = False,
    rows: Annotated[Path | None, typer.Option(help="Where to append rows.  [default: BUNDLE.bench.jsonl]")] = None,
    plot: Annotated[Path | None, typer.Option(help="Where to draw the distributions.  [default: BUNDLE.bench.png]")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure latency, energy, memory and accuracy of a bundle; append a row per measurement and draw the distributions."""
    if lock_clocks:
        _tell_lock_commands(device or [])
        return
    _check_given(wait=wait, device=device, baseline=baseline, allowed=(max_regression, max_accuracy_drop))
    judge = _Judge(fail_if or [], baseline, (max_regression, max_accuracy_drop))
    rows = _output(bundle, rows, ".bench.jsonl", "--rows")
    plot = _output(bundle, plot, ".bench.png", "--plot")
    config = BenchConfig(
        batches=_batches(batch),
        max_runs=max_runs,
        max_seconds=max_seconds,
        threads=threads,
        provider=provider,
        copies=copies,
        cuda_graph=cuda_graph,
        power=power,
        scenario=scenario,
        scenario_seconds=scenario_seconds,
    )
    from shallowvit_bench.measurement import row_from_measurement

    from .bench_printing import print_measurements, progress_lines

    with progress_lines(as_json or quiet) as progress:
        measurements, failures = _measure(bundle, (device or [], against or [], data), config, rows, progress, wait=wait)
    drawn = _draw(measurements, plot)
    verdicts = judge.verdicts(measurements)
    listed = [row_from_measurement(measurement, samples=not as_json) for measurement in measurements]
    if as_json:
        record = {"measurements": listed, "rows": str(rows), "plot": str(plot) if drawn else None, "failures": failures}
        typer.echo(json.dumps(record | {"verdicts": [asdict(verdict) for verdict in verdicts]}, default=str))
    else:
        if listed:
            print_measurements(listed, [rows, *([plot] if drawn else [])])
        for text in (*failures, *_told(verdicts)):
            typer.echo(text)
    if failures or any(measured.status != "ok" for measured in measurements) or any(verdict.failed for verdict in verdicts):
        raise typer.Exit(1)


def _check_given(*, wait: bool, device: list[str] | None, baseline: Path | None, allowed: tuple[str, str]) -> None:
    """Refuse options that would be ignored."""
    if wait and not device:
        raise BenchError("bench: --wait is for others who measure on a device; name one with --device, or leave it out")
    if baseline is None and allowed != _ALLOWED:
        raise BenchError(
            "bench: --max-regression and --max-accuracy-drop are of a --baseline; name its rows, or leave them out"
        )


def _measure(
    bundle: Path,
    asked: tuple[list[str], list[str], str | None],
    config: BenchConfig,
    rows: Path,
    progress: Callable[[str], None],
    *,
    wait: bool,
) -> tuple[tuple[Measurement, ...], tuple[str, ...]]:
    """Measure here or there; what is missing is found before anything heavy is loaded."""
    from shallowvit_bench.adaptive import is_adaptive
    from shallowvit_bench.bundles import read_bundle
    from shallowvit_bench.datasets import check_dataset

    from ..benching import bench_adaptive, bench_here, bench_there, is_bundle

    devices, against, data = asked
    if is_adaptive(bundle):
        if devices or against:
            raise BenchError(
                f"bench: {bundle} is adaptive, and is measured on this machine against its own depths; leave out --device and "
                "--against, or name one of its folders, which are bundles"
            )
        if data is not None:
            check_dataset(data)
        return bench_adaptive(bundle, config, rows, data, progress), ()
    info = read_bundle(bundle)
    others = [Path(text) for text in against if is_bundle(text)]
    for path in others:
        read_bundle(path)
    if data is not None and not (devices and data.startswith("device:")):
        check_dataset(data)
    if not devices:
        return bench_here(info, against, config, rows, data, progress), ()
    if len(others) < len(against):
        raise BenchError(
            "bench: --against torch and provider:NAME are measured on this machine; leave them out beside --device"
        )
    return bench_there(devices, [bundle, *others], config, rows, data, progress, wait=wait)


class _Judge:
    """What makes a run fail: gates on its own figures, and a baseline; both are read before anything is measured."""

    def __init__(self, gates: list[str], baseline: Path | None, allowed: tuple[str, str]) -> None:
        from shallowvit_bench.gates import parse_gate, parse_share
        from shallowvit_bench.measurement import read_rows

        self._gates = [parse_gate(text) for text in gates]
        self._allowed = parse_share(allowed[0], "--max-regression")
        self._drop = parse_share(allowed[1], "--max-accuracy-drop")
        kept = [row for row in read_rows(baseline) if not row.get("scenario")] if baseline is not None else None
        self._baseline = kept

    def verdicts(self, measurements: tuple[Measurement, ...]) -> list[GateResult | Regression]:
        """Judge the bundle in question, at every batch size and on every device."""
        from shallowvit_bench.gates import check_gates
        from shallowvit_bench.measurement import row_from_measurement
        from shallowvit_bench.regressions import compare_with_baseline

        if not measurements:
            return []
        ours = [one for one in measurements if one.side == measurements[0].side and one.scenario is None]
        rows = [row_from_measurement(one) for one in ours]
        found: list[GateResult | Regression] = []
        if self._gates:
            found += check_gates(rows, self._gates)
        if self._baseline is not None:
            found += compare_with_baseline(rows, self._baseline, self._allowed, max_accuracy_drop=self._drop)
        return found


def _told(verdicts: list[GateResult | Regression]) -> list[str]:
    """Each verdict, then what makes any of them doubtful, once."""
    warnings = dict.fromkeys(text for verdict in verdicts for text in getattr(verdict, "warnings", ()))
    return [
        *(f"{'failed' if verdict.failed else 'passed'}: {verdict.row}: {verdict.sentence}" for verdict in verdicts),
        *(f"beside the baseline: {text}" for text in warnings),
    ]


def _draw(measurements: tuple[Measurement, ...], plot: Path) -> bool:
    from shallowvit_bench.plot import draw_latencies

    return draw_latencies(measurements, plot)


def _tell_lock_commands(devices: list[str]) -> None:
    """Print what would fix the clocks of this machine, or of each device; nothing is changed."""
    from shallowvit_bench.power.clocks import advise_clocks

    if not devices:
        typer.echo(advise_clocks().text())
        return
    from shallowvit_bench.remote.bench import probe_device
    from shallowvit_bench.remote.registry import find_device

    for found in [find_device(text) for text in devices]:
        facts = asyncio.run(probe_device(found))["facts"]
        text = facts["clocks"] if facts else "someone measures there now, so nothing was asked; try again later"
        typer.echo(f"{found.name}:\n{text}")


def _batches(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as err:
        raise BenchError(f"bench: --batch {text!r} isn't a number or numbers with commas; write 1 or 1,4,8") from err


def _output(bundle: Path, given: Path | None, suffix: str, option: str) -> Path:
    """Where to write: beside the bundle unless told, and never inside it, since ``verify`` takes no extra files.

    What can't be written is found here, before minutes of measuring are lost to it.
    """
    whole = bundle.resolve()
    path = given if given is not None else whole.with_name(whole.name + suffix)
    if whole in path.resolve().parents:
        raise BenchError(
            f"bench: {option} {path} is inside the bundle, which must stay as it was exported; choose a place outside it"
        )
    if not path.parent.is_dir():
        raise BenchError(f"bench: no folder {path.parent} for {option} {path.name}; create it first")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BenchError(f"bench: {option} {path} can't be written; choose a file elsewhere with {option}")
    return path
