"""The stage *export*: a pruned model in, a checked ONNX graph out."""

from __future__ import annotations

import gc
import json
from typing import TYPE_CHECKING

import torch

from .deployment import deployable, frame_shape
from .graph import count_attention, output_shape, trace, write_graph
from .parity import check_parity, number_of_inputs, real_inputs
from .records import ExportConfig, ExportedOnnx, GraphInput, GraphOutput

if TYPE_CHECKING:
    from pathlib import Path

    from ..models import LoadedModel
    from ..pruning import PrunedModel

__all__ = ["export_onnx"]


def export_onnx(pruned: PrunedModel, path: Path, config: ExportConfig | None = None) -> ExportedOnnx:
    """Export to ``path`` and compare the graph with torch in fp32.

    Args:
        pruned: What ``prune`` returned; an empty plan exports the whole model.
        path: The ONNX file to write; weights above 2 GB stand beside it in ``path + ".data"``.
        config: See ``ExportConfig``.

    Raises:
        ShallowvitError: the model can't be exported.
        ParityError: the graph doesn't answer as torch does.
    """
    config = config or ExportConfig()
    model = pruned.model
    graph_input = _graph_input(model, config)
    module = deployable(model, config.precision, preprocess=config.embed_preprocessing, frame_size=config.frame_size)
    graph = trace(module, graph_input, _output_name(model), config)
    attention_nodes = count_attention(graph, config.opset)
    shape = output_shape(graph)
    write_graph(graph, path, _metadata(pruned, config))
    del graph, module
    gc.collect()  # the traced program holds the weights a second time

    reference = deployable(model, preprocess=config.embed_preprocessing, frame_size=config.frame_size)
    inputs, inputs_from = real_inputs(graph_input, model.input_spec, number_of_inputs(model.flops))
    parity = check_parity(path, reference, graph_input, inputs, inputs_from, config.precision)
    output = GraphOutput(_output_name(model), "float32", shape)
    return ExportedOnnx(
        path, config.opset, str(config.precision), graph_input, output, attention_nodes, len(pruned.plan.kept), parity
    )


def _graph_input(model: LoadedModel, config: ExportConfig) -> GraphInput:
    spec = model.input_spec
    if not config.embed_preprocessing:
        return GraphInput(spec.name, "float32", spec.layout, spec.shape)
    layout = "NTHWC" if spec.layout == "NTCHW" else "NHWC"
    return GraphInput("frames", "uint8", layout, frame_shape(model, config.frame_size))


def _output_name(model: LoadedModel) -> str:
    """``logits`` of a classifier, else ``features``."""
    head = getattr(model.module, "num_classes", 0) or hasattr(getattr(model.module, "config", None), "id2label")
    known = model.origin.family in ("timm", "torchvision")
    classifies = model.labels is not None or (isinstance(head, int) and head > 0 and known)
    return "logits" if classifies or model.origin.architecture.endswith("Classification") else "features"


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
