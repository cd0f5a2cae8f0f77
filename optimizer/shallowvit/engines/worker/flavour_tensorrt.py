"""What full TensorRT (10.0 to 11.x, on Jetson boards and servers) does its own way: it builds on the GPU that it builds for.

Written from the documentation and headers of 10.x and 11.x; no machine with it was at hand, so none of it has run.
"""

from __future__ import annotations

from typing import Any

MODULE = "tensorrt"
TITLE = "TensorRT"

_LEVELS = {"ampere-plus": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}


def configure(trt: Any, config: Any, job: dict[str, Any]) -> None:
    """Set what this flavour has of a job's options; raises ValueError for what it has not."""
    if int(trt.__version__.split(".")[0]) < 10:
        raise ValueError(f"{TITLE} {trt.__version__} has no strongly typed networks; they came with 10.0 (JetPack 6.1)")
    if job.get("compute_capabilities"):
        raise ValueError(f"{TITLE} builds for the GPU it runs on and takes no compute capabilities; leave the option out")
    if job.get("version_compatible"):
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    level = job.get("hardware_compatibility")
    if level is not None:
        name = _LEVELS[level]
        if not hasattr(trt.HardwareCompatibilityLevel, name):
            raise ValueError(f"{TITLE} {trt.__version__} has no hardware compatibility level {level}")
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, name)
    if job.get("dla_core") is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = job["dla_core"]
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)  # the DLA has no attention, so some layers always fall back


def takes_plugins_ahead(trt: Any) -> bool:
    """Say whether it takes kernels into its engines (10.9 and later)."""
    return hasattr(trt, "QuickPluginCreationRequest")


def load_timing_cache(trt: Any, config: Any, content: bytes) -> bool:
    """Give the builder the tactics timed before; one of another version or GPU is left aside (it is refused, no error)."""
    cache = config.create_timing_cache(content)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return bool(content)
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return False


def saved_timing_cache(config: Any) -> bytes:
    """Return the cache with what this build has timed."""
    cache = config.get_timing_cache()
    return bytes(cache.serialize()) if cache is not None else b""
