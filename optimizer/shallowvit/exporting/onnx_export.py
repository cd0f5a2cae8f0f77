"""The stage *export*: a pruned model in, a checked ONNX graph out.

trace -> attention as one node, in a type that fuses -> written and compared with torch -> quantised and compared again
"""

from __future__ import annotations

import gc
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..engines.records import AttentionChoice
from ..errors import ShallowvitError
from ..models.zero_branch import has_zero_branches
from .deployment import deployable, frame_shape
from .dynamic_sizes import check_traced, checked_shapes, dynamic_input, dynamic_model, dynamic_options
from .fusing import FusedAttention, fuse_attention
from .graph import batch_of, count_attention, output_facts, trace, write_graph
from .inputs import graph_inputs_of, sample_inputs
from .islands import cast_attention
from .masks import drop_neutral_masks
from .outputs import wanted_outputs
from .parity import check_parity, number_of_inputs
from .quantizing import quantize_checked
from .records import FLOATS, ExportConfig, ExportedOnnx, GraphInput, GraphOutput, Precision
from .upcast import upcast_nodes
from .zero_branches import drop_zero_branches

if TYPE_CHECKING:
    import onnx_ir
    from torch import nn

    from ..models import LoadedModel
    from ..pruning import PrunedModel

__all__ = ["export_onnx", "inputs_of_graph"]

_CHECKED_ITEMS = 4  # a size, in a batch of 3 and one of 1


def export_onnx(
    pruned: PrunedModel, path: Path, config: ExportConfig | None = None, *, data: str | None = None
) -> ExportedOnnx:
    """Export to ``path`` and compare the graph with torch in fp32.

    Args:
        pruned: What ``prune`` returned; an empty plan exports the whole model.
        path: The ONNX file to write; weights above 2 GB stand beside it in ``path + ".data"``.
        config: See ``ExportConfig``.
        data: What a quantised graph is checked on, beside its calibration inputs; by default on clips of handwritten digits.

    Raises:
        ShallowvitError: the model can't be exported, or not in this precision.
        ParityError: the graph doesn't answer as torch does.
        AccuracyError: the quantised graph loses more top-1 than ``config.max_accuracy_drop``.
    """
    config = config or ExportConfig()
    config = replace(config, keep_precise=_in_pruned_model(config.keep_precise, pruned))
    inputs_of_graph(pruned.model, config)  # what can't be an input is told before a forward at another size fails
    if pruned.tokens and dynamic_options(config):
        raise ShallowvitError(
            f"export: {dynamic_options(config)}: how many tokens stay is a constant ({pruned.tokens.text}), so the graph takes "
            "one size; leave out --keep-tokens or export one size"
        )
    pruned = replace(pruned, model=dynamic_model(pruned.model, config))
    if config.precision in FLOATS:
        return _export_float(pruned, path, config)
    if config.attention is not AttentionChoice.NATIVE:
        raise ShallowvitError(
            f"export: --attention {config.attention} is of float graphs, and this one is quantised to {config.precision}; "
            "export without it and name it to shallowvit build"
        )
    assert config.quantize is not None
    # the kept blocks of a quantised graph are those that aren't quantised; all of them compute in the base type
    quantize = replace(config.quantize, keep=config.keep_precise)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".float-") as folder:
        floats = replace(config, precision=config.base, float_precision=None, quantize=None, keep_precise=())
        exported = _export_float(pruned, Path(folder) / path.name, floats)
        reference = _deployed(pruned, config)
        quantized, check = quantize_checked(pruned.model, exported, path, quantize, reference, data, config.max_accuracy_drop)
    return replace(
        exported, path=path, opset=quantized.opset, precision=str(config.precision), quantized=quantized, check=check
    )


def _export_float(pruned: PrunedModel, path: Path, config: ExportConfig) -> ExportedOnnx:
    model = pruned.model
    inputs = inputs_of_graph(model, config)
    wanted = wanted_outputs(pruned, config.outputs)
    items, inputs_from = sample_inputs(inputs, model, number_of_inputs(model.flops))
    names = _kept_names(model, config)
    module = _deployed(pruned, config, config.precision, names.modules)
    try:
        graph, steps = trace(module, inputs, [one.name for one in wanted], config, items)
        check_traced(graph, inputs[0])
    except ShallowvitError as err:
        if not dynamic_options(config):
            raise
        raise ShallowvitError(
            f"export: {dynamic_options(config)} isn't possible with {model.origin.architecture}; export one size, with "
            f"--image-size or --frames ({err})"
        ) from err
    if has_zero_branches(model.module):
        drop_zero_branches(graph)
    fused = _settle_attention(graph, config, names.nodes)
    plugins, left = _as_plugins(graph, config)
    attention_nodes = count_attention(graph, config.opset)
    outputs = tuple(
        GraphOutput(one.name, dtype, shape, one.source) for one, (dtype, shape) in zip(wanted, output_facts(graph), strict=True)
    )
    batch = batch_of(graph)
    write_graph(graph, path, _metadata(pruned, config))
    del graph, module
    gc.collect()  # the traced program holds the weights a second time

    fixed = None if batch == "dynamic" else batch
    reference = _deployed(pruned, config)
    parity = check_parity(path, reference, inputs, items, inputs_from, config.precision, fixed)
    for shape in checked_shapes(inputs[0]):
        sized = (replace(inputs[0], shape=shape, ranges={}), *inputs[1:])
        items, inputs_from = sample_inputs(sized, model, _CHECKED_ITEMS)
        other = check_parity(path, reference, sized, items, inputs_from, config.precision, fixed)
        worst = max(parity, other, key=lambda one: one.relative_error)
        parity = replace(worst, inputs=parity.inputs + other.inputs)
    return ExportedOnnx(
        path=path,
        opset=config.opset,
        precision=str(config.precision),
        inputs=inputs,
        outputs=outputs,
        attention_nodes=attention_nodes,
        blocks=len(pruned.plan.standing),
        parity=parity,
        attention_rewritten=fused.rewritten,
        attention_left=_left(fused.left, left, plugins),
        attention_plugins=plugins,
        steps=steps,
        batch=batch,
    )


def _deployed(
    pruned: PrunedModel, config: ExportConfig, precision: Precision = Precision.FP32, keep_precise: tuple[str, ...] = ()
) -> nn.Module:
    """The module with the graph's inputs and outputs; in fp32 what the graph is compared with."""
    return deployable(
        pruned.model,
        precision,
        keep_precise=keep_precise,
        preprocess=config.embed_preprocessing,
        frame_size=config.frame_size,
        outputs=wanted_outputs(pruned, config.outputs),
    )


def _in_pruned_model(names: tuple[str, ...], pruned: PrunedModel) -> tuple[str, ...]:
    """Blocks are named as in the unpruned model, by number or path; return where they are now. Other names stay."""
    paths = pruned.plan.paths
    now = {block: path for path, block in pruned.places.items()}
    found = []
    for name in names:
        block = (
            int(name) if name.isdecimal() else next((n for n, p in enumerate(paths) if f"{name}.".startswith(f"{p}.")), None)
        )
        if block is None:
            found.append(name)
        elif block in now:
            found.append(now[block] + ("" if name.isdecimal() else name[len(paths[block]) :]))
        else:
            known = f"was removed; {', '.join(map(str, now))} stay" if block < len(paths) else f"isn't one of {len(paths)}"
            raise ShallowvitError(f"export: --keep-precise {name}: block {block} {known}")
    return tuple(found)


@dataclass(frozen=True)
class _Names:
    """What is to stay in fp32: modules, which torch keeps before the trace, and single nodes of the graph."""

    modules: tuple[str, ...]
    nodes: tuple[str, ...]


def _kept_names(model: LoadedModel, config: ExportConfig) -> _Names:
    modules = dict(model.module.named_modules())
    kept = config.keep_precise
    # a name of neither kind goes to the modules' check, which lists near ones
    nodes = tuple(name for name in kept if name not in modules and name.startswith("node_"))
    return _Names(tuple(name for name in kept if name not in nodes), nodes)


def _settle_attention(graph: onnx_ir.Model, config: ExportConfig, fp32_nodes: tuple[str, ...]) -> FusedAttention:
    """Make attention one node where the opset has it, in a type that fuses; return what became of MatMul and Softmax."""
    fused = fuse_attention(graph) if config.opset >= 23 else FusedAttention(0, 0, ())
    drop_neutral_masks(graph)
    upcast_nodes(graph, fp32_nodes)
    island = config.attention_precision or (config.precision if config.keep_precise else None)
    if island in (Precision.FP16, Precision.BF16):
        cast_attention(graph, island)
    return fused


def _left(
    native: tuple[tuple[str, str], ...], own: tuple[tuple[str, str], ...], plugins: tuple[tuple[str, str], ...]
) -> tuple[tuple[str, str], ...]:
    """Each attention that stayed as it was, once; what no Attention node takes may have become a node of ours."""
    ours = {node for node, _operator in plugins}
    return tuple(({node: reason for node, reason in native if node not in ours} | dict(own)).items())


def _as_plugins(graph: onnx_ir.Model, config: ExportConfig) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """Make attentions nodes of our own, as ``config.attention`` says; return those with their operators, and what was left."""
    if config.attention is AttentionChoice.NATIVE:
        return (), ()
    from ..plugins.rewriting import rewrite_attention

    rewrite = rewrite_attention(graph, str(config.attention))
    return tuple((node, variant.name) for node, variant in rewrite.replaced), rewrite.left


def inputs_of_graph(model: LoadedModel, config: ExportConfig) -> tuple[GraphInput, ...]:
    """Return the inputs that the exported graph will have, the main one first."""
    main, *others = graph_inputs_of(model)
    main = dynamic_input(main, model, config)
    if not config.embed_preprocessing:
        return (main, *others)
    layout = "NTHWC" if main.layout == "NTCHW" else "NHWC"
    return (GraphInput("frames", "uint8", layout, frame_shape(model, config.frame_size)), *others)


def _metadata(pruned: PrunedModel, config: ExportConfig) -> dict[str, str]:
    """What a reader of the file alone wants to know; no time and no path, so that a second run gives the same bytes."""
    plan, origin = pruned.plan, pruned.model.origin
    scores = {row.block: row.score for row in plan.scores.blocks} if plan.scores else {}
    return {
        "shallowvit.source_architecture": origin.architecture,
        "shallowvit.source_weights_sha256": plan.weights_sha256,
        "shallowvit.blocks_kept": json.dumps(plan.kept),
        "shallowvit.blocks_removed": json.dumps(plan.removed),
        "shallowvit.criterion": plan.scores.criterion if plan.scores else "",
        "shallowvit.scores": json.dumps(scores),
        "shallowvit.precision": str(config.precision),
        "shallowvit.torch": torch.__version__,
    }
