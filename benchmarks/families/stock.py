"""The table of families, first part: small models of the classes that transformers, timm and torchvision have.

A newcomer's trap: a name is the key of a case's rows, so that one that changes leaves its old row in the results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .stock_plain import STOCK_PLAIN
from .stock_staged import STOCK_STAGED
from .stock_tasks import STOCK_TASKS

if TYPE_CHECKING:
    from .cases import Case

__all__ = ["STOCK"]

STOCK: tuple[Case, ...] = (*STOCK_PLAIN, *STOCK_STAGED, *STOCK_TASKS)
