"""``study`` runs the paper's protocol: score, remove, measure, finetune, measure again, and set criteria against oracles.

Three rounds of cells: the scores; each single block, the whole model and each criterion's sets; the sets of the oracle, which
need the single blocks. A newcomer's trap: seeds come from the model and the number of the seed, never from the order of the
work, so all cells of a replicate see the same items in the same order, which makes them pairs.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shallowvit_bench.conditions import usable_cores

from .. import scoring
from ..errors import ShallowvitError
from ..recovery import FinetuneConfig
from ..scoring.criteria import CRITERIA, Needs, ScoreConfig
from ..workers.cells import CellStore, Failure, Task, hash_of
from ..workers.executors import Executor, ProcessExecutor, RayExecutor, Work
from .analysis import analyse
from .config import Column, StudyConfig
from .outcomes import Collected, collect, oracle_sets
from .records import Measured, Progress, StudyResult
from .report import write_report
from .subject import Subject, read_subject
from .worker import Workbench

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


__all__ = ["study"]

Removed = tuple[int, ...]


def study(config: StudyConfig, watch: Callable[[Progress], None] | None = None) -> StudyResult:
    """Run a study or go on with one, and write its tables and plots into ``config.out``.

    Args:
        config: See ``StudyConfig``.
        watch: Is told how far it is after every cell.

    Raises:
        ShallowvitError: models or data don't fit each other, or no worker starts. A cell that fails is reported in the result.
    """
    store = _open_out(config)
    subject = read_subject(config)
    tasks = _Tasks(config, subject)
    runner = _Runner(config, subject, store, watch or (lambda _: None))
    try:
        found = _rounds(config, subject, tasks, runner)
    finally:
        runner.close()
    result = _result(config, subject, found, runner)
    write_report(result, subject.histograms, _rows(result, subject, tasks, runner), config.out)
    return result


class _Runner:
    """Gives tasks without a cell to the executor, which starts with the first one, and keeps what comes back."""

    def __init__(self, config: StudyConfig, subject: Subject, store: CellStore, watch: Callable[[Progress], None]) -> None:
        self._config, self._subject, self._store, self._watch = config, subject, store, watch
        self._executor: Executor | None = None
        self._done = self._total = 0.0
        self.cells: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, tuple[Task, Failure]] = {}
        self.computed = 0

    def run(self, tasks: Iterable[Task], later: Iterable[Task] = ()) -> None:
        """Have every task done once; ``later`` are those, or like those, that the next round will bring."""
        wanted = {task.name: task for task in tasks if task.name not in self.cells}
        missing = []
        for name, task in wanted.items():
            cell = self._store.read(task)
            if cell is None:
                missing.append(task)
            else:
                self.cells[name] = cell
        # the longest first, so that no worker starts a long one when the others have run out of work
        missing.sort(key=lambda task: (-task.cost, task.name))
        likely = {task.name: task for task in later if task.name not in wanted and self._store.read(task) is None}
        self._total = self._done + sum(task.cost for task in (*missing, *likely.values()))
        if not missing:
            return
        if self._executor is None:
            self._executor = self._open()
        for task, outcome in self._executor.run(missing):
            self._done += task.cost
            if isinstance(outcome, Failure):
                self.failures[task.name] = (task, outcome)
            else:
                self.cells[task.name] = self._store.write(task, outcome["result"], outcome["conditions"])
                self.computed += 1
            self._watch(Progress(self._done, self._total, len(self.cells), len(self.failures), task.kind))

    def result(self, task: Task) -> dict[str, Any] | None:
        """Return a task's result, or None when it failed."""
        cell = self.cells.get(task.name)
        return None if cell is None else cell["result"]

    def close(self) -> None:
        """End the workers."""
        if self._executor is not None:
            self._executor.close()

    def _open(self) -> Executor:
        config, work = self._config, Work("study", Workbench, self._subject.materials)
        if config.ray is not None:
            return RayExecutor(work, config.ray, config.jobs)
        return ProcessExecutor(work, config.jobs or usable_cores(), self._checkpoint)

    def _checkpoint(self, task: Task) -> Path | None:
        keeps = task.kind == "finetuned" and task.key["finetune"]["epochs"] > 1
        return self._store.checkpoint(task) if keeps else None


def _rounds(config: StudyConfig, subject: Subject, tasks: _Tasks, runner: _Runner) -> Collected:
    # the rise of the reconstruction loss is an oracle too, so it is wanted even where it chooses no blocks
    oracle = (Column("reconstruction", pretrained=True),) if config.pretrained else ()
    scores = {
        (column.name, model, seed): tasks.scores(column, model, seed)
        for column in dict.fromkeys((*subject.columns, *oracle))
        for model in range(len(subject.models))
        for seed in (range(config.seeds) if column.seeded else (None,))
    }
    replicates = [(model, seed) for model in range(len(subject.models)) for seed in range(config.seeds)]
    singles = [(block,) for block in range(subject.blocks)]
    runner.run(scores.values(), [tasks.finetuned(*which, removed) for which in replicates for removed in [(), *singles]])
    scored = {key: found for key, task in scores.items() if (found := runner.result(task)) is not None}
    named = {
        (column.name, count, model, seed): tuple(sorted(found["removal_order"][:count]))
        for column in subject.columns
        for count in subject.counts
        for model, seed in replicates
        if (found := scored.get((column.name, model, seed if column.seeded else None))) is not None
    }
    sets: dict[tuple[int, int], list[Removed]] = {
        (model, seed): [(), *singles, *(removed for key, removed in named.items() if key[2:] == (model, seed))]
        for model, seed in replicates
    }
    runner.run(tasks.of_sets(sets))
    measured = {key: runner.result(task) for key, task in tasks.made.items()}
    chosen = oracle_sets(measured, replicates, subject.blocks, subject.counts)
    runner.run(tasks.of_sets({which: [own for key, own in chosen.items() if key[2:] == which] for which in replicates}))
    measured = {key: runner.result(task) for key, task in tasks.made.items()}
    return Collected(subject.columns, subject.counts, subject.blocks, replicates, scored, named | chosen, measured)


class _Tasks:
    """Makes tasks: all that a result depends on, and what it is expected to cost."""

    def __init__(self, config: StudyConfig, subject: Subject) -> None:
        self._config, self._subject = config, subject
        self.made: dict[tuple[Any, ...], Task] = {}  # ("zero-shot", model, removed) or ("finetuned", model, seed, removed)

    def scores(self, column: Column, model: int, seed: int | None) -> Task:
        """The scores of a model's blocks by a criterion."""
        criterion = CRITERIA[column.criterion]
        number = model + len(self._subject.models) if column.pretrained else model
        drawn = self._seed(model, seed) if seed is not None else ScoreConfig.seed
        settings = {**dict(column.settings), "samples": self._config.samples, "seed": drawn}
        settings = {name: value for name, value in settings.items() if name in criterion.settings or column.criterion == "mix"}
        config = ScoreConfig(column.criterion, **settings)
        reads = criterion.needs is not Needs.NOTHING or column.criterion == "mix"
        used = criterion.settings if column.criterion != "mix" else tuple(asdict(config))
        key = {
            "model": self._subject.identities[number],
            "criterion": column.criterion,
            "settings": {name: getattr(config, name) for name in used if name != "data"},
            "data": self._subject.materials.train.sha256 if reads else None,
            "code": _hash_of_scoring(),
        }
        cost = self._config.samples * self._subject.blocks if reads else self._config.samples
        return Task("scores", number, key, {"config": {"criterion": column.criterion, **settings}}, float(cost))

    def of_sets(self, sets: dict[tuple[int, int], list[Removed]]) -> list[Task]:
        """The measurements of sets of blocks, by (model, seed), without retraining and finetuned."""
        for (model, seed), own in sets.items():
            for removed in own:
                self.made.setdefault(("zero-shot", model, removed), self._zero_shot(model, removed))
                self.made.setdefault(("finetuned", model, seed, removed), self.finetuned(model, seed, removed))
        return list(self.made.values())

    def _zero_shot(self, model: int, removed: Removed) -> Task:
        materials = self._subject.materials
        key = {
            "model": self._subject.identities[model],
            "removed": list(removed),
            "test": materials.test.sha256,
            "batch": materials.batch,
        }
        return Task("zero-shot", model, key, {}, len(materials.test) * self._share(removed))

    def finetuned(self, model: int, seed: int, removed: Removed) -> Task:
        """A set of blocks removed and the rest finetuned."""
        config, materials = self._config, self._subject.materials
        settings = FinetuneConfig(
            seed=self._seed(model, seed), epochs=config.finetune_epochs, learning_rate=config.learning_rate
        )
        key = self._zero_shot(model, removed).key | {"train": materials.train.sha256, "finetune": asdict(settings)}
        items = len(materials.test) + 3 * settings.epochs * len(materials.train)  # a step is about three forwards
        return Task("finetuned", model, key, {}, items * self._share(removed))

    def _share(self, removed: Removed) -> float:
        """The work of what is left over that of the whole; what isn't in blocks counts as half a block."""
        return (self._subject.blocks - len(removed) + 0.5) / (self._subject.blocks + 0.5)

    def _seed(self, model: int, seed: int) -> int:
        """A seed from the model's content, so that models with the same number of a seed still draw apart."""
        return int(hashlib.sha256(f"{self._subject.identities[model]} {seed}".encode()).hexdigest()[:8], 16)


@cache
def _hash_of_scoring() -> str:
    """Scores are cheap, so a changed line of the code that makes them makes them anew."""
    sources = sorted(Path(scoring.__file__).parent.glob("*.py"))
    return hash_of([source.read_text() for source in sources])


def _open_out(config: StudyConfig) -> CellStore:
    """Refuse a folder that is something else, before the work."""
    out = config.out
    if not out.parent.is_dir():
        raise ShallowvitError(f"study: no folder {out.parent} to write {out.name} into; create it first")
    cells = out / "cells"
    if out.exists() and not cells.is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise ShallowvitError(f"study: {out} exists and holds no study; choose another --out")
    cells.mkdir(parents=True, exist_ok=True)
    return CellStore(cells)


def _result(config: StudyConfig, subject: Subject, found: Collected, runner: _Runner) -> StudyResult:
    collected = collect(found)
    agreements, powers = analyse(collected)
    failures = {f"{task.kind} of {_of_what(task, subject)}: {failure.reason}" for task, failure in runner.failures.values()}
    settings = {name: value for name, value in asdict(config).items() if name not in ("out", "jobs", "ray")}
    test, train = subject.materials.test, subject.materials.train
    return StudyResult(
        config=settings,
        models=subject.models,
        data={name: {"name": i.name, "items": len(i), "sha256": i.sha256} for name, i in (("test", test), ("train", train))},
        criteria=collected.criteria,
        counts=subject.counts,
        scores=collected.scores,
        oracles=collected.oracles,
        whole=collected.whole,
        measured=collected.measured,
        agreements=agreements,
        powers=powers,
        cells=collected.unique,
        cells_named=len(collected.measured),
        failures=tuple(sorted(failures)),
        warnings=subject.warnings,
        conditions=_conditions([runner.cells[name] for name in sorted(runner.cells)]),
        computed=runner.computed,
    )


def _rows(result: StudyResult, subject: Subject, tasks: _Tasks, runner: _Runner) -> list[dict[str, Any]]:
    """Every measurement as a row that says all of itself: what, how and under which conditions."""
    named = {(row.model, row.seed, row.removed) for row in (*result.whole, *result.measured)}
    singles = [
        Measured("single block", 1, model, seed, (block,))
        for model, seed in dict.fromkeys((row.model, row.seed) for row in result.whole)
        for block in range(subject.blocks)
        if (model, seed, (block,)) not in named
    ]
    rows = []
    for row in (*result.whole, *singles, *result.measured):
        zero_shot = tasks.made["zero-shot", row.model, row.removed]
        finetuned = tasks.made["finetuned", row.model, row.seed, row.removed]
        found = {
            f"{name}_{figure}": value[figure] if (value := runner.result(task)) else None
            for name, task in (("zero_shot", zero_shot), ("finetuned", finetuned))
            for figure in ("top1", "loss")
        }
        cell = runner.cells.get(finetuned.name)
        failure = runner.failures.get(finetuned.name)
        rows.append(
            {
                **asdict(row),
                **found,
                "source": subject.models[row.model].source,
                "weights_sha256": subject.models[row.model].weights_sha256,
                "finetune": finetuned.key["finetune"],
                "data": result.data,
                "status": "failed" if cell is None else "done",
                "reason": failure[1].reason if failure else None,
                "conditions": cell["conditions"] if cell else None,
            }
        )
    return rows


def _of_what(task: Task, subject: Subject) -> str:
    names = [model.source for model in subject.models] + [str(model.pretrained) for model in subject.models]
    if task.kind == "scores":
        return f"{names[task.model]} by {task.key['criterion']}"
    removed = ", ".join(map(str, task.key["removed"])) or "none"
    return f"{names[task.model]} without blocks {removed}"


def _conditions(cells: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The different conditions that the cells were computed under, with how many, how long and when; the same on every run."""
    groups: dict[str, dict[str, Any]] = {}
    for cell in cells:
        own = dict(cell["conditions"])
        seconds, when = own.pop("seconds"), own.pop("time_utc")
        for name in ("load_average", "command", "fan"):
            own.pop(name, None)
        group = groups.setdefault(hash_of(own), {**own, "cells": 0, "seconds": 0.0, "first_utc": when, "last_utc": when})
        group["cells"] += 1
        group["seconds"] += seconds
        group["first_utc"], group["last_utc"] = min(group["first_utc"], when), max(group["last_utc"], when)
    for group in groups.values():
        group["seconds"] = round(group["seconds"], 1)
    return tuple(groups[name] for name in sorted(groups))
