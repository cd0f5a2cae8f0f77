"""From finished cells to what a study compares: each criterion's scores, each oracle's values, the accuracies of every choice.

A newcomer's trap: two criteria that name the same blocks share one cell, so there are fewer cells than choices; both counts are
reported.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from .records import BlockValues, Measured
from .worker import unpacked_bits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .config import Column

__all__ = ["ORACLE", "Collected", "Findings", "collect", "oracle_sets"]

ORACLE = "oracle"  # the criterion of the paper's sensitivity: what finetuning can't bring back
Removed = tuple[int, ...]


@dataclass(frozen=True)
class Collected:
    """The results of a study's cells, None where one failed.

    Args:
        columns: The criteria.
        counts: How many blocks they remove.
        blocks: How many there are.
        replicates: (model, seed).
        scores: By (criterion, model, seed or None).
        named: The sets by (criterion, count, model, seed).
        measured: By ("zero-shot", model, removed) and ("finetuned", model, seed, removed).
    """

    columns: tuple[Column, ...]
    counts: tuple[int, ...]
    blocks: int
    replicates: list[tuple[int, int]]
    scores: Mapping[tuple[str, int, int | None], dict[str, Any]]
    named: Mapping[tuple[str, int, int, int], Removed]
    measured: Mapping[tuple[Any, ...], dict[str, Any] | None]


@dataclass(frozen=True)
class Findings:
    """What the analysis works on. ``items`` holds, for oracles of the test items, what each item says: [blocks, items]."""

    criteria: tuple[str, ...]
    scores: tuple[BlockValues, ...]
    oracles: tuple[BlockValues, ...]
    whole: tuple[Measured, ...]
    measured: tuple[Measured, ...]
    unique: int
    items: dict[tuple[str, int, int | None], np.ndarray[Any, Any]] = field(repr=False)


def oracle_sets(
    measured: Mapping[tuple[Any, ...], dict[str, Any] | None],
    replicates: Sequence[tuple[int, int]],
    blocks: int,
    counts: Sequence[int],
) -> dict[tuple[str, int, int, int], Removed]:
    """Return the sets that the oracle of each model names: least accuracy lost after finetuning, mean over its seeds."""
    sets: dict[tuple[str, int, int, int], Removed] = {}
    for model in dict.fromkeys(model for model, _ in replicates):
        seeds = [seed for own, seed in replicates if own == model]
        kept = [[measured.get(("finetuned", model, seed, (block,))) for seed in seeds] for block in range(blocks)]
        if any(cell is None for cells in kept for cell in cells):
            continue
        top1 = [mean(cell["top1"] for cell in cells if cell is not None) for cells in kept]
        # of equal ones the deeper goes first, as everywhere
        order = sorted(range(blocks), key=lambda block: (-top1[block], -block))
        for count in counts:
            for seed in seeds:
                sets[ORACLE, count, model, seed] = tuple(sorted(order[:count]))
    return sets


def collect(found: Collected) -> Findings:
    """Put the results of the cells in the form that they are compared in."""
    names = [column.name for column in found.columns]
    if any(key[0] == ORACLE for key in found.named):
        names.append(ORACLE)
    measured = [_measured(found, *key, removed) for key, removed in found.named.items()]
    place = {name: number for number, name in enumerate(names)}
    oracles, items = _oracles(found)
    sets = {(row.model, row.seed, row.removed) for row in measured}
    singles = {(model, seed, (block,)) for model, seed in found.replicates for block in range(found.blocks)}
    return Findings(
        criteria=tuple(names),
        scores=tuple(
            BlockValues(name, model, seed, tuple(result["scores"]), tuple(result["noise"]))
            for (name, model, seed), result in found.scores.items()
            if name in place
        ),
        oracles=tuple(oracles),
        whole=tuple(_measured(found, "none", 0, model, seed, ()) for model, seed in found.replicates),
        measured=tuple(sorted(measured, key=lambda row: (place[row.criterion], row.count, row.model, row.seed))),
        unique=len(sets | singles) + len(found.replicates),
        items=items,
    )


def _measured(found: Collected, criterion: str, count: int, model: int, seed: int, removed: Removed) -> Measured:
    zero = found.measured.get(("zero-shot", model, removed)) or {}
    tuned = found.measured.get(("finetuned", model, seed, removed)) or {}
    return Measured(
        criterion,
        count,
        model,
        seed,
        removed,
        zero_shot_top1=zero.get("top1"),
        zero_shot_loss=zero.get("loss"),
        finetuned_top1=tuned.get("top1"),
        finetuned_loss=tuned.get("loss"),
    )


def _oracles(found: Collected) -> tuple[list[BlockValues], dict[tuple[str, int, int | None], np.ndarray[Any, Any]]]:
    """Each oracle's value a block, higher for a block that matters more, where all its cells are there."""
    values: list[BlockValues] = []
    items: dict[tuple[str, int, int | None], np.ndarray[Any, Any]] = {}

    def add(name: str, model: int, seed: int | None, lost: np.ndarray[Any, Any]) -> None:
        values.append(BlockValues(name, model, seed, tuple(float(value) for value in lost.mean(axis=1))))
        items[name, model, seed] = lost

    for model, seed in found.replicates:
        cells = _singles(found, "finetuned", model, seed)
        if cells is not None:
            add("finetuned accuracy", model, seed, 100 * (_right(cells[0]) - np.stack([_right(cell) for cell in cells[1:]])))
    for model in dict.fromkeys(model for model, _ in found.replicates):
        cells = _singles(found, "zero-shot", model)
        if cells is not None:
            add("zero-shot accuracy", model, None, 100 * (_right(cells[0]) - np.stack([_right(cell) for cell in cells[1:]])))
            add("zero-shot loss", model, None, np.stack([_losses(cell) for cell in cells[1:]]) - _losses(cells[0]))
        result = found.scores.get(("reconstruction", model, None))
        if result is not None:
            noise = tuple(result["noise"])
            values.append(BlockValues("reconstruction loss", model, None, tuple(result["scores"]), noise))
    return values, items


def _singles(found: Collected, kind: str, *which: int) -> list[dict[str, Any]] | None:
    """The cells of the whole model and of each block removed alone, or None when one failed."""
    cells = [found.measured.get((kind, *which, removed)) for removed in [(), *((b,) for b in range(found.blocks))]]
    return None if any(cell is None for cell in cells) else [cell for cell in cells if cell is not None]


def _right(cell: dict[str, Any]) -> np.ndarray[Any, Any]:
    return unpacked_bits(cell["right"], cell["items"]).astype(np.float64)


def _losses(cell: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(cell["losses"]), "<f4").astype(np.float64)
