"""Look for a score of the weights alone that ranks blocks better than entropy and depth do.

    python benchmarks/demo_model/search.py [--seeds 0 1 2]

Candidates are listed in ``CANDIDATES`` before any is measured. Each is set against what skipping a block costs: the rise of the
loss on the test clips for the finetuned models, and the rise of the masked-reconstruction loss for the pretrained encoders they
came from. The models of the seeds were pretrained apart, so a candidate that is picked on one has two to prove itself on. A row
a model goes to ``benchmarks/results/demo_search.jsonl``; one that stands there isn't measured again.

A newcomer's trap: a block's place isn't data, but any score that sums over later blocks contains it. So each candidate is also
judged with depth held fixed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import stats

from shallowvit import LoadedModel, ScoreConfig, load, score
from shallowvit.scoring.activations import block_influence
from shallowvit.scoring.entropy import weight_entropy
from shallowvit.scoring.records import Calibration
from training import RESULTS, RUNS, append_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NAME = "demo_search"
TEST_CLIPS = 2000


@dataclass(frozen=True)
class Parts:
    """A VideoMAE block's matrices in float64, the gains of the norms folded into those that read the stream [out, in]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    projection: torch.Tensor
    fc1: torch.Tensor
    fc2: torch.Tensor

    @property
    def reads(self) -> torch.Tensor:
        """Everything that reads the stream, without the mean, which the norm takes out: [rows, width]."""
        rows = torch.cat([self.query, self.key, self.value, self.fc1])
        return rows - rows.mean(dim=1, keepdim=True)

    @property
    def writes(self) -> torch.Tensor:
        """Everything that writes to the stream: [width, columns]."""
        return torch.cat([self.projection @ self.value, self.fc2], dim=1)


def parts_of(model: LoadedModel) -> list[Parts]:
    """Take the blocks of a VideoMAE apart."""
    found = []
    for block in model.blocks:
        state = {name: value.double() for name, value in model.module.get_submodule(block.path).state_dict().items()}
        first, second = state["layernorm_before.weight"], state["layernorm_after.weight"]
        attention = "attention.attention."
        found.append(
            Parts(
                query=state[f"{attention}query.weight"] * first,
                key=state[f"{attention}key.weight"] * first,
                value=state[f"{attention}value.weight"] * first,
                projection=state["attention.output.dense.weight"],
                fc1=state["intermediate.dense.weight"] * second,
                fc2=state["output.dense.weight"],
            )
        )
    return found


def table_of(name: str, sign: int = 1, **settings: Any) -> Callable[[LoadedModel], list[float]]:
    """A criterion of the table, or its opposite."""
    return lambda model: [sign * row.score for row in score(model, ScoreConfig(name, **settings)).blocks]


def entropy_of(suffix: str) -> Callable[[LoadedModel], list[float]]:
    """Entropy (7 bits) of one kind of matrix alone."""

    def scores(model: LoadedModel) -> list[float]:
        blocks = [dict(model.module.get_submodule(block.path).named_parameters()) for block in model.blocks]
        return [weight_entropy([own[suffix]], ScoreConfig()).score for own in blocks]

    return scores


def noise_influence(kind: str) -> Callable[[LoadedModel], list[float]]:
    """Block influence on inputs that are no data: white noise, one random colour a clip, or noise like a picture's."""

    def scores(model: LoadedModel) -> list[float]:
        shape = (64, *model.input_spec.shape)  # [N, T, C, H, W]
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(shape, generator=generator)
        if kind == "colours":
            inputs = torch.randn(64, 1, shape[2], 1, 1, generator=generator).expand(shape).contiguous()
        elif kind == "pink":
            inputs = _pink(inputs)
        return [row.score for row in block_influence(model, Calibration(kind, inputs), ScoreConfig("block-influence"))]

    return scores


def ranks_together(*candidates: Callable[[LoadedModel], list[float]]) -> Callable[[LoadedModel], list[float]]:
    """The mean rank by several candidates."""

    def scores(model: LoadedModel) -> list[float]:
        ranks = [stats.rankdata(candidate(model)) for candidate in candidates]
        return [float(rank) for rank in np.mean(ranks, axis=0)]

    return scores


def _pink(white: torch.Tensor) -> torch.Tensor:
    """Weigh space-time frequencies by one over their size, as in natural pictures; unit variance."""
    axes = (1, 3, 4)
    spectrum = torch.fft.fftn(white, dim=axes)
    sizes = [torch.fft.fftfreq(white.shape[axis]) * white.shape[axis] for axis in axes]
    t, h, w = torch.meshgrid(*sizes, indexing="ij")
    weight = 1 / torch.clamp((t**2 + h**2 + w**2).sqrt(), min=1.0)
    pink = torch.fft.ifftn(spectrum * weight[:, None], dim=axes).real
    return (pink / pink.std()).contiguous()


def _read_shares(model: LoadedModel) -> np.ndarray[Any, Any]:
    """[i, j]: of what block j reads from the stream, the share written by block i < j, by Frobenius norms of the products.

    The composition scores of Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits"), between whole blocks.
    """
    parts = parts_of(model)
    embedding = next(p for name, p in model.module.named_parameters() if name.endswith("patch_embeddings.projection.weight"))
    start = embedding.detach().double().flatten(1)
    shares = np.zeros((len(parts), len(parts)))
    for later, reader in enumerate(parts):
        reads = reader.reads
        norms = [float((reads @ writer.writes).norm()) for writer in parts[:later]]
        total = (float((reads @ start).norm()) ** 2 + sum(norm**2 for norm in norms)) ** 0.5
        shares[:later, later] = np.array(norms) / total
    return shares


def read_by_later(model: LoadedModel) -> list[float]:
    """How much of what later blocks read a block wrote, summed over them."""
    return _read_shares(model).sum(axis=1).tolist()


def read_by_next(model: LoadedModel, reach: int = 3) -> list[float]:
    """The same, the mean over the next three blocks only, so that it doesn't fall with depth by itself; the last reads as 0."""
    shares = _read_shares(model)
    return [float(shares[i, i + 1 : i + 1 + reach].mean()) if i + 1 < len(shares) else 0.0 for i in range(len(shares))]


def write_novelty(model: LoadedModel) -> list[float]:
    """One minus the overlap (cosine of Gram matrices) of what a block writes with what the block before it writes."""
    grams = [part.writes @ part.writes.T for part in parts_of(model)]
    grams = [gram / gram.norm() for gram in grams]
    return [1.0, *(1 - float((one * other).sum()) for one, other in zip(grams[1:], grams, strict=False))]


def composed_gain(model: LoadedModel) -> list[float]:
    """The norm of what the block does to the stream were it linear: projection x value, and fc2 x fc1."""
    return [
        float(((part.projection @ part.value).norm() ** 2 + (part.fc2 @ part.fc1).norm() ** 2) ** 0.5)
        for part in parts_of(model)
    ]


CANDIDATES: dict[str, Callable[[LoadedModel], list[float]]] = {
    "depth": table_of("depth"),
    "random": table_of("random"),
    "entropy": table_of("entropy"),
    "entropy, 4 bits": table_of("entropy", mantissa_bits=4),
    "entropy, exact": table_of("entropy", mantissa_bits=23),
    "entropy of query": entropy_of("attention.attention.query.weight"),
    "entropy of key": entropy_of("attention.attention.key.weight"),
    "entropy of value": entropy_of("attention.attention.value.weight"),
    "entropy of projection": entropy_of("attention.output.dense.weight"),
    "entropy of fc1": entropy_of("intermediate.dense.weight"),
    "entropy of fc2": entropy_of("output.dense.weight"),
    "value entropy, reversed": table_of("value-entropy", -1),
    "interval entropy, reversed": table_of("interval-entropy", -1),
    "L1, reversed": table_of("l1", -1),
    "kurtosis, lightest tails first": table_of("kurtosis", -1),
    "mutual information, least shared first": table_of("mutual-information", -1),
    "stable rank, reversed": table_of("stable-rank", -1),
    "spectral entropy, reversed": table_of("spectral-entropy", -1),
    "relative norm": table_of("relative-norm"),
    "entropy + depth": table_of("mix", mix="entropy=0.5,depth=0.5"),
    "entropy + relative norm": table_of("mix", mix="entropy=0.5,relative-norm=0.5"),
    "influence on white noise": noise_influence("white"),
    "influence on plain colours": noise_influence("colours"),
    "influence on pink noise": noise_influence("pink"),
    "influence on all three": ranks_together(*map(noise_influence, ("white", "colours", "pink"))),
    "influence on plain colours + depth": ranks_together(noise_influence("colours"), table_of("depth")),
    "read by later blocks": read_by_later,
    "read by the next three blocks": read_by_next,
    "novelty of writes": write_novelty,
    "composed gain": composed_gain,
}


def models_of(seed: int) -> Iterable[tuple[str, str, ScoreConfig]]:
    """The two models of a seed: what they are, their source, and what measures a skipped block."""
    finetuned = "demo" if seed == 0 else f"hf:{RUNS / f'pretrained-{seed}'}"
    pretrained = "demo:pretrained" if seed == 0 else f"hf:{RUNS / f'encoder-{seed}'}"
    yield "finetuned", finetuned, ScoreConfig("bypass", data="demo", samples=TEST_CLIPS, batch=250)
    yield "pretrained", pretrained, ScoreConfig("reconstruction", data="demo", samples=TEST_CLIPS, batch=250)


def main() -> None:
    """Score by every candidate and measure what skipping costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    path = RESULTS / f"{NAME}.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for seed in parser.parse_args().seeds:
        for kind, source, oracle in models_of(seed):
            if any((row["seed"], row["kind"]) == (seed, kind) for row in done):
                continue
            model = load(source)
            rows = score(model, oracle).blocks
            cost = [row.score for row in rows]
            scores = {name: candidate(model) for name, candidate in CANDIDATES.items()}
            correlations = {name: float(stats.spearmanr(values, cost).statistic) for name, values in scores.items()}
            figures = {"cost": cost, "cost_noise": [row.noise for row in rows], "scores": scores, "spearman": correlations}
            append_row(NAME, {"seed": seed, "kind": kind, "oracle": oracle.criterion, **figures})
            print(seed, kind, {name: round(value, 2) for name, value in correlations.items()}, flush=True)


if __name__ == "__main__":
    main()
