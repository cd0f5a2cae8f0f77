"""The harness as a program, ``python3 -m shallowvit_bench`` or ``python3 HARNESS.pyz``: what the home side calls over SSH.

Prints one JSON object a line on standard output, ``{"event": ...}``, and nothing else there. A newcomer's trap: this isn't the
command line for people, which is ``shallowvit``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from .errors import BenchError

__all__ = ["main"]


def main(words: list[str] | None = None) -> int:
    """Run one command and return the exit code."""
    parser = argparse.ArgumentParser(prog="shallowvit_bench", description="The measuring side of shallowvit, on a device.")
    commands = parser.add_subparsers(dest="command", required=True)
    facts = commands.add_parser("facts", help="what this device is and has")
    facts.add_argument("cache", type=Path, help="the folder of the harness")
    starting = commands.add_parser("start", help="start the job in RUN/job.json, or go on telling of it")
    starting.add_argument("run", type=Path, help="CACHE/runs/ID")
    starting.add_argument("--who", default="someone", help="what others are told who want to measure at the same time")
    starting.add_argument("--wait", action="store_true", help="wait until others have finished")
    working = commands.add_parser("work", help="run the job in RUN/job.json in this process")
    working.add_argument("run", type=Path, help="CACHE/runs/ID")
    asked = parser.parse_args(words)
    from . import device

    try:
        if asked.command == "facts":
            _emit({"event": "facts", **device.read_facts(asked.cache)})
            return 0
        if asked.command == "work":
            return device.work(asked.run.absolute())
        return device.start(asked.run.absolute(), asked.who, asked.wait, _emit)
    except BenchError as err:
        _emit({"event": "error", "message": str(err)})
        return 1
    except BrokenPipeError:  # the connection is gone; what was started goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _emit(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
