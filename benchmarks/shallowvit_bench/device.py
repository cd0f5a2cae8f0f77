"""The device's side of a measurement over SSH: start a job in a process that outlives the connection, and tell its events.

    start -> lock -> work (a session of its own: rows, events and log go into CACHE/runs/ID) ;  start goes on telling the events

A newcomer's trap: whoever started a run may be gone when it ends. So everything is in files before it is told, and ``start`` on
a run that is going on, or that ended and waits to be brought home, only tells.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .device_store import EVENTS, JOB, LOG, PREDICTIONS, holder, is_alive, is_finished, lock_path, open_lock, write_holder
from .errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LOCKED", "read_facts", "start", "work"]

LOCKED = 3  # exit code of ``start`` when someone else measures
_PATIENCE_S = 1.0  # a look at the lock takes it for a moment
_POLL_S = 0.5  # each look costs the measurement next door 0.1 ms of a core
_PROGRESS_EVERY_S = 1.0
_TAIL_BYTES = 4096

_VERSIONS = """
import json, sys
found = {}
for name in sys.argv[1:]:
    try:
        module = __import__(name)
    except Exception as err:
        found[name] = [None, repr(err)]
    else:
        found[name] = [str(getattr(module, "__version__", getattr(module, "VERSION_TEXT", "there"))), None]
        if name == "onnxruntime":
            found["providers"] = module.get_available_providers()
sys.stdout.write("\\n" + json.dumps(found))
"""


def read_facts(cache: Path) -> dict[str, Any]:
    """Return what the device is and has: conditions, what would fix its clocks, runtimes, memory, disk."""
    from .conditions import read_conditions
    from .power.clocks import advise_clocks

    done = subprocess.run(
        [sys.executable, "-c", _VERSIONS, "tensorrt", "tensorrt_rtx", "pycuda", "onnxruntime", "numpy"],
        capture_output=True,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": _own_cache(cache)},
        check=False,
    )
    # a runtime that crashes while it is imported leaves no line
    runtimes = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 and done.stdout else {}
    providers = runtimes.pop("providers", [])
    total, available = _memory_mib(Path("/proc/meminfo"))
    return {
        "conditions": asdict(read_conditions(None)),
        "clocks": advise_clocks().text(),
        "runtimes": {name: version for name, (version, _) in runtimes.items() if version},
        "providers": providers,
        "memory_mib": total,
        "memory_available_mib": available,
        "disk_free_mib": shutil.disk_usage(cache).free >> 20,
        "machine": os.uname().machine,
    }


def _own_cache(cache: Path) -> str:
    """Where runtimes keep what they like: onnxruntime 1.32 writes into ~/.cache, which is not ours to leave things in."""
    return str(cache / "runtimes")


def _memory_mib(meminfo: Path) -> tuple[int | None, int | None]:
    if not meminfo.is_file():
        return None, None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    sizes = [int(lines[name].split()[0]) >> 10 if name in lines else None for name in ("MemTotal", "MemAvailable")]
    return sizes[0], sizes[1]


def start(run: Path, who: str, wait: bool, emit: Callable[[dict[str, Any]], None]) -> int:
    """Start the job in a run's folder unless it is going on or done, and tell its events until it ends.

    Args:
        run: CACHE/runs/ID with the job in it.
        who: Is told to others who want to measure at the same time.
        wait: Whether to wait for others; without, they are told and the code is ``LOCKED``.
        emit: Is given each event.

    Raises:
        BenchError: this Python has no numpy.
    """
    if importlib.util.find_spec("numpy") is None:
        raise BenchError(
            f"numpy is not installed for {sys.executable}; install it there, or name another Python with: "
            "shallowvit devices add --python"
        )
    told = None
    while not is_alive(run) and not is_finished(run):
        descriptor = _take(lock_path())
        if descriptor is not None:
            _spawn(run, who, descriptor)
            break
        found = holder()
        if found is None or found["id"] == run.name:  # it ended just now, or it starts just now
            time.sleep(_POLL_S)
            continue
        if found != told:
            emit({"event": "locked", **found})
            told = found
        if not wait:
            return LOCKED
        time.sleep(_POLL_S)
    return _follow(run, emit)


def _take(path: Path) -> int | None:
    descriptor = open_lock(path)
    ends = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > ends:
                os.close(descriptor)
                return None
            time.sleep(0.05)
        else:
            return descriptor


def _spawn(run: Path, who: str, lock: int) -> None:
    """Start ``work`` with both locks in its hands: they are free when it is gone, however it went."""
    alive = open_lock(run / "alive")
    fcntl.flock(alive, fcntl.LOCK_EX)
    record = {"who": who, "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"), "id": run.name, "cache": str(run.parents[1])}
    write_holder(lock, record | {"pid": None})
    (run / EVENTS).write_bytes(b"")
    here = str(Path(__file__).parents[1])  # the zip file, or the folder with the package
    paths = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    with (run / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "shallowvit_bench", "work", str(run)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=run,
            env=os.environ | {"PYTHONPATH": paths, "XDG_CACHE_HOME": _own_cache(run.parents[1])},
            start_new_session=True,
            pass_fds=(lock, alive),
        )
    write_holder(lock, record | {"pid": process.pid})
    os.close(lock)
    os.close(alive)


def _follow(run: Path, emit: Callable[[dict[str, Any]], None]) -> int:
    """Tell the events of a run from its last ones on, until it ends; say so when its process is gone without a last word."""
    with (run / EVENTS).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        if size > _TAIL_BYTES:
            file.readline()  # the end of a line
        last_look = False
        while True:
            place = file.tell()
            line = file.readline()
            if line.endswith(b"\n"):
                event = json.loads(line)
                emit(event)
                if event["event"] in ("done", "error"):
                    return int(event.get("code", 1))
                continue
            file.seek(place)
            if last_look:
                emit({"event": "died", "log": _last_words(run / LOG), "free_bytes": shutil.disk_usage(run).free})
                return 1
            last_look = not is_alive(run)
            if not last_look:
                time.sleep(_POLL_S)


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1] if lines else ""


def work(run: Path) -> int:
    """Run the job of a run's folder in this process; events go into a file, what others print into the log."""
    from .device_engines import built_engines
    from .job import job_from_json, run_job

    with (run / EVENTS).open("a", encoding="utf-8") as events:
        told = -_PROGRESS_EVERY_S

        def emit(event: dict[str, Any]) -> None:
            nonlocal told
            if event["event"] == "progress":
                if time.monotonic() - told < _PROGRESS_EVERY_S:
                    return
                told = time.monotonic()
            if event["event"] == "row":  # the file of rows has it whole
                event = {"event": "row", "text": "{side}, batch {batch}: {status}".format(**event["row"])}
            with suppress(OSError):  # on a full disk the next row fails, and says so; this must not
                events.write(json.dumps(event) + "\n")
                events.flush()

        try:
            job = built_engines(job_from_json((run / JOB).read_text(encoding="utf-8")), run.parents[1], emit)
            (run / PREDICTIONS).mkdir(exist_ok=True)
            failed = run_job(job, emit)
        except BenchError as err:
            emit({"event": "error", "message": str(err)})
            return 1
        emit({"event": "done", "code": 0, "failed": failed})
        return 0
