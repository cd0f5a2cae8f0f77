"""Write what a study found into its folder: ``rows.jsonl``, ``study.json``, ``tables.md`` and the plots.

A newcomer's trap: these are made anew by every run and from nothing but the cells, so edit none of them by hand.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..workers.cells import write_whole
from .plots import write_plots
from .tables import markdown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .histograms import Histograms
    from .records import StudyResult

__all__ = ["write_report"]


def write_report(result: StudyResult, histograms: Histograms, rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Write all files; the same bytes for the same cells."""
    write_whole(out / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_whole(out / "tables.md", markdown(result))
    write_plots(result, histograms, out)
    write_whole(out / "study.json", json.dumps(result.record, indent=1) + "\n")
