"""Time the sides of a case in alternation, with their memory and error; everything of CUDA is in ``CudaClock``.

A newcomer's trap: launching from Python takes longer than a small kernel runs, so each side is captured as a CUDA graph and
replayed; what can't be captured is called, and its row says so.
"""

from __future__ import annotations

import gc
import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from .cases import inputs_for, sides_of, variant_of
from .floors import floors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch

    from shallowvit_kernels.records import Variant

    from .cases import Inputs, Shape

    Row = dict[str, Any]
    Run = Callable[[], torch.Tensor]

__all__ = ["Clock", "CudaClock", "error_of", "failures", "measure", "summary_of"]

_MIB = 2**20
_WARM_UP = 3
# Zeroed between two runs: twice the cache, and 64 MiB where the driver doesn't say how large it is.
_FLUSHED_CACHES = 2
_FLUSHED_AT_LEAST = 64 * _MIB


class Clock(Protocol):
    """A device's stopwatch."""

    gpu: str
    device: str

    def captured(self, run: Run) -> tuple[Callable[[], object], str]:
        """Return what is to be timed for a call, and whether it is a ``graph`` or a ``call``."""

    def milliseconds(self, runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Run each once, the cache flushed before, and return how long each took."""

    def peak_bytes(self, run: Run) -> int:
        """Return the most memory that a call takes beyond what was there before, its output included."""


class CudaClock:
    """CUDA events around each run."""

    def __init__(self, device: str) -> None:
        import torch

        self.device = device
        torch.cuda.set_device(device)
        found = torch.cuda.get_device_properties(device)
        self.gpu = found.name
        cache = _FLUSHED_CACHES * getattr(found, "L2_cache_size", 0)
        self._pool = torch.cuda.graph_pool_handle()  # one for all graphs: no output of a replay is kept
        self._flush = torch.empty(max(cache, _FLUSHED_AT_LEAST), dtype=torch.uint8, device=device)

    def captured(self, run: Run) -> tuple[Callable[[], object], str]:
        """See ``Clock``."""
        import torch

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            torch.cuda.synchronize()
            return run, "call"
        return graph.replay, "graph"

    def milliseconds(self, runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """See ``Clock``."""
        import torch

        events = {name: [torch.cuda.Event(enable_timing=True) for _ in range(2)] for name in runs}
        for name, run in runs.items():
            self._flush.zero_()
            events[name][0].record()
            run()
            events[name][1].record()
        torch.cuda.synchronize()
        return {name: first.elapsed_time(last) for name, (first, last) in events.items()}

    def peak_bytes(self, run: Run) -> int:
        """See ``Clock``."""
        import torch

        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = run()
        torch.cuda.synchronize()
        del kept
        return torch.cuda.max_memory_allocated() - before

    def release(self) -> None:
        """Give memory back that the last case left, behind one that ran out of it above all."""
        import torch

        gc.collect()
        torch.cuda.empty_cache()


def measure(shape: Shape, clock: Clock, rounds: int, seed: int) -> Iterator[Row]:
    """Yield a row for each side of a case; one that can't, or fails, is a row with its reason."""
    variant = variant_of(shape.case, shape.dtype, shape.head_size)
    base = {"kind": "speed", "variant": shape.case.name, "dtype": str(shape.dtype), "head_size": shape.head_size}
    base |= {"heads": shape.heads, "tokens": shape.tokens, "batch": shape.batch, "gpu": clock.gpu, "seed": seed}
    base |= _rounded(asdict(floors_of(shape, str(shape.dtype), clock.gpu)))
    rows: dict[str, Row] = {}
    try:
        given = inputs_for(shape, clock.device, seed)
        sides = sides_of(variant, given, compiled=clock.device != "cpu")
        expected = reference(variant, given)
    except failures() as err:
        yield base | {"side": "inputs and reference"} | _failed(err)
        return
    runs: dict[str, Callable[[], object]] = {}
    for name, run in sides.items():
        rows[name] = base | {"side": name, "rounds": rounds}
        if isinstance(run, str):
            rows[name] |= {"status": "can't", "reason": run}
            continue
        try:
            rows[name] |= {"relative_error": error_of(run(), expected), "peak_mib": round(clock.peak_bytes(run) / _MIB, 2)}
            runs[name], rows[name]["timed_as"] = clock.captured(run)
        except failures() as err:
            rows[name] |= _failed(err)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + _WARM_UP):
        for name, milliseconds in clock.milliseconds(runs).items():
            if turn >= _WARM_UP:
                taken[name].append(milliseconds)
    for name, row in rows.items():
        yield row | ({"status": "measured"} | summary_of(taken[name]) if name in taken else {})


def reference(variant: Variant, given: Inputs) -> torch.Tensor:
    """Compute it in fp32, an item of the batch at a time, since all of its scores are in memory."""
    import torch

    from shallowvit_kernels.catalogue import definition_of

    plain = definition_of(variant.kernel).reference
    operands = {name: one for name, one in given.items() if name not in "qkv"}
    parts = []
    for item in range(len(given["q"])):
        found = plain(variant, *(given[name][item : item + 1] for name in "qkv"), **operands)
        parts.append(found[0] if isinstance(found, tuple) else found)
    return torch.cat(parts)


def error_of(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the root mean square of the difference over that of what is expected; infinite for what isn't finite."""
    error = ((found.float() - expected).square().mean() / expected.square().mean()).sqrt().item()
    return float(f"{error:.3g}") if error == error else float("inf")


def summary_of(milliseconds: list[float]) -> Row:
    """Return the median and the spread of one side's runs."""
    tenths = statistics.quantiles(milliseconds, n=10, method="inclusive") if len(milliseconds) > 1 else milliseconds * 9
    return _rounded({"median_ms": statistics.median(milliseconds), "p10_ms": tenths[0], "p90_ms": tenths[8]})


def failures() -> tuple[type[Exception], ...]:
    """Return what a side may fail with: ours, torch's, a compiler's; memory that runs out is among torch's."""
    from triton.runtime.errors import TritonError

    from shallowvit_kernels.errors import KernelError

    return (KernelError, RuntimeError, ValueError, NotImplementedError, TritonError)


def _failed(err: Exception) -> Row:
    import torch

    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    reason = (lines or [type(err).__name__])[0][:300]
    if isinstance(err, torch.OutOfMemoryError):
        return {"status": "out of memory", "reason": reason}
    return {"status": "refused" if any(words in reason for words in _NO_KERNEL) else "failed", "reason": reason}


_NO_KERNEL = ("No available kernel", "No viable backend")  # of SDPA, on a GPU and elsewhere


def _rounded(row: Row) -> Row:
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in row.items()}
