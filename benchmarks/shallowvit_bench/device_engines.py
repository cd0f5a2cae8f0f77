"""Build the engines of a job's bundles on the device, with its own TensorRT, by the recipes that the bundles carry.

A newcomer's trap: an engine fits one version of TensorRT and one GPU, so it is kept under that version, and the bundle stays as
it came.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bundles import read_bundle
from .config import AUTO
from .errors import BenchError
from .runners.opening import flavour_of_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from .bundles import BundleInfo
    from .job import Job

__all__ = ["built_engines"]

_MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
_VERSION = "import sys, importlib; sys.stdout.write('\\n' + importlib.import_module(sys.argv[1]).__version__)"


def built_engines(job: Job, cache: Path, emit: Callable[[dict[str, Any]], None]) -> Job:
    """Return the job with an engine for each bundle that has a recipe this device can follow, built unless it's in the cache.

    Raises:
        BenchError: a build failed, or an attention isn't fused.
    """
    engines = list(job.engines or [None] * len(job.bundles))
    for number, place in enumerate(job.bundles):
        bundle = read_bundle(Path(place))
        recipe = bundle.path / "recipe" / "recipe.json"
        if not bundle.manifest.get("recipe") or not recipe.is_file() or engines[number]:
            continue
        flavour = flavour_of_recipe(bundle)
        if job.config.provider not in (None, AUTO, flavour):
            continue
        version = _version(_MODULES[flavour])
        if version is None:
            emit(
                {
                    "event": "remark",
                    "text": f"{bundle.name}: no engine is built, module {_MODULES[flavour]} isn't installed here",
                }
            )
            continue
        engines[number] = str(_engine(bundle, recipe, cache / "engines", version, emit))
    return replace(job, engines=tuple(engines))


def _version(module: str) -> str | None:
    """The version of TensorRT here, asked in a process of its own: loading it takes memory and may crash."""
    done = subprocess.run([sys.executable, "-c", _VERSION, module], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[-1] if done.returncode == 0 else None


def _engine(bundle: BundleInfo, recipe: Path, engines: Path, version: str, emit: Callable[[dict[str, Any]], None]) -> Path:
    """Find an engine in the cache or build it there; it takes its name when it is whole."""
    record = json.loads(recipe.read_text(encoding="utf-8"))
    parts = [recipe.read_bytes().decode(), bundle.model_sha256, version]
    folder = engines / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    engine = folder / record["engine"]
    if engine.is_file():
        return engine
    emit({"event": "stage", "text": f"{bundle.name}: building its engine with {record['flavour']} {version}; takes minutes"})
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(recipe.parent, beside)
    (beside / recipe.name).unlink()  # a link to a blob of the cache, which stays as it came
    (beside / recipe.name).write_text(json.dumps(record | {"onnx": str(bundle.model_path.absolute())}), encoding="utf-8")
    command = [sys.executable, "build_engine.py", recipe.name]
    done = subprocess.run(command, cwd=beside, capture_output=True, text=True, check=False)
    if done.returncode or not (beside / record["engine"]).is_file():
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise BenchError(
            f"built_engines: {bundle.name} could not be built with {record['flavour']} {version} on the device: {said[0]}; "
            f"its log is {beside / record['log']}"
        )
    beside.rename(folder)
    return engine
