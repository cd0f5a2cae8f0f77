"""Print what attention kernels there are, which a graph's attentions would get, and what the compiler made of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from shallowvit_kernels.summaries import SUMMARIES

from .printing import print_json, print_line, print_table

if TYPE_CHECKING:
    from pathlib import Path

    from shallowvit_kernels.ahead import Compiled

    from ..plugins.survey import Surveyed

__all__ = ["print_catalogue", "print_survey"]


def print_catalogue(json: bool) -> None:
    """List the kernels and what they compute."""
    if json:
        print_json([asdict(one) for one in SUMMARIES])
        return
    table = Table("kernel", "computes", "serves")
    for one in SUMMARIES:
        table.add_row(one.name, one.computes, one.serves)
    print_table(table)
    print_line("in fp32, fp16 and bf16, any number of tokens, queries and keys apart, heads or tokens first or packed qkv")


def print_survey(path: Path, found: tuple[Surveyed, ...], compiled: tuple[Compiled, ...], device: str | None) -> None:
    """Say of each attention who computes it, then what each kernel takes on the device."""
    table = Table("block", "attention", "heads x size", "TensorRT", "our kernel, or why there is none")
    for one in found:
        site = one.site
        shape = f"{_size(site.heads)} x {_size(site.head_size)} {site.dtype}"
        native = "not asked: it is a node of ours" if site.kind == "plugin" else site.obstacle or "fuses it"
        ours = one.variant.name if one.variant else f"none: {one.reason}"
        table.add_row("" if site.block is None else str(site.block), site.path, shape, native, ours)
    if found:
        print_table(table)
    possible = sum(one.variant is not None for one in found)
    left = sum(bool(one.site.obstacle) for one in found)
    print_line(f"{path}: {len(found)} attentions; TensorRT leaves {left} unfused, {possible} have a kernel of ours")
    if not compiled:
        return
    facts = Table(f"kernel for {device}", "registers", "spilled bytes", "shared KiB", "threads", "instructions")
    for kernel in compiled:
        row = kernel.facts
        shared = f"{row.shared_bytes / 1024:.0f}"
        numbers = (row.registers, row.spilled_bytes, shared, kernel.launch.threads, row.instructions)
        facts.add_row(kernel.launch.kernel, *map(str, numbers))
    print_table(facts)


def _size(number: int | None) -> str:
    return "?" if number is None else str(number)
