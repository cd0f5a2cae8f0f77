"""Find the best source of power on a machine, and what else can be watched there.

A newcomer's trap: each source covers something else, a whole board, a card or a processor, so figures of two machines compare
only where the names of their sources say the same.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..boards import detect_jetson
from ..probes import read_text
from .heat import HEAT_PERIOD_S, find_heat
from .ina import find_ina
from .nvml import NvmlGpu, open_nvml
from .rapl import find_rapl
from .sampling import PollingSampler, PowerMeter, PowerSource, Sampler, Unavailable
from .tegra import find_jtop, find_tegrastats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["open_power"]


def open_power(
    gpu: bool = False,
    root: Path = Path("/"),
    gpu_bus_id: str | None = None,
    tegrastats: Sequence[str] = ("tegrastats",),
) -> PowerMeter:
    """Return a meter of the best source here, which may be none; then its ``reason`` names each that was tried and why not.

    On a Jetson that is the board's total, by tegrastats, its sensors or jtop; elsewhere the card of a GPU by NVML, or the
    processor by RAPL, whichever does the work.

    Args:
        gpu: Whether a GPU does the work.
        root: Where ``proc``, ``sys`` and ``etc`` are found.
        gpu_bus_id: Of the GPU, as ``0000:01:00.0``; None: the first that NVML lists.
        tegrastats: Starts tegrastats, without the interval.
    """
    with ExitStack() as stack:
        board = detect_jetson(root)
        is_jetson = board is not None or read_text(root / "etc/nv_tegra_release") is not None
        card = open_nvml(stack, gpu_bus_id) if gpu else None
        tried: list[Unavailable] = []
        power = _first_source(_candidates(board, is_jetson, root, tegrastats, card, stack), tried)
        others: list[Callable[[], Sampler]] = []
        if heat := find_heat(root):
            others.append(partial(PollingSampler, "the kernel's clocks and temperatures", heat, HEAT_PERIOD_S))
        if isinstance(card, NvmlGpu) and card.gives_anything and (is_jetson or power is None):
            others.append(card.sampler)
        if not is_jetson:
            tried.append(Unavailable("tegrastats, INA sensors and jtop", "this is no Jetson"))
        said = "; ".join(f"{source.name}: {source.reason}" for source in tried)
        return PowerMeter(power, tuple(others), None if power else f"energy not measured: {said}", stack.pop_all().close)


def _candidates(
    board: str | None,
    is_jetson: bool,
    root: Path,
    tegrastats: Sequence[str],
    card: NvmlGpu | Unavailable | None,
    stack: ExitStack,
) -> list[Callable[[], PowerSource | Unavailable]]:
    """What to try, the best first."""
    if is_jetson:
        return [
            lambda: find_tegrastats(board, tegrastats),
            lambda: find_ina(root, board),
            lambda: find_jtop(board, stack),
        ]
    if card is not None:
        return [lambda: card.power_source() if isinstance(card, NvmlGpu) else card]
    return [lambda: find_rapl(root)]


def _first_source(candidates: list[Callable[[], PowerSource | Unavailable]], tried: list[Unavailable]) -> PowerSource | None:
    for find in candidates:
        found = find()
        if isinstance(found, PowerSource):
            return found
        tried.append(found)
    return None
