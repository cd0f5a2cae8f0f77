"""Recover what removing blocks cost: finetune what is left, and measure it."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .finetuning import Evaluation, FinetuneConfig, evaluate, finetune

__all__ = ["Evaluation", "FinetuneConfig", "evaluate", "finetune"]

__getattr__ = lazy_names(__name__, dict.fromkeys(__all__, "finetuning"))
