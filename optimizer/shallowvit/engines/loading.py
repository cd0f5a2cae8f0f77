"""Whether the engines of a bundle can be loaded on this machine: its TensorRT and its GPU against what they were built with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from ..errors import ShallowvitError
from .flavours import MODULES
from .records import Flavour
from .worker.build_engine import gpu

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["check_engines_here", "installed_version"]


def check_engines_here(bundle: Path, engines: Iterable[Mapping[str, Any]], python: str | None = None) -> None:
    """Check that an engine of a bundle can be loaded by an interpreter (this one by default) on this machine's GPU.

    Args:
        bundle: The bundle's path.
        engines: The manifest's entries.
        python: Another interpreter that has TensorRT.

    Raises:
        ShallowvitError: none can; names both versions, or both compute capabilities, of the first, and the command to build it.
    """
    from shallowvit_bench.engines import engine_refusal

    found = gpu()
    reasons = []
    for engine in engines:
        version = installed_version(Flavour(engine["flavour"]), python)
        reason = engine_refusal(engine, str(bundle), version, found["sm"] if found else None)
        if reason is None:
            return
        reasons.append(reason)
    more = f" ({len(reasons)} engines, none loads here)" if len(reasons) > 1 else ""
    raise ShallowvitError(f"verify: {bundle}: {reasons[0]}{more}")


def installed_version(flavour: Flavour, python: str | None = None) -> str | None:
    """Return the version of a flavour that an interpreter imports, or None; in a process of its own, since that may abort."""
    command = [shutil.which(python) or python if python else sys.executable]
    module = MODULES[flavour]
    try:
        done = subprocess.run(
            [*command, "-c", f"import {module}; print({module}.__version__)"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
