"""Run a bundle's unpruned source in torch, eager or compiled, as the side to beat. Kept out of the device harness.

A newcomer's trap: the source is loaded again from where the manifest says, so its weights are hashed and compared first.
"""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from shallowvit_bench.errors import BenchError
from shallowvit_bench.feeding import arrays_by_name
from shallowvit_bench.runners import RunnerFacts, RunnerOptions
from shallowvit_bench.sides import Side

from .errors import ShallowvitError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    import torch

    from shallowvit_bench.bundles import BundleInfo
    from shallowvit_bench.feeding import Batch
    from shallowvit_bench.runners import Bound, Runner

    Module = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]

__all__ = ["open_torch", "side_from_source"]

_COMPILERS = ("g++", "clang++", "c++")  # what inductor looks for to compile for the CPU
_MOST_SHAPES = 64
_EXACT = {"fp32", "fp16", "bf16"}  # graphs whose floats torch can compute in; quantised ones are held against fp32


class _BoundModule:
    """A batch where the module takes it, and the outputs where they are read: both made once."""

    device_ms: float | None = None

    def __init__(self, module: Module, batch: Sequence[np.ndarray[Any, Any]], names: tuple[str, ...]) -> None:
        import torch

        self._module, self._inference, self._names = module, torch.inference_mode, names
        self._inputs = [torch.from_numpy(array) for array in batch]
        self._outputs: tuple[torch.Tensor, ...] = ()

    def __call__(self) -> None:
        with self._inference():
            self._outputs = _as_tuple(self._module(*self._inputs))

    def output(self) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self._outputs[0].numpy()
        return found

    def outputs(self) -> dict[str, np.ndarray[Any, Any]]:
        return {name: tensor.numpy() for name, tensor in zip(self._names, self._outputs, strict=True)}


def _as_tuple(output: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


class _BoundOnGpu:
    """A batch in pinned memory and on the GPU, copied there and the outputs back within a run if copies count."""

    def __init__(self, module: Module, batch: Sequence[np.ndarray[Any, Any]], names: tuple[str, ...], *, copies: bool) -> None:
        import torch

        self._torch, self._module, self._names, self._copies = torch, module, names, copies
        self._host = [torch.from_numpy(array).pin_memory() for array in batch]
        self._inputs = [tensor.to("cuda") for tensor in self._host]
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.inference_mode():
            self._found = _as_tuple(module(*self._inputs))
            self._back = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in self._found]
        self()

    def __call__(self) -> None:
        with self._torch.inference_mode():
            if self._copies:
                for device, host in zip(self._inputs, self._host, strict=True):
                    device.copy_(host, non_blocking=True)
            self._start.record()
            self._found = _as_tuple(self._module(*self._inputs))
            self._end.record()
            if self._copies:
                for back, found in zip(self._back, self._found, strict=True):
                    back.copy_(found, non_blocking=True)
        self._torch.cuda.synchronize()

    @property
    def device_ms(self) -> float | None:
        """From event to event, so without the copies."""
        return float(self._start.elapsed_time(self._end))

    def output(self) -> np.ndarray[Any, Any]:
        return self.outputs()[self._names[0]]

    def outputs(self) -> dict[str, np.ndarray[Any, Any]]:
        if not self._copies:
            with self._torch.inference_mode():  # else it refuses to write into a tensor that was made in it
                for back, found in zip(self._back, self._found, strict=True):
                    back.copy_(found)
        return {name: tensor.numpy() for name, tensor in zip(self._names, self._back, strict=True)}


class _TorchRunner:
    """A module in inference mode; ``names`` are those of its inputs and of its outputs."""

    def __init__(self, module: Module, facts: RunnerFacts, names: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
        self.facts = facts
        self.errors: tuple[type[Exception], ...] = (RuntimeError,)
        self._module: Module | None = module
        self._inputs, self._outputs = names

    def bind(self, batch: Batch) -> Bound:
        assert self._module is not None
        arrays = self._arrays(batch)
        if self.facts.device == "cpu":
            bound = _BoundModule(self._module, arrays, self._outputs)
            self._first_run(bound)
            return bound
        return _BoundOnGpu(self._module, arrays, self._outputs, copies=bool(self.facts.copies))

    def infer(self, batch: Batch) -> np.ndarray[Any, Any]:
        import torch

        assert self._module is not None
        arrays = self._arrays(batch)
        if self.facts.device != "cpu":
            with torch.inference_mode():
                found = _as_tuple(self._module(*(torch.from_numpy(array).to("cuda") for array in arrays)))
                output: np.ndarray[Any, Any] = found[0].cpu().numpy()
            return output
        bound = _BoundModule(self._module, arrays, self._outputs)
        self._first_run(bound)
        return bound.output()

    def _arrays(self, batch: Batch) -> list[np.ndarray[Any, Any]]:
        return [np.ascontiguousarray(array) for array in arrays_by_name(batch, self._inputs, "infer").values()]

    def _first_run(self, bound: _BoundModule) -> None:
        """Run a batch that the compiler may not have seen."""
        from torch._dynamo.exc import TorchDynamoException

        try:
            bound()
        except TorchDynamoException as err:  # what it wraps are tracebacks of the compiler's, pages long
            raise ShallowvitError(
                f"open_torch: torch.compile could not compile {self.facts.options.get('source')} ({_first_line(err)}); "
                "compare with torch eager: --against torch"
            ) from err

    def close(self) -> None:
        self._module = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def side_from_source(bundle: BundleInfo, options: RunnerOptions, *, compiled: bool = False) -> Side:
    """Return the side that runs the model a bundle was made from, unpruned, in torch.

    On a GPU it runs there, in the graph's precision; on a CPU in fp32, which onnxruntime computes fp16 graphs in as well.

    Args:
        bundle: Its source, its preprocessing and its input are used.
        options: ``threads`` are torch's own, of the whole process.
        compiled: Through ``torch.compile`` rather than eager.
    """
    return Side(
        name=f"{bundle.manifest['source']['spec']} (full)",
        provider=_name(compiled),
        opener=partial(open_torch, bundle, options, compiled=compiled),
        flops=bundle.flops_before,
        precision=_precision(bundle),
        bundle=bundle,
        failures=(BenchError, ShallowvitError, RuntimeError),
    )


def open_torch(bundle: BundleInfo, options: RunnerOptions, *, compiled: bool = False) -> Runner:
    """Load the unpruned source of a bundle into torch, taking the same input as the bundle's graph.

    Raises:
        ShallowvitError: the source can't be loaded, its weights have changed since the export, or there is no compiler.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    if compiled and not on_gpu and not any(shutil.which(name) for name in _COMPILERS):
        raise ShallowvitError(
            f"open_torch: torch.compile needs a C++ compiler for the CPU, and none of {', '.join(_COMPILERS)} is on PATH. "
            "Run: sudo apt install g++"
        )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    precision = _precision(bundle)
    module = _source_module(bundle, precision)
    if on_gpu:
        module = module.to("cuda")
    facts = RunnerFacts(
        _name(compiled),
        _name(compiled),
        precision,
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        copies=options.copies if on_gpu else None,
        cuda_graph=False if on_gpu else None,
        version=torch.__version__,
        options={"source": bundle.manifest["source"]["spec"]} | ({"mode": "default"} if compiled else {}),
    )
    entries = bundle.manifest["graph"]["outputs"]
    names = tuple(one.name for one in bundle.inputs), tuple(entry["name"] for entry in entries)
    if compiled:
        # A graph for each batch size, as the other sides have; beyond the limit torch would go on in eager and say nothing.
        torch._dynamo.config.recompile_limit = _MOST_SHAPES
        return _TorchRunner(torch.compile(module, dynamic=False), facts, names)
    return _TorchRunner(module, facts, names)


def _source_module(bundle: BundleInfo, precision: str) -> torch.nn.Module:
    from .exporting import deployable
    from .exporting.outputs import wanted_outputs
    from .exporting.records import Precision
    from .models import load
    from .models.changes import changes_from_lineage
    from .pruning import PrunedModel, plan

    source = bundle.manifest["source"]
    changes = changes_from_lineage(source)
    model = load(source["spec"], arch=source["arch"], blocks=tuple(source["blocks"] or ()), changes=changes)
    if model.sha256 != source["weights_sha256"]:
        raise ShallowvitError(
            f"open_torch: {source['spec']} now has weights {model.sha256[:12]}..., the bundle {bundle.name} was made from "
            f"{source['weights_sha256'][:12]}...; point to the original weights or export again"
        )
    whole = PrunedModel(model, plan(model))
    wanted = wanted_outputs(whole, _sources(bundle))
    settings = bundle.preprocessing
    if settings is None or not settings.in_graph:
        return deployable(model, Precision(precision), outputs=wanted)
    height, width = settings.frame_shape[-3:-1]
    return deployable(model, Precision(precision), preprocess=True, frame_size=(height, width), outputs=wanted)


def _sources(bundle: BundleInfo) -> tuple[str, ...]:
    """What the graph's outputs are of; none where it has the default one, or is from before that was told."""
    found = tuple(entry.get("source", "") for entry in bundle.manifest["graph"]["outputs"])
    return () if "" in found or found in (("logits",), ("output",)) else found


def _precision(bundle: BundleInfo) -> str:
    """The graph's on a GPU, where it is the fairer one to beat; fp32 on a CPU and for quantised graphs."""
    import torch

    return bundle.precision if torch.cuda.is_available() and bundle.precision in _EXACT else "fp32"


def _name(compiled: bool) -> str:
    return "torch-compile" if compiled else "torch"


def _first_line(err: Exception) -> str:
    return next((line.strip() for line in str(err).splitlines() if line.strip()), type(err).__name__)
