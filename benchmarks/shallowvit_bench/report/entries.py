"""Give every row of results a tag, a colour and a short name, the same in all charts and tables of the page.

A newcomer's trap: a letter stands for a configuration (side, provider, device, ...); its batches share the letter and the
colour and are told apart by the number behind it, as in ``B8``.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .drawing import COLOURS, Mark

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Entry", "Row", "device_of", "entries_from_rows", "in_parts", "newest", "shared_text", "tags_of"]

Row = dict[str, Any]
_COLUMNS = 6  # of sides that a printed page has room for
_ON_GPU = ("cuda", "tensorrt", "tensorrt-ep", "rtx")


@dataclass(frozen=True)
class Entry:
    """A row on the page.

    Args:
        row: As ``read_rows`` gives it.
        letter: Of the configuration.
        mark: With the tag: the letter, and the batch where the configuration has several.
        family: The side, and what tells its configuration from the others on the page, but for the device.
        short: The family, with its batch where the page has several.
        device: What it ran on.
        where: The device where the page has several, else "".
    """

    row: Row
    letter: str
    mark: Mark
    family: str
    short: str
    device: str
    where: str

    @property
    def tag(self) -> str:
        """The letter, with the batch where there are several."""
        return self.mark.tag

    @property
    def name(self) -> str:
        """All that tells it from the others on the page."""
        return f"{self.short}, {self.where}" if self.where else self.short

    @property
    def title(self) -> str:
        """Tag and name."""
        return f"{self.tag}: {self.name}"

    @property
    def valid(self) -> bool:
        """Whether its figures count: an invalid row was measured under throttling, and a failed one not at all."""
        return self.row["status"] == "ok" and (self.row.get("p50_ms") is not None or self.timed)

    @property
    def timed(self) -> bool:
        """Whether it holds raw latencies that count."""
        return self.row["status"] == "ok" and bool(self.row.get("samples_ms"))


def device_of(row: Mapping[str, Any]) -> str:
    """Return the board's name, else the GPU's where it ran on one, else the CPU's; behind it what its user calls the device."""
    conditions = row["conditions"]
    on_card = not conditions.get("board") and (row.get("provider") in _ON_GPU or row.get("backend") in _ON_GPU)
    names = (conditions.get("gpu") if on_card else None, conditions.get("device"))
    found = next((str(name) for name in names if name), "a device without a name")
    return f"{found} ({row['machine']})" if row.get("machine") else found  # two boards of a kind are two devices


def newest(rows: Sequence[Row]) -> list[Row]:
    """Return the last row of each side under the same circumstances, in the order they first came.

    Where that one has no accuracy, it gets that of the last one before with the same graph in the same runtime, and says so.
    """
    last: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = (*_configuration(row), row["batch"])
        last[key] = _with_accuracy_of(row, last[key]) if key in last else row
    return list(last.values())


def _with_accuracy_of(row: Row, before: Row) -> Row:
    if row.get("metrics") or not before.get("metrics") or row["status"] == "failed":
        return row
    remark = before.get("accuracy_remark") or f"its accuracy was measured in an earlier run, {before['conditions']['time_utc']}"
    taken = {name: before.get(name) for name in ("metrics", "data", "items", "unreadable", "predictions", "agreement")}
    remarks = [*(row.get("remarks") or ()), remark]
    return row | taken | {"remarks": remarks, "accuracy_remark": remark}


def _configuration(row: Row) -> tuple[Any, ...]:
    conditions = row["conditions"]
    return (
        row["side"],
        row.get("backend"),
        row.get("provider"),
        row.get("computed_in"),
        row["model_sha256"],
        row.get("copies"),
        row.get("cuda_graph"),
        device_of(row),
        conditions.get("threads"),
        conditions.get("power_mode"),
        row.get("scenario"),
    )


def entries_from_rows(rows: Sequence[Row]) -> tuple[Entry, ...]:
    """Return the rows with their tags, in their order.

    Args:
        rows: The newest of each side.
    """
    order = list(dict.fromkeys(_configuration(row) for row in rows))
    batches = {key: sorted({row["batch"] for row in rows if _configuration(row) == key}) for key in order}
    parts, devices = _differing(rows), len({device_of(row) for row in rows})
    sizes = len({row["batch"] for row in rows})
    entries = []
    for row in rows:
        key = _configuration(row)
        place, several = order.index(key), batches[key]
        letter = _letter(place)
        tag = f"{letter}{row['batch']}" if len(several) > 1 else letter
        family = ", ".join([row["side"], *(text for part in parts if (text := part(row)))])
        mark = Mark(tag, place, place // COLOURS + several.index(row["batch"]))
        short = f"{family}, batch {row['batch']}" if sizes > 1 else family
        device = device_of(row)
        entries.append(Entry(row, letter, mark, family, short, device, device if devices > 1 else ""))
    return tuple(entries)


def _letter(place: int) -> str:
    letters = string.ascii_uppercase
    return letters[place] if place < len(letters) else _letter(place // len(letters) - 1) + letters[place % len(letters)]


def _runtime(row: Row) -> str:
    provider, computed = row.get("provider") or row.get("backend") or "", row.get("computed_in") or row.get("precision") or ""
    # what a side that failed would have computed in, nobody knows
    return provider if not computed or provider.endswith(computed) or row["status"] == "failed" else f"{provider} {computed}"


def _copies(row: Row) -> str:
    return {None: "", True: "copies timed", False: "copies not timed"}[row.get("copies")]


def _graph(row: Row) -> str:
    return {None: "", True: "CUDA graph", False: "no CUDA graph"}[row.get("cuda_graph")]


def _threads(row: Row) -> str:
    threads = row["conditions"].get("threads")
    return "default threads" if threads is None else f"{threads} thread{'s' if threads != 1 else ''}"


_PARTS: tuple[Callable[[Row], str], ...] = (
    _runtime,
    _threads,
    _copies,
    _graph,
    lambda row: row["conditions"].get("power_mode") or "",
    lambda row: row.get("scenario") or "",
    lambda row: f"model {row['model_sha256'][:7]}",
)


def _differing(rows: Sequence[Row]) -> list[Callable[[Row], str]]:
    """What isn't the same in all rows; the model's hash only where two models go by one name."""
    models = {(row["side"], row["model_sha256"]) for row in rows}
    parts = _PARTS if len({side for side, _ in models}) < len(models) else _PARTS[:-1]
    return [part for part in parts if len({part(row) for row in rows}) > 1]


def shared_text(rows: Sequence[Row]) -> str:
    """Say in a line what all rows have in common, which their names leave out."""
    differing, devices = _differing(rows), {device_of(row) for row in rows}
    texts = [text for part in _PARTS[:-1] if part not in differing and (text := part(rows[0]))]
    batches = {f"batch {row['batch']}" for row in rows}
    return ", ".join([*texts, *(batches if len(batches) == 1 else ()), *(devices if len(devices) == 1 else ())])


def in_parts(entries: Sequence[Entry]) -> list[Sequence[Entry]]:
    """Return the entries in parts that fit side by side on a page."""
    return [entries[start : start + _COLUMNS] for start in range(0, len(entries), _COLUMNS)]


def tags_of(entries: Sequence[Entry]) -> str:
    """Return the tags in a row: ``A, B8``."""
    return ", ".join(entry.tag for entry in entries)
