"""The cases of the benchmark: a variant of ours, its inputs, and the same thing as others would compute it.

A newcomer's trap: a side that can't compute a case is a sentence here, not a gap, and one that computes something near it
isn't a side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shallowvit_kernels.records import Dtype, FeatureMap, Kernel, Modifier, Operand, Variant

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    Inputs = dict[str, torch.Tensor]

__all__ = [
    "CASES",
    "DECOMPOSED",
    "LIBRARY",
    "OURS",
    "WIDTH",
    "Case",
    "Shape",
    "decomposed",
    "inputs_for",
    "sides_of",
    "variant_of",
]

OURS, DECOMPOSED = "ours", "decomposed"
LIBRARY = ("SDPA flash", "SDPA efficient", "SDPA cuDNN", "FlexAttention")
WIDTH = 768  # of a ViT-B: heads are so many that they make it up
_SOFT_CAP = 50.0


@dataclass(frozen=True)
class Case:
    """What is computed, without type and sizes; a modifier's operand is [1, heads, N, N] in the case's type."""

    name: str
    kernel: Kernel = Kernel.ATTENTION
    modifiers: tuple[Modifier, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("plain"),
    Case("bias", modifiers=(Modifier.BIAS,)),
    Case("score_mask", modifiers=(Modifier.SCORE_MASK,)),
    Case("soft_cap", settings={"soft_cap": _SOFT_CAP}),
    Case("probability_mask", modifiers=(Modifier.PROBABILITY_MASK,)),
    Case("positions", modifiers=(Modifier.POSITIONS,)),
    Case("gaussian", Kernel.GAUSSIAN),
    Case("linear", Kernel.LINEAR, settings={"feature_map": FeatureMap.RELU, "epsilon": 1e-6}),
)


@dataclass(frozen=True)
class Shape:
    """The sizes of a case; as many keys as queries, values as wide as keys."""

    case: Case
    dtype: Dtype
    head_size: int
    tokens: int
    batch: int

    @property
    def heads(self) -> int:
        """Those that make up ``WIDTH``, one at least."""
        return max(1, WIDTH // self.head_size)

    @property
    def bytes(self) -> int:
        """Of queries, keys, values, the output and the operands, each once."""
        tensors = 4 * self.batch * self.heads * self.tokens * self.head_size
        operands = len(self.case.modifiers) * self.heads * self.tokens**2
        gate = 4 * self.heads if Modifier.POSITIONS in self.case.modifiers else 0
        return (tensors + operands) * self.dtype.bytes + gate

    @property
    def operations(self) -> int:
        """Of the matrix products, 2 a multiplication; what is between them isn't on tensor cores."""
        inner = self.head_size if self.case.kernel is Kernel.LINEAR else self.tokens
        return 4 * self.batch * self.heads * self.tokens * inner * self.head_size


def variant_of(case: Case, dtype: Dtype, head_size: int) -> Variant:
    """Return the variant of a case in heads-first layout."""
    operands = tuple(Operand(one, "b", dtype) for one in case.modifiers)
    scale = 1.0 if case.kernel is Kernel.LINEAR else head_size**-0.5
    return Variant(case.kernel, dtype, head_size, scale=scale, operands=operands, **case.settings)


def inputs_for(shape: Shape, device: str, seed: int) -> Inputs:
    """Return random inputs by name, in the order that the kernel takes them."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    dtype = getattr(torch, {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[shape.dtype])
    sizes = (shape.batch, shape.heads, shape.tokens, shape.head_size)
    given = {name: torch.randn(sizes, generator=generator, device=device, dtype=dtype) for name in "qkv"}
    square = (1, shape.heads, shape.tokens, shape.tokens)
    for modifier in shape.case.modifiers:
        # drawn in the case's type: at 3,136 tokens a draw in fp32 would be the largest tensor of all
        if modifier is Modifier.BIAS:
            given["bias"] = torch.randn(square, generator=generator, device=device, dtype=dtype)
            continue
        drawn = torch.rand(square, generator=generator, device=device, dtype=dtype)
        given[str(modifier)] = drawn / drawn.sum(-1, keepdim=True) if modifier is Modifier.POSITIONS else drawn
        if modifier is Modifier.POSITIONS:
            given["gate"] = torch.rand(shape.heads, generator=generator, device=device)
    return given


def decomposed(variant: Variant, given: Inputs) -> torch.Tensor:
    """Compute it as a graph without fused attention does, in the variant's type."""
    import torch

    q, k, v = given["q"], given["k"], given["v"]
    if variant.kernel is Kernel.LINEAR:
        q, k = torch.relu(q), torch.relu(k)
        return (q @ (k.transpose(-1, -2) @ v)) / (q @ k.sum(-2, keepdim=True).transpose(-1, -2) + variant.epsilon)
    scores = q @ k.transpose(-1, -2) * variant.scale
    if variant.kernel is Kernel.GAUSSIAN:
        half = variant.scale / 2
        return torch.exp(scores - half * (q * q).sum(-1, keepdim=True) - half * (k * k).sum(-1).unsqueeze(-2)) @ v
    if "score_mask" in given:
        scores = scores * given["score_mask"]
    if variant.soft_cap is not None:
        scores = variant.soft_cap * torch.tanh(scores / variant.soft_cap)
    if "bias" in given:
        scores = scores + given["bias"]
    probabilities = torch.softmax(scores, -1)
    if "probability_mask" in given:
        probabilities = probabilities * given["probability_mask"]
    if "positions" in given:
        gate = given["gate"].view(-1, 1, 1).to(q.dtype)
        probabilities = (1 - gate) * probabilities + gate * given["positions"]
    return probabilities @ v


def sides_of(variant: Variant, given: Inputs, *, compiled: bool) -> dict[str, Callable[[], torch.Tensor] | str]:
    """Return every side of a case, each a call or the sentence that says why it can't compute the case.

    Args:
        variant: Ours.
        given: Inputs by name.
        compiled: Whether FlexAttention goes through ``torch.compile``, without which it isn't fused.
    """
    from shallowvit_kernels.calling import run_variant

    sides: dict[str, Callable[[], torch.Tensor] | str] = {
        OURS: lambda: run_variant(variant, *given.values())[0],
        DECOMPOSED: lambda: decomposed(variant, given),
    }
    return sides | _sdpa_sides(variant, given) | {"FlexAttention": _flex_side(variant, given, compiled)}


def _sdpa_sides(variant: Variant, given: Inputs) -> dict[str, Callable[[], torch.Tensor] | str]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {
        "SDPA flash": SDPBackend.FLASH_ATTENTION,
        "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
        "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
        "SDPA math": SDPBackend.MATH,
    }
    if variant.kernel is not Kernel.ATTENTION:
        return dict.fromkeys(backends, "SDPA computes softmax attention alone")
    if variant.soft_cap is not None or set(given) - {"q", "k", "v", "bias"}:
        return dict.fromkeys(backends, "SDPA takes an additive mask and no other modifier")

    def side(backend: SDPBackend) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with sdpa_kernel([backend]):
                return torch.nn.functional.scaled_dot_product_attention(
                    given["q"], given["k"], given["v"], attn_mask=given.get("bias"), scale=variant.scale
                )

        return run

    return {name: side(backend) for name, backend in backends.items()}


def _flex_side(variant: Variant, given: Inputs, compiled: bool) -> Callable[[], torch.Tensor] | str:
    """One fused call; positions take a matrix product beside it, the Gaussian kernel its log-sum-exp."""
    import torch
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    if variant.kernel is Kernel.LINEAR:
        return "FlexAttention computes softmax attention alone"
    if "probability_mask" in given:
        return "FlexAttention divides by the sum of what it has masked; a mask behind the softmax needs a second pass"
    q, k, v = given["q"], given["k"], given["v"]
    aux = AuxRequest(lse=True) if variant.kernel is Kernel.GAUSSIAN else None

    def run() -> torch.Tensor:
        change = _score_change(variant, given)
        found = flex_attention(q, k, v, score_mod=change, scale=variant.scale, return_aux=aux)
        if aux is not None:
            half = variant.scale / 2
            out, sums = found
            return out * torch.exp(sums.lse - half * q.float().square().sum(-1)).unsqueeze(-1).to(out.dtype)
        if "positions" in given:
            gate = given["gate"].view(-1, 1, 1).to(q.dtype)
            return (1 - gate) * found + gate * (given["positions"] @ v)
        return found

    if not compiled:
        return run
    torch._dynamo.reset()  # behind a few shapes it would give up on compiling, and compute unfused without a word
    return torch.compile(run, dynamic=False, fullgraph=True)


def _score_change(variant: Variant, given: Inputs) -> Callable[..., torch.Tensor] | None:
    import torch

    cap = variant.soft_cap
    if variant.kernel is Kernel.GAUSSIAN:
        norms = given["k"].float().square().sum(-1) * (variant.scale / 2)
        return lambda score, b, h, _i, j: score - norms[b, h, j]
    if "bias" in given:
        bias = given["bias"][0]
        return lambda score, _b, h, i, j: score + bias[h, i, j]
    if "score_mask" in given:
        mask = given["score_mask"][0]
        return lambda score, _b, h, i, j: score * mask[h, i, j]
    if cap is not None:
        return lambda score, _b, _h, _i, _j: cap * torch.tanh(score / cap)
    return None
