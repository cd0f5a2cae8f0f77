"""What ``shallowvit selfcheck`` prints: a line a step, then the measurements as ``shallowvit bench`` has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shallowvit_bench.measurement import row_from_measurement

from .bench_printing import print_measurements

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..selfcheck.run import SelfcheckResult

__all__ = ["print_checks"]


def print_checks(result: SelfcheckResult, out: Path) -> None:
    """Print the steps, and then the measurements where there are any."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for title in ("step", "", "found"):
        table.add_column(title, overflow="fold")
    for check in result.checks:
        table.add_row(Text(check.name), check.status, Text(check.reason or _found(check.figures)))
    Console().print(table)
    if result.measurements:
        rows = [row_from_measurement(measurement) for measurement in result.measurements]
        print_measurements(rows, [out / "checks.jsonl", out / "bench.jsonl"])


def _found(figures: Mapping[str, Any]) -> str:
    """The figures that fit a line: ceilings and the error of the outputs."""
    lines = [
        f"{name}: {figure['median']:,.4g} {figure['unit']}"
        for name, figure in figures.items()
        if isinstance(figure, dict) and "unit" in figure
    ]
    if "relative_error" in figures:
        lines.append(f"{figures['provider']}: {figures['relative_error']:.1e} of the largest output")
    return "\n".join(lines)
