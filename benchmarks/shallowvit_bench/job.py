"""A benchmark as a file: what a device is sent, and what is resumed after an interruption.

A newcomer's trap: paths in a job are those of the machine that runs it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bundles import read_bundle
from .compare import Session, bench, side_of
from .conditions import read_load_average, usable_cores
from .config import BenchConfig
from .datasets import open_dataset
from .errors import BenchError
from .measurement import append_rows, measurement_from_row, read_rows, row_from_measurement
from .sides import distinct_sides, side_from_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

    from .measurement import Measurement

__all__ = ["Job", "job_from_json", "json_from_job", "run_job"]

_SCHEMA = 1


@dataclass(frozen=True)
class Job:
    """What to measure.

    Args:
        id: Of this benchmark: rows of a file with it are taken as done.
        bundles: Folders: the bundle in question, then the one to beat, then any others.
        rows: The file that rows are appended to.
        data: What accuracy is measured on; see ``open_dataset``.
        config: How.
        engines: Engines that were built outside of the bundles, by the bundle's place in ``bundles``.
        predictions: Folder for the outputs behind the accuracy.
    """

    id: str
    bundles: tuple[str, ...]
    rows: str
    data: str | None = None
    config: BenchConfig = field(default_factory=BenchConfig)
    engines: tuple[str | None, ...] = ()
    predictions: str | None = None


def json_from_job(job: Job) -> str:
    """Return the job as JSON."""
    return json.dumps({"schema": _SCHEMA, **asdict(job)}, indent=1)


def job_from_json(text: str) -> Job:
    """Return the job of a file.

    Raises:
        BenchError: it isn't a job that this version reads.
    """
    try:
        record = json.loads(text)
        if record.pop("schema") != _SCHEMA:
            raise BenchError(f"job: schema {json.loads(text)['schema']}, this harness reads {_SCHEMA}; send the harness again")
        settings = record.pop("config")
        config = BenchConfig(**settings | {"batches": tuple(settings["batches"])})
        known = {entry.name for entry in fields(Job)} - {"config"}
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
        if unknown := sorted(set(values) - known):
            raise BenchError(f"job: unknown fields {', '.join(unknown)}; send the harness again")
        return Job(config=config, **values)
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise BenchError(f"job: the file is damaged ({err!r}); send it again") from err


def run_job(job: Job, emit: Callable[[dict[str, Any]], None]) -> int:
    """Run a job, appending each measurement to its file of rows as soon as it is taken; return how many aren't ok.

    Args:
        job: A second run of the same job takes up what its file of rows lacks.
        emit: Gets an event: ``{"event": "progress", "text"}`` or ``{"event": "row", "row"}``.

    Raises:
        BenchError: a bundle or the data can't be read, or rows can't be written.
    """
    rows, load_average = Path(job.rows), read_load_average()
    earlier = read_rows(rows) if rows.is_file() and b"\n" in rows.read_bytes() else ()  # else cut off within the first row
    known = {row["id"]: measurement_from_row(row) for row in earlier}

    def progress(text: str) -> None:
        emit({"event": "progress", "text": text})

    def record(measured: Measurement) -> None:
        append_rows(rows, [measured])
        emit({"event": "row", "row": row_from_measurement(measured)})

    bundles = [read_bundle(Path(path)) for path in job.bundles]
    engines = job.engines or (None,) * len(bundles)
    config = replace(job.config, threads=job.config.threads or usable_cores())
    sides = []
    for number, (bundle, engine) in enumerate(zip(bundles, engines, strict=True)):
        built = Path(engine) if engine else None
        if before := _measured_before(known, job.id, number):  # another trial might choose otherwise
            side = side_from_bundle(bundle, replace(config, provider=before.provider), engine=built)
            sides.append(replace(side, trials=before.provider_trials))
        else:
            sides.append(side_from_bundle(bundle, config, engine=built, progress=progress))
    datasets = [open_dataset(job.data, bundle) for bundle in bundles] if job.data else []
    predictions = Path(job.predictions) if job.predictions else None
    found = bench(distinct_sides(sides), config, datasets, Session(job.id, known, record, predictions, load_average, progress))
    return sum(measured.status != "ok" for measured in found)


def _measured_before(known: dict[str, Measurement], job: str, side: int) -> Measurement | None:
    """A measurement of a side from before an interruption, which says what it ran with."""
    mine = (one for name, one in known.items() if name.startswith(f"{job}-") and side_of(name) == side)
    return next((one for one in mine if one.provider), None)
