"""The folder of a search: its settings, its state, what workers found, and weights; resumed by the same command.

A newcomer's trap: workers, time limits and the place itself may differ from run to run; everything that the outcome depends on
may not, and another search over the same folder is refused.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import ShallowvitError
from ..files import disk_sentences
from ..workers.cells import CellStore, Failure, write_whole
from ..workers.executors import ProcessExecutor, RayExecutor, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ..workers.cells import Task
    from ..workers.executors import Executor
    from .config import TuneConfig
    from .records import Progress
    from .subject import Materials

__all__ = ["Bench", "Place", "open_place"]

_SETTINGS = "settings.json"


class Place:
    """Where a search keeps what it knows."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.state = out / "state"
        self.cells = CellStore(self.state / "cells")

    def settle(self, settings: dict[str, Any]) -> None:
        """Write down what is searched, or refuse to go on with another search.

        Raises:
            ShallowvitError: names the first setting that differs.
        """
        path = self.state / _SETTINGS
        wanted = json.loads(json.dumps(settings))
        if not path.is_file():
            write_whole(path, json.dumps(wanted, indent=1) + "\n")
            return
        try:
            found = json.loads(path.read_text())
        except ValueError as err:
            raise ShallowvitError(f"tune: {path} can't be read ({err}); remove {self.out} or choose another --out") from err
        for name, value in wanted.items():
            if found.get(name) != value:
                raise ShallowvitError(
                    f"tune: {self.out} holds a search with {name.replace('_', ' ')} {_text(found.get(name))}, this one has "
                    f"{_text(value)}; give the same settings to go on with it, or choose another --out"
                )

    def weights(self, task: Task) -> Path:
        """Where the weights that a task found are kept."""
        return self.state / "weights" / f"{task.name}.safetensors"

    def checkpoint(self, task: Task) -> Path:
        """Where an unfinished training is kept."""
        return self.state / "trainings" / task.name

    def read(self, task: Task) -> dict[str, Any] | None:
        """Return a task's result, or None where it, or the weights it promises, aren't there."""
        cell = self.cells.read(task)
        if cell is None or (task.key["weights"] and not self.weights(task).is_file()):
            return None
        result: dict[str, Any] = cell["result"]
        return result

    def keep(self, task: Task, outcome: dict[str, Any]) -> dict[str, Any]:
        """Write down what a task found: weights first, since the cell says that they are there."""
        with disk_sentences("tune", self.out / "state"):
            if "weights" in outcome:
                path = self.weights(task)
                path.parent.mkdir(exist_ok=True)
                beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
                try:
                    with beside.open("wb") as file:
                        file.write(outcome["weights"])
                        file.flush()
                        os.fsync(file.fileno())
                    beside.replace(path)
                finally:
                    with suppress(FileNotFoundError):
                        beside.unlink()
            cell = self.cells.write(task, outcome["result"], outcome["conditions"])
        shutil.rmtree(self.checkpoint(task), ignore_errors=True)
        result: dict[str, Any] = cell["result"]
        return result


def open_place(out: Path) -> Place:
    """Open the folder of a search, which may be new.

    Raises:
        ShallowvitError: it is something else, or its parent isn't there.
    """
    if not out.parent.is_dir():
        raise ShallowvitError(f"tune: no folder {out.parent} to write {out.name} into; create it first")
    state = out / "state"
    if out.exists() and not state.is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise ShallowvitError(f"tune: {out} exists and holds no search; choose another --out")
    with disk_sentences("tune", out):
        (state / "cells").mkdir(parents=True, exist_ok=True)
    return Place(out)


class Bench:
    """Gives tasks without a result to the executor, which starts with the first one, and keeps what comes back."""

    def __init__(self, config: TuneConfig, materials: Materials, place: Place, watch: Callable[[Progress], None]) -> None:
        self._config, self._materials, self._place, self._watch = config, materials, place, watch
        self._executor: Executor | None = None
        self.failures: dict[str, str] = {}

    def results(self, tasks: Sequence[Task], doing: str) -> list[dict[str, Any] | None]:
        """Return the result of each task, None where it failed."""
        from .records import Progress

        found: dict[str, dict[str, Any]] = {}
        wanted = {task.name: task for task in tasks}
        for name, task in wanted.items():
            if (result := self._place.read(task)) is not None:
                found[name] = result
        missing = [task for name, task in wanted.items() if name not in found and name not in self.failures]
        # the longest first, so that no worker starts a long one when the others have run out of work
        missing.sort(key=lambda task: (-task.cost, task.name))
        done = len(wanted) - len(missing)
        self._watch(Progress(doing, done, len(wanted)))
        if missing and self._executor is None:
            self._executor = self._open()
        for task, outcome in self._executor.run(missing) if missing and self._executor else ():
            done += 1
            if isinstance(outcome, Failure):
                self.failures[task.name] = f"{task.arguments['name']}: {outcome.reason}"
            else:
                found[task.name] = self._place.keep(task, outcome)
            self._watch(Progress(doing, done, len(wanted)))
        return [found.get(task.name) for task in tasks]

    def close(self) -> None:
        """End the workers; a later task starts others."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None

    def _open(self) -> Executor:
        from shallowvit_bench.conditions import usable_cores

        from .worker import Tuner

        config = self._config
        if config.ray is not None:
            return RayExecutor(Work("tune", Tuner, self._materials), config.ray, config.jobs)
        # under names that a later run has too, since an unfinished training goes on with the data it was begun with alone
        items = self._place.state / "items"
        with disk_sentences("tune", items):
            items.mkdir(exist_ok=True)
            work = Work("tune", Tuner, self._materials.stored(items))
        return ProcessExecutor(work, config.jobs or usable_cores(), self._checkpoint)

    def _checkpoint(self, task: Task) -> Path | None:
        return self._place.checkpoint(task) if task.key["training"] else None


def _text(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value
