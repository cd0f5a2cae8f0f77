"""``tune``: latency first, on a quiet machine; then every candidate repaired, the best trained, the finalists measured.

A newcomer's trap: a budget that nothing can reach is told as soon as the first latencies are known, before anything is trained;
a budget of accuracy can't be told so early.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError
from ..exporting.frames import FramesToInput
from ..files import only_one
from ..scoring import Calibration
from .candidates import Candidate, read_space
from .finals import measure_finals, missed_by_all, point_of, publish
from .measuring import Meter, read_costs
from .place import Bench, open_place
from .records import Progress, TunePoint, TuneResult
from .report import write_report
from .searching import Ask, Climbed, Tried, climb, search, stand_in, task_of
from .subject import read_subject
from .verdict import front_of, recommend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .candidates import Space
    from .config import TuneConfig
    from .finals import Finals
    from .measuring import Costs
    from .place import Place
    from .subject import Subject

__all__ = ["tune"]

_FREE = ("out", "jobs", "ray")  # settings that the outcome doesn't depend on
_STAND_INS = 2  # trained for finalists that all miss a budget when they are measured
_SURE = 3.0  # standard errors between two accuracies that aren't of the same kind of items


def tune(source: str, config: TuneConfig, watch: Callable[[Progress], None] | None = None) -> TuneResult:
    """Search the cheapest bundle that meets every budget, or go on with a search, and write what came of it.

    Args:
        source: A classifier, as ``load`` takes it.
        config: See ``TuneConfig``.
        watch: Is told how far it is.

    Raises:
        ShallowvitError: the data doesn't fit, the device can't be reached, no candidate can meet the latency, size or energy,
            or the folder holds another search.
    """
    watch = watch or (lambda _: None)
    place = open_place(config.out)
    with only_one(place.state, "tune"):
        return _tune(source, config, watch, place)


def _tune(source: str, config: TuneConfig, watch: Callable[[Progress], None], meter_place: Place) -> TuneResult:
    started = time.monotonic()
    meter = Meter(config, meter_place, watch)  # an unknown target is told before anything is loaded
    watch(Progress("reading model and data"))
    subject = read_subject(source, config)
    meter_place.settle(_settings(source, subject, config))
    space = read_space(subject.model, config, meter_place.state / "scores", _calibration(subject, config))
    whole = _whole(subject, space)
    costs = read_costs(subject, (*space.distinct, whole), meter, meter_place)
    fits = _fitting(config, costs)
    _check_reachable(config, costs, space.distinct)
    bench = Bench(config, subject.materials, meter_place, watch)
    try:
        ask = Ask(subject, config, fits, bench, meter_place)
        tried, climbed, whole_tried = _search(ask, space, whole)
        climbed, finals = _finals(ask, (tried, climbed, whole_tried), costs, meter)
    finally:
        bench.close()
    result = _result(subject, (tried, climbed, whole_tried), finals, costs, (config, space, bench.failures))
    result = replace(result, seconds=time.monotonic() - started)
    publish(result.points, [*result.front, *filter(None, [result.recommended, result.nearest])], meter_place)
    write_report(result, config.out)
    shutil.rmtree(meter_place.state / "items", ignore_errors=True)
    return result


def _settings(source: str, subject: Subject, config: TuneConfig) -> dict[str, Any]:
    materials = subject.materials
    return {
        "source": source,
        "model": subject.identity,
        **{name: value for name, value in _plain(config).items() if name not in _FREE},
        "data_sha256": subject.data_sha256,
        "train_sha256": materials.train.sha256,
        **({"validation_sha256": materials.heldout.sha256} if config.validation else {}),
    }


def _plain(config: TuneConfig) -> dict[str, Any]:
    return asdict(replace(config, out=config.out)) | {
        "out": str(config.out),
        "latencies": str(config.latencies) if config.latencies else None,
    }


def _calibration(subject: Subject, config: TuneConfig) -> Calibration:
    """The first of the training items, as the model takes them."""
    train, spec = subject.materials.train, subject.model.input_spec
    assert spec.preprocessing is not None  # else no items could have been read
    prepare = FramesToInput(spec, spec.preprocessing)
    chosen = slice(0, config.samples)
    with torch.no_grad():
        inputs = prepare(torch.from_numpy(train.frames[chosen]))  # type: ignore[index]
    return Calibration(train.name, inputs, torch.from_numpy(train.labels[chosen]))


def _whole(subject: Subject, space: Space) -> Candidate:
    """The unpruned model as a candidate, which is one even where its depth isn't asked for."""
    for one in space.distinct:
        if not one.removed and one.keep_tokens == 1:
            return one
    from ..pruning import plan

    model = subject.model
    chosen = plan(model)
    return Candidate("none", "prefix", len(model.blocks), 1.0, (), chosen.flops_after, chosen.parameters_after, chosen)


def _fitting(config: TuneConfig, costs: Costs) -> Callable[[Candidate], float | None]:
    """What a candidate takes an item in its fastest variant that meets latency, size and energy; None where none does."""

    def fits(candidate: Candidate) -> float | None:
        found = []
        for precision, batch in costs.latency:
            cost = costs.of(candidate, precision, batch)
            assert cost is not None
            figures = {"latency_ms": cost.latency_ms, "size_bytes": cost.size_bytes, "energy_mj": cost.energy_mj}
            if not config.budgets.missed(None, **figures):
                found.append(cost.latency_ms / batch)
        return min(found, default=None)

    return fits


def _check_reachable(config: TuneConfig, costs: Costs, candidates: Sequence[Candidate]) -> None:
    """Refuse budgets that nothing can meet, before anything is trained."""
    near: list[tuple[float, str]] = []
    for one in candidates:
        for precision, batch in costs.latency:
            cost = costs.of(one, precision, batch)
            assert cost is not None
            figures = {"latency_ms": cost.latency_ms, "size_bytes": cost.size_bytes, "energy_mj": cost.energy_mj}
            missed = config.budgets.missed(None, **figures)
            if not missed:
                return
            told = ", ".join(f"{miss.found} against {miss.budget} {miss.limit}" for miss in missed)
            near.append((sum(miss.share for miss in missed), f"{one.name} in {precision} at batch {batch} has {told}"))
    raise ShallowvitError(
        f"tune: no candidate can meet the budgets, and nothing was trained; nearest: {min(near)[1]} ({costs.source}). Raise "
        "the budget, or widen --depths, --precision or --batch"
    )


def _search(ask: Ask, space: Space, whole: Candidate) -> tuple[tuple[Tried, ...], Climbed, Tried]:
    """Everything that workers do: the unpruned model measured, candidates repaired, survivors trained."""
    config = ask.config
    task = task_of(ask.subject, config, whole, weights=True)
    reference = ask.bench.results([task], "measuring the unpruned model")[0]
    if reference is None:
        raise ShallowvitError(f"tune: no answer of the unpruned model: {ask.bench.failures[task.name]}")
    whole_tried = Tried(whole, reference["top1"], ask.fits(whole) or 0.0)
    tried = search(ask, space)
    return tried, climb(ask, tried, config.budgets.floor(reference["top1"])), whole_tried


def _finals(ask: Ask, searched: tuple[tuple[Tried, ...], Climbed, Tried], costs: Costs, meter: Meter) -> tuple[Climbed, Finals]:
    """Measure the finalists, and train others where all of them miss a budget."""
    tried, climbed, whole = searched
    floor = ask.config.budgets.floor(whole.top1)
    for left in range(_STAND_INS, -1, -1):
        ask.bench.close()  # nothing else may run while this measures
        finals = measure_finals(ask.subject, (whole, *climbed.finalists), costs, meter, ask.place)
        cheaper = missed_by_all(finals, ask.config.budgets) if left else None
        more = None if cheaper is None else stand_in(ask, tried, climbed, floor, cheaper=cheaper)
        if more is None:
            break
        climbed = more
    return climbed, finals


def _result(
    subject: Subject,
    searched: tuple[tuple[Tried, ...], Climbed, Tried],
    finals: Finals,
    costs: Costs,
    about: tuple[TuneConfig, Space, dict[str, str]],
) -> TuneResult:
    (tried, climbed, whole), (config, space, failures) = searched, about
    known = {point.name for point in finals.points}
    others: list[TunePoint] = []
    for one in tried:
        for precision, batch in costs.latency:
            point = point_of(config, one, precision, batch, costs.of(one.candidate, precision, batch), whole.top1)
            if point.name not in known:
                others.append(point)
    verdict = recommend(finals.points, config.budgets, costs.source)
    return TuneResult(
        settings=_settings(subject.materials.model.source, subject, config),
        whole_top1=finals.whole_top1,
        points=(*finals.points, *others),
        front=front_of(finals.points, config.budgets),
        recommended=verdict.recommended,
        nearest=verdict.nearest,
        reason=verdict.reason,
        trainings=climbed.trainings,
        epochs=climbed.epochs,
        candidates=len(tried),
        latency_from=costs.source,
        warnings=(
            *subject.warnings,
            *_seen(subject, config, whole, finals),
            *finals.warnings,
            *(f"not measured: {text}" for text in costs.missing),
        ),
        failures=(*space.skipped, *sorted(failures.values())),
    )


def _seen(subject: Subject, config: TuneConfig, whole: Tried, finals: Finals) -> tuple[str, ...]:
    """Say so where the model knows the items that judge: it is far better on them than on the named data."""
    measured = next((point for point in finals.points if not point.removed and point.keep_tokens == 1 and point.top1), None)
    if measured is None or measured.top1 is None or not measured.items:
        return ()
    judges = len(subject.materials.heldout)
    both = (whole.top1 * judges + measured.top1 * measured.items) / (judges + measured.items)
    error = math.sqrt(both * (1 - both) * (1 / judges + 1 / measured.items))
    if whole.top1 - measured.top1 <= _SURE * error:
        return ()
    where = "of --validation" if config.validation else "held out of --train"
    other = "--validation other ones" if config.validation else "some of their own by --validation"
    return (
        f"the unpruned model has top-1 {whole.top1:.1%} on the items that judge candidates ({where}) and {measured.top1:.1%} "
        f"on --data: it may have been trained on the former, and choices are worse for it; give {other}",
    )
