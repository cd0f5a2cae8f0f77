"""What the doctor says of a Jetson: which board, its JetPack, its power mode and whether its clocks are locked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .findings import Finding, missing, ok, unknown

if TYPE_CHECKING:
    from shallowvit_bench.boards import Board

__all__ = ["board_findings"]


def board_findings(board: Board) -> tuple[Finding, ...]:
    """Return what to say of a Jetson."""
    return (_board(board), _jetpack(board), _power_mode(board), _clocks(board))


def _board(board: Board) -> Finding:
    if board.key:
        return ok("board", board.key, board.model or "")
    return unknown("board", "its name isn't one that the table of targets knows", "shallowvit targets", board.model)


def _jetpack(board: Board) -> Finding:
    if board.l4t is None:
        return unknown("JetPack", "neither /etc/nv_tegra_release nor the package nvidia-l4t-core says the version")
    value = f"{board.jetpack.version} (L4T {board.l4t})" if board.jetpack else f"L4T {board.l4t}"
    if board.jetpack is None:
        return unknown("JetPack", f"no JetPack with L4T {board.l4t} is in the table", value=value)
    if board.metapackage is None:
        note = "its libraries, TensorRT among them, may not be installed"
        return missing("JetPack", note, "sudo apt install nvidia-jetpack", value)
    return ok("JetPack", value, f"TensorRT {board.jetpack.tensorrt or 'unknown'}, Python {board.jetpack.python or 'unknown'}")


def _power_mode(board: Board) -> Finding:
    if board.mode is None:
        return unknown("power mode", "nvpmodel doesn't say", "sudo nvpmodel -q")
    name, number = board.mode
    value = name if number is None else f"{name} ({number})"
    # by name: mode 0 is 15W on an Orin Nano, and MAXN_SUPER is above MAXN where there is one
    best = next((n for wanted in ("MAXN_SUPER", "MAXN") for n, mode in board.modes.items() if mode == wanted), None)
    if best is not None and board.modes[best] != name:
        return ok("power mode", value, f"not the highest: sudo nvpmodel -m {best} sets {board.modes[best]}")
    return ok("power mode", value)


def _clocks(board: Board) -> Finding:
    clocks = board.clocks
    if clocks is None or clocks.locked is None:
        return unknown("clocks", board.clocks_refused or "jetson_clocks doesn't say", "sudo jetson_clocks --show")
    if not clocks.locked:
        return missing("clocks", "not locked: latencies vary with the load before", "sudo jetson_clocks", "free")
    return ok("clocks", "locked", f"GPU at {(clocks.gpu_max_hz or 0) / 1e6:g} MHz")
