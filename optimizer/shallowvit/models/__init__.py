"""Load a model, find its blocks, describe its inputs. What a source may be stands in ``load``'s docstring."""

from .changes import Changes
from .load import load
from .records import Block, BlockStack, InputSpec, LoadedModel, Origin, Preprocessing

__all__ = ["Block", "BlockStack", "Changes", "InputSpec", "LoadedModel", "Origin", "Preprocessing", "load"]
