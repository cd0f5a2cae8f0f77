"""Run a build in a process of its own, with a time limit, and turn its end into a result or one sentence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..errors import ShallowvitError

__all__ = ["PLUGIN_CODE", "BuildRefusedError", "copy_plugin_code", "run_job"]

WORKER = Path(__file__).parent / "worker" / "build_engine.py"
PLUGIN_CODE = ("attention_plugin.py", "plugin_kernels.py", "plugin_launch.py")
_SAID = 400  # characters of a library's message that still make a sentence


class BuildRefusedError(ShallowvitError):
    """TensorRT was there and refused the build; ``message`` holds its first real words."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(f"build: TensorRT refuses at {stage}: {_short(message)}")
        self.stage = stage
        self.message = message


def run_job(job: dict[str, Any], folder: Path, *, python: str | None, time_limit_s: float) -> dict[str, Any]:
    """Run one job and return its result.

    Args:
        job: What ``worker/build_engine.py`` reads; ``log``, ``result`` and ``engine`` are names inside ``folder``.
        folder: Where to write; what the process prints goes to ``output.txt`` there.
        python: The interpreter, by default this one.
        time_limit_s: After so many seconds the process and its children are killed.

    Raises:
        BuildRefusedError: TensorRT refuses.
        OSError: the disk is full.
        ShallowvitError: out of time, killed, crashed, or no TensorRT.
    """
    if job.get("plugins"):
        job = job | {"plugin_code": copy_plugin_code(folder / "code")}
    (folder / "job.json").write_text(json.dumps(job))
    result = folder / job["result"]
    result.unlink(missing_ok=True)  # of an earlier job in this folder
    output = folder / "output.txt"
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [python or sys.executable, str(WORKER), str(folder / "job.json")],
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=time_limit_s)
        except subprocess.TimeoutExpired as err:
            raise ShallowvitError(
                f"build: stopped after the time limit of {time_limit_s:g} s; raise --time-limit, or lower --level or --batch"
            ) from err
        finally:
            if process.poll() is None:  # out of time or interrupted: nothing may go on in the background
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if not result.is_file():
        raise ShallowvitError(_crash(code, folder / job["log"], output))
    record: dict[str, Any] = json.loads(result.read_text())
    if not record["ok"]:
        _refuse(record)
    return record


def copy_plugin_code(folder: Path) -> str:
    """Copy what the worker imports for plugins, which the harness has too, into a folder, and return its path."""
    import shallowvit_bench

    folder.mkdir(exist_ok=True)
    for name in PLUGIN_CODE:
        shutil.copyfile(Path(shallowvit_bench.__file__).parent / "runners" / name, folder / name)
    return str(folder)


def _refuse(record: dict[str, Any]) -> None:
    stage, message = record["stage"], record["message"]
    if stage == "write":
        raise OSError(record["errno"], message)
    if stage in ("import", "options", "plugin"):
        raise ShallowvitError(f"build: {_short(message)}")
    if "workspace" in message.lower() or "insufficient memory" in message.lower():
        raise ShallowvitError(f"build: the workspace is too small: {_short(message)}. Raise --workspace or leave it out")
    raise BuildRefusedError(stage, message)


def _crash(code: int, log: Path, output: Path) -> str:
    """One sentence on a process that left no result: how it ended, and its first real words."""
    said = _first_error(log) or _first_line(output)
    words = f"; its first words: {_short(said)}" if said else ""
    if code == -signal.SIGKILL:
        return (
            f"build: the process was killed (signal 9), most likely for want of memory{words}. Free some, or lower --workspace "
            "or the largest --batch"
        )
    ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    return f"build: TensorRT's process {ended}{words or ' without a word'}. Try another version, or --level 0"


def _first_error(log: Path) -> str | None:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    errors = [line.partition("] ")[2] for line in lines if line.startswith(("[ERROR] ", "[INTERNAL_ERROR] "))]
    return next((line for line in errors if "cudaError" not in line), errors[0] if errors else None)


def _first_line(output: Path) -> str | None:
    """What the library printed by itself; of a Python traceback that's the last line."""
    lines = [line.strip() for line in output.read_text(errors="replace").splitlines() if line.strip()]
    if not lines:
        return None
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SAID else f"{line[:_SAID]} ..."
