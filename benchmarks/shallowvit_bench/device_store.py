"""What the harness keeps on a device and who is measuring there: blobs by content hash, folders linked from them, runs, a lock.

    CACHE/blobs/SHA256              a file that came whole;  SHA256.partial: on its way
    CACHE/bundles/KEY/NAME          folders of hard links to blobs; data/ and harness/ too
    CACHE/engines/KEY               engines built on the device
    CACHE/runtimes                  what onnxruntime and others would put into ~/.cache
    CACHE/runs/ID/                  job.json, events.jsonl, log.txt, rows.jsonl: until the rows are home

A newcomer's trap: this file also travels alone, as text on the standard input of the device's ``python3``, before anything else
is there. So it imports nothing of this package, and answers in one line of JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "EVENTS",
    "JOB",
    "LOG",
    "PREDICTIONS",
    "ROWS",
    "answer",
    "holder",
    "is_alive",
    "is_finished",
    "lock_path",
    "open_lock",
    "write_holder",
]

JOB, EVENTS, LOG, ROWS, PREDICTIONS, ALIVE = "job.json", "events.jsonl", "log.txt", "rows.jsonl", "predictions", "alive"
_FOLDERS = ("blobs", "bundles", "data", "engines", "harness", "runs", "runtimes")
_GRACE_S = 5.0

Request = dict[str, Any]
Reply = dict[str, Any]


def lock_path() -> Path:
    """Return the lock of the whole machine: two users have two caches and one GPU."""
    return Path(tempfile.gettempdir()) / "shallowvit-bench.lock"


def open_lock(path: Path) -> int:
    """Open a file to lock it, made for every user when it's new."""
    with contextlib.suppress(FileNotFoundError):
        # without O_CREAT, which Linux refuses for another user's file in a sticky folder (fs.protected_regular), and without
        # following a link that someone put there, or we'd empty the file behind it
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with contextlib.suppress(PermissionError):
        os.fchmod(descriptor, 0o666)
    return descriptor


def write_holder(descriptor: int, record: dict[str, Any]) -> None:
    """Write into a lock file who has it."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(record).encode(), 0)


def holder() -> dict[str, Any] | None:
    """Return who holds the machine's lock, or None when it is free."""
    path = lock_path()
    if not path.exists() or not _is_locked(path):
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:  # taken a moment ago and not written yet
        return {"who": "someone", "since": "just now", "id": None, "pid": None, "cache": None}


def is_alive(run: Path) -> bool:
    """Whether the process of a run is there; it holds a lock, which ends with it whatever ends it."""
    return (run / ALIVE).exists() and _is_locked(run / ALIVE)


def is_finished(run: Path) -> bool:
    """Whether a run came to its end; its rows wait to be brought home."""
    try:
        lines = (run / EVENTS).read_bytes().splitlines()
        return bool(lines) and json.loads(lines[-1])["event"] == "done"
    except (OSError, ValueError):
        return False


def _is_locked(path: Path) -> bool:
    descriptor = open_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _probe(cache: Path, request: Request) -> Reply:
    """Say what is here of what is asked for; hash nothing while someone measures."""
    reply: Reply = {
        "cache": str(cache),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "free_bytes": _free(cache),
        "holder": holder(),
        "run": _state(cache / "runs" / request["id"]) if request.get("id") else None,
        "runs": _runs(cache),
        "have": [],
        "partial": {},
    }
    if reply["holder"] is not None:
        return reply
    for name in _FOLDERS:
        (cache / name).mkdir(parents=True, exist_ok=True)
    for sha256, size in request.get("blobs", ()):
        blob = cache / "blobs" / sha256
        partial = blob.with_name(f"{sha256}.partial")
        if blob.is_file():
            if blob.stat().st_size == size and _hash(blob) == sha256:
                reply["have"].append(sha256)
                continue
            blob.unlink()  # a disk that lost power in the middle leaves such files
        if partial.is_file():
            reply["partial"][sha256] = partial.stat().st_size
    return reply


def _receive(cache: Path, request: Request) -> Reply:
    """Check what arrived and move it into place, then link the folders."""
    bad = {}
    for sha256, size in request["blobs"]:
        blob = cache / "blobs" / sha256
        partial = blob.with_name(f"{sha256}.partial")
        if not partial.is_file():
            if not blob.is_file():
                bad[sha256] = "nothing"
            continue
        found = _hash(partial)
        if found != sha256 or partial.stat().st_size != size:
            partial.unlink()
            bad[sha256] = found
            continue
        partial.chmod(0o444)
        partial.replace(blob)
    if not bad:
        for folder, files in request["trees"].items():
            _link(cache / folder, {name: cache / "blobs" / sha256 for name, sha256 in files.items()})
    return {"bad": bad}


def _link(folder: Path, files: dict[str, Path]) -> None:
    if folder.is_dir():
        if all((folder / name).is_file() and os.path.samefile(folder / name, blob) for name, blob in files.items()):
            return
        shutil.rmtree(folder)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    for name, blob in files.items():
        place = beside / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(blob, place)
        except OSError:  # a file system without hard links
            shutil.copyfile(blob, place)
    beside.replace(folder)


def _begin(cache: Path, request: Request) -> Reply:
    run = cache / "runs" / request["id"]
    run.mkdir(parents=True, exist_ok=True)
    if (run / JOB).is_file():  # of the run that goes on: its rows carry the id in there
        return {}
    beside = run / f"{JOB}.partial"
    beside.write_text(request["job"], encoding="utf-8")
    beside.replace(run / JOB)
    return {}


def _drop(cache: Path, request: Request) -> Reply:
    """Remove a run whose rows are home; its process may take a moment to end after its last word."""
    run = cache / "runs" / request["id"]
    ends = time.monotonic() + _GRACE_S
    while is_alive(run) and time.monotonic() < ends:
        time.sleep(0.05)
    if not is_alive(run):
        shutil.rmtree(run, ignore_errors=True)
    return {}


def _stop(cache: Path, request: Request) -> Reply:
    """End the run that holds the lock, with all its processes, if it is of this cache."""
    found = holder()
    if found is None:
        return {"stopped": None}
    if found["cache"] != str(cache) or not found["pid"]:
        return {"error": "the measurement of {who} since {since} is not of this cache; ask them".format(**found)}
    with (cache / "runs" / found["id"] / EVENTS).open("a") as events:  # first, or whoever follows it starts it again
        events.write(json.dumps({"event": "error", "message": "the run was stopped with: shallowvit devices stop"}) + "\n")
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(found["pid"], number)
        except ProcessLookupError:
            break
        ends = time.monotonic() + _GRACE_S
        while holder() is not None and time.monotonic() < ends:
            time.sleep(0.05)
    return {"stopped": found}


def _clean(cache: Path, request: Request) -> Reply:
    found = holder()
    if found is not None and found["cache"] == str(cache):
        return {"error": "{who} is measuring since {since}; wait, or stop it first".format(**found)}
    freed = sum(file.stat().st_size for name in _FOLDERS for file in _files(cache / name)) if cache.is_dir() else 0
    runs = len(_runs(cache))
    for name in _FOLDERS:
        shutil.rmtree(cache / name, ignore_errors=True)
    with contextlib.suppress(OSError):  # someone keeps something else there
        cache.rmdir()
    return {"freed_bytes": freed, "runs": runs}


def _files(folder: Path) -> Iterator[Path]:
    """Each file once, though it may have several names."""
    seen = set()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and file.stat().st_ino not in seen:
            seen.add(file.stat().st_ino)
            yield file


def _runs(cache: Path) -> list[dict[str, Any]]:
    """The runs whose rows aren't home."""
    folder = cache / "runs"
    runs = sorted(folder.iterdir()) if folder.is_dir() else []
    return [{"id": run.name, "state": _state(run), "rows": _lines(run / ROWS)} for run in runs if (run / JOB).is_file()]


def _state(run: Path) -> str:
    if not (run / JOB).is_file():
        return "none"
    if is_alive(run):
        return "running"
    return "finished" if is_finished(run) else "unfinished"


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _free(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _hash(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


_ACTIONS: dict[str, Callable[[Path, Request], Reply]] = {
    "probe": _probe,
    "receive": _receive,
    "begin": _begin,
    "drop": _drop,
    "stop": _stop,
    "clean": _clean,
}


def answer(text: str) -> None:
    """Do what a request (JSON) asks for and print the reply as a line of JSON."""
    request = json.loads(text)
    cache = Path(request["cache"]).expanduser()
    try:
        reply = _ACTIONS[request["action"]](cache, request)
    except OSError as err:
        reply = {"error": f"{err.strerror} ({err.filename})" if err.filename else str(err.strerror), "errno": err.errno}
    sys.stdout.write(json.dumps(reply) + "\n")
