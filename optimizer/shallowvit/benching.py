"""The stage *bench* as the command line runs it, here or on devices: bundles and torch as sides, rows written as they come.

A newcomer's trap: what a device itself runs is ``shallowvit_bench.job.run_job``, which is ``bench_here`` without torch.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shallowvit_bench.adaptive import adaptive_sides, read_adaptive
from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.compare import Session, bench
from shallowvit_bench.conditions import own_command, read_load_average, usable_cores
from shallowvit_bench.datasets import open_dataset
from shallowvit_bench.errors import BenchError
from shallowvit_bench.measurement import append_rows, measurement_from_row
from shallowvit_bench.metrics import NEEDS_SKLEARN, metrics_from_predictions
from shallowvit_bench.sides import distinct_sides, options_from_config, side_from_bundle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shallowvit_bench.bundles import BundleInfo
    from shallowvit_bench.config import BenchConfig
    from shallowvit_bench.measurement import Measurement
    from shallowvit_bench.remote.bench import DeviceResult
    from shallowvit_bench.sides import Side

__all__ = ["TORCH", "bench_adaptive", "bench_here", "bench_there", "is_bundle"]

TORCH = {"torch": False, "torch-compile": True}  # name of a side -> whether it is compiled
_PROVIDER = "provider:"


def is_bundle(against: str) -> bool:
    """Say whether a text of ``--against`` names a bundle, and not torch or another provider."""
    return against not in TORCH and not against.startswith(_PROVIDER)


def bench_here(
    bundle: BundleInfo,
    against: Sequence[str],
    config: BenchConfig,
    rows: Path,
    data: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Measurement, ...]:
    """Measure a bundle on this machine, each measurement appended to ``rows`` as it comes.

    Args:
        bundle: The one in question.
        against: Folders of bundles; ``torch`` or ``torch-compile``: its unpruned source; ``provider:NAME``: the same bundle
            there. The first is the one to beat.
        config: How.
        rows: The file of rows; outputs behind accuracies lie beside it.
        data: What accuracy is measured on; see ``open_dataset``.
        progress: Told what is going on.

    Raises:
        BenchError: a bundle or the data can't be read, or a provider isn't there.
        ShallowvitError: the source can't be loaded.
    """
    load_average = read_load_average()  # trying providers raises it
    config = replace(config, threads=config.threads or usable_cores())
    ours = side_from_bundle(bundle, config, progress=progress)
    sides = distinct_sides([ours, *(_side(text, bundle, config) for text in against)])
    datasets = [open_dataset(data, side.bundle) for side in sides] if data else []
    session = Session(
        id=uuid.uuid4().hex[:12],
        record=lambda measured: append_rows(rows, [measured]),
        predictions=_outputs_folder(rows) if data else None,
        load_average=load_average,
        progress=progress,
    )
    return bench(sides, config, datasets, session)


def bench_adaptive(
    path: Path,
    config: BenchConfig,
    rows: Path,
    data: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Measurement, ...]:
    """Measure an adaptive bundle on this machine, its mix against each of its depths, all on the same real inputs.

    Raises:
        BenchError: no data is named, or a part or the data can't be read.
    """
    load_average = read_load_average()
    config = replace(config, threads=config.threads or usable_cores())
    sides, datasets = adaptive_sides(read_adaptive(path), config, data, progress)
    session = Session(
        id=uuid.uuid4().hex[:12],
        record=lambda measured: append_rows(rows, [measured]),
        predictions=_outputs_folder(rows),
        load_average=load_average,
        progress=progress,
    )
    return bench(distinct_sides(sides), config, datasets, session)


def bench_there(
    devices: Sequence[str],
    bundles: Sequence[Path],
    config: BenchConfig,
    rows: Path,
    data: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
    *,
    wait: bool = False,
) -> tuple[tuple[Measurement, ...], tuple[str, ...]]:
    """Measure bundles on devices over SSH, all at once; what they measured is appended to ``rows`` as each is done.

    Args:
        devices: ``user@host[:port]``, or names from ``shallowvit devices``.
        bundles: The one in question, then the one to beat, then any others.
        config: How.
        rows: The file of rows; outputs behind accuracies lie beside it.
        data: ``demo``, a file or folder here, or ``device:PATH``.
        progress: Told what is going on.
        wait: Whether to wait for others who measure there.

    Returns:
        The measurements, and a sentence for each device that failed.

    Raises:
        BenchError: a bundle or the data can't be read, or a device has no such name.
    """
    from shallowvit_bench.remote.bench import remote_bench
    from shallowvit_bench.remote.registry import find_device

    home: dict[str, tuple[Measurement, ...]] = {}

    def keep(result: DeviceResult) -> None:
        """Write down what a device measured, before it forgets it."""
        folder = _outputs_folder(rows) / re.sub(r"[^\w.-]+", "-", result.device)
        try:
            for name, content in result.files.items():
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        except OSError as err:
            raise BenchError(
                f"bench: could not write {folder} ({err.strerror}); make room or choose another --rows, and give the same "
                f"command again, which brings home what {result.device} keeps"
            ) from err
        home[result.device] = tuple(_brought_home(row, result.device, folder) for row in result.rows)
        append_rows(rows, home[result.device])

    results = remote_bench(
        [find_device(text) for text in devices],
        bundles,
        config,
        data,
        keep=keep,
        wait=wait,
        progress=lambda device, text: progress(f"{device}: {text}"),
    )
    measurements = tuple(one for result in results for one in home.get(result.device, ()))
    return measurements, tuple(result.failure for result in results if result.failure)


def _brought_home(row: dict[str, Any], device: str, folder: Path) -> Measurement:
    """A device's row with its name, the command given here, and the metrics that only this machine has the packages for."""
    measured = measurement_from_row(row)
    measured = replace(measured, machine=device, conditions=replace(measured.conditions, command=own_command()))
    if not measured.predictions:
        return measured
    saved = folder / Path(measured.predictions).name
    if not saved.is_file():
        return replace(measured, predictions=None)
    try:
        found = metrics_from_predictions(saved)
    except BenchError as err:  # the rest of the row is as good as it was
        return replace(measured, predictions=str(saved), remarks=(*measured.remarks, str(err)))
    remarks = tuple(text for text in measured.remarks if found.remarks or NEEDS_SKLEARN not in text)
    return replace(measured, predictions=str(saved), metrics=found.metrics, remarks=remarks)


def _outputs_folder(rows: Path) -> Path:
    return rows.with_name(rows.name.removesuffix(".jsonl") + ".outputs")


def _side(against: str, bundle: BundleInfo, config: BenchConfig) -> Side:
    if against in TORCH:
        from .baselines import side_from_source

        return side_from_source(bundle, options_from_config(config), compiled=TORCH[against])
    if against.startswith(_PROVIDER):
        return side_from_bundle(bundle, replace(config, provider=against.removeprefix(_PROVIDER)))
    return side_from_bundle(read_bundle(Path(against)), config)
