"""Pair the states of a pruned model with those of the model it was made from, watch them, and say how far apart they are.

A kept block in front of a gap hands on what the removed blocks would have answered, so its state is compared with the one
behind the gap: both stand for the same depth. A newcomer's trap: hooks stay on the model until ``close``, and a copy made
before keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..models.outputs import tensors_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

    from ..pruning import PrunedModel

__all__ = ["StatePair", "Watch", "list_of", "normalised_error", "state_loss", "state_pairs"]

_LEAST_VARIANCE = 1e-12  # of a state that is all alike, whose error would be divided by nothing


@dataclass(frozen=True)
class StatePair:
    """A kept block and the block whose answer is its aim, by their numbers in the unpruned model, and their modules' paths."""

    block: int
    target: int
    student: str
    teacher: str


def state_pairs(pruned: PrunedModel) -> tuple[StatePair, ...]:
    """Return a pair for each block that stands: with the last of the removed blocks right behind it, else with itself.

    Removed blocks in front of a list's first kept one have none that hands on their answer; that one has its own aim.
    """
    removed, paths = set(pruned.plan.gone), pruned.plan.paths
    found = []
    for path, block in pruned.places.items():
        target = block
        while target + 1 in removed and list_of(paths, target + 1) == list_of(paths, block):
            target += 1
        found.append(StatePair(block, target, path, paths[target]))
    return tuple(found)


def list_of(paths: Sequence[str], block: int) -> str:
    """Return the path of the module list that a block stands in."""
    return paths[block].rpartition(".")[0]


class Watch:
    """Keeps what modules last answered, by hooks, until it is taken."""

    def __init__(self, module: torch.nn.Module, paths: Iterable[str]) -> None:
        self._seen: dict[str, torch.Tensor] = {}
        self._handles = [self._hooked(module.get_submodule(path), path) for path in paths]

    def _hooked(self, module: torch.nn.Module, path: str) -> torch.utils.hooks.RemovableHandle:
        # a closure over the dictionary alone: a hook that held this object would be copied with it when the model is copied
        seen = self._seen
        return module.register_forward_hook(lambda _m, _args, output: seen.update({path: tensors_in(output)[0]}))

    def take(self) -> dict[str, torch.Tensor]:
        """Return the states of the last forward by path, and let go of them."""
        taken = dict(self._seen)
        self._seen.clear()
        return taken

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._seen.clear()


def normalised_error(answer: torch.Tensor, aim: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error over the variance of the aim, in fp32: 0 for equal, 1 for its mean alone.

    So states of any depth and of any model count alike, whatever their scale.
    """
    answer, aim = answer.float(), aim.float()
    return (answer - aim).square().mean() / aim.var(correction=0).clamp_min(_LEAST_VARIANCE)


def state_loss(
    student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor], pairs: Iterable[StatePair]
) -> torch.Tensor | None:
    """Return the mean over pairs of ``normalised_error``; pairs of other shapes are left out.

    None where no pair is left.
    """
    errors = [
        normalised_error(student[pair.student], teacher[pair.teacher])
        for pair in pairs
        if student[pair.student].shape == teacher[pair.teacher].shape
    ]
    return sum(errors[1:], errors[0]) / len(errors) if errors else None
