"""Check an adaptive bundle again: its own file, the gate and every depth as bundles, nothing missing, nothing extra."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ..bundle import verify
from ..errors import ShallowvitError
from .manifest import ADAPTIVE_FILE, SCHEMA_VERSION, AdaptiveManifest

__all__ = ["AdaptiveBundle", "is_adaptive", "parts_of", "read_adaptive_manifest", "verify_adaptive"]

_README = "README.md"


@dataclass(frozen=True)
class AdaptiveBundle:
    """A folder with a gate and two or three depths of a model, and what ties them together."""

    path: Path
    manifest: AdaptiveManifest

    @property
    def parts(self) -> tuple[Path, ...]:
        """The folders of the gate and the depths, each an ordinary bundle."""
        return (self.path / self.manifest.gate.path, *(self.path / one.path for one in self.manifest.depths))


def is_adaptive(path: str | Path) -> bool:
    """Say whether a folder is an adaptive bundle."""
    return (Path(path) / ADAPTIVE_FILE).is_file()


def parts_of(path: str | Path) -> tuple[Path, ...]:
    """Return the bundles that a folder holds: those of an adaptive one, else the folder itself.

    Raises:
        ShallowvitError: ``adaptive.json`` can't be read.
    """
    return AdaptiveBundle(Path(path), read_adaptive_manifest(Path(path))).parts if is_adaptive(path) else (Path(path),)


def read_adaptive_manifest(path: Path) -> AdaptiveManifest:
    """Read ``adaptive.json`` of a folder.

    Raises:
        ShallowvitError: it isn't there, or damaged, or of a newer version.
    """
    file = path / ADAPTIVE_FILE
    if not file.is_file():
        raise ShallowvitError(f"verify: no {ADAPTIVE_FILE} in {path}; is this a bundle that shallowvit adapt wrote?")
    content = file.read_bytes()
    try:
        version = json.loads(content).get("schema_version")
    except (ValueError, AttributeError) as err:
        raise ShallowvitError(f"verify: {file} is not JSON of a bundle ({err}); copy the bundle again") from err
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ShallowvitError(f"verify: {file} has schema {version}, this version reads {SCHEMA_VERSION}; update shallowvit")
    try:
        return AdaptiveManifest.model_validate_json(content)
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its top level"
        raise ShallowvitError(f"verify: {file} is damaged at {where}: {first['msg']}; copy the bundle again") from err


def verify_adaptive(path: str | Path) -> AdaptiveBundle:
    """Recheck the adaptive bundle at ``path`` and return it.

    Raises:
        ShallowvitError: names the first thing that is wrong.
    """
    path = Path(path)
    manifest = read_adaptive_manifest(path)
    graphs = {one.path: one.sha256 for one in manifest.depths} | {manifest.gate.path: manifest.gate.sha256}
    extra = sorted({one.name for one in path.iterdir()} - set(graphs) - {ADAPTIVE_FILE, _README})
    if extra:
        raise ShallowvitError(
            f"verify: {path / extra[0]} is not in {ADAPTIVE_FILE} ({len(extra)} extra); a bundle holds only its own files"
        )
    for name, expected in graphs.items():
        found = verify(path / name).manifest.files["model.onnx"].sha256
        if found != expected:
            raise ShallowvitError(
                f"verify: the graph of {path / name} has sha256 {found[:16]}..., {ADAPTIVE_FILE} says "
                f"{expected[:16]}...; copy the bundle again"
            )
    return AdaptiveBundle(path, manifest)
