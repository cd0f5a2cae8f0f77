"""Register the kernels of ours that a job's graph has nodes for, so that they go into the engine.

TensorRT-RTX, and TensorRT before 10.9, get them as plugins that the device registers too (``attention_plugin.py``, of the
harness); later ones take them ahead of time. A newcomer's trap: TensorRT-RTX's parser opens a library under a name that its
wheel doesn't ship, and ends the process where it finds none.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from typing import Any

__all__ = ["PluginRefused", "Registered", "give_library_its_name", "register_plugins", "take_library_back"]

_LIBRARY, _SHIPPED, _PACKAGE = "libtensorrt_rtx.so", "libtensorrt_rtx.so.1", "tensorrt_rtx_libs"
_FOLDER = ".rtx-library"  # beside the job file, while it runs


class PluginRefused(Exception):
    """A plugin can't be made known: one sentence."""


class Registered:
    """The plugins of a job; ``ahead`` where the engine takes their code in, and the device needs nothing for them."""

    def __init__(self, problems: list[str], ahead: bool) -> None:
        self._problems, self.ahead = problems, ahead

    def problem(self) -> str | None:
        """What a plugin refused, in one sentence: TensorRT itself only says that something failed."""
        return self._problems[0] if self._problems else None


def register_plugins(trt: Any, flavour: Any, job: dict[str, Any], sm: int | None) -> Registered:
    """Make a job's operators known to TensorRT.

    Args:
        trt: TensorRT's module.
        flavour: This flavour's module.
        job: ``plugins`` lists operators with the files of their kernels, ``plugin_code`` is where the harness's code lies.
        sm: This machine's compute capability, as 86 for 8.6; None without a GPU.

    Raises:
        PluginRefused: a file is missing or damaged, or TensorRT takes no such plugin.
    """
    sys.path.insert(1, job["plugin_code"])
    try:
        operators = _read(job)
        if flavour.takes_plugins_ahead(trt):
            ahead = importlib.import_module("plugin_ahead")
            return Registered(ahead.register_ahead(trt, operators, sm), ahead=True)
        if not hasattr(trt, "IPluginCreatorV3One"):
            raise PluginRefused(f"plugin: {flavour.TITLE} {trt.__version__} takes none written in Python; they came with 10.0")
        plugins = importlib.import_module("attention_plugin").plugins_of(trt)
        for name, kernels in operators.items():
            plugins.register(name, kernels)
    except importlib.import_module("plugin_kernels").PluginError as err:
        raise PluginRefused(str(err)) from err
    return Registered(plugins.problems, ahead=False)


def _read(job: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    read_kernel = importlib.import_module("plugin_kernels").read_kernel
    operators: dict[str, tuple[Any, ...]] = {}
    for plugin in job["plugins"]:
        name = plugin["operator"]
        files = [
            (os.path.join(job["folder"], one["launch"]), os.path.join(job["folder"], one["ptx"])) for one in plugin["launches"]
        ]
        operators[name] = tuple(read_kernel(launch, ptx) for launch, ptx in files)
        strangers = [one.operator for one in operators[name] if one.operator != name]
        if strangers or not files:
            found = f"that of {strangers[0]}" if strangers else "none"
            raise PluginRefused(f"plugin: the job lists {found} as the kernel of {name}; build again")
    return operators


def give_library_its_name(job: dict[str, Any]) -> None:
    """Start again with a folder on LD_LIBRARY_PATH that has TensorRT-RTX under the name that its parser opens.

    Nothing in the wheel's own folder is touched. It must be so before the process starts, since the loader reads the
    variable once; where the name is there already, beside the library or on the path, nothing happens.
    """
    if job["flavour"] != "rtx" or not sys.platform.startswith("linux"):
        return
    found = importlib.util.find_spec(_PACKAGE)
    places = list(found.submodule_search_locations or ()) if found else []
    shipped = next((path for place in places if os.path.isfile(path := os.path.join(place, _SHIPPED))), None)
    searched = [entry for entry in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if entry]
    if shipped is None or any(os.path.exists(os.path.join(place, _LIBRARY)) for place in (*places, *searched)):
        return
    folder = os.path.join(job["folder"], _FOLDER)
    os.makedirs(folder, exist_ok=True)
    link = os.path.join(folder, _LIBRARY)
    if not os.path.lexists(link):
        os.symlink(shipped, link)
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join([folder, *searched])
    os.execv(sys.executable, [sys.executable, *sys.argv])


def take_library_back(job: dict[str, Any]) -> None:
    """Remove the folder of ``give_library_its_name``."""
    shutil.rmtree(os.path.join(job["folder"], _FOLDER), ignore_errors=True)
