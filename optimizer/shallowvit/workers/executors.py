"""Where long work is done: in processes of this machine, or on a Ray cluster. Both give the same results.

An executor does tasks in any order and yields each with its outcome as it is done. A worker that dies takes only the task it
was on with it, which is reported as failed. A newcomer's trap: new processes import the script that started them, so a script
that calls ``study`` or ``tune`` must do so under ``if __name__ == "__main__":``.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import MissingDependencyError, ShallowvitError
from .cells import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from .cells import Task

__all__ = ["Executor", "Outcome", "ProcessExecutor", "RayExecutor", "Work"]

_REACHED_WITHIN_S = 10
Outcome = dict[str, Any] | Failure


class Materials(Protocol):
    """What workers work on."""

    def stored(self, folder: Path) -> Materials:
        """Return the same with what is large in files of a folder."""
        ...


class Workbench(Protocol):
    """A worker's loaded models and data."""

    def ready(self) -> None:
        """Answer once the workbench is made, for those that make it elsewhere."""
        ...

    def outcome(self, task: Task, checkpoint: Path | None = None) -> Outcome:
        """Do a task; a failure is an answer too."""
        ...


@dataclass(frozen=True)
class Work:
    """What workers do: the stage that messages name, the class of their workbench, and what it is made from."""

    stage: str
    workbench: Callable[[Any], Workbench]
    materials: Materials


class Executor(Protocol):
    """Does tasks somewhere."""

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Yield each task with its outcome as it is done."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    task: Task | None = None
    ready: bool = False


class ProcessExecutor:
    """Worker processes of this machine, started with the first task; they map the items from one file.

    Args:
        work: What they do.
        jobs: How many.
        checkpoint: Where an unfinished task is kept, or None where it starts anew.
    """

    def __init__(self, work: Work, jobs: int, checkpoint: Callable[[Task], Path | None]) -> None:
        self._work, self._jobs, self._checkpoint = work, jobs, checkpoint
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._stored: Work | None = None
        self._workers: list[_Worker] = []

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Yield each task with its outcome as it is done.

        Raises:
            ShallowvitError: a worker ended before it could take a task.
        """
        waiting = deque(tasks)
        while waiting or any(worker.task for worker in self._workers):
            while waiting and len(self._workers) < min(self._jobs, len(tasks)):
                self._workers.append(self._start())
            for worker in self._workers:
                if waiting and worker.ready and worker.task is None:
                    self._give(worker, waiting.popleft())
            # an idle worker says nothing, and its end would be seen as soon as it is given a task
            watched = {worker.pipe: worker for worker in self._workers if worker.task or not worker.ready}
            for pipe in connection.wait(list(watched)):
                worker = watched[pipe]  # type: ignore[index]
                task, outcome = self._hear(worker)
                if task is not None:
                    yield task, outcome

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()
        self._workers.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> _Worker:
        if self._stored is None or self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix=f"shallowvit-{self._work.stage}-")
            self._stored = replace(self._work, materials=self._work.materials.stored(Path(self._folder.name)))
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._stored, self._folder.name), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process ends the pipe
        return _Worker(process, ours)

    def _give(self, worker: _Worker, task: Task) -> None:
        worker.task = task
        with suppress(BrokenPipeError, ConnectionResetError):  # it is gone, which the next look at the pipe tells
            worker.pipe.send((task, self._checkpoint(task)))

    def _hear(self, worker: _Worker) -> tuple[Task | None, Outcome]:
        """What a worker says: that it is ready, the outcome of its task, or by its end that there will be none."""
        task = worker.task
        try:
            outcome = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            self._workers.remove(worker)
            why = _ending(worker.process.exitcode)
            if not worker.ready:
                raise ShallowvitError(
                    f"{self._work.stage}: a worker {why} before its first task; see its message above, and if a script called "
                    f'{self._work.stage}, put the call under if __name__ == "__main__":'
                ) from None
            return task, Failure(f"its worker {why}")
        if not worker.ready:
            worker.ready = True
        else:
            worker.task = None
        return task, outcome


class RayExecutor:
    """Actors on a Ray cluster, one CPU each; the items travel once to each machine, the models are read there.

    Args:
        work: What they do.
        address: Of the cluster, or ``auto`` for one started here.
        jobs: How many actors; by default one a CPU.

    Raises:
        MissingDependencyError: Ray isn't installed.
        ShallowvitError: no cluster answers at the address.
    """

    def __init__(self, work: Work, address: str, jobs: int | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unless the user asks for it
        try:
            import ray
        except ModuleNotFoundError as err:
            raise MissingDependencyError(f"{work.stage}: --ray", "ray", "distributed") from err
        self._ray: Any = ray
        self._stage = work.stage
        local = address == "auto"
        if not local:
            _check_reachable(work.stage, address)
        try:
            if local:
                ray.init(address="local", num_cpus=jobs, include_dashboard=False, log_to_driver=False, logging_level="error")
            else:
                ray.init(address=address, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as err:
            raise _no_cluster(work.stage, address, str(err).strip().partition("\n")[0]) from err
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._jobs = min(jobs or cores, cores)
        self._materials = ray.put(work.materials)
        self._bench = ray.remote(num_cpus=1)(work.workbench)
        # what each actor is asked: its task, or None for whether it is there, which it may take long to be on a busy cluster
        self._asked: dict[Any, tuple[Any, Task | None]] = {}
        self._idle: list[Any] = []

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Yield each task with its outcome as it is done.

        Raises:
            ShallowvitError: an actor ended before it could take a task.
        """
        waiting = deque(tasks)
        while waiting or any(task for _, task in self._asked.values()):
            while waiting and len(self._asked) + len(self._idle) < min(self._jobs, len(tasks)):
                actor = self._bench.remote(self._materials)
                self._asked[actor.ready.remote()] = (actor, None)
            while waiting and self._idle:
                actor, given = self._idle.pop(), waiting.popleft()
                self._asked[actor.outcome.remote(given)] = (actor, given)
            done, _ = self._ray.wait(list(self._asked), num_returns=1)
            task, outcome = self._hear(done[0])
            if task is not None:
                yield task, outcome

    def _hear(self, answer: Any) -> tuple[Task | None, Outcome]:
        actor, task = self._asked.pop(answer)
        try:
            outcome = self._ray.get(answer)
        except self._ray.exceptions.RayError as err:  # the actor died, or failed in a way that isn't the task's
            why = str(err).strip().splitlines()[-1].strip().partition(". ")[0]
            if task is None:
                raise ShallowvitError(
                    f"{self._stage}: a Ray worker ended before its first task ({why}); every machine of the cluster needs this "
                    "version of shallowvit"
                ) from err
            return task, Failure(f"its worker ended: {why}")
        self._idle.append(actor)
        return task, outcome

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._ray.shutdown()


def _check_reachable(stage: str, address: str) -> None:
    """Ray itself tries for minutes before it says that nobody answers."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise _no_cluster(stage, address, "it isn't HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=_REACHED_WITHIN_S).close()
    except OSError as err:
        raise _no_cluster(stage, address, err.strerror or str(err)) from err


def _no_cluster(stage: str, address: str, why: str) -> ShallowvitError:
    return ShallowvitError(
        f"{stage}: no Ray cluster at {address} ({why}); start one with 'ray start --head', or give --ray auto"
    )


def _serve(pipe: Connection, work: Work, folder: str) -> None:
    """The life of a worker process: tasks in, outcomes out, until the pipe or the work ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the starter ends its workers
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel, folder), daemon=True).start()
    bench = work.workbench(work.materials)
    pipe.send(None)
    while True:
        try:
            task, checkpoint = pipe.recv()
        except EOFError:
            return
        pipe.send(bench.outcome(task, checkpoint))


def _end_with(sentinel: int, folder: str) -> None:
    """Who was killed can't end its workers or remove its items; they see it and do so in the middle of a task."""
    connection.wait([sentinel])
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}" + (", often for want of memory" if code == -signal.SIGKILL else "")
    return f"ended with exit code {code}"
