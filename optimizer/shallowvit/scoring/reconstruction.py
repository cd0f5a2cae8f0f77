"""Score the blocks of a masked autoencoder by the rise of its own loss, that of rebuilding what is hidden, without each.

It needs no labels and every hidden pixel counts. A newcomer's trap: the loss moves with the masks, so each block is measured
under the same masks as the whole model, and only differences are averaged.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import ShallowvitError
from ..models.outputs import tensors_in
from .activations import estimate
from .calibration import check_calibration, forward_arguments
from .records import Estimate
from .skipped import skipped

if TYPE_CHECKING:
    from ..models import LoadedModel
    from .criteria import ScoreConfig
    from .records import Calibration

__all__ = ["MASK_RATIO", "maskable_tokens", "reconstruction"]

# The share of tokens that is hidden where the checkpoint doesn't say, drawn anywhere in space and time: that of He et al. and
# of the demo model. The published VideoMAE checkpoints were pretrained with tubes over 0.9 of each frame, which is harder.
MASK_RATIO = 0.75
_BATCHES = 8  # at least, where there are as many items, since the noise comes from their spread


def reconstruction(model: LoadedModel, data: Calibration | None, config: ScoreConfig) -> list[Estimate]:
    """Score a block by the rise of the masked-reconstruction loss when it is skipped, under fixed masks drawn by the seed.

    For masked autoencoders with their decoder: models that are told what to hide (``bool_masked_pos``: VideoMAEForPreTraining,
    ViTForMaskedImageModeling), of which each item hides the same number of tokens, and those that draw it themselves
    (ViTMAEForPreTraining), whose draws are fixed. The noise is the standard error over batches of the difference.

    Raises:
        ShallowvitError: the model isn't a masked autoencoder, or the data doesn't fit it.
    """
    data = check_calibration(model, data, config)
    batch = max(1, min(config.batch, len(data) // _BATCHES))
    masks = _masks(model, len(data), config.seed)
    with torch.no_grad():
        whole = _losses(model, data, config, batch, masks)
        sizes = torch.tensor([min(batch, len(data) - start) for start in range(0, len(data), batch)], dtype=torch.float64)
        found = []
        for block in model.blocks:
            with skipped(model, config.granularity, block.index):
                rises = _losses(model, data, config, batch, masks) - whole
            found.append(Estimate(float((rises * sizes).sum() / sizes.sum()), estimate(rises).noise))
    return found


def _losses(model: LoadedModel, data: Calibration, config: ScoreConfig, batch: int, masks: torch.Tensor | None) -> torch.Tensor:
    """The model's own loss, a batch each."""
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # for models that draw their masks themselves: the same for every block
        for place, arguments in enumerate(forward_arguments(model, data, batch)):
            if masks is not None:
                arguments["bool_masked_pos"] = masks[place * batch : (place + 1) * batch]
            losses.append(_loss(model, arguments, data.name))
    return torch.tensor(losses, dtype=torch.float64)


def _loss(model: LoadedModel, arguments: dict[str, Any], data_name: str) -> float:
    """The first output, which is the loss where a model has one."""
    found = tensors_in(model.module(**arguments))
    if not found or found[0].ndim != 0:
        raise _no_autoencoder(model)
    loss = float(found[0])
    if not np.isfinite(loss):
        raise ShallowvitError(
            f"score: the reconstruction loss of {model.origin.spec} on {data_name} is {loss}; check the scale of its inputs"
        )
    return loss


def _masks(model: LoadedModel, items: int, seed: int) -> torch.Tensor | None:
    """What to hide, bool [items, tokens], the same number in each item; None for a model that draws it itself."""
    parameters = inspect.signature(model.module.forward).parameters
    if "bool_masked_pos" not in parameters:
        if "noise" in parameters:
            return None
        raise _no_autoencoder(model)
    tokens = maskable_tokens(model)
    if tokens is None:
        raise _no_autoencoder(model)
    hidden = int(tokens * (getattr(getattr(model.module, "config", None), "mask_ratio", None) or MASK_RATIO))
    # an item's mask depends on its place alone, not on the batches
    order = np.random.default_rng(seed).random((items, tokens)).argsort(axis=1)
    return torch.from_numpy(order < hidden)


def maskable_tokens(model: LoadedModel) -> int | None:
    """Return the number of tokens that can be hidden: as in the example, else the patches of an input.

    None where nothing stands in for what is hidden.
    """
    example = model.example.get("bool_masked_pos")
    if isinstance(example, torch.Tensor):
        return example.shape[1]
    config = getattr(model.module, "config", None)
    patch = getattr(config, "patch_size", None)
    # an encoder alone takes the masks too, but has nothing to put in the hidden tokens' places
    masks = any(name.endswith("mask_token") for name, _ in model.module.named_parameters())
    if patch is None or not masks:
        return None
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    *frames, _channels, height, width = model.input_spec.shape
    return int((frames[0] // getattr(config, "tubelet_size", 1) if frames else 1) * (height // rows) * (width // columns))


def _no_autoencoder(model: LoadedModel) -> ShallowvitError:
    return ShallowvitError(
        f"score: reconstruction needs a masked autoencoder with its decoder, and {model.origin.architecture} gives no "
        "reconstruction loss; load the pretrained checkpoint (demo:pretrained), or use --criterion block-influence"
    )
