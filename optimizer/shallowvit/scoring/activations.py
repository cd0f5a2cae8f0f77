"""Criteria that watch what each block does to its inputs: influence, angle, likeness and size of what it adds.

One pass over the data, a batch in memory at a time, computed in float64. A newcomer's trap: in a vision transformer every token
counts, so cosines are averaged over all of them; Gromov et al. look at the last token of a language model, which alone sees the
whole text. A block's main input is the first tensor it is called with, its output the first tensor it answers with.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ShallowvitError
from ..models.outputs import tensors_in
from .calibration import check_calibration, forward_arguments
from .records import Calibration, Estimate, Interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..models import LoadedModel
    from .criteria import ScoreConfig

    Note = Callable[[int, torch.Tensor, torch.Tensor], None]  # block, before, after

__all__ = ["angular", "block_influence", "cka", "estimate", "item_tokens", "probe_influence", "residual_norm", "watched"]

_PROBES = 64
_CHUNK = 1 << 22  # numbers that are turned into float64 at a time: 32 MB a tensor


def block_influence(model: LoadedModel, data: Calibration | None, config: ScoreConfig) -> list[Estimate]:
    """Score a block by how far it turns what it gets: 1 - cosine of input and output, the mean over tokens and items.

    Men et al., "ShortGPT", arXiv 2403.03853. The noise is the standard error over items.
    """
    return _by_item(model, data, config, lambda before, after: 1 - _cosine(before, after))


def probe_influence(model: LoadedModel, _data: Calibration | None, config: ScoreConfig) -> list[Estimate]:
    """Score a block by its influence on probes: plain colours, one random value for each item and channel, and no data at all.

    Our own, found by the search that docs/entropy.md describes. The values are standard normal, as normalised pixels are about;
    inputs without channels are constant over all axes but the last.
    """
    letters = model.input_spec.layout[1:]
    varies = letters.rfind("C") if "C" in letters else len(letters) - 1
    shape = [size if axis == varies else 1 for axis, size in enumerate(model.input_spec.shape)]
    colours = torch.randn(_PROBES, *shape, generator=torch.Generator().manual_seed(config.seed))
    inputs = colours.expand(_PROBES, *model.input_spec.shape).contiguous()
    return block_influence(model, Calibration("plain colours", inputs), config)


def residual_norm(model: LoadedModel, data: Calibration | None, config: ScoreConfig) -> list[Estimate]:
    """Score a block by how much it adds: |output - input| / |input|, the mean over tokens and items.

    The noise is the standard error over items.
    """

    def share(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(before, dim=-1)
        # a token of zeros, as padding is, has no length to compare with
        return torch.where(length > 0, torch.linalg.vector_norm(after - before, dim=-1) / length, 0.0)

    return _by_item(model, data, config, share)


def angular(model: LoadedModel, data: Calibration | None, config: ScoreConfig) -> tuple[list[Estimate], list[Interval]]:
    """Score runs of blocks by the angle between the first one's input and the last one's output: arccos(cosine) / pi.

    Gromov et al., "The unreasonable ineffectiveness of the deeper layers", arXiv 2403.17887, who take the last token; here it
    is the mean over all tokens and items. A block's own score is that of the run of it alone, its noise the standard error over
    items. The inputs of all blocks of a stack are in memory for one batch.

    Returns:
        The blocks' scores, and every run of blocks that follow each other in a stack.
    """
    angles: dict[tuple[int, int], list[torch.Tensor]] = defaultdict(list)
    inputs: dict[int, torch.Tensor] = {}

    def note(block: int, before: torch.Tensor, after: torch.Tensor) -> None:
        own = model.blocks[block]
        start = next(other.index for other in model.blocks if other.stack == own.stack)
        if block == start:
            inputs.clear()
        inputs[block] = before
        for first in range(start, block + 1):
            # a list may hold other layers between its blocks
            follow = own.position - model.blocks[first].position == block - first
            if follow and first in inputs and inputs[first].shape == after.shape:
                angles[first, block].append(_means(inputs[first], after, _angle))

    _watch_items(model, data, config, note)
    runs = {run: estimate(torch.cat(found)) for run, found in sorted(angles.items())}
    blocks = [runs[block.index, block.index] for block in model.blocks]
    return blocks, [Interval(first, last, found.score) for (first, last), found in runs.items()]


def cka(model: LoadedModel, data: Calibration | None, config: ScoreConfig) -> list[Estimate]:
    """Score a block by how unlike its input and output are, whatever the rotation: 1 - linear CKA over all tokens.

    Kornblith et al., arXiv 1905.00414: |Y'X|^2 / (|X'X| |Y'Y|) of centred X and Y, from sums of [width, width] that the batches
    add to. The noise is the standard error of the batches' own values, whose own bias is common to all blocks; a shorter last
    batch doesn't count there.
    """
    totals: dict[int, list[torch.Tensor]] = {}
    by_batch: dict[int, list[float]] = defaultdict(list)

    def note(block: int, before: torch.Tensor, after: torch.Tensor) -> None:
        moments: list[torch.Tensor] = []
        for x, y in _chunks(before, after):
            moments = _added(moments, _moments(x.flatten(0, 1), y.flatten(0, 1)))
        totals[block] = _added(totals.get(block, []), moments)
        if len(before) == config.batch:
            by_batch[block].append(_likeness(moments))

    _watch_items(model, data, config, note)
    return [
        Estimate(1 - _likeness(totals[block.index]), estimate(by_batch[block.index] or [0.0]).noise) for block in model.blocks
    ]


def estimate(values: torch.Tensor | Sequence[float]) -> Estimate:
    """Return the mean of a value an item and its standard error (None for one item)."""
    values = torch.as_tensor(values, dtype=torch.float64)
    noise = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else None
    return Estimate(float(values.mean()), noise)


@contextmanager
def watched(model: LoadedModel, note: Note) -> Iterator[None]:
    """Call ``note(block, before, after)`` after each block's forward inside the ``with``; the hooks are gone at its end.

    ``before`` is a detached copy, since a block may change its input in place; ``after`` is the output itself.
    """
    given: dict[int, torch.Tensor] = {}

    def take(block: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given[block] = tensors_in((args, kwargs))[0].detach().clone()

    handles = []
    parted = next((block for block in model.blocks if model.modes_of(block.index)), None)
    if parted is not None:
        raise ShallowvitError(
            f"score: the block {parted.path} is a list of parts that no forward calls, so its states can't be watched; use a "
            "criterion of the weights, or bypass"
        )
    try:
        for block in model.blocks:
            module, index = model.block(block.index), block.index
            handles.append(
                module.register_forward_pre_hook(
                    lambda _module, args, kwargs, index=index: take(index, args, kwargs), with_kwargs=True
                )
            )
            handles.append(
                module.register_forward_hook(
                    lambda _module, _args, output, index=index: note(index, given.pop(index), tensors_in(output)[0])
                )
            )
        yield
    finally:
        for handle in handles:
            handle.remove()


def item_tokens(model: LoadedModel, block: int, states: torch.Tensor, items: int) -> torch.Tensor:
    """Arrange a block's states as [items, tokens, width], whatever the block's layout.

    Width is the last axis, or the second of feature maps [B, C, H, W]; items are the first (also split into windows or frames,
    an item's ones next to each other), or the second of sequences [N, B, C].

    Raises:
        ShallowvitError: no axis holds the items.
    """
    if states.ndim > 3 and not _width_is_last(model.block(block), states):
        states = states.movedim(1, -1)
    if len(states) % items == 0:
        return states.reshape(items, -1, states.shape[-1])
    if states.ndim == 3 and states.shape[1] == items:
        return states.transpose(0, 1)
    raise ShallowvitError(
        f"score: the block {model.blocks[block].path} is given {list(states.shape)} for {items} items, so its tokens can't be "
        "told from its items; use a criterion of the weights, or bypass"
    )


def _width_is_last(block: torch.nn.Module, states: torch.Tensor) -> bool:
    """Tell [B, H, W, C] from [B, C, H, W] by the sizes of the block's biases and norms."""
    widths = {len(parameter) for parameter in block.parameters() if parameter.ndim == 1}
    last, second = states.shape[-1] in widths, states.shape[1] in widths
    if last != second:
        return last
    convolves = any(parameter.ndim == states.ndim and max(parameter.shape[2:]) > 1 for parameter in block.parameters())
    return not (last and convolves)


def _watch_items(model: LoadedModel, data: Calibration | None, config: ScoreConfig, note: Note) -> None:
    """Run the data through the model once; ``note`` is given [items, tokens, width]."""
    data = check_calibration(model, data, config)
    # a masked autoencoder that draws its masks itself draws the same ones each time, and the caller's draws stay as they were
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for arguments in forward_arguments(model, data, config.batch):
            items = len(arguments[model.input_spec.name])

            def arranged(block: int, before: torch.Tensor, after: torch.Tensor, items: int = items) -> None:
                note(block, item_tokens(model, block, before, items), item_tokens(model, block, after, items))

            with watched(model, arranged):
                model.module(**arguments)


def _by_item(
    model: LoadedModel,
    data: Calibration | None,
    config: ScoreConfig,
    compare: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> list[Estimate]:
    """Average what ``compare`` gives a token over each item's tokens, then over the items."""
    found: dict[int, list[torch.Tensor]] = defaultdict(list)
    _watch_items(model, data, config, lambda block, before, after: found[block].append(_means(before, after, compare)))
    return [estimate(torch.cat(found[block.index])) for block in model.blocks]


def _means(
    before: torch.Tensor, after: torch.Tensor, compare: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """The mean over tokens, an item each."""
    return torch.cat([compare(x, y).mean(dim=1) for x, y in _chunks(before, after)])


def _chunks(before: torch.Tensor, after: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    size = max(1, _CHUNK // max(1, before[0].numel()))
    for x, y in zip(before.split(size), after.split(size), strict=True):
        yield x.double(), y.double()


def _cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The cosine of each token's two states; 1 where both are zero, 0 where one is."""
    lengths = torch.linalg.vector_norm(one, dim=-1), torch.linalg.vector_norm(other, dim=-1)
    cosine = torch.linalg.vecdot(one, other) / (lengths[0] * lengths[1])
    both_zero = ((lengths[0] == 0) & (lengths[1] == 0)).double()
    return torch.where(lengths[0] * lengths[1] > 0, cosine, both_zero).clamp(-1, 1)


def _angle(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.arccos(_cosine(one, other)) / torch.pi


def _moments(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """Count, sums and second moments of two states of the same tokens [n, width]."""
    return [torch.tensor(len(x)), x.sum(0), y.sum(0), x.T @ x, y.T @ y, x.T @ y]


def _added(totals: list[torch.Tensor], more: list[torch.Tensor]) -> list[torch.Tensor]:
    return [total + one for total, one in zip(totals, more, strict=True)] if totals else more


def _likeness(moments: list[torch.Tensor]) -> float:
    """Linear CKA from moments; 1 where nothing varies."""
    count, x, y, xx, yy, xy = moments
    sizes = torch.linalg.matrix_norm(xx - x.outer(x) / count) * torch.linalg.matrix_norm(yy - y.outer(y) / count)
    return float(torch.linalg.matrix_norm(xy - x.outer(y) / count) ** 2 / sizes) if sizes > 0 else 1.0
