"""Search the depth, the blocks, the precision and the batch of the cheapest bundle that meets every budget.

A newcomer's trap: the function is ``shallowvit.tune`` (``tuning.run.tune``); accuracy on the named data is measured at the end
alone.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names
from .budgets import Budgets, budgets_from_text
from .config import TuneConfig

if TYPE_CHECKING:
    from .records import TunePoint, TuneResult
    from .run import tune

__all__ = ["Budgets", "TuneConfig", "TunePoint", "TuneResult", "budgets_from_text", "tune"]

__getattr__ = lazy_names(__name__, {"tune": "run", "TunePoint": "records", "TuneResult": "records"})
