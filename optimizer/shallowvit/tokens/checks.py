"""Find out by running a model whether it can do with fewer tokens, and how many in front have to stay.

A newcomer's trap: names say nothing here. A model of windows, of position biases or of rotary positions may run on fewer tokens
and answer something else, so what counts is that permuted tokens change nothing but their order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError
from ..models.outputs import tensors_in, with_tensors
from ..models.probes import random_like
from ..models.skeletons import skeleton
from ..models.token_reducer import apply_token_reduction

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from ..models import LoadedModel
    from ..models.token_reducer import TokenReduction, TokenSite

__all__ = ["check_reduction", "prefix_tokens", "state_shapes"]

_FRONT = ("cls_token", "class_token", "dist_token", "distillation_token", "reg_token", "register_tokens")
_LARGEST = 1e-3  # of the norm: sums in another order differ by 1e-6, a position that counts by far more
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)


def prefix_tokens(model: LoadedModel) -> int:
    """Return how many tokens stand in front of those of the picture: what timm says, else by the names of parameters."""
    said = getattr(model.module, "num_prefix_tokens", None)
    if isinstance(said, int):
        return said
    found = {name: value for name, value in model.module.named_parameters() if name.rpartition(".")[2] in _FRONT}
    return sum(value.shape[-2] if value.ndim > 1 else 1 for value in found.values())


def state_shapes(model: LoadedModel, paths: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the number of tokens and their width behind each block.

    Raises:
        ShallowvitError: a state isn't one row a token with the batch in front.
    """
    states, _outputs = _run(skeleton(model.module), model, paths)
    for path in paths:
        if path not in states:
            raise ShallowvitError(
                f"tokens: {path} is a list of parts that {model.origin.architecture} walks itself, so nothing can follow it"
            )
        state = states[path]
        if state.ndim != 3 or state.shape[0] != 1:
            raise ShallowvitError(
                f"tokens: behind {path} the state of one item is {list(state.shape)}, expected [1, tokens, width]; "
                f"{model.origin.architecture} keeps its tokens as a grid or among other axes, so none can go"
            )
    return {path: (state.shape[1], state.shape[2]) for path, state in states.items()}


def check_reduction(model: LoadedModel, reduction: TokenReduction) -> None:
    """Refuse a reduction that changes more than which tokens there are.

    Raises:
        ShallowvitError: says which block or output needs the tokens' places.
    """
    first = reduction.sites[0]
    later = _behind(model, first.path)
    whole = skeleton(model.module)
    states, outputs = _run(whole, model, later)
    order = _permutation(first, reduction.prefix)
    changed, given = _permuted(whole, model, first.path, order, later)
    for path in later:
        if states[path].ndim == 3 and states[path].shape[1] == first.before:
            error = _difference(states[path][:, order], changed[path])
            if error > _LARGEST:
                raise ShallowvitError(
                    f"tokens: {path} doesn't treat its tokens alike wherever they stand (permuted tokens change its answer by "
                    f"{error:.1%}): position biases, rotary positions or windows, or a token in front that isn't counted "
                    f"({reduction.prefix} are; say how many with --prefix-tokens). No token can go"
                )
    reduced = skeleton(model.module)
    apply_token_reduction(reduced, reduction)
    try:
        _states, fewer = _run(reduced, model, ())
    except _FAILURES as err:
        reason = str(err).strip().partition("\n")[0]
        raise ShallowvitError(
            f"tokens: {model.origin.architecture} can't run with {first.after} of {first.before} tokens behind block "
            f"{first.block} ({reason}); no token can go"
        ) from err
    for before, after in zip(outputs, fewer, strict=True):
        if before.shape != after.shape:
            raise ShallowvitError(
                f"tokens: the output {list(before.shape)} became {list(after.shape)}: it has a row a token, so no token can "
                "go; take a model with a head that pools them"
            )
    for before, after in zip(outputs, given, strict=True):
        error = _difference(before, after)
        if error > _LARGEST:
            raise ShallowvitError(
                f"tokens: what is behind the blocks takes tokens by their place (permuted tokens change the output by "
                f"{error:.1%}), with {reduction.prefix} in front left as they are; say how many stay with --prefix-tokens"
            )


def _behind(model: LoadedModel, path: str) -> list[str]:
    """The blocks that run behind this one."""
    paths = [block.path for block in model.blocks]
    return paths[paths.index(path) + 1 :]


def _permutation(site: TokenSite, prefix: int) -> torch.Tensor:
    """Another order of all tokens but those in front."""
    order = torch.randperm(site.before - prefix, generator=torch.Generator().manual_seed(0))
    if len(order) > 1 and int(order[0]) == 0:
        order = order.roll(1)  # the first is who is pooled where a class token isn't known
    return torch.cat([torch.arange(prefix), order + prefix])


def _permuted(
    module: nn.Module, model: LoadedModel, path: str, order: torch.Tensor, later: Sequence[str]
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    def permute(_module: nn.Module, _args: Any, output: Any) -> Any:
        state, *others = tensors_in(output)
        return with_tensors(output, [state[:, order], *others])

    handle = module.get_submodule(path).register_forward_hook(permute)
    try:
        return _run(module, model, later)
    finally:
        handle.remove()


@torch.no_grad()
def _run(module: nn.Module, model: LoadedModel, paths: Sequence[str]) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """What blocks answer, and the outputs, for one random item; a model that draws at random draws the same each time."""
    states: dict[str, torch.Tensor] = {}
    handles = [module.get_submodule(path).register_forward_hook(_keeper(states, path)) for path in paths]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs = [one for one in tensors_in(module(**random_like(model.example))) if one.is_floating_point()]
    finally:
        for handle in handles:
            handle.remove()
    return states, outputs


def _keeper(states: dict[str, torch.Tensor], path: str) -> Callable[[nn.Module, Any, Any], None]:
    return lambda _module, _args, output: states.update({path: tensors_in(output)[0]})


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The norm of the difference over the norm, in fp64."""
    one, other = one.double(), other.double()
    return float((one - other).norm() / one.norm().clamp_min(1e-12))
