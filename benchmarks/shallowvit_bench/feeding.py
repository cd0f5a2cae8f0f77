"""A batch as the harness hands it around: an array for a graph of one input, a dict of arrays by name for one of several.

A newcomer's trap: an input without a batch (a table, a camera's matrix) is fed whole with every batch, so the number of items
is read off the first input alone, which is the main one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .bundles import BundleInfo

    Batch = np.ndarray[Any, Any] | Mapping[str, np.ndarray[Any, Any]]

__all__ = ["arrays_by_name", "batch_beside", "batch_size", "described", "sample_batch"]


def arrays_by_name(batch: Batch, names: Sequence[str], what: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of a batch by name, in the order of the graph's inputs.

    Args:
        batch: An array goes to the one input.
        names: The graph's inputs.
        what: The stage, for the sentence.

    Raises:
        BenchError: an input lacks an array, or an array has no input.
    """
    if isinstance(batch, np.ndarray):
        if len(names) != 1:
            raise BenchError(f"{what}: one array is given, the graph takes {', '.join(names)}; give a dict of arrays by name")
        return {names[0]: batch}
    if set(batch) != set(names):
        raise BenchError(f"{what}: arrays {', '.join(batch)} are given, the graph takes {', '.join(names)}; give each by name")
    return {name: batch[name] for name in names}


def batch_size(batch: Batch) -> int:
    """Return how many items a batch has."""
    return len(batch if isinstance(batch, np.ndarray) else next(iter(batch.values())))


def described(batch: Batch) -> str:
    """Return what a batch looks like, for sentences: ``float32 [1, 3, 224, 224]``."""
    if isinstance(batch, np.ndarray):
        return f"{batch.dtype} {list(batch.shape)}"
    return ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in batch.items())


def sample_batch(bundle: BundleInfo, name: str, count: int) -> np.ndarray[Any, Any]:
    """Return ``count`` items of an input from the bundle's ``inputs.npz``, from its first on again and again; without a batch,
    the one there is.

    Raises:
        BenchError: the bundle carries none.
    """
    if name not in bundle.samples:
        raise BenchError(
            f"sample_batch: the bundle {bundle.name} has no sample of its input {name} (inputs.npz); export it again"
        )
    array = bundle.samples[name]
    one = next(one for one in bundle.inputs if one.name == name)
    return np.take(array, range(count), axis=0, mode="wrap") if one.batch else array


def batch_beside(main: np.ndarray[Any, Any], bundle: BundleInfo, others: Mapping[str, np.ndarray[Any, Any]]) -> Batch:
    """Return the batch of a bundle: ``main`` alone, or with its other inputs.

    Args:
        main: Items of the main input.
        bundle: Says which inputs there are; those without a batch come from its samples where ``others`` lacks them.
        others: As many items of the other inputs.

    Raises:
        BenchError: an input is missing.
    """
    if len(bundle.inputs) == 1:
        return main
    found = {bundle.input.name: main}
    for one in bundle.inputs[1:]:
        if one.name in others:
            found[one.name] = others[one.name]
        elif not one.batch:
            found[one.name] = sample_batch(bundle, one.name, len(main))
        else:
            raise BenchError(
                f"feeding: the data holds no {one.name}, which {bundle.name} takes beside {bundle.input.name}; give a .npz "
                f"with each input by its name ({', '.join(entry.name for entry in bundle.inputs)}) and labels"
            )
    return found
