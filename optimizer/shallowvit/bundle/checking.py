"""Check a bundle again: its manifest, every file's size and hash, nothing missing, nothing extra, a graph that loads."""

from __future__ import annotations

import json
from pathlib import Path

from shallowvit_bench.bundles import SAMPLES

from ..errors import ShallowvitError
from ..files import hash_file
from .manifest import SCHEMA_VERSION, Engine, Manifest
from .records import Bundle

__all__ = ["verify"]


def verify(path: str | Path) -> Bundle:
    """Recheck the bundle at ``path`` and return it.

    Raises:
        ShallowvitError: names the first thing that is wrong.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()} - {"manifest.json"}
    if "model.onnx" not in manifest.files:
        raise ShallowvitError(f"verify: {path / 'manifest.json'} names no model.onnx; copy the bundle again")
    for name, expected in manifest.files.items():
        file = path / name
        if name not in present:
            raise ShallowvitError(f"verify: {file} is missing; copy the bundle again")
        if file.stat().st_size != expected.bytes:
            raise ShallowvitError(
                f"verify: {file} has {file.stat().st_size} bytes, the manifest says {expected.bytes}; copy the bundle again"
            )
        found = hash_file(file)
        if found != expected.sha256:
            raise ShallowvitError(
                f"verify: {file} has sha256 {found[:16]}..., the manifest says {expected.sha256[:16]}...; copy the bundle again"
            )
    extra = sorted(present - set(manifest.files))
    if extra:
        raise ShallowvitError(
            f"verify: {path / extra[0]} is not in the manifest ({len(extra)} extra); a bundle holds only its own files"
        )
    _check_graph(path / "model.onnx", manifest)
    for engine in manifest.engines:
        _check_engine(path, engine)
    return Bundle(path, manifest)


def _read_manifest(path: Path) -> Manifest:
    from pydantic import ValidationError

    if not path.is_dir():
        raise ShallowvitError(f"verify: no folder {path}. Check the path")
    file = path / "manifest.json"
    if (path / "adaptive.json").is_file():
        raise ShallowvitError(
            f"verify: {path} is an adaptive bundle, whose depths are bundles of their own; name one of its folders"
        )
    if not file.is_file():
        raise ShallowvitError(f"verify: no manifest.json in {path}; is this a bundle that shallowvit export wrote?")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as err:
        raise ShallowvitError(f"verify: {file} is not JSON ({err}); copy the bundle again") from err
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ShallowvitError(f"verify: {file} has schema {version}, this version reads {SCHEMA_VERSION}; update shallowvit")
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its top level"
        raise ShallowvitError(f"verify: {file} is damaged at {where}: {first['msg']}; copy the bundle again") from err


def _check_engine(path: Path, engine: Engine) -> None:
    """The kernels that the manifest names must stand in the engine."""
    from ..engines.worker.layers import kernels_in_bytes

    if not (path / engine.path).is_file():
        raise ShallowvitError(f"verify: {path / engine.path} is missing; build it again with: shallowvit build {path}")
    found = kernels_in_bytes((path / engine.path).read_bytes())
    if engine.kernels is not None and list(engine.kernels) != found:
        raise ShallowvitError(
            f"verify: {path / engine.path} holds the attention kernels {', '.join(found) or 'none'}, the manifest says "
            f"{', '.join(engine.kernels) or 'none'}; build it again with: shallowvit build {path}"
        )


def _check_graph(path: Path, manifest: Manifest) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as err:
        raise ShallowvitError(f"verify: the onnx checker refuses {path}: {str(err).partition(chr(10))[0]}") from err
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    pairs = (
        ("takes", [value.name for value in graph.input if value.name not in weights], manifest.graph.inputs),
        ("gives", [value.name for value in graph.output], manifest.graph.outputs),
    )
    for verb, found, entries in pairs:
        expected = [entry.name for entry in entries]
        if found != expected:
            raise ShallowvitError(
                f"verify: {path} {verb} {', '.join(found)}, the manifest says {', '.join(expected)}; export the model again"
            )
    if len(manifest.graph.inputs) > 1 and SAMPLES not in manifest.files:
        raise ShallowvitError(f"verify: {path.parent} has several inputs and no {SAMPLES}; export the model again")
