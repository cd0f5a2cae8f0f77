"""``score`` applies a criterion of the table to a loaded model, ``score_checkpoint`` to a file of weights, without building it.

A newcomer's trap: criteria of scope ``block`` run in a pool of threads, so their functions must be free of shared state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import ShallowvitError
from .caveats import caveats
from .criteria import CRITERIA, Criterion, Scope, ScoreConfig
from .mixing import choose, mix
from .pretraining import has_decoder, pretraining_of
from .records import BlockScore, BlockScores, BlockWeights, Calibration, Estimate, Needs
from .sketch import Sketch, sketch
from .weights import hash_blocks, map_blocks, open_checkpoint, weights_from_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ..models import LoadedModel

__all__ = ["score", "score_checkpoint"]


def score(model: LoadedModel, config: ScoreConfig | None = None, data: Calibration | None = None) -> BlockScores:
    """Score every block of the model's chosen stacks; higher means keep.

    Args:
        model: Left as it is.
        config: Which criterion, and its settings.
        data: Inputs for criteria that need some; read from ``config.data`` by default.

    Raises:
        ShallowvitError: the criterion needs weights or data that aren't there, or the data doesn't fit the model.
    """
    config = config or ScoreConfig()
    criterion = CRITERIA[config.criterion]
    if criterion.scope is Scope.COMPOSED:
        if data is None and config.data is not None:
            data = _read(model, config, criterion)
        about = _About(has_decoder(model), model.origin.architecture, _needs_met(data))
        return _composed(config, lambda part: score(model, part, data), about)
    blocks = weights_from_model(model, config.granularity)
    if config.granularity != "block" and criterion.scope is Scope.MODEL and not criterion.halves:
        able = ", ".join(name for name, row in CRITERIA.items() if row.scope is Scope.MODEL and row.halves)
        raise ShallowvitError(
            f"score: {config.criterion} watches whole blocks, not their {config.granularity} alone; with --granularity "
            f"{config.granularity} use {able} or a criterion of the weights"
        )
    if criterion.scope is not Scope.MODEL:
        return _weighed(blocks, config, model.sha256, pretraining_of(model))
    if data is None and criterion.needs is not Needs.NOTHING:
        data = _read(model, config, criterion)
    if data is not None and data.labels is None and criterion.needs is Needs.LABELLED:
        raise ShallowvitError(f"score: {config.criterion} needs labels, {data.name} has none; give labelled data")
    found = _function(criterion)(model, data, config)
    estimates, intervals = found if isinstance(found, tuple) else (found, [])
    scores = _record(config, blocks, estimates, model.sha256, caveats(config, blocks, _rows(blocks, estimates)))
    return replace(scores, intervals=tuple(intervals))


def score_checkpoint(
    path: str | Path, config: ScoreConfig | None = None, stacks: Sequence[str] = (), *, fingerprint: bool = True
) -> BlockScores:
    """Score the blocks of a checkpoint by a criterion of the weights alone, without building the model.

    Args:
        path: A ``.safetensors``, ``.pt`` or ``.pth`` file, the index of a sharded checkpoint, or a folder that holds either.
        config: Which criterion; it must need no data.
        stacks: Names of the lists of blocks to work on; the longest is found by the weights' names by default.
        fingerprint: Hash the blocks' weights, without which ``plan`` can't tell whether the scores are of its model. Takes
            longer than counting them.

    Raises:
        ShallowvitError: the criterion needs data, no blocks are found by name, or a weight is NaN or Inf.
    """
    config = config or ScoreConfig()
    if config.granularity != "block":
        raise ShallowvitError(
            f"score: which of a block's weights are its {config.granularity} is known by running the model, but {path} holds "
            "weights alone; say what they belong to with --arch"
        )
    scope = CRITERIA[config.criterion].scope
    if scope is Scope.COMPOSED:
        about = _About(False, str(path), Needs.NOTHING)
        return _composed(config, lambda part: score_checkpoint(path, part, stacks, fingerprint=fingerprint), about)
    if scope is Scope.MODEL:
        raise ShallowvitError(
            f"score: {config.criterion} runs the model, but {path} holds weights alone; say what they belong to with --arch"
        )
    blocks = open_checkpoint(path, stacks)
    scores = _weighed(blocks, config, None, None)
    return replace(scores, blocks_sha256=hash_blocks(blocks)) if fingerprint else scores


def _function(criterion: Criterion) -> Callable[..., Any]:
    module, _, name = criterion.function.partition(":")
    function: Callable[..., Any] = getattr(import_module(f"{__package__}.{module}"), name)
    return function


@dataclass(frozen=True)
class _About:
    """What ``auto`` decides by."""

    reconstructs: bool
    architecture: str
    needs: Needs  # the most that the data at hand meets


def _composed(config: ScoreConfig, score_by: Callable[[ScoreConfig], BlockScores], about: _About) -> BlockScores:
    if config.criterion == "mix":
        return mix(config, score_by)
    found = choose(about.needs, reconstructs=about.reconstructs, architecture=about.architecture)
    settings = replace(config, criterion=found.criterion, mix=found.mix or config.mix)
    scores = mix(settings, score_by) if found.mix else score_by(settings)
    return replace(scores, reason=f"auto chose {found.mix or found.criterion}: {found.reason}")


def _weighed(
    blocks: Sequence[BlockWeights], config: ScoreConfig, weights_sha256: str | None, pretraining: str | None
) -> BlockScores:
    """Score by a criterion of the weights, a block a thread where it looks at one block at a time."""
    criterion = CRITERIA[config.criterion]
    function = _function(criterion)
    if criterion.scope is Scope.STACK:
        estimates, sketches = function(blocks, config), []
    else:
        for block in blocks:
            if not block.matrices:
                raise ShallowvitError(
                    f"score: {block.path} has no rank-2 weights for {config.criterion}; use --criterion depth"
                )

        def weigh(block: BlockWeights) -> tuple[Estimate, Sketch]:
            matrices = [matrix.read() for matrix in block.matrices]
            return function(matrices, config), sketch(matrices)

        found = map_blocks(weigh, blocks)
        estimates, sketches = [estimate for estimate, _ in found], [sketched for _, sketched in found]
    warnings = caveats(config, blocks, _rows(blocks, estimates), sketches, pretraining)
    return _record(config, blocks, estimates, weights_sha256, warnings)


def _read(model: LoadedModel, config: ScoreConfig, criterion: Criterion) -> Calibration:
    from .calibration import read_calibration

    if config.data is None:
        raise ShallowvitError(
            f"score: {config.criterion} runs the model on {criterion.needs} inputs; give some with --calibration (demo:train "
            "for the demo model)"
        )
    return read_calibration(model, config, labelled=criterion.needs is Needs.LABELLED)


def _record(
    config: ScoreConfig,
    blocks: Sequence[BlockWeights],
    estimates: Sequence[Estimate],
    weights_sha256: str | None,
    warnings: tuple[str, ...],
) -> BlockScores:
    criterion = CRITERIA[config.criterion]
    return BlockScores(
        criterion=config.criterion,
        needs=criterion.needs,
        unit=criterion.unit,
        settings={name: getattr(config, name) for name in criterion.settings} | _granularity(config),
        weights_sha256=weights_sha256,
        blocks=_rows(blocks, estimates),
        warnings=warnings,
    )


def _granularity(config: ScoreConfig) -> dict[str, str]:
    return {} if config.granularity == "block" else {"granularity": config.granularity}


def _rows(blocks: Sequence[BlockWeights], estimates: Sequence[Estimate]) -> tuple[BlockScore, ...]:
    return tuple(
        BlockScore(block.block, block.path, found.score, block.numel, block.stack, found.noise)
        for block, found in zip(blocks, estimates, strict=True)
    )


def _needs_met(data: Calibration | None) -> Needs:
    if data is None:
        return Needs.NOTHING
    return Needs.UNLABELLED if data.labels is None else Needs.LABELLED
