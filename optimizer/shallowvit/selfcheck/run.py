"""Run the checks in order, within the minutes given, a row each in a file: facts, ceilings, correctness, speed, power.

A newcomer's trap: speed is measured last of each model and by the same stage *bench* as everybody's, so its rows are rows of
``shallowvit bench`` in a file of their own.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.compare import Session, bench
from shallowvit_bench.conditions import read_conditions, read_load_average, usable_cores
from shallowvit_bench.config import BenchConfig
from shallowvit_bench.datasets import open_dataset
from shallowvit_bench.errors import BenchError
from shallowvit_bench.measurement import append_rows
from shallowvit_bench.preprocessing import random_input
from shallowvit_bench.runners import RunnerOptions
from shallowvit_bench.runners.opening import FLAVOURS, default_provider, opener_for
from shallowvit_bench.sides import options_from_config, side_from_bundle
from shallowvit_kernels.errors import KernelError

from ..baselines import side_from_source
from ..engines import BatchRange, BuildConfig, Flavour
from ..errors import ShallowvitError
from ..exporting import Precision
from .ceilings import measure_ceilings
from .kernels import check_kernels, kernels_missing
from .subjects import SUBJECTS, Subject, export_subject
from .vendor_tool import compare_with_tool, find_tool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from shallowvit_bench.bundles import BundleInfo
    from shallowvit_bench.measurement import Measurement

__all__ = ["Check", "SelfcheckConfig", "SelfcheckResult", "selfcheck"]

# of the largest output, against onnxruntime's CPU provider on the same graph
_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}
_AGREEMENT = 0.02  # between our median and the vendor's tool's


@dataclass(frozen=True)
class SelfcheckConfig:
    """What to check.

    Args:
        gpu: With the NVIDIA GPU of this machine: engines, the GPU's ceilings, power. Without: the CPU alone.
        minutes: Steps that haven't begun by then are skipped and say so.
        max_seconds: Timed seconds of a side.
    """

    gpu: bool = False
    minutes: float = 8.0
    max_seconds: float = 4.0

    def __post_init__(self) -> None:
        if not (self.minutes > 0 and self.max_seconds > 0):
            raise ShallowvitError("selfcheck: minutes and seconds must be above 0")


@dataclass(frozen=True)
class Check:
    """One step: ok, failed or skipped, why, and its figures."""

    name: str
    status: str
    reason: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SelfcheckResult:
    """Every step, and the measurements of the stage *bench*."""

    checks: tuple[Check, ...]
    measurements: tuple[Measurement, ...]


class _SkippedError(Exception):
    """What the machine lacks for a step."""


def selfcheck(
    out: Path, config: SelfcheckConfig | None = None, progress: Callable[[str], None] = lambda _: None
) -> SelfcheckResult:
    """Run every check and write rows as they come: ``checks.jsonl``, and ``bench.jsonl`` for the report.

    Args:
        out: A folder that doesn't exist yet.
        config: See there.
        progress: Told what is going on.

    Raises:
        ShallowvitError: ``out`` exists or can't be written.
    """
    config = config or SelfcheckConfig()
    if out.exists():
        raise ShallowvitError(f"selfcheck: {out} exists; choose another --out")
    try:
        out.mkdir(parents=True)
    except OSError as err:
        raise ShallowvitError(f"selfcheck: could not make {out} ({err.strerror}); choose another --out") from err
    run = _Run(out, config, progress)
    device = "cuda" if config.gpu else "cpu"
    run.step("facts", lambda: _facts(config))
    run.step("ceilings", lambda: _ceilings(device))
    if config.gpu:
        run.step("kernels", _kernels)
    for subject in SUBJECTS:
        if subject.large and not config.gpu:
            run.note(Check(subject.name, "skipped", "takes minutes on a CPU; it is checked with --gpu"))
            continue
        _check_subject(run, subject)
    return SelfcheckResult(tuple(run.checks), tuple(run.measurements))


class _Run:
    """The steps so far, and the clock."""

    def __init__(self, out: Path, config: SelfcheckConfig, progress: Callable[[str], None]) -> None:
        self.out, self.config, self.progress = out, config, progress
        self.checks: list[Check] = []
        self.measurements: list[Measurement] = []
        self.load_average = read_load_average()  # before our own
        self._until = monotonic() + 60 * config.minutes

    def step(self, name: str, work: Callable[[], dict[str, Any]]) -> bool:
        """Do a step and note how it went; say whether it is ok."""
        self.progress(name)
        if monotonic() > self._until:
            check = Check(name, "skipped", f"the {self.config.minutes:g} minutes were over")
        else:
            try:
                check = Check(name, "ok", figures=work())
            except _SkippedError as err:
                check = Check(name, "skipped", str(err))
            except (ShallowvitError, BenchError, KernelError, RuntimeError) as err:
                check = Check(name, "failed", str(err).strip().splitlines()[0])
        self.note(check)
        return check.status == "ok"

    def note(self, check: Check) -> None:
        """Write a step down."""
        self.checks.append(check)
        row = asdict(check) | {"gpu": self.config.gpu, "conditions": asdict(read_conditions(None))}
        with (self.out / "checks.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def measured(self, measurement: Measurement) -> None:
        """Write a measurement down; one that comes again replaces itself."""
        append_rows(self.out / "bench.jsonl", [measurement])
        self.measurements = [one for one in self.measurements if one.id != measurement.id] + [measurement]


def _facts(config: SelfcheckConfig) -> dict[str, Any]:
    from ..engines.doctor import diagnose

    found = diagnose()
    if config.gpu:
        _cuda()
    return {"findings": {one.name: one.value for one in found.findings}}


def _cuda() -> None:
    """Skip what needs a GPU where there is none."""
    import torch

    if not torch.cuda.is_available():
        raise _SkippedError("PyTorch sees no CUDA GPU here")


def _ceilings(device: str) -> dict[str, Any]:
    if device == "cuda":
        _cuda()
    return {ceiling.name: asdict(ceiling) for ceiling in measure_ceilings(device)}


def _kernels() -> dict[str, Any]:
    _cuda()
    lacking = kernels_missing()
    if lacking:
        raise _SkippedError(lacking)
    return check_kernels()


def _check_subject(run: _Run, subject: Subject) -> None:
    """Export, compare the answers, then measure speed, power and accuracy."""
    bundles: list[BundleInfo] = []

    def prepare() -> dict[str, Any]:
        build, precision = _engine(run.config)
        paths = export_subject(subject, run.out, precision, build)
        bundles.extend(map(read_bundle, paths))
        return {path.name: _engines(info) for path, info in zip(paths, bundles, strict=True)}

    if not run.step(f"{subject.name}: export", prepare):
        return
    for info in bundles:
        run.step(f"{info.name}: correctness", partial(_correctness, info))
    if run.config.gpu:
        run.step(f"{subject.name}: agreement with the vendor's tool", partial(_agreement, bundles[1]))
    run.step(f"{subject.name}: speed", lambda: _speed(run, subject, bundles))


def _engine(config: SelfcheckConfig) -> tuple[BuildConfig | None, Precision]:
    """The engine of the TensorRT that is installed here, and the precision that its attention fuses in."""
    if not config.gpu:
        return None, Precision.FP32
    _cuda()
    for module, flavour in (("tensorrt", Flavour.TENSORRT), ("tensorrt_rtx", Flavour.RTX)):
        if find_spec(module):
            return BuildConfig(flavour=flavour, batches=(BatchRange(1, 1, 8),)), Precision.FP16
    raise _SkippedError("neither tensorrt nor tensorrt_rtx is installed here")


def _engines(info: BundleInfo) -> list[dict[str, Any]]:
    keys = ("flavour", "version", "attention_fused", "attention_expected", "activation_bytes", "build_s")
    return [{key: engine[key] for key in keys} for engine in info.manifest.get("engines", ())]


def _correctness(info: BundleInfo) -> dict[str, Any]:
    """The provider that would be taken against onnxruntime's CPU provider, on the same random frames."""
    provider = default_provider(info)
    batch = random_input(info, 2)
    outputs = []
    for name in ("cpu", provider):
        with opener_for(info, name, RunnerOptions(threads=usable_cores()))() as runner:
            outputs.append(np.array(runner.infer(batch), np.float64))
    error = float(np.abs(outputs[1] - outputs[0]).max() / np.abs(outputs[0]).max())
    allowed = _TOLERANCE[info.precision]
    if not error <= allowed:
        raise ShallowvitError(
            f"selfcheck: {provider} answers otherwise than onnxruntime's CPU provider on {info.name}: {error:.2g} of the "
            f"largest output, {allowed:g} is allowed"
        )
    return {"provider": provider, "relative_error": error, "allowed": allowed}


def _agreement(info: BundleInfo) -> dict[str, Any]:
    """Our timing against that of TensorRT's own tool."""
    flavour = default_provider(info)
    tool = find_tool(flavour) if flavour in FLAVOURS else None
    if tool is None:
        raise _SkippedError(f"no command-line tool of {flavour} is on PATH (trtexec, tensorrt_rtx)")
    found = asdict(compare_with_tool(info, flavour, tool))
    if abs(found["difference"]) > _AGREEMENT:
        raise ShallowvitError(
            f"selfcheck: our median {found['ours_ms']:.4f} ms differs by {found['difference']:+.1%} from that of "
            f"{tool}, {found['tool_ms']:.4f} ms; {_AGREEMENT:.0%} is allowed. Lock the clocks (shallowvit bench --lock-clocks "
            "tells how) and run it again"
        )
    return found


def _speed(run: _Run, subject: Subject, bundles: list[BundleInfo]) -> dict[str, Any]:
    config = BenchConfig(batches=(1, 8) if run.config.gpu else (1,), max_seconds=run.config.max_seconds, threads=usable_cores())
    sides = [side_from_bundle(info, config) for info in bundles]
    sides += [
        replace(
            side_from_source(bundles[1], options_from_config(config), compiled=compiled),
            name=f"{bundles[1].name} in torch{' compiled' if compiled else ''}",
        )
        for compiled in ((False, True) if run.config.gpu else (False,))  # compiling for a CPU takes minutes
    ]
    # torch's side is the same model, and its accuracy would take most of the minutes on a CPU
    datasets = [open_dataset(subject.data, info) for info in bundles] + [None] * (len(sides) - 2) if subject.data else []
    # ids of their own, so that rows of several machines can go into one file
    session = Session(
        f"{subject.name}-{uuid.uuid4().hex[:12]}", record=run.measured, load_average=run.load_average, progress=run.progress
    )
    found = bench(sides, config, datasets, session)
    failed = [one for one in found if one.status != "ok"]
    if len(failed) == len(found):
        raise ShallowvitError(f"selfcheck: {failed[0].reason}")
    return {
        f"{one.side}, {one.provider}, batch {one.batch}": {
            "status": one.status,
            "reason": one.reason,
            "p50_ms": one.p50_ms,
            "speedup": one.speedup,
            "energy_item_mj": one.energy_item_mj,
            "top1": one.metrics["top1"].value if "top1" in one.metrics else None,
            "power_reason": one.power_reason,
        }
        for one in found
    }
