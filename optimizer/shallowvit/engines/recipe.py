"""The build recipe of a bundle: what a device needs to build its own engine, with this project installed there or without.

recipe/
recipe.json          options, optimisation profiles, and the attentions that must come out fused
build_engine.py      reads it with the device's own TensorRT: python3 build_engine.py recipe.json
layers.py, flavour_*.py
plugins/             kernels of our own, where the graph has nodes for them
plugin_*.py, attention_plugin.py   what hands those to TensorRT
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ShallowvitError
from ..plugins.preparing import prepare_graph
from .build import job_from_config
from .flavours import Choice, check_precision, compute_capabilities
from .fusion import way_out
from .graph_check import check_graph
from .process import copy_plugin_code
from .profiles import profiles_for
from .records import AttentionChoice, BatchRange, BuildConfig, Flavour, HardwareCompatibility
from .sites import find_attentions
from .targets import find_target, flavours, jetpack_for, tensorrt_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .sites import AttentionSite

__all__ = ["FOLDER", "RECIPE", "config_from_recipe", "write_recipe"]

FOLDER, RECIPE = "recipe", "recipe.json"
_SCHEMA = 1
_WORKER = Path(__file__).parent / "worker"


def write_recipe(bundle: Path, config: BuildConfig, blocks: Mapping[str, int]) -> None:
    """Write the recipe for ``config.target`` into a bundle folder that holds ``model.onnx``.

    Raises:
        ShallowvitError: the target can't run the graph, or an attention can't be fused and ``allow_unfused`` isn't set.
    """
    assert config.target is not None
    target = find_target(config.target)
    flavour = config.flavour or Flavour(flavours(target)[0])
    choice = Choice(flavour, target, compute_capabilities(config, flavour, target))
    facts = check_graph(bundle / "model.onnx")
    check_precision(choice, facts, config.jetpack)
    profiles = profiles_for(facts.inputs, config)
    folder = bundle / FOLDER
    folder.mkdir()
    low = {name: shapes[0] for name, shapes in (profiles[0] if profiles else {}).items()}
    prepared = prepare_graph(bundle / "model.onnx", folder, config.attention, choice, shapes=low)
    sites = find_attentions(prepared.graph, blocks)
    obstacle = next((site for site in sites if site.obstacle), None)
    if obstacle and not config.allow_unfused:
        raise ShallowvitError(
            f"export: attention can't be fused on {target.key}: that of {obstacle.path} {obstacle.obstacle}. "
            f"{way_out(obstacle.anchor, config.attention, prepared.refused)}"
        )
    jetpack = jetpack_for(target, config.jetpack)
    record = job_from_config(config, choice, profiles) | {
        "schema": _SCHEMA,
        "onnx": Path(os.path.relpath(prepared.graph, folder)).as_posix(),
        "timing_cache_folder": ".",
        "attentions": [_plain_site(site) for site in sites],
        "allow_unfused": config.allow_unfused,
        "target": target.key,
        "jetpack": jetpack.version if jetpack else None,
        "tensorrt": tensorrt_of(target, config.jetpack),
        "config": _plain(config),
    }
    record |= dict(prepared.job)
    workers = ["build_engine.py", "layers.py", f"flavour_{flavour}.py"]
    if prepared.job.get("plugins"):
        copy_plugin_code(folder)
        record["plugin_code"] = "."
        workers += ["plugin_nodes.py", "plugin_ahead.py"]
    (folder / RECIPE).write_text(json.dumps(record, indent=1) + "\n")
    for name in workers:
        shutil.copyfile(_WORKER / name, folder / name)


def _plain_site(site: AttentionSite) -> dict[str, Any]:
    record = {"path": site.path, "block": site.block, "anchor": site.anchor}
    return record | ({"operator": site.operator} if site.operator else {})


def config_from_recipe(path: Path) -> BuildConfig:
    """Return the configuration that a recipe was written with.

    Raises:
        ShallowvitError: it isn't a recipe that this version reads.
    """
    try:
        record = json.loads(path.read_bytes())
        if record["schema"] != _SCHEMA:
            raise ShallowvitError(f"build: {path} has schema {record['schema']}, this version reads {_SCHEMA}; export again")
        return _config(record["config"])
    except (ValueError, KeyError, TypeError) as err:
        raise ShallowvitError(f"build: {path} is damaged ({err!r}); copy the bundle again") from err


def _plain(config: BuildConfig) -> dict[str, Any]:
    """The part of a configuration that goes with the target; machine, time limit and interpreter are the device's."""
    record = asdict(config)
    return {name: value for name, value in record.items() if name not in ("python", "time_limit_s", "timing_cache")}


def _config(record: dict[str, Any]) -> BuildConfig:
    level = record.pop("hardware_compatibility")
    flavour = record.pop("flavour")
    attention = record.pop("attention", None)  # recipes of older versions have none
    return BuildConfig(
        attention=AttentionChoice(attention) if attention else None,
        flavour=Flavour(flavour) if flavour else None,
        hardware_compatibility=HardwareCompatibility(level) if level else None,
        batches=tuple(BatchRange(**batch) for batch in record.pop("batches")),
        shapes=tuple((name, tuple(low), tuple(best), tuple(high)) for name, low, best, high in record.pop("shapes")),
        compute_capabilities=tuple(record.pop("compute_capabilities")),
        **record,
    )
