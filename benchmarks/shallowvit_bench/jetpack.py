"""JetPack releases as data: JetPack -> L4T -> CUDA -> TensorRT -> Python -> boards, and looking one up.

A newcomer's trap: the TensorRT of a Jetson comes with its JetPack, so what a board can build follows from its JetPack and not
from the newest TensorRT. A None was not read anywhere: ask the board, never fill it in.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["JETPACKS", "JetPack", "jetpack_from_l4t", "version_tuple"]


@dataclass(frozen=True)
class JetPack:
    """One release. ``boards`` are families of modules (agx-orin), ``python`` is the default of its Ubuntu.

    ``tensorrt`` and ``cuda`` are versions as far as they were read: ``10.3`` may be ``10.3.0`` of any build.
    """

    version: str
    l4t: tuple[str, ...]
    cuda: str | None
    tensorrt: str | None
    python: str | None
    boards: tuple[str, ...]
    note: str = ""


_XAVIER = ("xavier-nx", "agx-xavier")
_ORIN = ("orin-nano", "orin-nx", "agx-orin")
_JETPACK_4 = ("nano", "tx2", *_XAVIER)
_JETPACK_5 = (*_XAVIER, *_ORIN)
_JETPACK_7 = (*_ORIN, "thor")

# Oldest first.
JETPACKS = (
    JetPack("4.6", ("32.6.1",), "10.2", "8.0.1", "3.6", _JETPACK_4),
    JetPack("4.6.1", ("32.7.1",), "10.2", "8.2.1", "3.6.9", _JETPACK_4),
    JetPack("4.6.2", ("32.7.2",), "10.2", "8.2.1", "3.6", _JETPACK_4),
    JetPack("4.6.3", ("32.7.3",), "10.2", None, "3.6", _JETPACK_4),
    JetPack("4.6.4", ("32.7.4",), "10.2", None, "3.6", _JETPACK_4),
    JetPack("4.6.5", ("32.7.5",), "10.2", None, "3.6", _JETPACK_4),
    JetPack("4.6.6", ("32.7.6",), "10.2", None, "3.6", _JETPACK_4),
    JetPack("5.0.2", ("35.1.0",), None, None, "3.8", _JETPACK_5),
    JetPack("5.1", ("35.2.1",), "11.4.19", "8.5.2", "3.8", _JETPACK_5),
    JetPack("5.1.1", ("35.3.1",), "11.4.19", "8.5.2", "3.8", _JETPACK_5),
    JetPack("5.1.2", ("35.4.1",), "11.4.19", "8.5.2", "3.8", _JETPACK_5),
    JetPack("5.1.3", ("35.5.0",), None, None, "3.8", _JETPACK_5),
    JetPack("5.1.4", ("35.6.0",), None, None, "3.8", _JETPACK_5),
    JetPack("5.1.5", ("35.6.1", "35.6.2", "35.6.3"), None, None, "3.8", _JETPACK_5),
    JetPack("5.1.6", ("35.6.4",), None, None, "3.8", _JETPACK_5),
    JetPack("6.0-dp", ("36.2.0",), "12.2", "8.6.2.3", "3.10", _ORIN, "developer preview"),
    JetPack("6.0", ("36.3.0",), "12.2", "8.6.2.3", "3.10", _ORIN),
    JetPack("6.1", ("36.4.0", "36.4.2"), "12.6", "10.3", "3.10", _ORIN),
    JetPack("6.2", ("36.4.3",), "12.6.68", "10.3.0.30", "3.10", _ORIN, "the first with the Super modes"),
    JetPack("6.2.1", ("36.4.4", "36.4.7"), "12.6", "10.3", "3.10", _ORIN),
    JetPack("6.2.2", ("36.5.0",), None, None, "3.10", _ORIN),
    JetPack("7.0", ("38.2.0", "38.2.1", "38.2.2"), "13.0", "10.13.3.9", "3.12.3", ("thor",)),
    JetPack("7.1", ("38.4.0",), "13.0", None, "3.12", ("thor",)),
    JetPack("7.2-ea", ("39.0.0",), "13.2.1", "10.16.2", "3.12", _JETPACK_7, "early access"),
    JetPack("7.2", ("39.2.0",), "13.2.1", "10.16.2", "3.12", _JETPACK_7),
    JetPack("7.2.1", ("39.2.1",), "13.2", None, "3.12", _JETPACK_7),
    JetPack(
        "7.2.2",
        (),
        None,
        "11.4.1",
        "3.12",
        ("agx-orin", "thor"),
        "and later; TensorRT 11.4.1 is the first 11.x for a Jetson, from the Linux SBSA package; L4T and CUDA not read",
    ),
)


def jetpack_from_l4t(l4t: str) -> JetPack | None:
    """Return the release with this L4T (``36.4.4``), or None where the table has none."""
    return next((release for release in JETPACKS if l4t in release.l4t), None)


def version_tuple(version: str) -> tuple[int, ...]:
    """Turn ``10.13.3.9`` into numbers that compare; what follows the first part that is no number is left out."""
    numbers: list[int] = []
    for part in version.split("."):
        if not (part.isascii() and part.isdigit()):
            break
        numbers.append(int(part))
    return tuple(numbers)
