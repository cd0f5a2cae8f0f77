"""Inputs drawn anew in each run, and outputs that are poisoned inside and fenced outside."""

import contextlib

import torch

from shallowvit_kernels.calling import DTYPES
from shallowvit_kernels.records import Layout
from shallowvit_kernels.tensors import inputs_of, outputs_of

FENCE = 64  # numbers in front of an output and behind it


@contextlib.contextmanager
def seeded(seed=None):
    """Draw from a fresh seed, which is said when something fails; give it to draw the same again."""
    seed = torch.Generator().seed() % 2**32 if seed is None else seed
    torch.manual_seed(seed)
    try:
        yield f"seed {seed}"
    except Exception as err:
        err.add_note(f"seed {seed}")
        raise


def _sizes(variant, batch, heads, queries, keys):
    packed = variant.layout is Layout.PACKED
    sizes = {"b": batch, "h": heads, "n": queries, "m": queries if packed else keys, "3": 3}
    return sizes | {"d": variant.head_size, "e": variant.value_size}


def random_inputs(variant, batch, heads, queries, keys):
    """Normal numbers; those of masks, positions and gates between 0 and 1, a row of positions summing to about 1."""
    sizes = _sizes(variant, batch, heads, queries, keys)
    tensors = []
    for spec in inputs_of(variant):
        shape = [1 if letter in spec.broadcast else sizes[letter] for letter in spec.axes]
        one = torch.rand(shape) if spec.name in ("probability_mask", "positions", "gate", "score_mask") else torch.randn(shape)
        one = one * (2 / sizes["m"]) if spec.name == "positions" else one
        tensors.append(one.to(DTYPES[spec.dtype]))
    return tensors


def heads_first(variant, tensors):
    """Queries, keys and values as [b, h, n, d], and the operands by name, in fp64."""
    specs = inputs_of(variant)
    if variant.layout is Layout.PACKED:
        main, rest = list(tensors[0].permute(2, 0, 3, 1, 4)), zip(specs[1:], tensors[1:], strict=True)
    else:
        main = [one if variant.layout is Layout.HEADS_FIRST else one.transpose(1, 2) for one in tensors[:3]]
        rest = zip(specs[3:], tensors[3:], strict=True)
    return [one.double() for one in main], {spec.name: one.double() for spec, one in rest}


def guarded(variant, batch, heads, queries, keys):
    """Outputs full of NaN, and what lies in front of them and behind them, full of sevens."""
    sizes = _sizes(variant, batch, heads, queries, keys)
    outputs, fences = [], []
    for spec in outputs_of(variant):
        shape = [sizes[letter] for letter in spec.axes]
        count = torch.Size(shape).numel()
        whole = torch.full((count + 2 * FENCE,), 7.0, dtype=DTYPES[spec.dtype])
        inner = whole[FENCE : FENCE + count]
        inner.fill_(float("nan"))
        outputs.append(inner.view(shape))
        fences += [whole[:FENCE], whole[FENCE + count :]]
    return tuple(outputs), fences


def assert_errs_at_most_twice(got, expected, torchs, seed):
    """The root mean square of errors is at most twice that of torch in the same type; in narrow types the largest error is too.

    In fp32 the largest is chance: the last digit of one exponent, in torch as here, up to three times as large in one draw of
    thirty.
    """
    assert torch.isfinite(got).all(), seed
    least = torch.finfo(got.dtype).eps * expected.abs().max().item() / 4  # where torch errs by next to nothing
    measures = (rms,) if got.dtype is torch.float32 else (rms, lambda errors: errors.abs().max().item())
    for measure in measures:
        assert measure(got - expected) <= 2 * max(measure(torchs - expected), least), seed


def rms(errors):
    """The root of the mean of the squares."""
    return errors.double().square().mean().sqrt().item()
