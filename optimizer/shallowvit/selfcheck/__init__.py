"""Check on one machine, in minutes and without network, that what this project claims holds there; every step leaves a row.

A newcomer's trap: what the machine lacks is a row with its reason, never a gap.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .run import SelfcheckConfig, selfcheck

_HOMES = {"SelfcheckConfig": "run", "selfcheck": "run"}

__all__ = ["SelfcheckConfig", "selfcheck"]

__getattr__ = lazy_names(__name__, _HOMES)
