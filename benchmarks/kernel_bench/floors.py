"""What a case can't be faster than on a card, and whether measured sides reach the goals; numbers in, numbers out.

A newcomer's trap: the floor of the bytes takes each tensor as read or written once, so only what keeps nothing of size N times
M in memory can come near it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shallowvit.engines.targets import all_targets

from .cases import DECOMPOSED, LIBRARY, OURS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shallowvit.engines.targets import Target

    from .cases import Shape

    Row = dict[str, Any]

__all__ = ["GOAL_TOKENS", "Floors", "Goal", "floors_of", "goals_of", "target_of_gpu"]

GOAL_TOKENS = 1568
_PLAIN_AT_MOST = 1.15
_VARIANT_FASTER, _VARIANT_LEANER = 3.0, 10.0
# What a driver calls a card, tried in this order -> its key in the registry.
_GPU_NAMES = (
    (r"\bH200\b", "h200"),
    (r"\bH100 NVL\b", "h100-nvl"),
    (r"\bH100 PCIe\b", "h100-pcie"),
    (r"\bH100\b", "h100-sxm"),
    (r"\bB200\b", "b200"),
    (r"\bA100\b.*80 ?GB", "a100-80gb"),
    (r"\bA100\b.*40 ?GB", "a100-40gb"),
    (r"\bL40S\b", "l40s"),
    (r"\bL4\b", "l4"),
    (r"\bT4\b", "t4"),
    (r"\bA2\b", "a2"),
    (r"\bRTX 4090$", "rtx-4090"),
    (r"\bRTX 5090$", "rtx-5090"),
    (r"\bGB10\b", "dgx-spark"),
)


@dataclass(frozen=True)
class Floors:
    """The least milliseconds on a card; None where its registry has no figure.

    Args:
        card: Key in the registry of targets, None for one that isn't there.
        bytes_ms: Each tensor moved once, over the bandwidth.
        operations_ms: Over the matrix rate of the type.
        remark: What is missing.
    """

    card: str | None
    bytes_ms: float | None
    operations_ms: float | None
    remark: str | None


def target_of_gpu(name: str) -> Target | None:
    """Return the registry's card of a name as the driver gives it, None for one that isn't there."""
    key = next((key for pattern, key in _GPU_NAMES if re.search(pattern, name)), None)
    return next((target for target in all_targets() if target.key == key), None)


def floors_of(shape: Shape, dtype: str, gpu: str) -> Floors:
    """Return the floors of a case on a card.

    Args:
        shape: Says how many bytes and operations it takes.
        dtype: fp32, fp16 or bf16; the dense rate of bf16 is that of fp16 on every card of the registry.
        gpu: As the driver calls it.
    """
    target = target_of_gpu(gpu)
    if target is None:
        return Floors(None, None, None, f"{gpu} isn't in the registry of targets")
    rate = target.peak("fp16" if dtype == "bf16" else dtype).value
    bandwidth = target.bandwidth_gb_s
    missing = [name for name, known in (("bandwidth", bandwidth), (f"{dtype} rate", rate)) if known is None]
    return Floors(
        target.key,
        None if bandwidth is None else shape.bytes / bandwidth / 1e6,
        None if rate is None else shape.operations / rate / 1e9,
        f"the registry has no {' and no '.join(missing)} of {target.key}" if missing else None,
    )


@dataclass(frozen=True)
class Goal:
    """A goal and what was measured of it.

    Args:
        name: What is asked.
        asked: The figure.
        cases: How many were judged; without any nothing is known.
        worst: The worst figure, None without cases.
        where: The worst case.
        reached: In all cases; None without cases.
    """

    name: str
    asked: float
    cases: int
    worst: float | None
    where: str
    reached: bool | None

    def __str__(self) -> str:
        if self.reached is None:
            return f"{self.name}: not measured"
        word = "reached" if self.reached else "NOT reached"
        return f"{self.name}: {word} in the worst of {self.cases} cases, {self.worst:.2f}x ({self.where})"


def goals_of(rows: Iterable[Row]) -> tuple[Goal, ...]:
    """Judge rows of kind ``speed``: plain against the best library kernel, variants against the decomposed graph."""
    cases: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["kind"] == "speed" and row["status"] == "measured":
            cases.setdefault(_words(row), {})[row["side"]] = row
    plain, faster, leaner = [], [], []
    for words, sides in cases.items():
        ours = sides.get(OURS)
        if ours is None:
            continue
        best = min((sides[name]["median_ms"] for name in LIBRARY if name in sides), default=None)
        if ours["variant"] == "plain":
            plain += [] if best is None else [(ours["median_ms"] / best, words)]
        elif ours["tokens"] == GOAL_TOKENS and DECOMPOSED in sides:
            graph = sides[DECOMPOSED]
            faster.append((graph["median_ms"] / ours["median_ms"], words))
            leaner.append((graph["peak_mib"] / ours["peak_mib"], words))
    variants = f"variants at {GOAL_TOKENS:,} tokens against the decomposed graph"
    return (
        _goal(f"plain within {_PLAIN_AT_MOST:g}x of the best library kernel", _PLAIN_AT_MOST, plain, most=True),
        _goal(f"{variants}: {_VARIANT_FASTER:g}x faster", _VARIANT_FASTER, faster, most=False),
        _goal(f"{variants}: {_VARIANT_LEANER:g}x leaner", _VARIANT_LEANER, leaner, most=False),
    )


def _goal(name: str, asked: float, found: Sequence[tuple[float, str]], *, most: bool) -> Goal:
    if not found:
        return Goal(name, asked, 0, None, "", None)
    worst, where = (max if most else min)(found)
    return Goal(name, asked, len(found), worst, where, worst <= asked if most else worst >= asked)


def _words(row: Row) -> str:
    return f"{row['variant']} {row['dtype']} d{row['head_size']} N{row['tokens']} batch {row['batch']} on {row['gpu']}"
