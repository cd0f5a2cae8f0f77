"""Say which Jetson a machine is, and what it says of itself: release, power mode, clocks.

The keys are those of ``--target``. A newcomer's trap: carrier boards rewrite the name of a Jetson, so a board is found by a
part of its name and its variant by its memory.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .jetpack import JetPack, jetpack_from_l4t
from .probes import (
    JetsonClocks,
    Runner,
    memory_gib,
    parse_jetson_clocks,
    parse_l4t_package,
    parse_nv_tegra_release,
    parse_power_mode,
    parse_power_modes,
    read_text,
    run_command,
)

__all__ = ["PART_NUMBERS", "Board", "board_model", "board_sm", "detect_jetson", "read_board"]

# Compute capability by the start of a key.
_SM = {"jetson-nano": 53, "jetson-tx2": 62, "jetson-xavier": 72, "jetson-agx-xavier": 72, "jetson-thor": 110} | dict.fromkeys(
    ("jetson-orin", "jetson-agx-orin"), 87
)

# Part numbers of modules, as /proc/device-tree/compatible has them; one entry for both states of an Orin Nano.
PART_NUMBERS: dict[str, tuple[str, ...]] = {
    "jetson-nano-4gb": ("p3448-0000", "p3448-0002"),
    "jetson-nano-2gb": ("p3448-0003",),
    "jetson-tx2-8gb": ("p3310-1000",),
    "jetson-tx2-4gb": ("p3489-0888",),
    "jetson-tx2-nx": ("p3636-0001",),
    "jetson-xavier-nx-8gb": ("p3668-0000", "p3668-0001"),
    "jetson-xavier-nx-16gb": ("p3668-0003",),
    "jetson-agx-xavier-16gb": ("p2888-0001",),
    "jetson-agx-xavier-32gb": ("p2888-0003", "p2888-0004"),
    "jetson-agx-xavier-64gb": ("p2888-0005",),
    "jetson-agx-xavier-industrial": ("p2888-0008",),
    "jetson-orin-nano-4gb": ("p3767-0004",),
    "jetson-orin-nano-8gb": ("p3767-0003", "p3767-0005"),
    "jetson-orin-nx-8gb": ("p3767-0001",),
    "jetson-orin-nx-16gb": ("p3767-0000",),
    "jetson-agx-orin-32gb": ("p3701-0004",),
    "jetson-agx-orin-64gb": ("p3701-0005", "p3701-0000"),
    "jetson-thor-t5000": ("p3834-0008",),
}

# Part of the board's name in lower case -> (GiB that the system shows at least, key), the largest first. Names that hold
# another's come before it.
_MODELS: tuple[tuple[str, tuple[tuple[float, str], ...]], ...] = (
    ("thor", ((96, "jetson-thor-t5000"), (0, "jetson-thor-t4000"))),
    ("agx orin", ((56, "jetson-agx-orin-64gb"), (28, "jetson-agx-orin-32gb"))),
    ("orin nx", ((14, "jetson-orin-nx-16gb"), (0, "jetson-orin-nx-8gb"))),
    ("orin nano", ((7, "jetson-orin-nano-8gb"), (0, "jetson-orin-nano-4gb"))),
    ("xavier nx", ((14, "jetson-xavier-nx-16gb"), (0, "jetson-xavier-nx-8gb"))),
    # of the boards below no thresholds were read: the least that was sold and holds what the system shows
    ("agx xavier", ((32, "jetson-agx-xavier-64gb"), (16, "jetson-agx-xavier-32gb"), (0, "jetson-agx-xavier-16gb"))),
    ("tx2 nx", ((0, "jetson-tx2-nx"),)),
    ("tx2", ((4, "jetson-tx2-8gb"), (0, "jetson-tx2-4gb"))),
    ("jetson nano", ((2, "jetson-nano-4gb"), (0, "jetson-nano-2gb"))),
)
_SUPER = {"jetson-orin-nano-8gb": "jetson-orin-nano-8gb-super", "jetson-orin-nano-4gb": "jetson-orin-nano-4gb-super"}


def board_sm(key: str) -> int | None:
    """Return the compute capability of a Jetson's GPU by the board's key, 87 for 8.7; None for a key that is no Jetson's."""
    return next((sm for start, sm in _SM.items() if key.startswith(start)), None)


def detect_jetson(root: Path = Path("/")) -> str | None:
    """Return the key of the target that this machine is, or None where it is no Jetson that the tables know.

    The name in the device tree tells the board, the memory its variant. On a Thor ``/etc/nv_boot_control.conf`` is asked first;
    part numbers in the device tree are asked where name and memory don't tell.
    """
    model = (board_model(root) or "").lower()
    memory = memory_gib(root)
    if "thor" in model and (key := _thor_from_boot_control(read_text(root / "etc/nv_boot_control.conf") or "")):
        return key
    if "xavier" in model and "industrial" in model:
        return "jetson-agx-xavier-industrial"
    variants = next((rows for part, rows in _MODELS if part in model), ())
    key = None
    if variants and (memory is not None or len(variants) == 1):
        key = next((name for least, name in variants if (memory or 0) >= least), None)
    key = key or _key_from_part_number(read_text(root / "proc/device-tree/compatible") or "")
    return _SUPER.get(key, key) if key and "super" in model else key


def _thor_from_boot_control(text: str) -> str | None:
    spec = " ".join(line.lower() for line in text.splitlines() if line.startswith(("TNSPEC", "COMPATIBLE_SPEC")))
    for name in ("t4000", "t5000"):
        if name in spec:
            return f"jetson-thor-{name}"
    return "jetson-thor-t5000" if re.search(r"3834-(\d+-)?0008", spec) else None


def _key_from_part_number(compatible: str) -> str | None:
    """The first board with one of its part numbers in the device tree; one for both states of an Orin Nano."""
    return next((key for key, parts in PART_NUMBERS.items() if any(part in compatible for part in parts)), None)


def board_model(root: Path = Path("/")) -> str | None:
    """Return the name in the device tree, as the maker of the carrier board wrote it, or None."""
    return read_text(root / "proc/device-tree/model")


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
