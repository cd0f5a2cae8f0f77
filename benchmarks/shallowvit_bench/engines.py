"""Say whether an engine of a bundle can be loaded on a device, from what the manifest and the device tell, before trying.

A newcomer's trap: TensorRT refuses a foreign engine with a tag that doesn't match, and no word on which version made it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TITLES", "engine_refusal"]

TITLES = {"rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}
_PORTABLE_FROM = 80  # TensorRT-RTX without named compute capabilities; also TensorRT's level ampere-plus


def engine_refusal(engine: Mapping[str, Any], bundle: str, version: str | None, sm: int | None) -> str | None:
    """Return why an engine can't be loaded here, with both versions and the command that builds it anew, or None.

    Args:
        engine: An entry of ``engines`` in the manifest.
        bundle: The bundle's path, for the command.
        version: The installed version of the engine's flavour; None where there is none.
        sm: The GPU's compute capability, as 86 for 8.6; None without a GPU.
    """
    title = TITLES[engine["flavour"]]
    what = f"{engine['path']} was built by {title} {engine['version']}"
    again = f"shallowvit build {bundle} --engine {engine['flavour']}"
    if version is None:
        return f"{what}, which isn't installed here; install it, or build on a machine that has it: {again}"
    if not _version_fits(engine, version):
        return f"{what}, and here is {version}; build it again with: {again}"
    if sm is None:
        return f"{what} and needs an NVIDIA GPU, and there is none here; copy the bundle to the device"
    if not _device_fits(engine, sm):
        made = ", ".join(f"{number / 10:.1f}" for number in engine["sm"]) or "8.0 and later"
        return f"{what} for compute capability {made}, and this GPU has {sm / 10:.1f}; build it again here with: {again}"
    return None


def _version_fits(engine: Mapping[str, Any], version: str) -> bool:
    built, here = _numbers(engine["version"]), _numbers(version)
    if engine["options"].get("version_compatible"):
        return here[0] == built[0] and here >= built
    return here == built


def _numbers(version: str) -> tuple[int, ...]:
    """Major, minor and patch; the build number behind them changes nothing about engines."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())


def _device_fits(engine: Mapping[str, Any], sm: int) -> bool:
    level = engine["options"].get("hardware_compatibility")
    if level == "ampere-plus" or (engine["flavour"] == "rtx" and not engine["sm"]):
        return sm >= _PORTABLE_FROM
    return sm in engine["sm"]
