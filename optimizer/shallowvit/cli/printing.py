"""What the commands print with: tables and JSON to stdout, progress and warnings to stderr."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..bundle import Bundle
    from ..models import LoadedModel
    from ..pruning import PruningPlan
    from ..scoring import BlockScores

__all__ = [
    "load_model",
    "print_bundle",
    "print_json",
    "print_line",
    "print_model",
    "print_plan",
    "print_pruning",
    "print_scores",
    "print_warnings",
    "progress",
    "scores_record",
]

_BAR = 24


@contextmanager
def progress(what: str, quiet: bool) -> Iterator[None]:
    """Show a spinner on stderr while the block runs, if a person is looking."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(f"{what} ..."):
        yield


def load_model(source: str, arch: str | None, blocks: str | None, quiet: bool) -> LoadedModel:
    """Load the source that a command was given, with a spinner."""
    from ..models import load

    with progress(f"loading {source}", quiet):
        return load(source, arch=arch, blocks=blocks.split(",") if blocks else ())


def print_json(record: object) -> None:
    """Print one JSON object on stdout."""
    sys.stdout.write(json.dumps(record, indent=1, default=str) + "\n")


def print_line(text: str) -> None:
    """Print a line on stdout."""
    sys.stdout.write(text + "\n")


def print_warnings(warnings: Sequence[str]) -> None:
    """Print warnings on stderr, each once."""
    for warning in warnings:
        sys.stderr.write(f"warning: {warning}\n")


def print_model(model: LoadedModel) -> None:
    """Say what was loaded and where its blocks are."""
    print_line(
        f"{model.origin.architecture} from {model.origin.spec}: {model.parameters:,} parameters, {model.flops / 1e9:,.2f} "
        "GFLOPs an item"
    )
    used = list(dict.fromkeys(block.stack for block in model.blocks))
    for stack in model.stacks:
        mark = "blocks of" if stack.path in used else "also found, not used:"
        print_line(f"  {mark} {stack}")


def print_scores(model: LoadedModel, scores: BlockScores, plan: PruningPlan | None = None) -> None:
    """Print a table of the scores with bars, in the order of the blocks, with the place of each in the order of removal."""
    removal = {block: place + 1 for place, block in enumerate(scores.ascending)}
    values = [row.score for row in scores.blocks]
    low, high = min(values), max(values)
    settings = ", ".join(f"{name} {value}" for name, value in scores.settings.items())
    table = Table(title=f"{scores.criterion}{f' ({settings})' if settings else ''}: higher means keep", title_justify="left")
    table.add_column("block", justify="right")
    table.add_column("path")
    table.add_column("weights", justify="right")
    table.add_column(scores.unit, justify="right")
    table.add_column("", width=_BAR)
    table.add_column("goes", justify="right")
    for row in scores.blocks:
        share = (row.score - low) / (high - low) if high > low else 1.0
        gone = plan is not None and row.block in plan.removed
        goes = f"{removal[row.block]}" + (" removed" if gone else "")
        bar = "█" * max(1, round(share * _BAR))
        table.add_row(
            str(row.block), row.path, f"{row.weights:,}", f"{row.score:.6g}", bar, goes, style="dim" if gone else None
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def scores_record(model: LoadedModel, scores: BlockScores) -> dict[str, Any]:
    """The scores as ``score --json`` prints them."""
    return {
        "source": model.origin.spec,
        "architecture": model.origin.architecture,
        "weights_sha256": scores.weights_sha256,
        "criterion": scores.criterion,
        "needs": scores.needs,
        "unit": scores.unit,
        "settings": scores.settings,
        "stacks": [
            {"path": s.path, "class": s.class_name, "blocks": s.length, "parameters": s.parameters} for s in model.stacks
        ],
        "scores": [{"block": r.block, "path": r.path, "score": r.score, "weights": r.weights} for r in scores.blocks],
        "removal_order": list(scores.ascending),
        "warnings": list(scores.warnings),
    }


def print_plan(plan: PruningPlan) -> None:
    """Say which blocks go, why, and what it saves."""
    blocks = ", ".join(map(str, plan.removed)) or "none"
    print_line(f"plan: {plan.reason}")
    print_line(f"  blocks {blocks} ({len(plan.kept)} of {len(plan.paths)} stay)")
    share = 1 - plan.flops_after / plan.flops_before if plan.flops_before else 0.0
    print_line(
        f"  parameters {plan.parameters_before:,} -> {plan.parameters_after:,}; GFLOPs an item {plan.flops_before / 1e9:,.3g} "
        f"-> {plan.flops_after / 1e9:,.3g} ({share:.1%} less)"
    )


def print_pruning(model: LoadedModel, plan: PruningPlan) -> None:
    """Say what was loaded, how its blocks scored if they were scored, and which go."""
    print_model(model)
    if plan.scores:
        print_scores(model, plan.scores, plan)
    print_plan(plan)


def print_bundle(bundle: Bundle) -> None:
    """Say what a bundle holds and how well it was checked."""
    graph, parity = bundle.manifest.graph, bundle.manifest.parity
    size = sum(file.bytes for file in bundle.manifest.files.values())
    agreement = "" if parity.top1_agreement is None else f", top-1 agreement {parity.top1_agreement:.1%}"
    print_line(
        f"{bundle.path}: {size / 1e6:.1f} MB, opset {graph.opset}, {graph.precision}, {graph.attention_nodes} attention nodes"
    )
    print_line(
        f"  parity with torch on {parity.inputs} {parity.inputs_from}: relative error {parity.relative_error:.1e} (tolerance "
        f"{parity.tolerance:g}){agreement}"
    )
    for data, metrics in bundle.manifest.metrics.items():
        low, high = metrics.top1_interval
        print_line(f"  on {data}: top-1 {metrics.top1:.1%} ({low:.1%} to {high:.1%} at 95 %) of {metrics.items:,} items")
