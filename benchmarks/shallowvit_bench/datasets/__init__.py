"""Open data for a bundle's accuracy or a model's scores: the demo's clips, arrays, images, video lists, audio, retrieval.

A newcomer's trap: nothing is dropped or adapted silently. An item of another size or a class the bundle doesn't know is an
error that says found and expected; a file that can't be read is handed on with the reason, and counted.
"""

from .dataset import Dataset, Taker, UnreadableError
from .opening import check_dataset, open_dataset

__all__ = ["Dataset", "Taker", "UnreadableError", "check_dataset", "open_dataset"]
