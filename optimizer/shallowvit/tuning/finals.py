"""The finalists as bundles: exported in every precision that may fit, measured at every batch, with accuracy.

A newcomer's trap: each measurement is kept as soon as it is there, by the bundle's own graph, so the same command doesn't
measure again what hasn't changed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.errors import BenchError

from ..errors import ShallowvitError
from ..models.weights import hash_state
from ..workers.cells import hash_of, write_whole
from .budgets import Budgets, Missed
from .candidates import fewer_tokens, shallow
from .config import PRECISIONS
from .measuring import Measured, accuracy_here, measured_from_file
from .records import MEASURED, MODELLED, TunePoint
from .searching import Tried, task_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..pruning import PrunedModel
    from .candidates import Candidate
    from .config import TuneConfig
    from .measuring import Cost, Costs, Meter
    from .place import Place
    from .subject import Subject

__all__ = ["Finals", "measure_finals", "missed_by_all", "point_of", "publish"]

_ACCURACIES = ("--min-accuracy", "--max-drop")


@dataclass(frozen=True)
class Finals:
    """The measured points, the unpruned model's top-1 on the named data, and what went wrong."""

    points: tuple[TunePoint, ...]
    whole_top1: float | None
    warnings: tuple[str, ...]


def measure_finals(subject: Subject, finalists: Sequence[Tried], costs: Costs, meter: Meter, place: Place) -> Finals:
    """Export and measure the finalists; the first is the unpruned model, by which a drop is judged.

    What can't be exported or measured is a point with its reason. Where a device is lost, what is modelled stands for it.
    """
    config = meter.config
    found: list[tuple[Tried, str, int, Measured, bool]] = []
    warnings: list[str] = []
    failed: list[TunePoint] = []
    whole_top1: float | None = None
    for tried in finalists:
        # the most exact first, whatever the order they were named in: a drop is from the first answer of the unpruned model
        for precision in sorted({name for name, _ in costs.latency}, key=PRECISIONS.index):
            fits = any(_fits(config, costs.of(tried.candidate, precision, batch)) for batch in config.batches)
            reference = not tried.candidate.removed and tried.candidate.keep_tokens == 1 and whole_top1 is None
            if not fits and not reference:
                continue
            name = f"{tried.candidate.name}-{precision}"
            try:
                bundle = _bundle(subject, tried, precision, meter, place, place.state / "bundles" / name)
                measured, lost = _measured(bundle, subject, meter, place)
            except (ShallowvitError, BenchError) as err:
                point = point_of(config, tried, precision, config.batches[0], None)
                failed.append(replace(point, failure=str(err)))
                continue
            if lost:
                warnings.append(f"{lost}; latencies of {name} are modelled")
            if reference:
                whole_top1 = next((one.top1 for one in measured if one.top1 is not None), None)
            found += [(tried, precision, one.batch, one, lost is not None) for one in measured]
    points = []
    for tried, precision, batch, measured_one, lost_one in found:
        cost = costs.of(tried.candidate, precision, batch)
        points.append(_point(meter, tried, precision, measured_one, cost, whole_top1, modelled=lost_one))
    return Finals((*points, *failed), whole_top1, tuple(dict.fromkeys(warnings)))


def missed_by_all(finals: Finals, budgets: Budgets) -> bool | None:
    """Say whether every finalist misses a budget: True for cost, False for accuracy alone, None where one meets them all."""
    points = [one for one in finals.points if (one.removed or one.keep_tokens < 1) and one.failure is None]
    if finals.warnings or not points or any(not one.missed for one in points):  # without its device no more can be measured
        return None
    short = [one for one in points if all(missed.budget in _ACCURACIES for missed in one.missed)]
    return not (budgets.asks_accuracy and short)


def point_of(
    config: TuneConfig, tried: Tried, precision: str, batch: int, cost: Cost | None, whole_top1: float | None = None
) -> TunePoint:
    """Return a point that was searched and modelled, not measured."""
    one = tried.candidate
    figures: dict[str, Any] = {
        "latency_ms": cost.latency_ms if cost else None,
        "size_bytes": cost.size_bytes if cost else None,
        "energy_mj": cost.energy_mj if cost else None,
    }
    return TunePoint(
        name=f"{one.name}-{precision}-b{batch}",
        bundle=None,
        criterion=one.criterion,
        select=one.select,
        depth=one.depth,
        removed=one.removed,
        keep_tokens=one.keep_tokens,
        precision=precision,
        batch=batch,
        latency_source=MODELLED,
        latency_error=cost.error if cost else None,
        searched_top1=tried.top1,
        epochs=tried.epochs,
        missed=config.budgets.missed(whole_top1, top1=tried.top1, **figures),
        **figures,
    )


def _point(
    meter: Meter,
    tried: Tried,
    precision: str,
    measured: Measured,
    cost: Cost | None,
    whole_top1: float | None,
    *,
    modelled: bool,
) -> TunePoint:
    config = meter.config
    own = meter.measures and not modelled
    latency = measured.latency_ms
    if not own and config.target is not None and latency is not None:
        source = MODELLED  # the roofline of this very graph
    elif not own:
        latency, source = cost.latency_ms if cost else None, MODELLED
    else:
        source = MEASURED
    energy = measured.energy_mj if own else (cost.energy_mj if cost else None)
    figures: dict[str, Any] = {"latency_ms": latency, "size_bytes": float(measured.size_bytes), "energy_mj": energy}
    missed = config.budgets.missed(whole_top1 if whole_top1 is not None else 0.0, top1=measured.top1, **figures)
    if whole_top1 is None and (drop := config.budgets.max_drop) is not None:  # a drop from what isn't known can't be promised
        missed = (*missed, Missed("--max-drop", f"{100 * drop:.3g} points", "an unpruned model that was not measured", 1.0))
    return replace(
        point_of(config, tried, precision, measured.batch, None),
        bundle=f"{tried.candidate.name}-{precision}",
        latency_source=source,
        latency_error=cost.error if cost and source == MODELLED else None,
        top1=measured.top1,
        top1_interval=measured.top1_interval,
        items=measured.items,
        missed=missed,
        failure=None if measured.status == "ok" else measured.reason or measured.status,
        **figures,
    )


def _fits(config: TuneConfig, cost: Cost | None) -> bool:
    if cost is None:
        return False
    figures = {"latency_ms": cost.latency_ms, "size_bytes": cost.size_bytes, "energy_mj": cost.energy_mj}
    return not config.budgets.missed(None, **figures)


def _bundle(subject: Subject, tried: Tried, precision: str, meter: Meter, place: Place, out: Path) -> Path:
    """Export a finalist, unless an earlier run has."""
    if (out / "manifest.json").is_file():
        return out
    out.parent.mkdir(exist_ok=True)
    meter.exported(_recovered(subject, tried, meter.config, place), precision, out)
    return out


def _recovered(subject: Subject, tried: Tried, config: TuneConfig, place: Place) -> PrunedModel:
    """The finalist with the weights that its worker found."""
    from safetensors.torch import load_file

    candidate: Candidate = tried.candidate
    pruned = fewer_tokens(shallow(subject.model, candidate, (), 1.0), candidate.keep_tokens)
    task = task_of(subject, config, candidate, tried.epochs, weights=True)
    result = place.read(task)
    if result is None:
        raise ShallowvitError(f"tune: the weights of {candidate.name} are gone from {place.weights(task)}; run again")
    pruned.model.module.load_state_dict(load_file(place.weights(task)))
    model = replace(pruned.model, sha256=hash_state(pruned.model.module))
    return replace(pruned, model=model, recovery=tuple(result["steps"]))


def _measured(bundle: Path, subject: Subject, meter: Meter, place: Place) -> tuple[list[Measured], str | None]:
    """Measure a bundle with its accuracy, or read it where it was; a lost device leaves its accuracy on this machine."""
    config = meter.config
    key = {
        "graph": read_bundle(bundle).model_sha256,
        "data": subject.data_sha256,
        "batches": list(config.batches),
        "where": [config.device, config.provider, config.target, str(config.latencies or "")],
        "seconds": config.measure_seconds,
        "energy": config.budgets.max_energy_mj is not None,
    }
    path = place.state / "finals" / f"{hash_of(key)}.json"
    if path.is_file():
        return measured_from_file(path), None
    try:
        measured = meter.measured(bundle, config.data)
    except (ShallowvitError, BenchError) as err:
        if config.device is None:
            raise
        accuracy = accuracy_here(bundle, config.data)
        size = sum(file.stat().st_size for file in bundle.glob("model.onnx*"))
        return [Measured(batch, "ok", None, None, None, size, **accuracy) for batch in config.batches], str(err)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps({"key": key, "measured": [asdict(one) for one in measured]}, indent=1) + "\n")
    return measured, None


def publish(points: Sequence[TunePoint], names: Sequence[str], place: Place) -> None:
    """Put the bundles of these points into ``front``, which holds no others."""
    from ..files import folder_when_whole

    wanted = dict.fromkeys(point.bundle for point in points if point.name in names and point.bundle)
    with folder_when_whole(place.out / "front", "tune", force=True) as folder:
        for name in wanted:
            shutil.copytree(place.state / "bundles" / str(name), folder / str(name))
