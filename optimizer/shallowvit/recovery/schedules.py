"""Which weights learn how fast: groups by their distance from the output, and the rise and fall of the learning rate.

A newcomer's trap: what stands outside the blocks is placed by the order in which the module defines it; behind the last block
it learns at the full rate, in front of the first at the lowest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ShallowvitError

if TYPE_CHECKING:
    import torch

    from ..models import LoadedModel
    from .settings import TrainConfig

__all__ = ["optimizer_from_groups", "parameter_groups", "schedule_of"]


def parameter_groups(objective: torch.nn.Module, model: LoadedModel, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the objective's trained parameters in groups of one learning rate and one weight decay.

    The last block and what stands behind it, and what isn't the model's, learn at the full rate; each block further down at
    ``layer_decay`` of the one above it, and what stands in front of the first at one step less again. Vectors and what the
    model says doesn't decay (``no_weight_decay``) doesn't.
    """
    depths = _depths(model)
    undecayed = {id(model.module.get_parameter(name)) for name in _undecayed_names(model.module)}
    groups: dict[tuple[int, bool], list[torch.nn.Parameter]] = {}
    for parameter in objective.parameters():
        if parameter.requires_grad:
            vector = sum(size > 1 for size in parameter.shape) <= 1 or id(parameter) in undecayed
            groups.setdefault((depths.get(id(parameter), 0), vector), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_scale": config.layer_decay**depth,
            "weight_decay": 0.0 if vector else config.weight_decay,
        }
        for (depth, vector), parameters in sorted(groups.items(), key=lambda one: one[0])
    ]


def optimizer_from_groups(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """Return timm's optimiser of that name.

    Raises:
        ShallowvitError: timm has none of that name, or it can't run here.
    """
    from timm.optim import create_optimizer_v2, list_optimizers

    known = list_optimizers()
    if config.optimizer not in known:
        raise ShallowvitError(f"recover: timm has no optimizer {config.optimizer!r}; choose from {', '.join(known)}")
    try:
        created: torch.optim.Optimizer = create_optimizer_v2(groups, opt=config.optimizer, lr=config.learning_rate)
    except (AssertionError, ImportError) as err:  # what timm asserts is a GPU, or a package that the optimiser comes from
        raise ShallowvitError(f"recover: {config.optimizer!r} can't run here ({err}); give one such as adamw") from err
    if getattr(created, "is_second_order", False):
        raise ShallowvitError(
            f"recover: optimizer {config.optimizer!r} needs the gradients' own gradients, which this training doesn't compute; "
            "give one such as adamw"
        )
    return created


def schedule_of(optimizer: torch.optim.Optimizer, steps: int, config: TrainConfig) -> Any:
    """Return timm's cosine with warm-up over this many steps; a step's rates depend on its number alone, so none is saved."""
    from timm.scheduler import CosineLRScheduler

    warmup = min(int(steps * config.warmup_share), steps - 1)
    return CosineLRScheduler(
        optimizer,
        t_initial=steps - warmup,
        warmup_t=warmup,
        warmup_lr_init=config.learning_rate / (warmup + 1),  # so that the first step moves something
        warmup_prefix=True,
        t_in_epochs=False,
    )


def _depths(model: LoadedModel) -> dict[int, int]:
    """The id of each parameter of the model -> how many blocks it stands below the last."""
    places = {block.path: place for place, block in enumerate(model.blocks)}
    last, seen, depths = len(places) - 1, -1, {}
    for name, parameter in model.module.named_parameters():
        inside = next((place for path, place in places.items() if name.startswith(f"{path}.")), None)
        seen = seen if inside is None else max(seen, inside)
        depths[id(parameter)] = last - (seen if inside is None else inside)
    return depths


def _undecayed_names(module: torch.nn.Module) -> list[str]:
    listed = getattr(module, "no_weight_decay", None)
    names = set(listed()) if callable(listed) else set()
    return [name for name, _parameter in module.named_parameters() if name in names]
