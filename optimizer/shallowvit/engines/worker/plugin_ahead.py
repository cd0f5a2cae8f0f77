"""Kernels of ours as ahead-of-time plugins of full TensorRT 10.9 and later: their PTX becomes part of the engine.

What a device needs for such an engine is TensorRT and nothing else. Written against the sources of ``tensorrt.plugin`` 11.4
and tried on them; the engine itself has not been built, for want of a machine. A newcomer's trap: TensorRT takes one kernel a
plugin here, so it is that for the GPU it builds on.
"""

from __future__ import annotations

import importlib
import inspect
import types
from typing import TYPE_CHECKING, Any

if __package__:
    from shallowvit_bench.runners.plugin_kernels import (
        DTYPES,
        NAMESPACE,
        PluginError,
        check_shapes,
        check_types,
        choose_kernel,
        numbers_of,
    )
else:  # run beside TensorRT, where that file is copied
    from plugin_kernels import (  # type: ignore[import-not-found, no-redef]
        DTYPES,
        NAMESPACE,
        PluginError,
        check_shapes,
        check_types,
        choose_kernel,
        numbers_of,
    )

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["register_ahead"]

_MODULE = "tensorrt.plugin"
_SHARED_BYTES = 48 * 1024  # a launch that needs more has to ask the driver, which TensorRT isn't known to do


def register_ahead(trt: Any, operators: Mapping[str, Sequence[Any]], sm: int | None) -> list[str]:
    """Register each operator, and return the list that what they refuse goes into.

    Args:
        trt: The module ``tensorrt``.
        operators: Name -> its kernels.
        sm: The compute capability of the GPU that the engine is built on, as 86 for 8.6.

    Raises:
        PluginError: there is no GPU, or none of an operator's kernels is for it.
    """
    if sm is None:
        raise PluginError("plugin: there is no NVIDIA GPU here, and full TensorRT builds on the one it builds for")
    plugin = importlib.import_module(_MODULE)
    problems: list[str] = []
    for name, kernels in operators.items():
        _register(trt, plugin, f"{NAMESPACE}::{name}", choose_kernel(kernels, sm), problems)
    return problems


def _register(trt: Any, plugin: Any, identity: str, kernel: Any, problems: list[str]) -> None:
    def describe(*arguments: Any, **attributes: Any) -> Any:
        with _Kept(problems):
            variant = attributes["variant"] if "variant" in attributes else arguments[-1]
            return _described(trt, plugin, kernel, arguments[: len(kernel.inputs)], variant)

    def launch(*arguments: Any) -> Any:
        with _Kept(problems):
            return _launched(plugin, kernel, arguments[: len(kernel.inputs)])

    inputs = [(spec.name, plugin.TensorDesc) for spec in kernel.inputs] + [("variant", str)]
    outputs = types.GenericAlias(tuple, (plugin.TensorDesc,) * len(kernel.outputs))
    text = str | bytes
    launched = types.GenericAlias(tuple, (text, text, plugin.KernelLaunchParams, plugin.SymIntExprs))
    _sign(describe, inputs, outputs)
    _sign(launch, [*inputs, ("outputs", outputs), ("tactic", int)], launched)
    plugin.register(identity)(describe)
    plugin.aot_impl(identity)(launch)


def _sign(function: Callable[..., Any], parameters: Sequence[tuple[str, Any]], returned: Any) -> None:
    """Give a function the signature that TensorRT reads its inputs and attributes from."""
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    listed = [inspect.Parameter(name, either, annotation=annotation) for name, annotation in parameters]
    function.__signature__ = inspect.Signature(listed, return_annotation=returned)  # type: ignore[attr-defined]


def _described(trt: Any, plugin: Any, kernel: Any, inputs: Sequence[Any], variant: str) -> tuple[Any, ...]:
    """Check the inputs, and say what the outputs are."""
    variant = variant.rstrip("\0")
    if variant != kernel.variant:
        raise PluginError(
            f"plugin: a node {kernel.operator} says that it computes {variant or 'nothing'}, and its kernel was compiled for "
            f"{kernel.variant}; export again"
        )
    check_types(kernel, [str(one.dtype).rpartition(".")[2] for one in inputs])
    check_shapes(kernel, [[_constant(dim) for dim in one.shape_expr] for one in inputs])
    outputs = []
    for spec, sizes in zip(kernel.outputs, kernel.output_shapes, strict=True):
        shape = tuple(_expression(plugin, size, inputs) for size in sizes)
        outputs.append(plugin.from_shape_expr(shape, getattr(trt.DataType, DTYPES[spec.dtype])))
    return tuple(outputs)


def _launched(plugin: Any, kernel: Any, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """What the kernel is called with; TensorRT passes inputs, these whole numbers and outputs, in this order."""
    kinds = [one.kind for one in kernel.arguments]
    if kinds != sorted(kinds, key=["input", "size", "output"].index):
        raise PluginError(f"plugin: the arguments of {kernel.operator} aren't in TensorRT's order; compile it again")
    if kernel.shared_bytes > _SHARED_BYTES:
        raise PluginError(
            f"plugin: {kernel.operator} needs {kernel.shared_bytes} bytes of shared memory a block, and {_SHARED_BYTES} is the "
            "most that TensorRT gives; compile it with smaller tiles"
        )
    numbers_of(kernel, [_largest(one.shape) for one in inputs])
    launch = plugin.KernelLaunchParams()
    launch.grid_x = _expression(plugin, kernel.grid, inputs)
    launch.block_x = kernel.threads
    launch.shared_mem = kernel.shared_bytes
    sizes = [one.size for one in kernel.arguments if one.kind == "size"]
    extra = plugin.SymIntExprs(len(sizes))
    for index, size in enumerate(sizes):
        extra[index] = plugin.SymInt32(_expression(plugin, size, inputs))
    return kernel.operator, kernel.ptx, launch, extra


def _largest(shape: Any) -> tuple[int, ...]:
    """The profile's largest sizes."""
    return tuple(shape.max) if shape.is_dynamic else tuple(shape)


def _expression(plugin: Any, size: Any, inputs: Sequence[Any]) -> Any:
    return size.express(
        lambda tensor, axis: inputs[tensor].shape_expr[axis],
        plugin.ShapeExpr,
        lambda one, other: one * other,
        plugin.cdiv,
    )


def _constant(dim: Any) -> int | None:
    return int(dim.constant_value()) if not dim.is_fake and dim.is_constant else None


class _Kept:
    """Keeps the sentence of a refusal, which gets lost on its way through TensorRT."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if isinstance(error, PluginError):
            self._problems.append(str(error))
