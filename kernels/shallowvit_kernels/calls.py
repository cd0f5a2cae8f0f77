"""The kernels as functions of torch tensors, forward only: ``fused_attention``, ``gaussian_attention``, ``linear_attention``.

Queries, keys and values are [b, h, n, d] of any strides with a dense last axis, so views of a packed projection aren't copied,
and an output lies in memory as the queries do. A newcomer's trap: each new set of types, head sizes, scales and modifiers is a
kernel of its own, compiled when it is first called; sizes of batch and tokens aren't.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, Unpack

import torch

from .calling import DTYPES, run_variant
from .errors import KernelError
from .records import Dtype, FeatureMap, Kernel, Modifier, Operand, Variant

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ScoreModifiers", "fused_attention", "gaussian_attention", "landmark_attention", "linear_attention"]

_DTYPES: Mapping[torch.dtype, Dtype] = {known: name for name, known in DTYPES.items()}


class ScoreModifiers(TypedDict, total=False):
    """What ``fused_attention`` does to scores and probabilities, in this order."""

    score_mask: torch.Tensor | None
    soft_cap: float | None
    bias: torch.Tensor | None
    probability_mask: torch.Tensor | None
    renormalise: bool
    positions: torch.Tensor | None
    gate: torch.Tensor | None


def fused_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float | None = None,
    log_sum_exp: bool = False,
    **modifiers: Unpack[ScoreModifiers],
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Return softmax(scale * q k^T) v with modified scores or probabilities, without a matrix of n by m in memory.

    Tiles with a running softmax (FlashAttention, arXiv 2205.14135; Milakov and Gimelshein, arXiv 1805.02867).

    Args:
        q: [b, h, n, d] in fp32, fp16 or bf16.
        k: [b, h, m, d] of the same type.
        v: [b, h, m, e] of the same type.
        scale: Scores are multiplied by it; by default 1 / sqrt(d).
        log_sum_exp: Whether to return it too, [b, h, n] in fp32, as what merges the outputs of parts of the keys.
        modifiers: Tensors of numbers (of fp32, fp16 or bf16, not bool) broadcastable to [b, h, n, m], each read as it is
            and never expanded: ``score_mask`` multiplies scores; ``soft_cap``, a number, makes them cap * tanh(scores / cap)
            (Gemma 2, arXiv 2408.00118); ``bias`` is added; ``probability_mask`` multiplies probabilities, which
            ``renormalise`` divides by their sum again; ``positions`` [.., n, m] and ``gate`` [h], of 0 to 1, replace
            probabilities by (1 - gate) * probabilities + gate * positions (ConViT, arXiv 2103.10697).

    Returns:
        [b, h, n, e] in the type of ``q``; queries whose keys all have a bias of -infinity get zeros.

    Raises:
        KernelError: a tensor's shape, type, stride or device doesn't fit; says which and what would.
    """
    _check_main(q, k, v)
    operands, tensors = _operands(modifiers, (q.shape[0], q.shape[1], q.shape[2], k.shape[2]))
    variant = Variant(
        Kernel.ATTENTION,
        _DTYPES[q.dtype],
        q.shape[3],
        v.shape[3],
        scale=q.shape[3] ** -0.5 if scale is None else scale,
        operands=operands,
        soft_cap=modifiers.get("soft_cap"),
        renormalise=bool(modifiers.get("renormalise")),
        log_sum_exp=log_sum_exp,
    )
    outputs = _run(variant, q, k, v, *tensors)
    return (outputs[0], outputs[1]) if log_sum_exp else outputs[0]


def gaussian_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float | None = None) -> torch.Tensor:
    """Return exp(-scale / 2 * |q - k|^2) v, not normalised: the attention of SOFT (Lu et al., NeurIPS 2021, arXiv 2110.11945).

    Args:
        q: [b, h, n, d] in fp32, fp16 or bf16.
        k: [b, h, m, d] of the same type.
        v: [b, h, m, e] of the same type.
        scale: By default 1 / sqrt(d), the paper's.

    Returns:
        [b, h, n, e] in the type of ``q``.

    Raises:
        KernelError: as ``fused_attention``.
    """
    _check_main(q, k, v)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    return _run(Variant(Kernel.GAUSSIAN, _DTYPES[q.dtype], q.shape[3], v.shape[3], scale=scale), q, k, v)[0]


def landmark_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    landmarks: torch.Tensor,
    *,
    scale: float | None = None,
    iterations: int = 20,
) -> torch.Tensor:
    """Return ``gaussian_attention`` by way of a few landmarks, in time linear in the tokens, as SOFT does (arXiv 2110.11945).

    With G the Gaussian kernel it is G(q, landmarks) G(landmarks, landmarks)^+ G(landmarks, k) v: two launches, and between
    them a small inverse by the paper's Newton-Raphson iteration, in fp32.

    Args:
        q: [b, h, n, d] in fp32, fp16 or bf16.
        k: [b, h, m, d] of the same type.
        v: [b, h, m, e] of the same type.
        landmarks: [b, h, l, d] of the same type, as tokens pooled.
        scale: By default 1 / sqrt(d).
        iterations: Of the inverse. Few leave out the directions in which landmarks are nearly alike.

    Returns:
        [b, h, n, e] in the type of ``q``.

    Raises:
        KernelError: as ``fused_attention``, or fewer than 1 iteration.
    """
    if iterations < 1:
        raise KernelError(
            f"landmark_attention: {iterations} iterations of the inverse; 1 or more are needed, 20 are the paper's"
        )
    _check_main(q, landmarks, landmarks)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    places = landmarks.float()
    alike = torch.exp(-scale / 2 * (places[..., :, None, :] - places[..., None, :, :]).square().sum(-1))  # [b, h, l, l]
    inverse = alike * (2 / alike.sum(-1).amax(-1).square())[..., None, None]
    for _ in range(iterations):
        inverse = 2 * inverse - inverse @ alike @ inverse
    summed = inverse @ gaussian_attention(landmarks, k, v, scale=scale).float()  # [b, h, l, e]
    # an inverse makes numbers that may pass fp16's largest
    largest = summed.abs().amax((-1, -2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (gaussian_attention(q, landmarks, (summed / largest).to(q.dtype), scale=scale) * largest).to(q.dtype)


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    feature_map: FeatureMap = FeatureMap.ELU_PLUS_ONE,
    epsilon: float = 1e-6,
) -> torch.Tensor:
    """Return f(q) sum(f(k) v^T) / (f(q) sum f(k) + epsilon), in time linear in the tokens.

    Args:
        q: [b, h, n, d] in fp32, fp16 or bf16.
        k: [b, h, m, d] of the same type.
        v: [b, h, m, e] of the same type.
        feature_map: f: elu + 1 (Katharopoulos et al., arXiv 2006.16236) or relu (EfficientViT, arXiv 2205.14756).
        epsilon: See above.

    Returns:
        [b, h, n, e] in the type of ``q``.

    Raises:
        KernelError: as ``fused_attention``.
    """
    _check_main(q, k, v)
    kind = (Kernel.LINEAR, _DTYPES[q.dtype], q.shape[3], v.shape[3])
    return _run(Variant(*kind, feature_map=FeatureMap(feature_map), epsilon=epsilon), q, k, v)[0]


def _run(variant: Variant, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Outputs in the order of memory that the queries have, so that what takes heads together needs no copy."""
    q = tensors[0]
    batch, heads, tokens, _ = q.shape
    tokens_first = heads > 1 and tokens > 1 and q.stride(1) < q.stride(2)
    shape = (batch, tokens, heads) if tokens_first else (batch, heads, tokens)
    out = torch.empty(*shape, variant.value_size, dtype=q.dtype, device=q.device)
    out = out.transpose(1, 2) if tokens_first else out
    lse = (torch.empty(batch, heads, tokens, dtype=torch.float32, device=q.device),) if variant.log_sum_exp else ()
    return run_variant(variant, *tensors, outputs=(out, *lse))


def _check_main(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """What has to be known before there is a variant; the rest is checked against it."""
    for name, one in (("q", q), ("k", k), ("v", v)):
        if one.dim() != 4 or 0 in one.shape:
            raise KernelError(
                f"kernels: {name} has shape {tuple(one.shape)}, and four axes of 1 or more are expected: b, h, n, d"
            )
    if q.dtype not in _DTYPES:
        raise KernelError(f"kernels: q is {q.dtype}; choose from {', '.join(map(str, _DTYPES))}")


def _operands(modifiers: ScoreModifiers, shape: tuple[int, ...]) -> tuple[tuple[Operand, ...], list[torch.Tensor]]:
    """The operands of a variant, and their tensors with the gate behind them; ``shape`` is the scores'."""
    unknown = sorted(set(modifiers) - set(ScoreModifiers.__annotations__))
    if unknown:
        known = ", ".join(ScoreModifiers.__annotations__)
        raise KernelError(f"fused_attention: unknown {', '.join(unknown)}; choose from {known}")
    gate = modifiers.get("gate")
    if (gate is None) != (modifiers.get("positions") is None):
        given, other = ("positions", "gate") if gate is None else ("gate", "positions")
        raise KernelError(f"fused_attention: {given} without {other}, and one mixes by the other; give both or neither")
    operands, tensors = [], []
    for modifier in Modifier:
        one = modifiers.get(str(modifier))
        if isinstance(one, torch.Tensor):
            operand, tensor = _operand(modifier, one, shape)
            operands.append(operand)
            tensors.append(tensor)
    if gate is not None:
        if gate.shape != (shape[1],):
            raise KernelError(
                f"fused_attention: gate has shape {tuple(gate.shape)}, and one number a head, ({shape[1]},), is expected"
            )
        tensors.append(gate.float().contiguous())
    return tuple(operands), tensors


def _operand(modifier: Modifier, one: torch.Tensor, shape: tuple[int, ...]) -> tuple[Operand, torch.Tensor]:
    """A modifier's tensor with four axes, and what it is broadcast over."""
    if one.dtype is torch.bool:
        raise KernelError(
            f"kernels: {modifier} is bool, and numbers are expected: a bias of 0 where a query may look and -infinity where it "
            "mayn't, masks of 1 and 0; convert it"
        )
    if one.dtype not in _DTYPES:
        raise KernelError(f"kernels: {modifier} is {one.dtype}; choose from {', '.join(map(str, _DTYPES))}")
    if one.dim() > 4 or any(size not in (1, whole) for size, whole in zip(reversed(one.shape), reversed(shape), strict=False)):
        raise KernelError(
            f"kernels: {modifier} has shape {tuple(one.shape)}, which can't be broadcast to the scores' {shape} (b, h, n, m)"
        )
    one = one[(None,) * (4 - one.dim())]
    for axis in range(4):
        if one.stride(axis) == 0:  # expanded; what lies behind it is of size 1
            one = one.narrow(axis, 0, 1)
    broadcast = "".join(letter for letter, size in zip("bhnm", one.shape, strict=True) if size == 1)
    return Operand(modifier, broadcast, _DTYPES[one.dtype]), one
