"""Read an engine's layers as TensorRT prints them, and find the ones that are a fused attention.

The builder's verbose log has one message that starts with ``Layers:``; ``EngineInspector`` gives the same as JSON on a GPU. A
newcomer's trap: names of ONNX nodes leak into a layer's Name, so only its TacticName tells which kernel runs.
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = [
    "fused_nodes",
    "is_fused_attention",
    "is_plugin",
    "kernels_in_bytes",
    "kernels_of_nodes",
    "layers_from_inspector",
    "layers_from_log",
]

_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<type>[^,]*), .*?TacticName: (?P<tactic>[^,]*), StreamId")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
# TensorRT-RTX 1.7 and TensorRT 10.13 and later, which share the compiler
_KERNEL = re.compile(r"^_ge(?:mm|mv)_mha_v\d+(?:_0x[0-9a-f]{32}|\b)")
# TensorRT before that: ready-made kernels, whose names begin with these words or hold them between underscores
_OLDER_KERNEL = re.compile(r"^(?:fused_mha|fmha|kgen_mha|_?mha_v\d)|(?:^|_)(?:fmha|fused_mha|kgen_mha)_")
# A plugin's layer has no tactic; TensorRT-RTX calls its type custom_layer, full TensorRT PluginV3 (PluginV2 of older ones).
_PLUGIN_TYPE = re.compile(r"^(?:custom_layer$|Plugin)")
_IN_BYTES = re.compile(rb"_ge(?:mm|mv)_mha_v\d+_0x[0-9a-f]{32}")
# Of a PTX: a node's name may hold its operator's too, also where TensorRT has written the node out.
_OURS_IN_BYTES = re.compile(rb"\.entry (shallowvit_[a-z0-9_]+_d\d+_[0-9a-f]{8})\(")

Layer = dict[str, Any]


def layers_from_log(text: str) -> list[Layer]:
    """Return the layers of a builder's message ``Layers:`` as dictionaries with name, type, tactic and nodes.

    An engine of several optimisation profiles has its layers once a profile.
    """
    found = []
    for line in text.split("\n"):  # splitlines would split at the separator that full TensorRT writes between nodes
        match = _LAYER.match(line)
        if match:
            nodes = _NODE.findall(line.rpartition("Metadata:")[2])
            found.append({"name": match["name"], "type": match["type"], "tactic": match["tactic"], "nodes": nodes})
    return found


def layers_from_inspector(text: str) -> list[Layer]:
    """Return the same from the JSON of ``EngineInspector.get_engine_information``."""
    found = []
    for layer in json.loads(text).get("Layers", []):
        if isinstance(layer, dict):  # plain names come from an engine built without detailed profiling verbosity
            name, kind, tactic = layer.get("Name", ""), layer.get("LayerType", ""), layer.get("TacticName", "")
            nodes = _NODE.findall(str(layer.get("Metadata", "")))
            found.append({"name": name, "type": kind, "tactic": tactic, "nodes": nodes})
    return found


def is_fused_attention(layer: Layer) -> bool:
    """Say whether a layer is one kernel for a whole attention."""
    tactic = layer["tactic"]
    return bool(_KERNEL.search(tactic) or _OLDER_KERNEL.search(tactic))


def fused_nodes(layers: list[Layer]) -> dict[str, list[str]]:
    """Return ONNX node -> kernels, one an optimisation profile, for every node that runs inside a fused attention."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        if is_fused_attention(layer):
            for node in layer["nodes"]:
                found.setdefault(node, []).append(layer["tactic"])
    return found


def is_plugin(layer: Layer) -> bool:
    """Say whether a layer runs a plugin."""
    return bool(_PLUGIN_TYPE.search(layer["type"]))


def kernels_of_nodes(layers: list[Layer], sites: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return node -> kernels, one an optimisation profile, for the attentions of a graph.

    Args:
        layers: The engine's.
        sites: ``anchor``, the attention's node, and ``operator`` where it is one of ours, whose plugin is its kernel.
    """
    fused = fused_nodes(layers)
    found = {}
    for site in sites:
        node, operator = site["anchor"], site.get("operator")
        plugins = [operator for layer in layers if operator and is_plugin(layer) and node in layer["nodes"]]
        found[node] = [*fused.get(node, ()), *plugins]
    return found


def kernels_in_bytes(engine: bytes) -> list[str]:
    """Return the names of the attention kernels that an engine's bytes hold, TensorRT's and ours, sorted."""
    return sorted({match.decode() for match in (*_IN_BYTES.findall(engine), *_OURS_IN_BYTES.findall(engine))})


def memory_from_log(text: str, what: str) -> int | None:
    """Return the largest ``Total WHAT Memory: N bytes`` of a log (one an engine part), or None."""
    found = re.findall(rf"Total {what} Memory: (\d+) bytes", text)
    return max(map(int, found)) if found else None
