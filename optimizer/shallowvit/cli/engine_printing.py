"""Print an engine: what it is, and what became of every attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from .printing import print_bundle, print_line, print_table
from .target_printing import print_estimate_line

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..bundle.manifest import Attention, Engine, PrecisionSearch

__all__ = ["print_engine", "print_written"]


def print_written(bundle: Bundle) -> None:
    """Say what an export has written: the bundle, how its precision was chosen, its recipe, its engines."""
    manifest = bundle.manifest
    print_bundle(bundle)
    if manifest.precision_search:
        _print_search(manifest.precision_search)
    if manifest.recipe:
        print_line(
            f"  recipe for {manifest.target}: copy the bundle there and run shallowvit build, or without this project: cd "
            "recipe && python3 build_engine.py recipe.json"
        )
    if manifest.target:
        print_estimate_line(bundle.path, manifest.target)
    for engine in manifest.engines:
        print_engine(bundle, engine)


def print_engine(bundle: Bundle, engine: Engine) -> None:
    """Say what an engine takes and which of its attentions are fused."""
    where = f" for {engine.target}" if engine.target else ""
    sm = ", ".join(f"{number / 10:.1f}" for number in engine.sm)
    made = f"compute capability {sm}" if sm else "portable"
    size = bundle.manifest.files[engine.path].bytes
    print_line(
        f"{bundle.path / engine.path}: {engine.flavour} {engine.version}{where}, {made}, {size / 1e6:.1f} MB, built in "
        f"{engine.build_s:.1f} s on {engine.built_on}"
    )
    memory = [("activation", engine.activation_bytes), ("weights", engine.weights_bytes)]
    print_line("  memory: " + ", ".join(f"{name} {_mb(number)}" for name, number in memory) + _largest(engine))
    print_line(f"  attention fused: {engine.attention_fused} of {engine.attention_expected}, by the {engine.fusion_source}")
    table = Table()
    for title in ("block", "attention", "heads x size", "tokens", "kernel, or why there is none"):
        table.add_column(title, justify="right" if title == "block" else "left")
    for attention in engine.attentions:
        table.add_row(*_cells(attention))
    if engine.attentions:
        print_table(table)
    for plugin in engine.plugins:
        generations = ", ".join(f"{one / 10:.1f}" for one in plugin.sm)
        print_line(
            f"  {plugin.operator}: compiled for {generations}; {plugin.registers} registers, "
            f"{plugin.spilled_bytes} bytes spilled a thread, {plugin.shared_bytes / 1024:.0f} KiB of shared memory a block"
        )
    for timing in engine.plugin_timings:
        print_line(f"  {timing.operator}: {timing.plugin_ms:.3f} ms with it, {timing.native_ms:.3f} ms without")
    for node, reason in engine.plugins_refused:
        print_line(f"  no kernel of ours for {node}: {reason}")
    if engine.not_inspected:
        print_line(f"  not loaded to look inside: {engine.not_inspected}; layers, graph and bytes of the engine agree")


def _print_search(search: PrecisionSearch) -> None:
    """One row a candidate: what it was measured to do, and what became of it."""
    print_line(
        f"  {search.chosen} was measured to be the fastest within {search.max_drop:.2%} of fp32's top-1 on {search.data}: "
        f"{search.backend}, batch {search.batch}, {search.runs} runs a side in alternation"
    )
    table = Table()
    for title in ("precision", "MB", "median ms", "times fp32's speed", "drop", "agrees", "", "why"):
        table.add_column(title, justify="left" if title in ("precision", "", "why") else "right")
    for trial in search.trials:
        check = trial.check
        table.add_row(
            trial.name,
            "" if trial.bytes is None else f"{trial.bytes / 1e6:.2f}",
            "" if trial.median_ms is None else f"{trial.median_ms:.2f}",
            "" if trial.ratio is None else f"{trial.ratio:.2f} ({trial.ratio_low:.2f} to {trial.ratio_high:.2f})",
            "" if check is None or check.drop is None else f"{check.drop:.2%}",
            "" if check is None or check.top1_agreement is None else f"{check.top1_agreement:.1%}",
            trial.status,
            trial.reason,
        )
    print_table(table)


def _cells(attention: Attention) -> tuple[str, ...]:
    block = "" if attention.block is None else str(attention.block)
    tokens = _size(attention.queries)
    if attention.keys != attention.queries:
        tokens += f" on {_size(attention.keys)}"
    told = attention.kernel or f"not fused: {attention.reason}"
    shape = f"{_size(attention.heads)} x {_size(attention.head_size)} {attention.dtype}"
    return block, attention.path, shape, tokens, told


def _size(number: int | None) -> str:
    return "?" if number is None else str(number)


def _mb(number: int | None) -> str:
    return "unknown" if number is None else f"{number / 1e6:.1f} MB"


def _largest(engine: Engine) -> str:
    shapes = [shape[-1] for profile in engine.profiles for shape in profile.values()]
    largest = max((shape[0] for shape in shapes if shape), default=None)
    return "" if largest is None else f" at batch {largest}"
