"""Make the graph that TensorRT builds from, and the kernels of ours that go into the engine with it.

A newcomer's trap: whether an attention is a node of ours is settled in the graph; a graph without such nodes needs nothing
here, and one with them needs their kernels, whoever wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shallowvit_kernels.records import DOMAIN

from ..engines.records import AttentionChoice, Flavour, PluginKernel

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import onnx_ir

    from shallowvit_kernels.ahead import Compiled
    from shallowvit_kernels.records import Variant

    from ..engines.flavours import Choice

__all__ = ["FOLDER", "Prepared", "plugin_targets", "prepare_graph", "write_kernels"]

FOLDER = "plugins"


@dataclass(frozen=True)
class Prepared:
    """What an engine is built from.

    Args:
        graph: The file that TensorRT reads: the given one, or a copy of it with other nodes.
        kernels: Those of ours that it needs.
        refused: Attentions that have no kernel of ours though one was wanted, by node, and why.
        job: Of ``worker/build_engine.py``: where the kernels lie, as paths in the job's folder.
    """

    graph: Path
    kernels: tuple[PluginKernel, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    job: Mapping[str, Any] = field(default_factory=dict)


def plugin_targets(choice: Choice) -> tuple[int, ...]:
    """Return the compute capabilities to compile kernels for, as 86 for 8.6.

    Those the engine is finished for, else the target's, else this machine's for full TensorRT, else what a portable engine
    needs.
    """
    from shallowvit_bench.runners.cuda_driver import first_gpu
    from shallowvit_kernels.ahead import pick_targets

    if choice.compute_capabilities:
        return choice.compute_capabilities
    if choice.target is not None:
        return pick_targets(choice.target.sm)
    gpu = first_gpu() if choice.flavour is Flavour.TENSORRT else None
    return pick_targets(gpu.sm if gpu else None)


def prepare_graph(
    graph: Path,
    folder: Path,
    attention: AttentionChoice | None,
    choice: Choice,
    *,
    unfused: Collection[str] = (),
    only: Collection[str] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Prepared:
    """Settle who computes each attention of a graph, and compile what is ours.

    Args:
        graph: The ONNX file; it stays as it is.
        folder: Where copies and kernels are written.
        attention: See ``AttentionChoice``; None leaves the graph's nodes as they are.
        choice: What the engine is built for, and so the kernels.
        unfused: With ``auto``: nodes that TensorRT was seen not to fuse, beside those of which the graph tells it.
        only: Operators that may stay plugins; the others are computed by TensorRT. None: all.
        shapes: Of inputs with dynamic sizes beside the batch: a shape that the graph can be tried at.

    Raises:
        ShallowvitError: the rewritten graph answers otherwise than the given one.
        KernelError: a kernel can't be compiled for the target.
    """
    import onnx_ir

    model = onnx_ir.load(graph)
    if attention in (None, AttentionChoice.NATIVE) and DOMAIN not in model.opset_imports:
        return Prepared(graph)
    from .rewriting import inline_plugins, plugins_of, rewrite_attention

    had = len(plugins_of(model))
    refused: tuple[tuple[str, str], ...] = ()
    changed = False
    if attention in (AttentionChoice.PLUGIN, AttentionChoice.AUTO):
        rewrite = rewrite_attention(model, str(attention), unfused=unfused)
        refused, changed = rewrite.left, bool(rewrite.replaced)
    if had and attention is AttentionChoice.NATIVE:
        inline_plugins(model)
        changed = True
    elif only is not None:
        gone = {variant.name for _node, variant in plugins_of(model)} - set(only)
        inline_plugins(model, operators=gone)
        changed = changed or bool(gone)
    nodes = plugins_of(model)
    if changed:
        graph = _written(model, graph, folder / "attention.onnx", shapes or {})
    if not nodes:
        return Prepared(graph, refused=refused)
    compiled, job = write_kernels([variant for _node, variant in nodes], folder, plugin_targets(choice))
    return Prepared(graph, _kernels(nodes, compiled), refused, job)


def write_kernels(
    variants: Sequence[Variant], folder: Path, sm: Sequence[int]
) -> tuple[dict[str, tuple[Compiled, ...]], dict[str, Any]]:
    """Compile each different variant for each compute capability into ``folder/plugins``.

    Returns:
        What was compiled, by operator, and the job's part that names the files.
    """
    from shallowvit_kernels.ahead import Request, compile_variants

    different = list(dict.fromkeys(variants))
    results = iter(compile_variants([Request(variant, one) for variant in different for one in sm]))
    compiled = {variant.name: tuple(next(results) for _ in sm) for variant in different}
    (folder / FOLDER).mkdir(exist_ok=True)
    plugins = []
    for operator, kernels in compiled.items():
        launches = []
        for kernel in kernels:
            stem = f"{FOLDER}/{operator}-sm{kernel.launch.sm}"
            (folder / f"{stem}.json").write_text(kernel.launch.to_json())
            (folder / f"{stem}.ptx").write_text(kernel.ptx)
            launches.append({"launch": f"{stem}.json", "ptx": f"{stem}.ptx"})
        plugins.append({"operator": operator, "launches": launches})
    return compiled, {"plugins": plugins}


def _written(model: onnx_ir.Model, source: Path, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """Write the rewritten graph, and hold its answers against those of the graph it came from."""
    from ..exporting.graph import write_graph
    from .checking import check_same_answers

    write_graph(model, path, dict(model.metadata_props))
    check_same_answers(source, path, shapes)
    return path


def _kernels(nodes: Sequence[tuple[str, Variant]], compiled: Mapping[str, tuple[Compiled, ...]]) -> tuple[PluginKernel, ...]:
    found = []
    for operator, kernels in compiled.items():
        facts = [kernel.facts for kernel in kernels]
        found.append(
            PluginKernel(
                operator=operator,
                nodes=tuple(node for node, variant in nodes if variant.name == operator),
                sm=tuple(kernel.launch.sm for kernel in kernels),
                registers=max(one.registers for one in facts),
                spilled_bytes=max(one.spilled_bytes for one in facts),
                shared_bytes=max(one.shared_bytes for one in facts),
            )
        )
    return tuple(found)
