"""One of the things that a benchmark compares: a bundle with a provider, and how it is opened.

A newcomer's trap: what a provider computes in is known only once the model is loaded; a side says what was asked for, its
runner's ``facts`` what runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .config import AUTO
from .errors import BenchError
from .preprocessing import random_input
from .runners import RunnerOptions
from .runners.choosing import choose_provider
from .runners.opening import default_provider, engines_here, flavour_of_recipe, opener_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .bundles import BundleInfo
    from .config import BenchConfig
    from .feeding import Batch
    from .runners import Runner

__all__ = ["Side", "distinct_sides", "options_from_config", "side_from_bundle"]


@dataclass(frozen=True)
class Side:
    """One of the things compared.

    Args:
        name: In tables; different for each side of a benchmark.
        provider: What was asked for, or found by ``auto``.
        opener: Loads the model; picklable, since it also runs in a fresh process.
        flops: Of one item.
        precision: Of the graph.
        bundle: Says what the input looks like and what the figures are about.
        failures: What the opener and the runner raise when the user can fix it.
        trials: What ``auto`` tried.
        inputs: Of a batch size: real batches that are timed one after another, where latency depends on them; by default one
            random batch is.
    """

    name: str
    provider: str
    opener: Callable[[], Runner]
    flops: int
    precision: str
    bundle: BundleInfo
    failures: tuple[type[Exception], ...] = (BenchError,)
    trials: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    inputs: Callable[[int], list[Batch]] | None = None


def side_from_bundle(
    bundle: BundleInfo,
    config: BenchConfig,
    *,
    engine: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Side:
    """Return the side that runs a bundle with the provider that ``config`` names; ``auto`` measures what works here first.

    Args:
        bundle: The bundle.
        config: Its provider, and how models are loaded.
        engine: An engine that was built by the bundle's recipe outside of it, as on a device; taken where no provider is named.
        progress: Told what is going on, a line at a time.

    Raises:
        BenchError: no such provider, it isn't installed, or the bundle has no engine for it.
    """
    _check_batches(bundle, config)
    options, provider = options_from_config(config), config.provider
    trials: tuple[dict[str, Any], ...] = ()
    built = {flavour_of_recipe(bundle): engine} if engine else {}
    if provider == AUTO:
        progress(f"{bundle.name}: trying providers")
        engines = engines_here(bundle, options)
        engines |= {flavour: opener_for(bundle, flavour, options, engine=path) for flavour, path in built.items()}
        batch = random_input(bundle, config.batches[0])
        choice = choose_provider(bundle.model_path, batch, options, progress=progress, engines=engines)
        provider, options, trials = choice.key, choice.options, choice.trials
    elif provider is None:
        provider = next(iter(built), None) or default_provider(bundle)
    opener = opener_for(bundle, provider, options, engine=built.get(provider))
    return Side(bundle.name, provider, opener, bundle.flops_after, bundle.precision, bundle, trials=trials)


def _check_batches(bundle: BundleInfo, config: BenchConfig) -> None:
    """A graph of a fixed batch runs that one and no other."""
    other = [batch for batch in config.batches if bundle.batch not in (None, batch)]
    if other:
        raise BenchError(
            f"bench: the graph of {bundle.name} takes batches of {bundle.batch} and no others, --batch says {other[0]}; "
            f"measure it with --batch {bundle.batch}"
        )


def options_from_config(config: BenchConfig) -> RunnerOptions:
    """Return how models are loaded for a benchmark."""
    return RunnerOptions(threads=config.threads, copies=config.copies, cuda_graph=config.cuda_graph)


def distinct_sides(sides: Sequence[Side]) -> list[Side]:
    """Return the sides with a name each: one that is taken gets the provider with it, and a number where even that is taken."""
    named: list[Side] = []
    for side in sides:
        names = {one.name for one in named}
        choices = [side.name, f"{side.name} ({side.provider})"]
        choices += [f"{choices[1]} {number}" for number in range(2, len(sides) + 1)]
        named.append(replace(side, name=next(name for name in choices if name not in names)))
    return named
