"""What TensorRT-RTX does when it loads an engine: it finishes kernels for this GPU and these shapes, and can keep them.

A newcomer's trap: left alone it runs slower stand-in kernels until those for the shape are compiled, in the middle of a
measurement; here they are compiled before the first run.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

__all__ = ["RtxRuntime"]


class RtxRuntime:
    """The settings that contexts of one engine are made with, and the cache of compiled kernels."""

    def __init__(self, trt: Any, engine: Any, content: bytes) -> None:
        self._engine = engine
        self._config = engine.create_runtime_config()
        self.options: dict[str, str | int | float | bool | None] = {}
        strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is not None:
            self._config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            self.options["kernel_specialization"] = "eager"
        self._cache: Any = None
        if hasattr(self._config, "create_runtime_cache"):
            self._path = _cache_folder() / f"{hashlib.sha256(content).hexdigest()[:32]}.bin"
            self._cache = self._config.create_runtime_cache()
            known = self._path.is_file() and self._cache.deserialize(self._path.read_bytes())
            self._config.set_runtime_cache(self._cache)
            self.options["runtime_cache"] = "loaded" if known else "new"

    def create_context(self) -> Any:
        """Return a new execution context, or None, as the engine does."""
        return self._engine.create_execution_context(self._config)

    def close(self) -> None:
        """Keep the compiled kernels for the next start; a folder that can't be written costs that start its time only."""
        if self._cache is not None and self.options["runtime_cache"] == "new":
            beside = self._path.with_suffix(f".{os.getpid()}.partial")
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                beside.write_bytes(bytes(self._cache.serialize()))
                beside.replace(self._path)
            except OSError:
                beside.unlink(missing_ok=True)
        self._cache = self._config = None


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shallowvit" / "rtx-kernels"
