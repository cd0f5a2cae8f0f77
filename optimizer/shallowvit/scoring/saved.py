"""Scores as a JSON file, to rank once and prune later, elsewhere or by hand.

A newcomer's trap: the file names the weights it was made from by their hash; ``plan`` refuses it for any others.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..errors import ShallowvitError
from .criteria import CRITERIA, ScoreConfig
from .records import BlockScore, BlockScores, Interval

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FORMAT", "check_save", "config_from_scores", "read_scores", "record_from_scores", "write_scores"]

FORMAT = "shallowvit scores 1"


def record_from_scores(scores: BlockScores) -> dict[str, Any]:
    """Return the scores as JSON types, with the order of removal beside them."""
    record = asdict(scores)
    blocks = record.pop("blocks")
    return {"format": FORMAT, **record, "blocks": blocks, "removal_order": list(scores.ascending)}


def check_save(path: Path, force: bool) -> None:
    """Refuse a path that can't be written, before the work."""
    if path.exists() and not force:
        raise ShallowvitError(f"score: {path} exists; choose another --save or replace it with --force")
    if path.is_dir() or not path.parent.is_dir():
        raise ShallowvitError(
            f"score: can't write {path}: it is a folder or lies in none; create the folder or choose another --save"
        )


def write_scores(scores: BlockScores, path: Path) -> None:
    """Write the scores to ``path``, whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with beside.open("w", encoding="utf-8") as file:
        file.write(json.dumps(record_from_scores(scores), indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def read_scores(path: Path) -> BlockScores:
    """Read what ``write_scores`` (or ``shallowvit score --json``) wrote.

    Raises:
        ShallowvitError: no such file, not JSON, not such a record, or a score that isn't a number.
    """
    if not path.is_file():
        raise ShallowvitError(f"score: no file {path}; write one with: shallowvit score MODEL --save {path}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ShallowvitError(f"score: {path} is not JSON ({err}); score the model again") from err
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise ShallowvitError(f"score: {path} has format {found!r}, expected {FORMAT!r}; score the model again with --save")
    try:
        rows = tuple(BlockScore(**row) for row in record["blocks"])
        scores = BlockScores(
            criterion=str(record["criterion"]),
            needs=str(record["needs"]),
            unit=str(record["unit"]),
            settings=dict(record["settings"]),
            weights_sha256=record["weights_sha256"],
            blocks=rows,
            warnings=tuple(record["warnings"]),
            blocks_sha256=str(record["blocks_sha256"]),
            intervals=tuple(Interval(*entry) for entry in record["intervals"]),
            reason=str(record["reason"]),
        )
        numbers = [float(row.score) for row in rows]
    except (KeyError, TypeError, ValueError) as err:
        raise ShallowvitError(f"score: {path} lacks or misuses the field {err}; score the model again with --save") from err
    if (
        scores.criterion not in CRITERIA
        or not all(map(math.isfinite, numbers))
        or [row.block for row in rows] != list(range(len(rows)))
    ):
        raise ShallowvitError(
            f"score: {path} doesn't hold one finite score for each of the blocks 0 to {len(rows) - 1} by a known criterion; "
            "score the model again with --save"
        )
    return scores


def config_from_scores(scores: BlockScores) -> ScoreConfig:
    """Return how the scores were made, to score what is left of the model the same way."""
    known = {name: value for name, value in scores.settings.items() if name in ScoreConfig.__dataclass_fields__}
    return ScoreConfig(**{"criterion": scores.criterion, **known})
