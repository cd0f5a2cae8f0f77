"""What a bundle may cost at most and must reach at least, read from text with units, and how far a point is from it.

Latency and energy are of an inference, which is a batch. A newcomer's trap: a figure that was not measured misses its budget;
what isn't known can't be promised.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..errors import ShallowvitError

__all__ = ["Budgets", "Missed", "budgets_from_text"]

_UNITS = {  # option -> unit -> its size in the unit of the field
    "--max-latency": {"ms": 1.0, "us": 1e-3, "s": 1e3},
    "--max-energy": {"mJ": 1.0, "uJ": 1e-3, "J": 1e3},
    "--max-size": {"MB": 1e6, "kB": 1e3, "GB": 1e9, "KiB": 1024.0, "MiB": 1024.0**2, "GiB": 1024.0**3},
}
_ROUNDING = 1e-9  # of a difference of shares: exactly a point less is no more than a point
_NUMBER = r"(\d+\.?\d*|\.\d+)(?:[eE]([-+]?\d+))?"


@dataclass(frozen=True)
class Missed:
    """A budget that a point doesn't meet: both figures as text, and by what share of the budget it is missed."""

    budget: str
    limit: str
    found: str
    share: float


@dataclass(frozen=True)
class Budgets:
    """What is asked for; at least one, and of the accuracies one at most.

    Args:
        max_latency_ms: The median of an inference.
        min_accuracy: Top-1, as a share.
        max_drop: How much top-1 may be below that of the unpruned model, as a share: 0.01 is one point.
        max_energy_mj: Of an inference, above idle.
        max_size_bytes: Of the graph with its weights.
    """

    max_latency_ms: float | None = None
    min_accuracy: float | None = None
    max_drop: float | None = None
    max_energy_mj: float | None = None
    max_size_bytes: float | None = None

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if not given:
            raise ShallowvitError(
                "tune: no budget; give --max-latency, --max-energy, --max-size, --min-accuracy or --max-drop, or several"
            )
        if self.min_accuracy is not None and self.max_drop is not None:
            raise ShallowvitError("tune: --min-accuracy and --max-drop both say what accuracy is enough; give one")
        for name in given:
            value, option = getattr(self, name), _option(name)
            share = name in ("min_accuracy", "max_drop")
            if not math.isfinite(value) or value < 0 or (value == 0 and not share) or (share and value >= 1):
                expected = "a share from 0 up to less than 1" if share else "more than 0"
                raise ShallowvitError(f"tune: {option} {value:g} can't be met by anything; give {expected}")

    def floor(self, whole_top1: float) -> float | None:
        """Return the least top-1 that is enough, given that of the unpruned model; None where none is asked for."""
        if self.max_drop is not None:
            return whole_top1 - self.max_drop
        return self.min_accuracy

    def missed(
        self,
        whole_top1: float | None,
        *,
        latency_ms: float | None = None,
        energy_mj: float | None = None,
        size_bytes: float | None = None,
        top1: float | None = None,
    ) -> tuple[Missed, ...]:
        """Return which budgets a point with these figures doesn't meet, and by how much.

        Args:
            whole_top1: Of the unpruned model on the same items; None leaves accuracy out.
            latency_ms: None: not known, as with the others.
            energy_mj: See there.
            size_bytes: See there.
            top1: See there.
        """
        found = [
            _above("--max-latency", latency_ms, self.max_latency_ms, lambda value: f"{value:.3g} ms"),
            _above("--max-energy", energy_mj, self.max_energy_mj, lambda value: f"{value:.3g} mJ"),
            _above("--max-size", size_bytes, self.max_size_bytes, lambda value: f"{value / 1e6:.3g} MB"),
        ]
        floor = None if whole_top1 is None else self.floor(whole_top1)
        if floor is not None and (top1 is None or top1 < floor - _ROUNDING):
            option = "--max-drop" if self.max_drop is not None else "--min-accuracy"
            share = 1.0 if top1 is None else (floor - top1) / max(floor, 1e-9)
            found.append(Missed(option, f"{floor:.1%}", "not measured" if top1 is None else f"{top1:.1%}", share))
        return tuple(one for one in found if one is not None)

    @property
    def asks_accuracy(self) -> bool:
        """Whether some accuracy is enough, so that the cheapest with it is looked for; else the most accurate is."""
        return self.min_accuracy is not None or self.max_drop is not None

    def __str__(self) -> str:
        forms = {
            "max_latency_ms": lambda value: f"{value:g} ms",
            "min_accuracy": lambda value: f"{value:.4g}",
            "max_drop": lambda value: f"{100 * value:.3g} points",
            "max_energy_mj": lambda value: f"{value:g} mJ",
            "max_size_bytes": lambda value: f"{value / 1e6:g} MB",
        }
        return ", ".join(f"{_option(name)} {forms[name](value)}" for name, value in vars(self).items() if value is not None)


def budgets_from_text(
    max_latency: str | None = None,
    min_accuracy: str | None = None,
    max_drop: str | None = None,
    max_energy: str | None = None,
    max_size: str | None = None,
) -> Budgets:
    """Read ``10ms``, ``85%`` or ``0.85``, ``1%`` or ``0.01``, ``5mJ`` and ``20MB``.

    Raises:
        ShallowvitError: a text reads otherwise or lacks its unit, or no budget or one that nothing meets is given.
    """
    return Budgets(
        max_latency_ms=_quantity(max_latency, "--max-latency"),
        min_accuracy=_share(min_accuracy, "--min-accuracy", "85%", "0.85"),
        max_drop=_share(max_drop, "--max-drop", "1%", "0.01"),
        max_energy_mj=_quantity(max_energy, "--max-energy"),
        max_size_bytes=_quantity(max_size, "--max-size"),
    )


def _quantity(text: str | None, option: str) -> float | None:
    if text is None:
        return None
    units = _UNITS[option]
    found = re.fullmatch(rf"{_NUMBER}\s*([a-zA-Z]*)", text.strip())
    if found is None or found[3] not in units:
        why = "has no unit" if found and not found[3] else f"isn't a number with one of {', '.join(units)}"
        raise ShallowvitError(f"tune: {option} {text!r} {why}; write it like 10{next(iter(units))}")
    return float(f"{found[1]}e{found[2] or 0}") * units[found[3]]


def _share(text: str | None, option: str, percent: str, share: str) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(%?)", text.strip())
    # a bare 1 could be a per cent or the whole
    if found is None or (not found[2] and float(found[1]) >= 1):
        raise ShallowvitError(f"tune: {option} {text!r} is no share; write it as {percent} or {share}")
    return float(found[1]) * (0.01 if found[2] else 1.0)


def _above(option: str, found: float | None, limit: float | None, form: object) -> Missed | None:
    assert callable(form)
    if limit is None or (found is not None and found <= limit):
        return None
    if found is None:
        return Missed(option, form(limit), "not measured", 1.0)
    return Missed(option, form(limit), form(found), (found - limit) / limit)


def _option(name: str) -> str:
    short = name.removesuffix("_ms").removesuffix("_mj").removesuffix("_bytes")
    return f"--{short.replace('_', '-')}"
