"""Run a bundle's unpruned source in torch eager, as the side to beat. Kept out of the device harness, which has no torch.

A newcomer's trap: the source is loaded again from where the manifest says, so its weights are hashed and compared first.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Self

from shallowvit_bench.errors import BenchError
from shallowvit_bench.runners import RunnerFacts
from shallowvit_bench.sides import Side

from .errors import ShallowvitError

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    import torch

    from shallowvit_bench.bundles import BundleInfo
    from shallowvit_bench.runners import Bound, Runner

__all__ = ["open_torch", "side_from_source"]


class _BoundModule:
    """A batch that the module takes where it lies."""

    device_ms = None

    def __init__(self, runner: _TorchRunner, batch: np.ndarray[Any, Any]) -> None:
        self._runner, self._batch = runner, batch
        self._output: np.ndarray[Any, Any] | None = None

    def __call__(self) -> None:
        self._output = self._runner.infer(self._batch)

    def output(self) -> np.ndarray[Any, Any]:
        assert self._output is not None
        return self._output


class _TorchRunner:
    """A module on the CPU, in inference mode."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.facts = RunnerFacts("torch", "torch", "fp32")
        self._module: torch.nn.Module | None = module

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        import torch

        assert self._module is not None
        with torch.inference_mode():
            output: np.ndarray[Any, Any] = self._module(torch.from_numpy(batch)).numpy()
        return output

    def bind(self, batch: np.ndarray[Any, Any]) -> Bound:
        return _BoundModule(self, batch)

    def close(self) -> None:
        self._module = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def side_from_source(bundle: BundleInfo, threads: int | None = None) -> Side:
    """Return the side that runs the model a bundle was made from, unpruned and in fp32, in torch eager."""
    return Side(
        name=f"{bundle.manifest['source']['spec']} (full)",
        provider="torch",
        opener=partial(open_torch, bundle, threads),
        flops=bundle.flops_before,
        precision="fp32",
        bundle=bundle,
        failures=(BenchError, ShallowvitError, RuntimeError),
    )


def open_torch(bundle: BundleInfo, threads: int | None = None) -> Runner:
    """Load the unpruned source of a bundle into torch, taking the same input as the bundle's graph.

    Raises:
        ShallowvitError: the source can't be loaded or its weights have changed since the export.
    """
    import torch

    from .exporting import deployable
    from .models import load

    if threads is not None:
        torch.set_num_threads(threads)
    source = bundle.manifest["source"]
    model = load(source["spec"], arch=source["arch"], blocks=tuple(source["blocks"] or ()))
    if model.sha256 != source["weights_sha256"]:
        raise ShallowvitError(
            f"open_torch: {source['spec']} now has weights {model.sha256[:12]}..., the bundle {bundle.name} was made from "
            f"{source['weights_sha256'][:12]}...; point to the original weights or export again"
        )
    settings = bundle.preprocessing
    if settings is None or not settings.in_graph:
        return _TorchRunner(deployable(model))
    height, width = settings.frame_shape[-3:-1]
    return _TorchRunner(deployable(model, preprocess=True, frame_size=(height, width)))
