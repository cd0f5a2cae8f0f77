"""Put an engine, or the recipe for one, into a bundle: all or nothing, the manifest last."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..engines.build import ENGINE, LOG, REPORT, build_engine
from ..engines.recipe import FOLDER, RECIPE, config_from_recipe, write_recipe
from ..engines.records import BuildConfig
from ..files import disk_sentences, fsync_tree, hash_file
from .checking import verify
from .manifest import SCHEMA_VERSION, Engine, File, Manifest
from .records import Bundle

if TYPE_CHECKING:
    from ..engines.records import EngineBuild

__all__ = ["add_engine", "add_recipe", "build", "config_of", "write_manifest"]

ENGINES = "engines"


def build(path: str | Path, config: BuildConfig | None = None) -> Bundle:
    """Build the engine of a bundle on this machine and put it in; an engine of the same flavour and target is replaced.

    Args:
        path: The bundle. If anything fails it stays as it was.
        config: How; by default as the bundle's recipe says, else for any GPU that the installed TensorRT reaches.

    Raises:
        ShallowvitError: the bundle isn't whole, the engine can't be built, or an attention isn't fused.
    """
    path = Path(path)
    manifest = verify(path).manifest
    config = config_of(path) if config is None else config
    whole = path.resolve()
    beside = whole.with_name(f".{whole.name}.{os.getpid()}.partial")
    with disk_sentences("build", path):
        try:
            beside.mkdir()
            manifest = add_engine(beside, manifest, config, whole / "model.onnx")
            _move_in(beside, whole, manifest)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return Bundle(path, manifest)


def config_of(path: Path) -> BuildConfig:
    """Return the configuration in a bundle's recipe, or the defaults where it has none."""
    recipe = path / FOLDER / RECIPE
    return config_from_recipe(recipe) if recipe.is_file() else BuildConfig()


def add_engine(folder: Path, manifest: Manifest, config: BuildConfig, graph: Path) -> Manifest:
    """Build an engine of a bundle's graph into ``folder`` and return the manifest with it.

    Raises:
        ShallowvitError: see ``build_engine``.
    """
    work = folder / ENGINES / "new"
    work.mkdir(parents=True)
    built = build_engine(graph, work, config, manifest.plan.places_of_blocks)
    name = "-".join(filter(None, (str(built.flavour), built.target)))
    work.rename(work.with_name(name))
    place = f"{ENGINES}/{name}"
    new = {f"{place}/{file}": _file(folder / place / file) for file in (ENGINE, LOG, REPORT)}
    others = tuple(engine for engine in manifest.engines if engine.path != f"{place}/{ENGINE}")
    changes = {
        "schema_version": SCHEMA_VERSION,
        "files": dict(sorted((manifest.files | new).items())),
        "engines": (*others, _engine(built, place)),
        "target": manifest.target or built.target,
        "tools": manifest.tools | {str(built.flavour): built.version},
    }
    return manifest.model_copy(update=changes)


def add_recipe(folder: Path, manifest: Manifest, config: BuildConfig) -> Manifest:
    """Write the recipe for ``config.target`` into ``folder`` and return the manifest with it.

    Raises:
        ShallowvitError: see ``write_recipe``.
    """
    write_recipe(folder, config, manifest.plan.places_of_blocks)
    new = {file.relative_to(folder).as_posix(): _file(file) for file in sorted((folder / FOLDER).rglob("*")) if file.is_file()}
    changes = {"files": dict(sorted((manifest.files | new).items())), "recipe": f"{FOLDER}/{RECIPE}", "target": config.target}
    return manifest.model_copy(update=changes)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``manifest.json`` into a folder that isn't in its place yet."""
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n")


def _file(path: Path) -> File:
    return File(sha256=hash_file(path), bytes=path.stat().st_size)


def _engine(built: EngineBuild, place: str) -> Engine:
    record = asdict(built)
    fusion = record.pop("fusion")
    for gone in ("layers", "bytes", "path"):
        del record[gone]
    record |= {
        "path": f"{place}/{ENGINE}",
        "report": f"{place}/{REPORT}",
        "log": f"{place}/{LOG}",
        "attention_fused": built.fusion.fused,
        "attention_expected": built.fusion.expected,
        "fusion_source": fusion["source"],
        "attentions": fusion["attentions"],
        "kernels": fusion["kernels"],
    }
    return Engine.model_validate(record)


def _move_in(beside: Path, whole: Path, manifest: Manifest) -> None:
    """Rename the new engine into the bundle, then the manifest; put the old engine back if the second fails."""
    place = Path(manifest.engines[-1].path).parent
    write_manifest(manifest, beside)
    fsync_tree(beside)
    (whole / ENGINES).mkdir(exist_ok=True)
    old, final = beside / "old", whole / place
    try:
        if final.exists():
            final.rename(old)
        (beside / place).rename(final)
        (beside / "manifest.json").replace(whole / "manifest.json")
    except BaseException:  # Ctrl-C between the two too
        if final.exists() and not (beside / place).exists():
            final.rename(beside / "failed")
        if old.exists():
            old.rename(final)
        elif not any((whole / ENGINES).iterdir()):
            (whole / ENGINES).rmdir()
        raise
    fsync_tree(whole)
