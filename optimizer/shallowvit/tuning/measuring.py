"""What bundles cost: measured here or on a device, read from rows of an earlier benchmark, or the roofline of a target.

A few depths are measured in every precision, each kept as soon as it is there, and a line over FLOPs stands for the others,
save those so near a budget that the line can't tell: they are measured too. A newcomer's trap: nothing else may run while this
measures, so it comes before the workers start and after they have ended.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.config import BenchConfig
from shallowvit_bench.errors import BenchError
from shallowvit_bench.measurement import read_rows

from ..benching import bench_here, bench_there
from ..bundle import export
from ..engines import BuildConfig
from ..engines.roofline import estimate
from ..engines.targets import find_target, opset_for, precision_refusal
from ..errors import ShallowvitError
from ..exporting import ExportConfig, Precision
from ..exporting.quantize_records import QUANTIZED, QuantizeConfig
from ..workers.cells import hash_of, write_whole
from .costs import CostLine, anchors, fit_line
from .records import MODELLED, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from shallowvit_bench.measurement import Measurement

    from ..pruning import PrunedModel
    from .candidates import Candidate
    from .config import TuneConfig
    from .place import Place
    from .subject import Subject

__all__ = ["Cost", "Costs", "Measured", "Meter", "accuracy_here", "measured_from_file", "read_costs", "unsure"]

_REPEATS = 2  # more, of what comes out this near a budget, since machines are noisy: the median of three stands
_NOISE = 0.1  # of the budget
_UNSURE = 0.15  # of the budget: nearer to it than this, or than its own error, the line can't tell
_NEAR = 4  # costs measured for that at most, in each precision


@dataclass(frozen=True)
class Measured:
    """A bundle at a batch size, as it was measured; ``status`` as of ``Measurement``."""

    batch: int
    status: str
    reason: str | None
    latency_ms: float | None
    energy_mj: float | None
    size_bytes: int
    top1: float | None = None
    top1_interval: tuple[float, float] | None = None
    items: int | None = None


@dataclass(frozen=True)
class Cost:
    """The cost of a candidate in a precision at a batch size; ``error`` is the line's, None where it was measured."""

    latency_ms: float
    size_bytes: float
    energy_mj: float | None
    error: float | None


@dataclass(frozen=True)
class Costs:
    """Lines over FLOPs (latency, energy) and over parameters (size) a precision and batch, and where they come from.

    ``missing`` says why a precision or a batch has none. ``known`` holds what was measured, by (FLOPs, parameters, precision,
    batch): which blocks went doesn't matter to a cost.
    """

    latency: dict[tuple[str, int], CostLine]
    energy: dict[tuple[str, int], CostLine]
    size: dict[str, CostLine]
    source: str
    missing: tuple[str, ...] = ()
    known: dict[tuple[int, int, str, int], Measured] = field(default_factory=dict)

    def of(self, candidate: Candidate, precision: str, batch: int) -> Cost | None:
        """Return what a candidate would cost, None where nothing is known of that precision and batch."""
        line = self.latency.get((precision, batch))
        if line is None:
            return None
        own = self.known.get((candidate.size, candidate.parameters, precision, batch))
        if own is not None and own.latency_ms is not None:
            return Cost(own.latency_ms, own.size_bytes, own.energy_mj, None)
        energy = self.energy.get((precision, batch))
        size = self.size[precision].at(candidate.parameters)
        return Cost(line.at(candidate.size), size, energy.at(candidate.size) if energy else None, line.error)


class Meter:
    """Exports models and measures the bundles, or has a target's roofline stand for it.

    Args:
        config: Where, at which batches, for how long.
        place: Keeps rows.
        train: What quantised graphs are calibrated on.
        watch: Is told what is measured.
    """

    def __init__(self, config: TuneConfig, place: Place, watch: Callable[[Progress], None]) -> None:
        self.config, self._place, self._watch = config, place, watch
        self._target = find_target(config.target) if config.target else None

    @property
    def measures(self) -> bool:
        """Whether latencies are measured, not modelled."""
        return self.config.latencies is None and (self.config.device is not None or self._target is None)

    def refusal(self, precision: str) -> str | None:
        """Say why the target can't run a precision."""
        return precision_refusal(self._target, precision) if self._target else None

    def exported(self, pruned: PrunedModel, precision: str, out: Path) -> None:
        """Export a model as a bundle, with the target's recipe where there is a target.

        Raises:
            ShallowvitError: it can't be exported.
        """
        quantize = None
        if Precision(precision) in QUANTIZED:
            needs = precision != "int4"
            quantize = QuantizeConfig(Precision(precision), data=self.config.train if needs else None, seed=self.config.seed)
        config = ExportConfig(
            Precision(precision),
            opset=opset_for(self._target) if self._target else ExportConfig.opset,
            quantize=quantize,
            max_accuracy_drop=1.0,  # what accuracy is enough, the budgets say
        )
        recipe = BuildConfig(target=self._target.key) if self._target else None
        export(pruned, out, config, recipe=recipe)

    def measured(self, bundle: Path, data: str | None = None) -> list[Measured]:
        """Measure a bundle at every batch, and its accuracy where data is named.

        Raises:
            ShallowvitError: a device isn't there, or was lost.
            BenchError: the bundle or the data can't be read.
        """
        size = sum(file.stat().st_size for file in bundle.glob("model.onnx*"))
        if not self.measures:
            return self._modelled(bundle, size, data)
        found = self._measured(bundle, size, data)
        if not any(self._near_budget(one) for one in found):
            return found
        again = [self._measured(bundle, size, None) for _ in range(_REPEATS)]
        return [_middle(one, others) for one, *others in zip(found, *again, strict=True)]

    def _measured(self, bundle: Path, size: int, data: str | None) -> list[Measured]:
        config, rows = self.config, self._place.state / "bench.jsonl"
        bench = BenchConfig(
            batches=config.batches,
            max_seconds=config.measure_seconds,
            provider=config.provider,
            power=config.budgets.max_energy_mj is not None,
        )
        self._watch(Progress(f"measuring {bundle.name}"))
        if config.device is None:
            found = bench_here(read_bundle(bundle), (), bench, rows, data)
            return [_from_measurement(one, size) for one in found]
        found, failures = bench_there([config.device], [bundle], bench, rows, data)
        if failures:
            raise ShallowvitError(f"tune: {failures[0]}")
        return [_from_measurement(one, size) for one in found]

    def _near_budget(self, found: Measured) -> bool:
        """Whether the noise of measuring could decide."""
        budgets = self.config.budgets
        return any(
            limit is not None and value is not None and abs(value - limit) <= _NOISE * limit
            for value, limit in ((found.latency_ms, budgets.max_latency_ms), (found.energy_mj, budgets.max_energy_mj))
        )

    def _modelled(self, bundle: Path, size: int, data: str | None) -> list[Measured]:
        info = read_bundle(bundle)
        found = []
        for batch in self.config.batches:
            latency = reason = None
            if self._target is not None and self.config.latencies is None:
                roofline = estimate(info.model_path, info.flops_after, self._target, info.precision, batch)
                latency = roofline.bound_ms
                if latency is None:
                    reason = f"{'; '.join(roofline.unknown)}; measure on one with --device, or give --latencies"
            found.append(Measured(batch, "ok", reason, latency, None, size))
        if data is None:
            return found
        accuracy = accuracy_here(bundle, data)
        return [replace(one, **accuracy) for one in found]


def read_costs(subject: Subject, candidates: Iterable[Candidate], meter: Meter, place: Place) -> Costs:
    """Measure a few depths in every precision, or read what is known, fit the lines, and measure what they can't tell.

    Raises:
        ShallowvitError: the device is lost before two depths are measured, or no precision can be measured at all.
    """
    config, known = meter.config, tuple(candidates)
    given = _from_rows(config.latencies, subject) if config.latencies else None  # what is wrong with it is told first
    full = {one.depth: one for one in reversed(known) if one.keep_tokens == max(config.keep_tokens)}
    fitted_on, checked_on = anchors(list(full))
    rows: dict[str, list[tuple[Candidate, Measured, bool]]] = {}
    missing: list[str] = []
    for precision in config.precisions:
        if reason := meter.refusal(precision):
            missing.append(f"{precision}: {reason}")
            continue
        found = rows.setdefault(precision, [])
        chosen = [(full[depth], False) for depth in fitted_on] + [(full[depth], True) for depth in checked_on]
        fewer = [one for one in known if one.keep_tokens < max(config.keep_tokens)]
        chosen += [(max(own, key=lambda one: one.size), False) for own in _by_tokens(fewer)]
        try:
            for candidate, check in chosen:
                found += [(candidate, one, check) for one in _anchor(subject, candidate, precision, meter, place)]
        except (ShallowvitError, BenchError) as err:
            lost = config.device is not None
            depths = len({candidate.size for candidate, _, _ in found})
            if lost and depths < 2:
                raise ShallowvitError(
                    f"{err}; {depths} of {len(chosen)} depths in {precision} are measured and kept, and the same command goes "
                    "on from there"
                ) from err
            missing.append(f"{precision}: {err}" + (f"; modelled from {depths} depths" if depths > 1 else ""))
    costs = _lines(rows, _source(meter, rows), tuple(missing), given)
    if meter.measures and config.budgets.max_latency_ms is not None:
        try:
            for precision, candidate in unsure(known, costs, config):
                rows[precision] += [(candidate, one, True) for one in _anchor(subject, candidate, precision, meter, place)]
        except (ShallowvitError, BenchError) as err:  # lines stand for what a lost device didn't measure
            missing.append(str(err))
        costs = _lines(rows, _source(meter, rows), tuple(missing), given)
    if not costs.latency:
        raise ShallowvitError(f"tune: no precision can be measured: {'; '.join(costs.missing) or 'no row fits'}")
    return costs


def _middle(first: Measured, others: Sequence[Measured]) -> Measured:
    """The first with the medians of all."""
    every = (first, *others)
    latencies = [one.latency_ms for one in every if one.latency_ms is not None]
    energies = [one.energy_mj for one in every if one.energy_mj is not None]
    return replace(
        first,
        latency_ms=median(latencies) if latencies else None,
        energy_mj=median(energies) if energies else None,
    )


def measured_from_file(path: Path) -> list[Measured]:
    """Return what was written down when a bundle was measured."""
    rows = json.loads(path.read_text())["measured"]
    return [Measured(**row | {"top1_interval": row["top1_interval"] and tuple(row["top1_interval"])}) for row in rows]


def unsure(candidates: Sequence[Candidate], costs: Costs, config: TuneConfig) -> list[tuple[str, Candidate]]:
    """Of each precision, the costs nearest to the budget of latency that a line can't tell on which side of it they are."""
    limit = config.budgets.max_latency_ms
    assert limit is not None
    chosen: list[tuple[str, Candidate]] = []
    for precision in costs.size:
        off: dict[tuple[int, int], tuple[float, Candidate]] = {}
        for (name, batch), line in costs.latency.items():
            for one in candidates if name == precision else ():
                apart = abs(line.at(one.size) - limit) / limit
                key = (one.size, one.parameters)
                if (*key, name, batch) not in costs.known and apart <= max(_UNSURE, line.error or 0.0):
                    off[key] = min(off.get(key, (apart, one)), (apart, one), key=lambda pair: pair[0])
        nearest = sorted(off.values(), key=lambda pair: (pair[0], pair[1].size))[:_NEAR]
        chosen += [(precision, one) for _, one in nearest]
    return chosen


def _by_tokens(candidates: list[Candidate]) -> list[list[Candidate]]:
    groups: dict[float, list[Candidate]] = {}
    for one in candidates:
        groups.setdefault(one.keep_tokens, []).append(one)
    return list(groups.values())


def _anchor(subject: Subject, candidate: Candidate, precision: str, meter: Meter, place: Place) -> list[Measured]:
    """Measure a depth without any recovery, or read it where it was; which blocks went doesn't matter to its cost."""
    from .candidates import fewer_tokens, shallow

    config = meter.config
    key = {
        "model": subject.identity,
        "removed": list(candidate.removed),
        "keep_tokens": candidate.keep_tokens,
        "precision": precision,
        "batches": list(config.batches),
        "where": [config.device, config.provider, config.target, str(config.latencies or "")],
        "seconds": config.measure_seconds,
        "energy": config.budgets.max_energy_mj is not None,
    }
    path = place.state / "costs" / f"{hash_of(key)}.json"
    if path.is_file():
        return measured_from_file(path)
    pruned = fewer_tokens(shallow(subject.model, candidate, (), 1.0), candidate.keep_tokens)
    with tempfile.TemporaryDirectory(prefix="shallowvit-tune-") as folder:
        out = Path(folder) / f"{candidate.name}-{precision}"
        meter.exported(pruned, precision, out)
        measured = meter.measured(out)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps({"key": key, "measured": [vars(one) for one in measured]}, indent=1) + "\n")
    return measured


def _lines(
    rows: dict[str, list[tuple[Candidate, Measured, bool]]],
    source: str,
    missing: tuple[str, ...],
    given: dict[tuple[str, int], list[tuple[float, float]]] | None,
) -> Costs:
    latency: dict[tuple[str, int], CostLine] = {}
    energy: dict[tuple[str, int], CostLine] = {}
    size: dict[str, CostLine] = {}
    known: dict[tuple[int, int, str, int], Measured] = {}
    why = list(missing)
    for precision, found in rows.items():
        if not found:
            continue
        if given is None:
            known |= {(one.size, one.parameters, precision, row.batch): row for one, row, _ in found}
        size[precision] = fit_line([(float(one.parameters), float(row.size_bytes)) for one, row, _ in found])
        for batch in dict.fromkeys(row.batch for _, row, _ in found):
            own = [(one, row, check) for one, row, check in found if row.batch == batch]
            pairs = {
                check: [(float(one.size), row.latency_ms) for one, row, is_check in own if is_check is check and row.latency_ms]
                for check in (False, True)
            }
            if given is not None:
                pairs = _split(given.get((precision, batch), []))
            if len({x for x, _ in pairs[False]}) >= min(2, len({one.size for one, _, _ in own})) and pairs[False]:
                latency[precision, batch] = fit_line(pairs[False], pairs[True])
            else:
                reasons = [row.reason for _, row, _ in own if row.reason]
                why.append(f"{precision} at batch {batch}: {reasons[0] if reasons else 'no latencies of two depths'}")
            joules = [(float(one.size), row.energy_mj) for one, row, _ in own if row.energy_mj is not None]
            if joules:
                energy[precision, batch] = fit_line(joules)
    return Costs(latency, energy, size, source, tuple(why), known)


def _split(pairs: list[tuple[float, float]]) -> dict[bool, list[tuple[float, float]]]:
    """Given latencies are fitted on and, of four and more, one between is checked on."""
    ordered = sorted(pairs)
    _, checked = anchors(range(len(ordered)))
    return {False: [pair for n, pair in enumerate(ordered) if n not in checked], True: [ordered[n] for n in checked]}


def _from_rows(path: Path, subject: Subject) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """The latencies in a file, which are of one device and of depths of this model alone: a line runs through no others.

    Raises:
        ShallowvitError: it can't be read, or they are of several, or of a larger model.
    """
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    wheres: dict[str, None] = {}
    try:
        for row in read_rows(path):
            if row.get("status") == "ok" and row.get("p50_ms") and not row.get("scenario"):
                found.setdefault((row["precision"], row["batch"]), []).append((float(row["flops"]), float(row["p50_ms"])))
                where = row.get("machine") or row["conditions"].get("device") or "this machine"
                wheres[f"{where} by {row.get('provider')}"] = None
    except (LookupError, TypeError, ValueError, AttributeError) as err:
        raise ShallowvitError(f"tune: --latencies {path} has a row that isn't bench's ({err!r}); give rows it wrote") from err
    if len(wheres) > 1:
        raise ShallowvitError(f"tune: --latencies {path} has rows of {', '.join(wheres)}; give those of one")
    largest = max((flops for pairs in found.values() for flops, _ in pairs), default=0.0)
    if largest > subject.model.flops:
        raise ShallowvitError(
            f"tune: --latencies {path} has a row of {largest:.3g} FLOPs, {subject.model.origin.spec} has "
            f"{subject.model.flops:.3g}; give rows of this model's depths"
        )
    return found


def _source(meter: Meter, rows: dict[str, Any]) -> str:
    config = meter.config
    if config.latencies is not None:
        return f"{MODELLED} from the rows of {config.latencies}"
    if not meter.measures:
        return f"{MODELLED}: the roofline of {config.target}, a lower bound that no engine may reach"
    where = f"on {config.device}" if config.device else "on this machine"
    depths = len({candidate.size for found in rows.values() for candidate, _, _ in found})
    return f"measured {where} at {depths} depths, the others {MODELLED} by a line over FLOPs, the finalists measured again"


def _from_measurement(measured: Measurement, size: int) -> Measured:
    top1 = measured.metrics.get("top1")
    whole = top1 is not None and top1.low is not None and top1.high is not None
    return Measured(
        batch=measured.batch,
        status=measured.status,
        reason=measured.reason,
        latency_ms=measured.p50_ms,
        energy_mj=measured.energy_mj,
        size_bytes=size,
        top1=top1.value if top1 else None,
        top1_interval=(top1.low, top1.high) if top1 and whole else None,  # type: ignore[arg-type]
        items=measured.items,
    )


def accuracy_here(bundle: Path, data: str) -> dict[str, Any]:
    """Return top-1 of a bundle by onnxruntime on this machine's CPU."""
    from shallowvit_bench.accuracy import measure_accuracy
    from shallowvit_bench.datasets import open_dataset
    from shallowvit_bench.runners import RunnerOptions, open_onnxruntime

    info = read_bundle(bundle)
    with open_onnxruntime(info.model_path, RunnerOptions()) as runner:
        measured = measure_accuracy(runner, info, open_dataset(data, info))
    top1 = measured.metrics.get("top1")
    if top1 is None:
        raise ShallowvitError(f"tune: {data} gives {', '.join(measured.metrics) or 'no figures'}, expected top1")
    interval = (top1.low, top1.high) if top1.low is not None and top1.high is not None else None
    return {"top1": top1.value, "top1_interval": interval, "items": measured.items}
