"""Say what opens a bundle with a provider: its graph for onnxruntime's, its engine of that flavour for TensorRT's.

A newcomer's trap: an engine's own file says nothing about where it runs; the manifest does, so engines are opened by its entry.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engines import engine_refusal
from ..errors import BenchError
from . import RUNNERS
from .cuda_driver import first_gpu
from .tensorrt_engine import installed_version, open_bundle_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..bundles import BundleInfo
    from .protocol import Runner, RunnerOptions

__all__ = ["FLAVOURS", "default_provider", "engine_of", "engines_here", "flavour_of_recipe", "opener_for"]

FLAVOURS = ("rtx", "tensorrt")  # providers that run engines


def opener_for(bundle: BundleInfo, provider: str, options: RunnerOptions, engine: Path | None = None) -> Callable[[], Runner]:
    """Return what opens a bundle with a provider, picklable, so that a fresh process can do it.

    Args:
        bundle: Its graph or its engine is opened.
        provider: A key of ``RUNNERS``.
        options: How to load it.
        engine: Instead of the bundle's own: an engine that was built on this device.

    Raises:
        BenchError: no such provider, no engine of that flavour in the bundle, or ``engine`` for a provider that runs graphs.
    """
    if provider not in RUNNERS:
        raise BenchError(f"opener_for: unknown provider {provider!r}; this harness has {', '.join(RUNNERS)}")
    if provider not in FLAVOURS:
        if engine is not None:
            raise BenchError(
                f"opener_for: the provider {provider} runs graphs, not the engine {engine}; "
                f"run it with --provider {' or '.join(FLAVOURS)}"
            )
        return partial(RUNNERS[provider], bundle.model_path.absolute(), options)
    if engine is not None:
        return partial(RUNNERS[provider], engine.absolute(), options)
    entry = engine_of(bundle, provider)
    return partial(open_bundle_engine, (bundle.path / entry["path"]).absolute(), options, entry, str(bundle.path))


def engine_of(bundle: BundleInfo, flavour: str) -> dict[str, Any]:
    """Return the manifest's entry of a bundle's engine of a flavour; of several the first that loads here, else the first.

    Raises:
        BenchError: it has none.
    """
    entries = [dict(entry) for entry in bundle.manifest.get("engines", ()) if entry["flavour"] == flavour]
    if not entries:
        raise BenchError(
            f"opener_for: {bundle.path} has no engine for the provider {flavour}; build one with: "
            f"shallowvit build {bundle.path} --engine {flavour}"
        )
    return next((entry for entry in entries if _loads_here(entry, bundle)), entries[0])


def engines_here(bundle: BundleInfo, options: RunnerOptions) -> dict[str, Callable[[], Runner]]:
    """Return what opens each engine of the bundle that loads here, by its flavour."""
    return {
        flavour: opener_for(bundle, flavour, options)
        for flavour in FLAVOURS
        if any(entry["flavour"] == flavour and _loads_here(entry, bundle) for entry in bundle.manifest.get("engines", ()))
    }


def flavour_of_recipe(bundle: BundleInfo) -> str:
    """Return the flavour of the engine that the bundle's recipe builds.

    Raises:
        BenchError: it carries none.
    """
    recipe = bundle.path / "recipe" / "recipe.json"
    try:
        return str(json.loads(recipe.read_text(encoding="utf-8"))["flavour"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise BenchError(f"flavour_of_recipe: {recipe} can't be read ({err!r}); export with --target again") from err


def default_provider(bundle: BundleInfo) -> str:
    """Return the flavour of an engine of the bundle that loads here, else ``cpu``."""
    entries = bundle.manifest.get("engines", ())
    return next((str(entry["flavour"]) for entry in entries if _loads_here(entry, bundle)), "cpu")


def _loads_here(entry: dict[str, Any], bundle: BundleInfo) -> bool:
    gpu = first_gpu()
    if gpu is None:  # before TensorRT is imported, which takes a second
        return False
    return engine_refusal(entry, str(bundle.path), installed_version(entry["flavour"]), gpu.sm) is None
