"""What TensorRT-RTX does its own way: engines that are built ahead of time, without a GPU, and finished on the device.

Probed with 1.7.1: timing caches are no-ops, there is no DLA, compute capabilities are chosen, and a version-compatible engine
has to leave the lean runtime out.
"""

from __future__ import annotations

from typing import Any

MODULE = "tensorrt_rtx"
TITLE = "TensorRT-RTX"


def configure(trt: Any, config: Any, job: dict[str, Any]) -> None:
    """Set what this flavour has of a job's options; raises ValueError for what it has not."""
    for option, what in (("dla_core", "DLA"), ("hardware_compatibility", "hardware compatibility levels")):
        if job.get(option) is not None:
            raise ValueError(f"{TITLE} has no {what}; leave the option out or build with the flavour tensorrt")
    wanted = job.get("compute_capabilities") or []
    if wanted:
        config.num_compute_capabilities = len(wanted)  # first the number, then each
        for index, number in enumerate(wanted):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{number}"), index)
    if job.get("version_compatible"):
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)


def takes_plugins_ahead(trt: Any) -> bool:
    """Say that this flavour hasn't ``tensorrt.plugin``: what a plugin runs is Python on the device."""
    return False


def load_timing_cache(trt: Any, config: Any, content: bytes) -> bool:
    """Say that there is nothing to load: this flavour measures no tactics while it builds."""
    return False


def saved_timing_cache(config: Any) -> bytes:
    """Return nothing to keep."""
    return b""
