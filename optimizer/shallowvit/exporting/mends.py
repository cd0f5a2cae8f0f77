"""Attention and complex numbers written so that the exporter can translate them; the numbers stay the same.

A newcomer's trap: a mode sees only what Python calls, so ``functionals_seen_through`` goes around it, or attention inside of
``nn.MultiheadAttention`` passes unseen.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

__all__ = ["AttentionInFourDimensions", "ComplexAsReal", "weights_without_gradients"]

_PARTWISE = (  # linear with real coefficients: done to the real and the imaginary part
    *(
        "reshape",
        "view",
        "permute",
        "transpose",
        "squeeze",
        "unsqueeze",
        "flatten",
        "unflatten",
        "expand",
        "repeat",
        "contiguous",
    ),
    *("cat", "concat", "stack", "roll", "flip", "pad", "chunk", "split", "narrow", "select", "index_select", "gather", "clone"),
    *(
        "sum",
        "mean",
        "where",
        "tile",
        "movedim",
        "swapaxes",
        "t",
        "unbind",
        "masked_fill",
        "repeat_interleave",
        "cumsum",
        "diff",
    ),
    *(
        "diagonal",
        "tril",
        "triu",
        "detach",
        "broadcast_to",
        "expand_as",
        "view_as",
        "reshape_as",
        "__getitem__",
        "unfold",
        "neg",
    ),
    *("fftshift", "ifftshift", "fft_fftshift", "fft_ifftshift", "__neg__", "negative"),
)
_BILINEAR = ("matmul", "__matmul__", "bmm", "mm", "einsum", "linear", "conv1d", "conv2d", "conv3d", "tensordot", "outer")


@contextmanager
def weights_without_gradients(module: nn.Module) -> Iterator[None]:
    """Hold ``requires_grad`` off: the exporter decomposes attention with a trainable mask into views it can't make."""
    trainable = [weight for weight in module.parameters() if weight.requires_grad]
    try:
        for weight in trainable:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in trainable:
            weight.requires_grad_(True)


class AttentionInFourDimensions(TorchFunctionMode):
    """Gives ``scaled_dot_product_attention`` [batch, heads, N, head_dim] where the model gives it more or fewer dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.mended = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention or (args and args[0].ndim == 4):
            return func(*args, **kwargs)
        given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | kwargs
        if given["query"].ndim == 4:
            return func(*args, **kwargs)
        self.mended += 1
        return _in_four_dimensions(func, given)


def _in_four_dimensions(func: Any, given: dict[str, Any]) -> torch.Tensor:
    query, key, value = given["query"], given["key"], given["value"]
    lead = query.shape[:-2]
    mask = given.get("attn_mask")
    if mask is not None and mask.ndim > 2:
        mask = _four(mask.expand(*lead, *mask.shape[-2:]))
    key, value = (one.expand(*lead, *one.shape[-2:]) for one in (key, value))
    answer = func(**{**given, "query": _four(query), "key": _four(key), "value": _four(value), "attn_mask": mask})
    return answer.reshape(*lead, *answer.shape[-2:])


def _four(tensor: torch.Tensor) -> torch.Tensor:
    """[batch, any, N, head_dim]; what stands first stays alone, since it is the batch."""
    if tensor.ndim > 4:
        return tensor.flatten(1, -3)
    return tensor[:, None] if tensor.ndim == 3 else tensor[None, None]


class ComplexAsReal(TorchFunctionMode):
    """Computes what the exporter lacks of complex numbers on their real and imaginary parts."""

    def __init__(self) -> None:
        super().__init__()
        self.mended: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if not any(_is_complex(one) for one in tree_iter((args, kwargs))):
            return func(*args, **kwargs)
        answer = self._answer(func, name, args, kwargs)
        if answer is NotImplemented:
            return func(*args, **kwargs)
        self.mended.add(name)
        return answer

    def _answer(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name in _PARTWISE:
            return _joined(func(*_parts(args, 0), **_parts(kwargs, 0)), func(*_parts(args, 1), **_parts(kwargs, 1)))
        if name in _BILINEAR:
            return _bilinear(func, args, kwargs)
        unscaled = name.strip("_").lstrip("r") if name.startswith("__") else name
        if unscaled in ("add", "sub", "mul", "multiply", "div", "truediv", "true_divide", "subtract") and len(args) == 2:
            first, second = reversed(args) if name.startswith("__r") else args
            return NotImplemented if kwargs else _ARITHMETIC[unscaled](first, second)
        one = args[0] if args else None
        if name == "exp":
            size = _part(one, 0).exp()
            return torch.complex(size * _part(one, 1).cos(), size * _part(one, 1).sin())
        if name in ("conj", "conj_physical"):
            return torch.complex(_part(one, 0), -_part(one, 1))
        if name in ("pow", "__pow__", "square") and (name == "square" or args[1] == 2):
            return _product(one, one)
        return _set_item(*args) if name == "__setitem__" and _is_complex(one) else NotImplemented


def _is_complex(one: Any) -> bool:
    return isinstance(one, complex) or (isinstance(one, torch.Tensor) and one.is_complex())


def _part(one: Any, place: int) -> Any:
    """The real (0) or imaginary (1) part; of what is no complex number, itself or 0."""
    if isinstance(one, complex):
        return (one.real, one.imag)[place]
    if isinstance(one, torch.Tensor) and one.is_complex():
        return torch.view_as_real(one.resolve_conj())[..., place]
    if isinstance(one, torch.Tensor):
        return torch.zeros_like(one) if place and one.is_floating_point() else one
    return 0.0 if place else one


def _parts(tree: Any, place: int) -> Any:
    """The part of each tensor; counts, dimensions and indices stay what they are."""
    return tree_map(lambda one: _part(one, place) if isinstance(one, torch.Tensor | complex) else one, tree)


def _joined(real: Any, imaginary: Any) -> Any:
    if isinstance(real, tuple | list):
        return type(real)(torch.complex(*pair) for pair in zip(real, imaginary, strict=True))
    return torch.complex(real, imaginary)


def _product(first: Any, second: Any) -> torch.Tensor:
    (a, b), (c, d) = ((_part(one, 0), _part(one, 1)) for one in (first, second))
    if not _is_complex(first):
        return torch.complex(a * c, a * d)
    return torch.complex(a * c, b * c) if not _is_complex(second) else torch.complex(a * c - b * d, a * d + b * c)


def _quotient(first: Any, second: Any) -> torch.Tensor:
    if not _is_complex(second):
        return torch.complex(_part(first, 0) / second, _part(first, 1) / second)
    c, d = _part(second, 0), _part(second, 1)
    size = c * c + d * d
    return _product(first, torch.complex(c / size, -d / size) if isinstance(c, torch.Tensor) else 1 / second)


def _sum(first: Any, second: Any, sign: int = 1) -> torch.Tensor:
    real, imaginary = (_part(first, place) + sign * _part(second, place) for place in (0, 1))
    return torch.complex(*torch.broadcast_tensors(real, imaginary))


_ARITHMETIC: dict[str, Any] = {
    **dict.fromkeys(("mul", "multiply"), _product),
    **dict.fromkeys(("div", "truediv", "true_divide"), _quotient),
    "add": _sum,
    **dict.fromkeys(("sub", "subtract"), lambda first, second: _sum(first, second, -1)),
}


def _bilinear(func: Any, args: Any, kwargs: Any) -> Any:
    """(a + ib)(c + id) for a function of two tensors; the bias that ``linear`` takes goes with the parts."""
    operands = [one for one in tree_iter(args) if isinstance(one, torch.Tensor)]
    if len(operands) == 3 and func is torch.nn.functional.linear:
        return _sum(_bilinear(func, args[:2], {}), operands[2])
    if len(operands) != 2 or any(isinstance(one, torch.Tensor) for one in kwargs.values()):
        return NotImplemented
    first, second = operands

    def of(left: int, right: int) -> torch.Tensor:
        parts = iter((_part(first, left), _part(second, right)))
        put = tree_map(lambda one: next(parts) if isinstance(one, torch.Tensor) else one, args)
        return func(*put, **kwargs)

    if not _is_complex(second):
        return torch.complex(of(0, 0), of(1, 0))
    if not _is_complex(first):
        return torch.complex(of(0, 0), of(0, 1))
    return torch.complex(of(0, 0) - of(1, 1), of(0, 1) + of(1, 0))


def _set_item(target: torch.Tensor, place: Any, value: Any) -> None:
    place = place if isinstance(place, tuple) else (place,)
    place = place if any(one is Ellipsis for one in place) else (*place, Ellipsis)
    parts = torch.view_as_real(target)
    for part in (0, 1):
        parts[(*place, part)] = _part(value, part)
