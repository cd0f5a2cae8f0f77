"""What the doctor says of a Jetson: which board, its JetPack, its power mode and whether its clocks are locked."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .findings import Finding, missing, ok, unknown
from .jetpack import JetPack, jetpack_from_l4t
from .probes import (
    JetsonClocks,
    Runner,
    board_model,
    detect_jetson,
    parse_jetson_clocks,
    parse_l4t_package,
    parse_nv_tegra_release,
    parse_power_mode,
    parse_power_modes,
    read_text,
    run_command,
)

__all__ = ["Board", "board_findings", "read_board"]


@dataclass(frozen=True)
class Board:
    """What a Jetson says of itself; None couldn't be read.

    ``key`` is its target, ``jetpack`` the release that its L4T belongs to, ``modes`` the power modes by number.
    ``clocks_refused`` is why ``jetson_clocks`` gave nothing.
    """

    model: str | None
    key: str | None
    l4t: str | None
    jetpack: JetPack | None
    metapackage: str | None
    mode: tuple[str, int | None] | None
    modes: dict[int, str]
    clocks: JetsonClocks | None
    clocks_refused: str


def read_board(root: Path = Path("/"), run: Runner = run_command) -> Board | None:
    """Return what a Jetson says of itself, or None where this is none.

    Args:
        root: Where ``proc``, ``etc`` and ``var`` are found.
        run: Runs ``dpkg-query``, ``nvpmodel`` and ``jetson_clocks``; these are not run where ``root`` shows no Jetson.
    """
    model = board_model(root)
    release = read_text(root / "etc/nv_tegra_release")
    key = detect_jetson(root)
    if key is None and release is None and "jetson" not in (model or "").lower():
        return None
    asked = (
        ("dpkg-query", "--showformat=${Version}", "--show", "nvidia-l4t-core"),
        ("dpkg-query", "--showformat=${Version}", "--show", "nvidia-jetpack"),
        ("nvpmodel", "-q"),
        ("jetson_clocks", "--show"),
    )
    with ThreadPoolExecutor(len(asked)) as pool:
        core, metapackage, nvpmodel, shown = pool.map(run, asked)
    l4t = parse_nv_tegra_release(release or "") or parse_l4t_package(core.out if core else "")
    modes = parse_power_modes(read_text(root / "etc/nvpmodel.conf") or "")
    version = re.match(r"\d+(\.\d+)+", metapackage.out) if metapackage else None
    return Board(
        model=model,
        key=key,
        l4t=l4t,
        jetpack=jetpack_from_l4t(l4t) if l4t else None,
        metapackage=version[0] if version else None,
        mode=parse_power_mode(nvpmodel.out if nvpmodel else "") or _mode_from_status(root, modes),
        modes=modes,
        clocks=parse_jetson_clocks(shown.out) if shown else None,
        clocks_refused=shown.first_line if shown else "there is no jetson_clocks",
    )


def _mode_from_status(root: Path, modes: dict[int, str]) -> tuple[str, int | None] | None:
    found = re.search(r"pmode:(\d{1,6})", read_text(root / "var/lib/nvpmodel/status") or "")
    number = int(found[1]) if found else None
    return (modes[number], number) if number in modes else None


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
