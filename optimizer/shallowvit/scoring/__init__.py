"""Score blocks: one number each, higher means keep."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names
from .criteria import CRITERIA, ScoreConfig
from .records import BlockScore, BlockScores, Calibration

if TYPE_CHECKING:
    from .apply import score, score_checkpoint
    from .calibration import read_calibration
    from .comparison import Comparison, compare
    from .saved import config_from_scores, read_scores, write_scores

__all__ = [
    "CRITERIA",
    "BlockScore",
    "BlockScores",
    "Calibration",
    "Comparison",
    "ScoreConfig",
    "compare",
    "config_from_scores",
    "read_calibration",
    "read_scores",
    "score",
    "score_checkpoint",
    "write_scores",
]

__getattr__ = lazy_names(
    __name__,
    {
        "score": "apply",
        "score_checkpoint": "apply",
        "read_calibration": "calibration",
        "Comparison": "comparison",
        "compare": "comparison",
        "config_from_scores": "saved",
        "read_scores": "saved",
        "write_scores": "saved",
    },
)
