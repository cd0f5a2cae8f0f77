"""Take one case through the whole line, and put what came of each stage into a row.

A newcomer's trap: the row is written after each stage, so that a crash, which isn't caught here, leaves what came before it.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from shallowvit import ExportConfig, PlanConfig, ShallowvitError, plan, prune, score
from shallowvit.engines import BuildConfig, Flavour, build_engine
from shallowvit.engines.records import AttentionChoice
from shallowvit.exporting import Precision
from shallowvit.exporting.onnx_export import export_onnx
from shallowvit.inspecting import inspect_model
from shallowvit_kernels.errors import KernelError

from .cases import open_case, removed_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shallowvit.exporting.records import ExportedOnnx
    from shallowvit.models import LoadedModel
    from shallowvit.pruning import PrunedModel

    from .cases import Case

__all__ = ["walk"]

_TIME_LIMIT_S = 240.0  # of one build


class _Row:
    """The row so far, and the file that it is written to."""

    def __init__(self, case: Case, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {"name": case.name, "family": case.family, "model": case.label, "note": case.note}
        self.values |= {"seconds": {}, "stage": "load"}

    def write(self, **values: Any) -> None:
        self.values |= values
        self.path.write_text(json.dumps(self.values))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; the row names it while it runs."""
        self.write(stage=name)
        started = time.perf_counter()
        yield
        self.values["seconds"][name] = round(time.perf_counter() - started, 1)


def walk(case: Case, folder: Path, row_path: Path, *, engine: bool) -> None:
    """Load, score, prune, export, compare and build; ``row_path`` gets what came of it."""
    row = _Row(case, row_path)
    torch.set_num_threads(1)  # operations this small wait for threads longer than they compute
    try:
        with row.stage("load"):
            model = open_case(case, folder / "model")
    except ShallowvitError as err:
        row.write(status="refused", reason=str(err), stage="load")
        return
    row.write(**_described(model))
    pruned = _pruned(case, model, row)
    exported = _exported(pruned, folder, row)
    if engine:
        _built(pruned, folder, row, exported)
    row.write(stage=None)


def _described(model: LoadedModel) -> dict[str, Any]:
    kind = type(model.module)
    return {
        "class": f"{kind.__module__.partition('.')[0]} {kind.__name__}",
        "parameters": model.parameters,
        "stacks": [{"path": stack.path, "class": stack.class_name, "blocks": stack.length} for stack in model.stacks],
        "stack": model.blocks[0].stack,
        "blocks": len(model.blocks),
        "blocks_of_stack": sum(block.stack == model.blocks[0].stack for block in model.blocks),
        "pairs": len(model.pairs),
        "inputs": sorted(model.example),
    }


def _pruned(case: Case, model: LoadedModel, row: _Row) -> PrunedModel:
    """Score, try every block, and remove those of the case; where that is refused, the whole model goes on."""
    with row.stage("score"):
        try:
            row.write(scored_by=score(model).criterion)
        except ShallowvitError as err:
            row.write(scored_by=None, score_reason=str(err))
    with row.stage("inspect"):
        outlooks = inspect_model(model).blocks
    row.write(ways=Counter(outlook.pair_way or outlook.way for outlook in outlooks))
    removed = removed_of(case, model)
    with row.stage("prune"):
        try:
            pruned = prune(model, plan(model, None, PlanConfig(remove=",".join(map(str, removed)))))
        except ShallowvitError as err:
            row.write(removed=removed, way="refused", reason=str(err))
            return prune(model, plan(model))
    # several lists may have gone different ways; the row says the one with a reason
    told = next((one for one in pruned.removals if one.way != "deleted"), pruned.removals[0])
    row.write(removed=removed, way=told.way, reason=told.reason, taps=told.taps)
    return pruned


def _exported(pruned: PrunedModel, folder: Path, row: _Row) -> ExportedOnnx | None:
    with row.stage("export"):
        try:
            exported = export_onnx(pruned, folder / "fp32.onnx", ExportConfig())
        except ShallowvitError as err:
            row.write(export={"status": "refused", "reason": str(err)})
            return None
    row.write(
        export={
            "status": "passes",
            "opset": exported.opset,
            "steps": [{"name": step.name, "outcome": step.outcome, "detail": step.detail} for step in exported.steps],
            "attentions": exported.attention_nodes,
            "attentions_rewritten": exported.attention_rewritten,
            "attentions_left": len(exported.attention_left),
            "left_reasons": sorted({why for _, why in exported.attention_left}),
            "batch": exported.batch,
            "inputs": len(exported.inputs),
            "outputs": len(exported.outputs),
            "parity_inputs": exported.parity.inputs,
            "relative_error": exported.parity.relative_error,
        }
    )
    return exported


def _built(pruned: PrunedModel, folder: Path, row: _Row, exported: ExportedOnnx | None) -> None:
    """Export in fp16 and build; attention that isn't fused is told, not refused."""
    if exported is None:
        row.write(engine={"status": "refused", "reason": "there is no graph"})
        return
    with row.stage("export fp16"):
        try:
            half = export_onnx(pruned, folder / "fp16.onnx", ExportConfig(Precision.FP16))
        except ShallowvitError as err:
            row.write(engine={"status": "refused", "reason": str(err)})
            return
    row.write(export=row.values["export"] | {"relative_error_fp16": half.parity.relative_error})
    (folder / "engine").mkdir()
    with row.stage("build"):
        try:
            config = BuildConfig(Flavour.RTX, allow_unfused=True, time_limit_s=_TIME_LIMIT_S)
            built = build_engine(half.path, folder / "engine", config)
        except ShallowvitError as err:
            row.write(engine={"status": "refused", "reason": str(err)})
            return
    left = Counter(attention.reason for attention in built.fusion.attentions if not attention.fused)
    # a softmax in none of the forms that the builder's report knows is an attention that isn't fused, too
    unknown = half.attention_nodes + len(half.attention_left) - built.fusion.expected
    if unknown > 0:
        left["; ".join(sorted({why for _, why in half.attention_left}))] += unknown
    row.write(
        engine={
            "status": "unfused" if left else "passes",
            "flavour": str(built.flavour),
            "version": built.version,
            "precision": "fp16",
            "fused": built.fusion.fused,
            "attentions": built.fusion.expected + max(unknown, 0),
            "reason": "; ".join(f"{count} of them: {reason}" for reason, count in left.items()),
        }
    )
    if left:
        _built_with_ours(half.path, folder / "own", row, built.fusion.expected + max(unknown, 0))


def _built_with_ours(graph: Path, folder: Path, row: _Row, attentions: int) -> None:
    """Build again with kernels of our own where TensorRT has left one of so many attentions unfused."""
    folder.mkdir()
    with row.stage("build with kernels of our own"):
        try:
            config = BuildConfig(Flavour.RTX, allow_unfused=True, time_limit_s=_TIME_LIMIT_S, attention=AttentionChoice.AUTO)
            built = build_engine(graph, folder, config)
        except (ShallowvitError, KernelError) as err:
            row.write(own_kernels={"status": "refused", "reason": str(err)})
            return
    left = Counter(attention.reason for attention in built.fusion.attentions if not attention.fused)
    row.write(
        own_kernels={
            "status": "unfused" if built.fusion.fused < attentions else "passes",
            "fused": built.fusion.fused,
            "attentions": attentions,
            "plugins": sum(len(one.nodes) for one in built.plugins),
            "operators": sorted(one.operator for one in built.plugins),
            "reason": "; ".join(f"{count} of them: {reason}" for reason, count in left.items()),
            "refused": sorted({why for _, why in built.plugins_refused}),
            "activation_bytes": built.activation_bytes,
        }
    )
