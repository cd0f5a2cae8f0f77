"""Read an adaptive bundle, and make the sides that compare its mix with each of its depths: all on the same real inputs.

A newcomer's trap: the mix's latency depends on its inputs, so that random ones, which fixed graphs are timed on, would time a
mix that no user sees. Every side is timed on the data's own items, one batch after another.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from .bundles import BundleInfo, read_bundle
from .cycling import real_batches
from .datasets import open_dataset
from .errors import BenchError
from .runners.adaptive import Part, open_adaptive
from .runners.opening import opener_for
from .sides import Side, options_from_config, side_from_bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .config import BenchConfig
    from .datasets import Dataset

__all__ = ["ADAPTIVE_FILE", "SCHEMA_VERSION", "AdaptiveInfo", "adaptive_sides", "is_adaptive", "read_adaptive"]

ADAPTIVE_FILE = "adaptive.json"
SCHEMA_VERSION = 1  # the newest that is read


@dataclass(frozen=True)
class AdaptiveInfo:
    """An adaptive bundle on disk: its gate and its depths, from the shallowest, and a threshold for each but the deepest.

    ``shares`` are what ``adapt`` expected of each depth; ``sha256`` is that of ``adaptive.json``, which names every graph's.
    """

    path: Path
    name: str
    sha256: str
    gate: BundleInfo
    depths: tuple[BundleInfo, ...]
    thresholds: tuple[float, ...]
    shares: tuple[float, ...]

    @property
    def flops(self) -> int:
        """What an item costs in the mean, by the shares that are expected."""
        return self.gate.flops_after + round(
            sum(share * one.flops_after for share, one in zip(self.shares, self.depths, strict=True))
        )

    @property
    def bundle(self) -> BundleInfo:
        """The mix as a bundle: what the deepest takes and answers, under a name and a hash of its own."""
        return replace(self.depths[-1], path=self.path, name=self.name, model_sha256=self.sha256, flops_after=self.flops)


def is_adaptive(path: Path) -> bool:
    """Say whether a folder is an adaptive bundle."""
    return (path / ADAPTIVE_FILE).is_file()


def read_adaptive(path: Path) -> AdaptiveInfo:
    """Read ``adaptive.json`` of the folder ``path``, and the gate and the depths it names.

    Raises:
        BenchError: it is damaged or of a newer version, or a graph isn't the one it names.
    """
    file = path / ADAPTIVE_FILE
    try:
        content = file.read_bytes()
        manifest: dict[str, Any] = json.loads(content)
        version = manifest["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise BenchError(f"read_adaptive: {file} can't be read ({err!r}); copy the bundle again") from err
    if version != SCHEMA_VERSION:
        raise BenchError(
            f"read_adaptive: {file} has schema_version {version}, this harness reads {SCHEMA_VERSION}; update shallowvit here"
        )
    try:
        gate, *depths = (_part(path, entry) for entry in (manifest["gate"], *manifest["depths"]))
        shares = manifest["expected"]["gate"]["shares"]
        thresholds = tuple(map(float, manifest["thresholds"]))
        info = AdaptiveInfo(path, str(manifest["name"]), _sha256(content), gate, tuple(depths), thresholds, tuple(shares))
    except (KeyError, TypeError, ValueError) as err:
        raise BenchError(f"read_adaptive: {file} lacks or misuses the field {err}; copy the bundle again") from err
    if len(depths) < 2 or len(thresholds) != len(depths) - 1 or len(shares) != len(depths):
        raise BenchError(
            f"read_adaptive: {file} names {len(depths)} depths, {len(thresholds)} thresholds and {len(shares)} shares; "
            "expected a share a depth and a threshold less; copy the bundle again"
        )
    return info


def adaptive_sides(
    info: AdaptiveInfo, config: BenchConfig, data: str | None, progress: Callable[[str], None] = lambda _: None
) -> tuple[list[Side], list[Dataset | None]]:
    """Return the sides of a benchmark, the mix first, then the depths from the deepest, and the data opened for each.

    Args:
        info: The bundle.
        config: How; the provider that it names, or that is found for the deepest, runs everything.
        data: What is timed and what accuracy is measured on.
        progress: Told what is going on.

    Raises:
        BenchError: no data is named, LoadGen is asked for, or a part has nothing that the provider runs.
    """
    if data is None:
        raise BenchError(
            f"bench: {info.path} is adaptive, and how long it takes depends on the inputs; name real ones with --data"
        )
    if config.scenario:
        raise BenchError(f"bench: --scenario times one input again and again, and {info.path} is adaptive; leave it out")
    deepest = side_from_bundle(info.depths[-1], config, progress=progress)
    config = replace(config, provider=deepest.provider)
    others = [side_from_bundle(one, config, progress=progress) for one in reversed(info.depths[:-1])]
    options = options_from_config(config)
    parts = [Part(opener_for(one, deepest.provider, options), one.batch) for one in (info.gate, *info.depths)]
    opener = partial(open_adaptive, parts, tuple(one.name for one in info.depths), info.thresholds)
    precision = info.depths[-1].precision
    mix = Side(info.name, deepest.provider, opener, info.flops, precision, info.bundle, trials=deepest.trials)
    dataset = open_dataset(data, info.bundle)
    sides = [replace(one, inputs=partial(real_batches, dataset, one.bundle)) for one in (mix, deepest, *others)]
    return sides, [dataset] * len(sides)


def _part(path: Path, entry: dict[str, Any]) -> BundleInfo:
    info = read_bundle(path / entry["path"])
    if info.model_sha256 != entry["sha256"]:
        raise BenchError(
            f"read_adaptive: the graph of {info.path} has sha256 {info.model_sha256[:12]}..., {ADAPTIVE_FILE} says "
            f"{entry['sha256'][:12]}...; copy the whole folder again"
        )
    return info


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
