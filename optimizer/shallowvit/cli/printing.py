"""What the commands print with: tables and JSON to stdout, progress and warnings to stderr."""

from __future__ import annotations

import json
import math
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from ..bundle import Bundle
    from ..bundle.manifest import Quantization
    from ..models import Changes, LoadedModel
    from ..pruning import PrunedModel, PruningPlan
    from ..scoring import BlockScores, Comparison

__all__ = [
    "changes_from_options",
    "load_model",
    "print_bundle",
    "print_comparison",
    "print_json",
    "print_line",
    "print_model",
    "print_plan",
    "print_pruning",
    "print_scores",
    "print_subject",
    "print_table",
    "print_tokens",
    "print_warnings",
    "progress",
    "scores_record",
    "split",
]

_BAR = 24
_WIDTH = 140  # of tables, where stdout is no terminal


@contextmanager
def progress(what: str, quiet: bool) -> Iterator[None]:
    """Show a spinner on stderr while the block runs, if a person is looking."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(f"{what} ..."):
        yield


def load_model(source: str, arch: str | None, blocks: str | None, quiet: bool, changes: Changes | None = None) -> LoadedModel:
    """Load the source that a command was given, with a spinner; warn of what is to know about it."""
    from ..models import load

    with progress(f"loading {source}", quiet):
        model = load(source, arch=arch, blocks=split(blocks), changes=changes)
    print_warnings(model.notes)
    return model


def changes_from_options(head: str | None, image_size: str | None, frames: int | None) -> Changes | None:
    """The changes that --head, --image-size and --frames ask for; None without any."""
    if head is None and image_size is None and frames is None:
        return None
    from ..models.changes import Changes, parse_image_size

    return Changes(head, parse_image_size(image_size) if image_size else None, frames)


def split(blocks: str | None) -> tuple[str, ...]:
    """Split the paths that --blocks was given."""
    return tuple(blocks.split(",")) if blocks else ()


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


def print_subject(source: str, model: LoadedModel | None, scores: BlockScores) -> None:
    """Say what was scored: the model, or the checkpoint whose weights were read without building it."""
    if model is not None:
        print_model(model)
        return
    stacks = ", ".join(dict.fromkeys(row.stack for row in scores.blocks))
    print_line(f"{source}: {len(scores.blocks)} blocks of {stacks}, found by the names of the weights (the model isn't built)")


def print_scores(scores: BlockScores, removed: Collection[int] = ()) -> None:
    """Print a table of the scores with bars, in the order of the blocks, with each one's place in the order of removal.

    Beside it stands its place by depth alone (the last block first), and under it how well the two orders agree.
    """
    from ..scoring.comparison import rank_correlation

    places = {block: place + 1 for place, block in enumerate(scores.ascending)}
    values = [row.score for row in scores.blocks]
    low, high = min(values), max(values)
    if scores.reason:
        print_line(scores.reason)
    table = Table(title=_title(scores), title_justify="left")
    table.add_column("block", justify="right")
    table.add_column("path")
    table.add_column("weights", justify="right")
    table.add_column(scores.unit, justify="right")
    table.add_column("", width=_BAR)
    table.add_column("goes", justify="right")
    table.add_column("last-k", justify="right")
    for row in scores.blocks:
        share = (row.score - low) / (high - low) if high > low else 1.0
        gone = row.block in removed
        goes = f"{places[row.block]}" + (" removed" if gone else "")
        bar = "█" * max(1, round(share * _BAR))
        last = str(len(values) - row.block)
        table.add_row(
            str(row.block), row.path, f"{row.weights:,}", f"{row.score:.6g}", bar, goes, last, style="dim" if gone else None
        )
    print_table(table)
    agreement = rank_correlation(values, [-row.block for row in scores.blocks])
    print_line(f"order against removing the last blocks (last-k): Spearman {agreement:+.2f}")


def print_comparison(compared: Comparison, removed: Collection[int]) -> None:
    """Print each block's place in the order of removal by each criterion, and the rank correlations of all pairs.

    A criterion's first few, as many as the first criterion removes, are marked.
    """
    names = [scores.criterion for scores in compared.scores]
    places = [{block: place for place, block in enumerate(scores.ascending)} for scores in compared.scores]
    marked = f"; the first {len(removed)} have a *" if removed else ""
    table = Table(title=f"place in the order of removal (1 goes first{marked})", title_justify="left")
    table.add_column("criterion")
    for row in compared.scores[0].blocks:
        table.add_column(str(row.block), justify="right")
    table.add_column(f"Spearman with {names[0]}", justify="right")
    table.add_column("with depth", justify="right")
    depth = names.index("depth")
    for name, order, correlations in zip(names, places, compared.spearman, strict=True):
        cells = [f"{place + 1}{'*' if place < len(removed) else ''}" for _, place in sorted(order.items())]
        table.add_row(name, *cells, f"{correlations[0]:+.2f}", f"{correlations[depth]:+.2f}")
    print_table(table)
    if compared.skipped:
        reasons: dict[str, list[str]] = {}
        for name, reason in compared.skipped:
            reasons.setdefault(reason, []).append(name)
        for reason, left_out in reasons.items():
            print_line(f"left out: {', '.join(left_out)}: {reason}")


def scores_record(source: str, model: LoadedModel | None, compared: Comparison) -> dict[str, Any]:
    """The scores as ``score --json`` prints them; ``prune --scores`` reads it too."""
    from ..scoring.saved import record_from_scores

    record = {"source": source, **record_from_scores(compared.scores[0])}
    if model is not None:
        record["architecture"] = model.origin.architecture
        record["stacks"] = [
            {"path": s.path, "class": s.class_name, "blocks": s.length, "parameters": s.parameters} for s in model.stacks
        ]
    names = [scores.criterion for scores in compared.scores]
    record["compared"] = [record_from_scores(scores) for scores in compared.scores[1:]]
    record["spearman"] = {
        one: {other: None if math.isnan(value) else value for other, value in zip(names, row, strict=True)}
        for one, row in zip(names, compared.spearman, strict=True)
    }
    record["left_out"] = dict(compared.skipped)
    return record


def _title(scores: BlockScores) -> str:
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in scores.settings.items())
    return f"{scores.criterion}{f' ({settings})' if settings else ''}: higher means keep"


def print_table(table: Table) -> None:
    """Print a table, in a fixed width where stdout is no terminal."""
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)


def print_plan(plan: PruningPlan) -> None:
    """Say which blocks go, why, and what it saves."""
    blocks = ", ".join(map(str, plan.removed)) or "none"
    print_line(f"plan: {plan.reason}")
    what = "blocks" if plan.granularity == "block" else f"the {plan.granularity} of blocks"
    print_line(f"  {what} {blocks} ({len(plan.kept)} of {len(plan.paths)} stay)")
    share = 1 - plan.flops_after / plan.flops_before if plan.flops_before else 0.0
    print_line(
        f"  parameters {plan.parameters_before:,} -> {plan.parameters_after:,}; GFLOPs an item {plan.flops_before / 1e9:,.3g} "
        f"-> {plan.flops_after / 1e9:,.3g} ({share:.1%} less)"
    )


def print_tokens(whole: PrunedModel, reduced: PrunedModel) -> None:
    """Say how many tokens stay behind which block, and what that saves of what the blocks that stay do."""
    if reduced.tokens is None or whole.tokens is not None:
        return
    before, after = whole.model.flops, reduced.model.flops
    print_line(f"tokens: {reduced.tokens.text}")
    print_line(f"  GFLOPs an item {before / 1e9:,.3g} -> {after / 1e9:,.3g} ({1 - after / before:.1%} less)")


def print_pruning(model: LoadedModel, whole: PrunedModel, reduced: PrunedModel) -> None:
    """Say what was loaded, how its blocks scored if they were scored, which go, and how many tokens stay."""
    print_model(model)
    plan = whole.plan
    if plan.scores:
        print_scores(plan.scores, plan.removed)
    print_plan(plan)
    print_tokens(whole, reduced)


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
    if graph.attention_rewritten:
        print_line(f"  {graph.attention_rewritten} attentions were MatMul and Softmax and became one node each")
    if graph.attention_plugins:
        operators = ", ".join(dict.fromkeys(operator for _node, operator in graph.attention_plugins))
        print_line(
            f"  {len(graph.attention_plugins)} attentions are nodes of our own, with a body for other runtimes: {operators}"
        )
    for node, reason in graph.attention_left:
        print_line(f"  {node} stayed as it was: {reason}")
    if bundle.manifest.quantization:
        _print_quantization(bundle.manifest.quantization)
    for data, metrics in bundle.manifest.metrics.items():
        low, high = metrics.top1_interval
        print_line(f"  on {data}: top-1 {metrics.top1:.1%} ({low:.1%} to {high:.1%} at 95 %) of {metrics.items:,} items")


def _print_quantization(quantized: Quantization) -> None:
    """Say what was quantised, on which inputs, and what it cost on others."""
    check = quantized.check
    ranges = f", {quantized.method} ranges from {quantized.samples} items of {quantized.data}" if quantized.method else ""
    print_line(
        f"  {quantized.precision} in {quantized.quantized} products, {quantized.base} else{ranges}; "
        f"{quantized.bytes_before / 1e6:.1f} MB became {quantized.bytes_after / 1e6:.1f} MB"
    )
    agreement = "" if check.top1_agreement is None else f", top-1 agreement {check.top1_agreement:.1%}"
    held = f" ({check.held_out} that calibrated left aside)" if check.held_out else ""
    print_line(
        f"  against fp32 on {check.items:,} items of {check.data}{held}: relative error {check.relative_error:.1e}{agreement}"
    )
    if check.drop is not None and check.drop_interval is not None:
        low, high = check.drop_interval
        noise = ", within noise" if check.within_noise else ""
        print_line(
            f"  top-1 {check.top1_reference:.2%} became {check.top1:.2%}: a drop of {check.drop:.2%} ({low:.2%} to {high:.2%}"
            f"{noise}; at most {check.max_drop:.2%} allowed)"
        )
    elif check.top1 is None:
        print_line("  no labels there, so no accuracy was held to --max-accuracy-drop; name labelled items with --data")
