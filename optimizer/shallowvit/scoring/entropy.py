"""Entropy of a block's weights: the Gardener criterion (Xiang, Wu, Bai, arXiv 2602.03918) and its relatives, all in nats.

H = -sum_v p(v) ln p(v) over the distinct values v of a block's rank-2 weights; a high H means keep. A newcomer's trap: the
paper's text defines p over equal intervals (``interval_entropy``), but the released code, which made its tables, counts exact
float values (``weight_entropy``), a grid that is finer near zero, and the two can rank blocks in opposite order. Exact values
(23 mantissa bits) saturate: on small blocks nearly every value is unique, so the score is ln N plus counting noise. Rounding to
fewer mantissa bits first keeps the published order and gives the same score for a checkpoint stored in fp32 or bf16.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from .criteria import EXACT_MANTISSA_BITS
from .records import Estimate
from .weights import chunks_of, dot, map_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .criteria import ScoreConfig
    from .records import BlockWeights

__all__ = ["efficiency", "interval_entropy", "mutual_information", "value_entropy", "weight_entropy"]

_COUNTED_BITS = 7  # sign, exponent and 7 mantissa bits are the upper 16 bits: 65,536 counters instead of a sort
_SHORT = 4096  # runs up to this length are counted by length, the few longer ones kept one by one
_TINY = 1e-300
_Array = np.ndarray[Any, Any]


class _Runs(NamedTuple):
    """How often values occur: ``times[i]`` distinct values occur ``counts[i]`` times each."""

    counts: _Array
    times: _Array


def weight_entropy(matrices: Iterable[torch.Tensor], config: ScoreConfig) -> Estimate:
    """Entropy of the values in the matrices together, rounded to ``config.mantissa_bits`` (1 to 23; 23: exact).

    The values are taken as fp32; rounding is to nearest, ties to even; -0.0 counts as 0.0, as the released code counts it.
    """
    return _entropy(_runs(list(matrices), config.mantissa_bits))


def efficiency(matrices: Iterable[torch.Tensor], config: ScoreConfig) -> Estimate:
    """``weight_entropy`` over ln N, the most that N weights could have; 0 for fewer than two weights."""
    matrices = list(matrices)
    most = math.log(max(sum(matrix.numel() for matrix in matrices), 1))
    found = weight_entropy(matrices, config)
    return Estimate(found.score / most, (found.noise or 0.0) / most) if most else Estimate(0.0, 0.0)


def interval_entropy(blocks: Sequence[BlockWeights], config: ScoreConfig) -> list[Estimate]:
    """Entropy over K = ``config.bins`` equal intervals, as the paper's text defines it.

    The intervals reach from the lowest to the highest weight, of the block itself (``own``) or of all blocks (``common``); each
    holds its lower end and the last one both, as in ``numpy.histogram``. The paper doesn't name its K or its range.
    """
    ranges = map_blocks(_lowest_highest, blocks)
    if config.bin_range == "common":
        lows, highs = zip(*ranges, strict=True)
        ranges = [(min(lows), max(highs))] * len(blocks)
    by_path = {(block.block, block.path): limits for block, limits in zip(blocks, ranges, strict=True)}

    def counted(block: BlockWeights) -> Estimate:
        low, high = by_path[block.block, block.path]
        counts = np.zeros(config.bins, dtype=np.int64)
        scale = config.bins / (high - low) if high > low else 0.0
        for chunk in chunks_of(matrix.read() for matrix in block.matrices):
            places = ((chunk.astype(np.float64) - low) * scale).astype(np.int32)
            np.minimum(places, config.bins - 1, out=places)
            counts += _bincount(places, config.bins)
        return _entropy(_Runs(counts, np.ones_like(counts)))

    return map_blocks(counted, blocks)


def value_entropy(matrices: Iterable[torch.Tensor], _config: ScoreConfig) -> Estimate:
    """Entropy of q = |w| / sum |w|, each weight a share of the block's whole: ln S - (sum |w| ln |w|) / S with S = sum |w|."""
    totals, weighted = [], []
    for chunk in chunks_of(matrices):
        sizes = np.abs(chunk, dtype=np.float64)
        totals.append(float(sizes.sum()))
        # the smallest fp32 number is 1e-45, so what is added to the zeros changes nothing
        weighted.append(dot(sizes, np.log(sizes + _TINY)))
    total = math.fsum(totals)
    return Estimate(max(math.log(total) - math.fsum(weighted) / total, 0.0) if total else 0.0)


def mutual_information(blocks: Sequence[BlockWeights], config: ScoreConfig) -> list[Estimate]:
    """Minus the mean over the other blocks of H_i + H_j - H_ij, where H_ij is the entropy of both blocks' weights together.

    As published, what shares most with the others goes first. That is the block of the highest entropy too (H_ij hardly
    differs between pairs), so the order is nearly that of ``entropy`` turned round: the paper's row removes block 1 first.
    """
    bits = config.mantissa_bits
    shared = np.zeros((len(blocks), len(blocks)))
    if bits <= _COUNTED_BITS:
        tables = map_blocks(lambda block: _table([matrix.read() for matrix in block.matrices], bits), blocks)
        own = [_table_entropy(table) for table in tables]
        for one, other in combinations(range(len(blocks)), 2):
            shared[one, other] = own[one] + own[other] - _table_entropy(tables[one] + tables[other])
    else:

        def sorted_entropy(block: BlockWeights) -> float:
            return weight_entropy([matrix.read() for matrix in block.matrices], config).score

        own = map_blocks(sorted_entropy, blocks)
        pairs = list(combinations(range(len(blocks)), 2))
        unions = [replace(blocks[one], matrices=blocks[one].matrices + blocks[other].matrices) for one, other in pairs]
        # one pair at a time: sorting two blocks together takes the memory that two blocks in two threads take
        for (one, other), union in zip(pairs, map_blocks(sorted_entropy, unions, at_once=1), strict=True):
            shared[one, other] = own[one] + own[other] - union
    means = (shared + shared.T).sum(axis=1) / max(len(blocks) - 1, 1)
    return [Estimate(0.0 - float(mean)) for mean in means]


def _entropy(runs: _Runs) -> Estimate:
    """Entropy and its sampling deviation sqrt(Var(ln p) / N), the first-order one for N independent draws."""
    counts, times = runs.counts[runs.counts > 0], runs.times[runs.counts > 0]
    total = int((counts * times).sum())
    if not total:
        return Estimate(0.0, 0.0)
    shares = counts / total
    logs = np.log(shares)
    # + 0.0: one value alone gives -0.0
    entropy = float(-(times * shares * logs).sum()) + 0.0
    variance = float((times * shares * (logs + entropy) ** 2).sum())
    return Estimate(entropy, math.sqrt(variance / total))


def _table_entropy(counts: _Array) -> float:
    return _entropy(_Runs(counts, np.ones_like(counts))).score


def _runs(matrices: Sequence[torch.Tensor], mantissa_bits: int) -> _Runs:
    """Count the values, by a table where it is small enough to stay in the cache, else by a sort."""
    if mantissa_bits <= _COUNTED_BITS:
        counts = _table(matrices, mantissa_bits)
        return _Runs(counts, np.ones_like(counts))
    return _runs_in_order(_in_order(matrices, mantissa_bits))


def _table(matrices: Iterable[torch.Tensor], mantissa_bits: int) -> _Array:
    """Count by sign, exponent and the kept mantissa bits, with the two zeros as one."""
    size = 1 << (9 + mantissa_bits)
    counts, room = np.zeros(size, dtype=np.int64), np.zeros(0, dtype=np.uint32)
    for chunk in chunks_of(matrices):
        if room.size < chunk.size:
            room = np.empty(chunk.size, dtype=np.uint32)
        patterns = _rounded(chunk.view(np.uint32), mantissa_bits, room[: chunk.size])
        patterns >>= np.uint32(EXACT_MANTISSA_BITS - mantissa_bits)
        counts += _bincount(patterns.view(np.int32), size)
    counts[0] += counts[size // 2]
    counts[size // 2] = 0
    return counts


def _in_order(matrices: Sequence[torch.Tensor], mantissa_bits: int) -> _Array:
    """All values as bit patterns in one sorted array; the order is the patterns', which is as good as any to find equals."""
    values = np.empty(sum(matrix.numel() for matrix in matrices), dtype=np.uint32)
    start = 0
    for chunk in chunks_of(matrices):
        part = values[start : start + chunk.size]
        _rounded(chunk.view(np.uint32), mantissa_bits, part)
        part[part == 1 << 31] = 0
        start += chunk.size
    values.sort()
    return values


def _runs_in_order(values: _Array, step: int = 1 << 17) -> _Runs:
    """Count the lengths of the runs of equal values, a piece of whole runs at a time: all positions would take two blocks."""
    short, long = np.zeros(_SHORT, dtype=np.int64), [np.zeros(0, dtype=np.int64)]
    start = 0
    while start < len(values):
        stop = min(start + step, len(values))
        stop += int(np.searchsorted(values[stop:], values[stop - 1], side="right"))
        lengths, alone = _run_lengths(values[start:stop])
        short[1] += alone
        if len(lengths) and lengths.max() >= _SHORT:
            long.append(lengths[lengths >= _SHORT])
            lengths = lengths[lengths < _SHORT]
        short += np.bincount(lengths, minlength=_SHORT)
        start = stop
    rest = np.concatenate(long)
    return _Runs(np.concatenate([np.arange(_SHORT), rest]), np.concatenate([short, np.ones_like(rest)]))


def _run_lengths(values: _Array) -> tuple[_Array, int]:
    """The lengths of runs, and how many values that stand alone were left out of them.

    Finding positions costs ten times the comparison, so only those of the rarer kind are found: of fp32 weights the few that
    equal their neighbour, of weights that were once fp16 the few that don't.
    """
    same = values[1:] == values[:-1]
    if 2 * np.count_nonzero(same) > len(same):
        return np.diff(np.flatnonzero(~same), prepend=-1, append=len(values) - 1), 0
    places = np.flatnonzero(same)
    if not len(places):
        return places, len(values)
    ends = np.flatnonzero(np.diff(places) != 1)
    lengths = np.diff(ends, prepend=-1, append=len(places) - 1) + 1
    return lengths, len(values) - int(lengths.sum())


def _bincount(places: _Array, size: int) -> _Array:
    """Count with torch, which lets other threads run meanwhile and takes half of numpy's time."""
    return torch.bincount(torch.from_numpy(places), minlength=size).numpy()


def _lowest_highest(block: BlockWeights) -> tuple[float, float]:
    limits = [(float(chunk.min()), float(chunk.max())) for chunk in chunks_of(matrix.read() for matrix in block.matrices)]
    return min((low for low, _ in limits), default=math.inf), max((high for _, high in limits), default=-math.inf)


def _rounded(bits: _Array, mantissa_bits: int, out: _Array) -> _Array:
    """Round fp32 bit patterns to ``mantissa_bits``, into ``out``; a carry runs into the exponent, as it should."""
    dropped = EXACT_MANTISSA_BITS - mantissa_bits
    if dropped == 0:
        out[:] = bits
        return out
    np.right_shift(bits, np.uint32(dropped), out=out)
    out &= np.uint32(1)
    out += np.uint32((1 << (dropped - 1)) - 1)
    out += bits
    out &= np.uint32((0xFFFFFFFF << dropped) & 0xFFFFFFFF)
    return out
