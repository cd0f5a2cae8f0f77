"""The experiment behind the ranking: remove blocks, finetune, measure, and ask which criterion foresaw it.

A newcomer's trap: the function is ``shallowvit.study.study``; this package is what ``import shallowvit.study`` gives.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names
from .config import Column, StudyConfig

if TYPE_CHECKING:
    from .records import StudyResult
    from .run import study

__all__ = ["Column", "StudyConfig", "StudyResult", "study"]

__getattr__ = lazy_names(__name__, {"study": "run", "StudyResult": "records"})
