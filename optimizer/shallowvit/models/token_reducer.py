"""A module behind a block that hands on the tokens with the highest scores, a fixed number in their order.

It hangs on the block as ``token_reduction`` and works by a forward hook, so that no path and no weight of the model is renamed,
and a block that is skipped still reduces. A newcomer's trap: the number of tokens is a constant, so a model reduced for one
input size runs at no other.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import ShallowvitError
from ..tokens.config import TokenScorer
from .outputs import tensors_in, with_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "TokenReducer",
    "TokenReduction",
    "TokenSite",
    "all_tokens",
    "apply_token_reduction",
    "choices_of",
    "take_tokens",
    "token_reducers",
    "token_reduction_in",
    "token_reduction_of",
]

_NAME = "token_reduction"


@dataclass(frozen=True)
class TokenSite:
    """Where tokens are reduced: the block by its number in the unpruned model and its path in this one, and the numbers of
    tokens before and after, those in front that always stay included. ``width`` is a token's.
    """

    block: int
    path: str
    before: int
    after: int
    width: int


@dataclass(frozen=True)
class TokenReduction:
    """What scores tokens, how many in front always stay, and the sites in order."""

    scorer: str
    prefix: int
    sites: tuple[TokenSite, ...]

    @property
    def text(self) -> str:
        """``64 tokens, 45 behind block 3, 32 behind block 6 (mean)``."""
        steps = ", ".join(f"{site.after} behind block {site.block}" for site in self.sites)
        always = f", the first {self.prefix} always" if self.prefix else ""
        return f"{self.sites[0].before} tokens, {steps} ({self.scorer}{always})"


class TokenReducer(nn.Module):
    """From the state [B, N, C] to the tokens that stay [B, K, C].

    Scores are computed in fp32 whatever the state is in. While training, the scores of a learned scorer get gradients by a gate
    of 1 on each token that stays (straight-through); in eval mode there is none.
    """

    def __init__(self, site: TokenSite, scorer: str, prefix: int) -> None:
        super().__init__()
        self.site, self.scorer, self.prefix, self.active = site, TokenScorer(scorer), prefix, True
        # a vector, which weight decay leaves alone; zero, so that an untrained scorer is MEAN
        self.weight = nn.Parameter(torch.zeros(site.width)) if self.scorer is TokenScorer.LEARNED else None

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """Return the tokens in front, and of the others those that stay, in their order."""
        if state.shape[1] != self.site.before:
            raise ShallowvitError(
                f"tokens: {state.shape[1]} tokens behind block {self.site.block}, which keeps {self.site.after} of "
                f"{self.site.before}; reduce the tokens of a model that was loaded for this input size"
            )
        scores = self._scores(state)
        chosen = self._chosen(scores)
        kept = take_tokens(state[:, self.prefix :], chosen)
        if self.training and self.weight is not None:
            kept = kept * _gate(scores, chosen)[..., None].to(kept.dtype)
        return torch.cat([state[:, : self.prefix], kept], 1) if self.prefix else kept

    def choose(self, state: torch.Tensor) -> torch.Tensor:
        """Return the places [B, K] in the state of the tokens that stay, those in front included."""
        chosen = self._chosen(self._scores(state)) + self.prefix
        front = torch.arange(self.prefix, device=chosen.device).expand(len(chosen), -1)
        return torch.cat([front, chosen], 1)

    def extra_repr(self) -> str:
        """Say how many stay."""
        return f"{self.site.after} of {self.site.before} by {self.scorer}"

    def _scores(self, state: torch.Tensor) -> torch.Tensor:
        tokens = state[:, self.prefix :].float()  # [B, N, C]
        if self.scorer is TokenScorer.NORM:
            return torch.linalg.vector_norm(tokens, dim=-1)
        if self.scorer is TokenScorer.CLASS:
            return torch.nn.functional.cosine_similarity(tokens, state[:, :1].float(), dim=-1)
        distance = torch.linalg.vector_norm(tokens - tokens.mean(1, keepdim=True), dim=-1)
        if self.weight is None:
            return distance
        features = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])
        # in units of the distances, so that a weight means as much at every depth
        return distance + distance.mean(1, keepdim=True).detach() * (features @ self.weight.float())

    def _chosen(self, scores: torch.Tensor) -> torch.Tensor:
        """The places [B, K] of the highest, ascending; of equal ones the first, as ONNX has it for TopK."""
        count, tokens = self.site.after - self.prefix, self.site.before - self.prefix
        if self.scorer is TokenScorer.EVEN:
            places = torch.arange(count, device=scores.device) * tokens // count
            return places.expand(len(scores), -1)
        if torch.compiler.is_exporting():
            places = scores.detach().topk(count, dim=1).indices
        else:  # torch.topk takes any of equal ones
            places = scores.detach().sort(dim=1, descending=True, stable=True).indices[:, :count]
        return places.sort(dim=1).values


def take_tokens(state: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the tokens of a state [B, N, C] at places [B, K]."""
    return state.gather(1, places[..., None].expand(-1, -1, state.shape[-1]))


def _gate(scores: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Ones [B, K] whose gradient is that of a sigmoid of how far a score lies above the least of those that stay."""
    kept = scores.gather(1, chosen)
    least = kept.detach().min(1, keepdim=True).values
    spread = scores.detach().std(1, keepdim=True).clamp_min(1e-6)
    gate = torch.sigmoid((kept - least) / spread)
    return 1 + (gate - gate.detach())


def apply_token_reduction(module: nn.Module, reduction: TokenReduction) -> None:
    """Hang the reducers on a module's blocks, in place.

    Raises:
        AttributeError: the module has no such block.
    """
    for site in reduction.sites:
        block = module.get_submodule(site.path)
        reducer = TokenReducer(site, reduction.scorer, reduction.prefix)
        weight = next(block.parameters(), None)
        if weight is not None:
            reducer.to(weight.device).requires_grad_(weight.requires_grad)
        block.add_module(_NAME, reducer.train(block.training))
        block.register_forward_hook(_reduced)


def _reduced(block: nn.Module, _args: Any, output: Any) -> Any:
    """The block's answer with its first tensor, the state, reduced."""
    reducer = block.get_submodule(_NAME)
    assert isinstance(reducer, TokenReducer)
    if not reducer.active:
        return output
    state, *others = tensors_in(output)
    return with_tensors(output, [reducer(state), *others])


def token_reducers(module: nn.Module) -> list[TokenReducer]:
    """Return a model's reducers in the order of their blocks."""
    found = [part for part in module.modules() if isinstance(part, TokenReducer)]
    return sorted(found, key=lambda one: one.site.block)


def token_reduction_in(module: nn.Module) -> TokenReduction | None:
    """Return what a model's reducers do; None where it has none."""
    found = token_reducers(module)
    return TokenReduction(str(found[0].scorer), found[0].prefix, tuple(one.site for one in found)) if found else None


def token_reduction_of(record: Mapping[str, Any]) -> TokenReduction:
    """Return the record that ``dataclasses.asdict`` and a JSON file turned into plain types."""
    return TokenReduction(record["scorer"], record["prefix"], tuple(TokenSite(**site) for site in record["sites"]))


@contextmanager
def all_tokens(module: nn.Module) -> Iterator[bool]:
    """Let every token through for a while; yields whether there is anything that would stop some."""
    found = [reducer for reducer in token_reducers(module) if reducer.active]
    for reducer in found:
        reducer.active = False
    try:
        yield bool(found)
    finally:
        for reducer in found:
            reducer.active = True


@contextmanager
def choices_of(module: nn.Module) -> Iterator[dict[int, torch.Tensor]]:
    """Keep, by block, where among the unreduced tokens those stand that stay behind it [B, K], anew in each forward."""
    chosen: dict[int, torch.Tensor] = {}
    reducers = token_reducers(module)

    def note(reducer: nn.Module, args: tuple[Any, ...], _output: object) -> None:
        assert isinstance(reducer, TokenReducer)
        places = reducer.choose(args[0])
        before = [one.site.block for one in reducers if one.site.block < reducer.site.block]
        chosen[reducer.site.block] = chosen[before[-1]].gather(1, places) if before else places

    handles = [reducer.register_forward_hook(note) for reducer in reducers]
    try:
        yield chosen
    finally:
        for handle in handles:
            handle.remove()
