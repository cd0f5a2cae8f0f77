"""Score blocks: one number each, higher means keep."""

from .criteria import CRITERIA, ScoreConfig, score
from .records import BlockScore, BlockScores

__all__ = ["CRITERIA", "BlockScore", "BlockScores", "ScoreConfig", "score"]
