"""Random numbers in a forward, drawn once and the same for every item, so that a graph can hold them as constants.

A newcomer's trap: the numbers are those of one item, whatever the batch; whoever compares a graph with torch runs torch within
``settled_random`` too, with the batch of that run.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from ..errors import ShallowvitError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.export import ExportedProgram

__all__ = ["SEED", "SettledRandom", "functionals_seen_through", "random_operators", "settled_random"]

SEED = 0
_DRAWS = (
    *("rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "normal", "bernoulli", "multinomial"),
    *("uniform", "exponential", "poisson", "random", "geometric", "cauchy", "log_normal", "rrelu_with_noise"),
)
_DROPOUTS = ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "native_dropout")
_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def random_operators(program: ExportedProgram) -> tuple[str, ...]:
    """Return the operators of a traced program that draw random numbers, each once, sorted."""
    found = set()
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        name = schema.name.partition("::")[2].rstrip("_") if schema else ""
        if name in _DRAWS or (name in _DROPOUTS and len(node.args) > 2 and node.args[2] is True):
            found.add(name)
    return tuple(sorted(found))


@contextmanager
def settled_random(seed: int = SEED, batch: int | None = None) -> Iterator[SettledRandom]:
    """Make every random number of torch, numpy and Python within be the same in every run, and in every item of a batch.

    Args:
        seed: What the numbers follow from.
        batch: How many items the forward within is given; a draw with so many rows is one row for all of them. In a trace
            with a dynamic batch it isn't needed.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    mode = SettledRandom(seed, batch)
    try:
        with torch.random.fork_rng(devices=[]), functionals_seen_through(), mode:
            torch.manual_seed(seed)
            yield mode
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


@contextmanager
def functionals_seen_through() -> Iterator[None]:
    """Let a mode see what the functions of ``torch.nn.functional`` call: they hand themselves to it whole otherwise."""
    module = torch.nn.functional
    before = {name: getattr(module, name) for name in _CHECKS}
    for name in _CHECKS:
        setattr(module, name, lambda *_args: False)
    try:
        yield
    finally:
        for name, check in before.items():
            setattr(module, name, check)


class SettledRandom(TorchFunctionMode):
    """Puts fixed numbers for torch's draws; ``drawn`` names them in order."""

    def __init__(self, seed: int, batch: int | None = None) -> None:
        super().__init__()
        self.drawn: list[str] = []
        self._seed = seed
        self._batch = batch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        draw = _SETTLED.get(name)
        if draw is None or (name.rstrip("_") in _DROPOUTS and not _training(args, kwargs)):
            return func(*args, **kwargs)
        self.drawn.append(name.rstrip("_"))
        return draw(self, name, args, dict(kwargs))

    def numbers(self, size: Sequence[Any], kind: str, *limits: int) -> torch.Tensor:
        """Return numbers of one item, given to all of them."""
        size = tuple(size)
        per_item = bool(size) and (isinstance(size[0], torch.SymInt) or size[0] == self._batch)
        item = (1, *size[1:]) if per_item else size
        if any(isinstance(length, torch.SymInt) for length in item):
            raise ShallowvitError(
                f"export: random numbers of sizes {size} are drawn, and more than the batch is dynamic; fix the input's size"
            )
        generator = np.random.default_rng([self._seed, len(self.drawn)])
        values = _GENERATED[kind](generator, item, *limits)
        drawn = torch.from_numpy(np.asarray(values))
        return drawn.expand(size).clone() if per_item else drawn


_GENERATED: dict[str, Any] = {
    "uniform": lambda generator, size: generator.random(size, dtype=np.float32),
    "normal": lambda generator, size: generator.standard_normal(size, dtype=np.float32),
    "exponential": lambda generator, size: generator.standard_exponential(size, dtype=np.float32),
    "integers": lambda generator, size, low, high: generator.integers(low, high, size),
    "permutation": lambda generator, size: generator.permutation(size[0]),
}


def _training(args: Any, kwargs: Any) -> bool:
    return bool(kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else False)))


def _by_size(mode: SettledRandom, name: str, args: Any, kwargs: Any) -> torch.Tensor:
    size = kwargs.get("size", args[0] if args and isinstance(args[0], tuple | list | torch.Size) else args)
    drawn = mode.numbers(size, "uniform" if name == "rand" else "normal")
    return drawn.to(kwargs.get("dtype") or torch.get_default_dtype())


def _like(mode: SettledRandom, name: str, args: Any, kwargs: Any) -> torch.Tensor:
    like = args[0]
    return mode.numbers(like.shape, "uniform" if name == "rand_like" else "normal").to(kwargs.get("dtype") or like.dtype)


def _integers(mode: SettledRandom, name: str, args: Any, kwargs: Any) -> torch.Tensor:
    like = name == "randint_like"
    numbers = list(args[1:] if like else args)
    size = args[0].shape if like else kwargs.get("size") or numbers.pop()
    high = kwargs.get("high") if "high" in kwargs else numbers.pop()
    low = kwargs.get("low", numbers.pop() if numbers else 0)
    dtype = kwargs.get("dtype") or (args[0].dtype if like else torch.int64)
    return mode.numbers(size, "integers", low, high).to(dtype)


def _permutation(mode: SettledRandom, name: str, args: Any, kwargs: Any) -> torch.Tensor:
    length = kwargs.get("n", args[0] if args else None)
    if isinstance(length, torch.SymInt) or length == mode._batch:
        raise ShallowvitError("export: randperm over the batch mixes items, which a graph with a dynamic batch can't settle")
    return mode.numbers((length,), "permutation").to(kwargs.get("dtype") or torch.int64)


def _normal(mode: SettledRandom, name: str, args: Any, kwargs: Any) -> torch.Tensor:
    mean = kwargs.get("mean", args[0] if args else 0.0)
    std = kwargs.get("std", args[1] if len(args) > 1 else 1.0)
    tensors = [one.shape for one in (mean, std) if isinstance(one, torch.Tensor)]
    size = kwargs.get("size", args[2] if len(args) > 2 else None) or torch.broadcast_shapes(*tensors)
    return mode.numbers(size, "normal") * std + mean


def _bernoulli(mode: SettledRandom, name: str, args: Any, kwargs: Any) -> torch.Tensor:
    share = kwargs.get("p", args[1] if len(args) > 1 else args[0])
    return (mode.numbers(args[0].shape, "uniform") < share).to(args[0].dtype)


def _in_place(mode: SettledRandom, name: str, args: Any, kwargs: Any) -> torch.Tensor:
    target, *given = args
    keys = {"uniform_": ("from", "to"), "normal_": ("mean", "std"), "exponential_": ("lambd",), "bernoulli_": ("p",)}[name]
    defaults = {"from": 0.0, "to": 1.0, "mean": 0.0, "std": 1.0, "lambd": 1.0, "p": 0.5}
    first, *rest = [kwargs.get(key, given[place] if place < len(given) else defaults[key]) for place, key in enumerate(keys)]
    kind = {"normal_": "normal", "exponential_": "exponential"}.get(name, "uniform")
    drawn = mode.numbers(target.shape, kind)
    if name == "uniform_":
        drawn = first + drawn * (rest[0] - first)
    elif name == "normal_":
        drawn = first + drawn * rest[0]
    else:
        drawn = drawn / first if name == "exponential_" else drawn < first
    return target.copy_(drawn.to(target.dtype))


def _dropout(mode: SettledRandom, name: str, args: Any, kwargs: Any) -> torch.Tensor:
    share = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    size = args[0].shape
    if name.startswith("feature"):
        size = (*size[:2], *(1 for _ in size[2:]))
    kept = (mode.numbers(size, "uniform") >= share).to(args[0].dtype) / max(1 - share, 1e-12)
    return args[0].mul_(kept) if name.endswith("_") else args[0] * kept


_SETTLED: dict[str, Any] = {
    "rand": _by_size,
    "randn": _by_size,
    "rand_like": _like,
    "randn_like": _like,
    "randint": _integers,
    "randint_like": _integers,
    "randperm": _permutation,
    "normal": _normal,
    "bernoulli": _bernoulli,
    **dict.fromkeys(("uniform_", "normal_", "exponential_", "bernoulli_"), _in_place),
    **dict.fromkeys(("dropout", "dropout_", "feature_dropout", "feature_dropout_"), _dropout),
}
