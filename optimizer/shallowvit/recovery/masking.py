"""What masked pretraining hides: tubes through time of clips, tokens anywhere of images, as many in every item.

A newcomer's trap: VideoMAE is told what to hide (``bool_masked_pos``) and needs the same number in each item; ViTMAE hides by
the order of a noise that it is given, and as much as its configuration says.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError
from ..models.outputs import tensors_in
from ..scoring.reconstruction import maskable_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..models import LoadedModel

__all__ = ["MaskPlan", "hiding", "mask_plan"]

_ANYWHERE = 0.75  # of tokens anywhere, as MAE (arXiv 2111.06377)
_TUBES = 0.9  # of tubes, as VideoMAE (arXiv 2203.12602), since what is hidden can't be seen in another frame


@dataclass(frozen=True)
class MaskPlan:
    """How a model is masked.

    Args:
        argument: Of the model's forward: ``bool_masked_pos``, or ``noise`` by whose order it hides.
        tokens: That can be hidden, of an item.
        frames: Steps in time that a mask is repeated over; 1 where it is drawn anywhere.
        hidden: Tokens hidden of each such step.
        ratio: Asked for.
    """

    argument: str
    tokens: int
    frames: int
    hidden: int
    ratio: float

    def draw(self, items: int, generator: torch.Generator | None = None) -> dict[str, torch.Tensor]:
        """Return the argument for so many items, on the CPU, by torch's own random state where no generator is given."""
        noise = torch.rand(items, self.tokens // self.frames, generator=generator)
        if self.argument == "noise":
            return {"noise": noise}
        ranks = noise.argsort(dim=1).argsort(dim=1)
        return {"bool_masked_pos": (ranks < self.hidden).repeat(1, self.frames)}  # tokens run through a frame first


def mask_plan(model: LoadedModel, ratio: float | None = None, *, tubes: bool = True) -> MaskPlan:
    """Find out how a masked autoencoder is told what to hide, and how many tokens there are.

    Args:
        model: Masked autoencoder with its decoder.
        ratio: The share that is hidden; by default the configuration's, else 0.9 of tubes and 0.75 of tokens anywhere.
        tubes: Hide the same places in all frames of a clip.

    Raises:
        ShallowvitError: it is no masked autoencoder, or the share hides nothing or everything.
    """
    names = inspect.signature(model.module.forward).parameters
    argument = next((name for name in ("bool_masked_pos", "noise") if name in names), None)
    tokens = maskable_tokens(model)
    if argument is None or tokens is None:
        raise _no_autoencoder(model)
    config, steps = getattr(model.module, "config", None), 1
    if tubes and argument == "bool_masked_pos" and model.input_spec.layout == "NTCHW":
        steps = model.input_spec.shape[0] // getattr(config, "tubelet_size", 1)
    share = ratio or getattr(config, "mask_ratio", None) or (_TUBES if steps > 1 else _ANYWHERE)
    places = tokens // steps
    hidden = int(places * share) if argument == "bool_masked_pos" else places - int(places * (1 - share))
    if not 0 < hidden < places:
        raise ShallowvitError(
            f"pretrain: a mask ratio of {share:g} hides {hidden} of {places} places of {model.origin.spec}; give one that "
            f"hides at least 1 and at most {places - 1}"
        )
    plan = MaskPlan(argument, tokens, steps, hidden, share)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        found = tensors_in(model.module(**(model.example | plan.draw(1))))
    if not found or found[0].ndim != 0:  # some take masks and leave the loss to others
        raise _no_autoencoder(model)
    return plan


@contextmanager
def hiding(plan: MaskPlan, *modules: torch.nn.Module) -> Iterator[None]:
    """Have models that hide by their configuration hide as much as the plan says, while the block runs."""
    configs: list[Any] = [module.config for module in modules if plan.argument == "noise"]
    before = [config.mask_ratio for config in configs]
    for config in configs:
        config.mask_ratio = plan.ratio
    try:
        yield
    finally:
        for config, ratio in zip(configs, before, strict=True):
            config.mask_ratio = ratio


def _no_autoencoder(model: LoadedModel) -> ShallowvitError:
    if model.origin.family == "timm":
        why = f"timm ships {model.origin.architecture} as an encoder, without the decoder that it was pretrained with"
        give = "give the checkpoint of transformers (ViTMAEForPreTraining), or use --method distill"
    else:
        why = f"{model.origin.architecture} has no decoder that rebuilds what is hidden"
        give = (
            "prune and recover the checkpoint it was pretrained as (demo:pretrained, VideoMAEForPreTraining, "
            "ViTMAEForPreTraining), or use --method distill"
        )
    return ShallowvitError(f"pretrain: {why}; {give}")
