"""Kernels of ours as TensorRT plugins (``IPluginV3``): for TensorRT-RTX, and for TensorRT before 10.9.

An engine holds the launches and PTX of its plugins, so it needs nothing but these creators, which are registered before it is
loaded. A newcomer's trap: what a plugin raises, TensorRT swallows; the sentence is kept in ``Plugins.problem``.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if __package__:
    from .plugin_kernels import (
        DTYPES,
        NAMESPACE,
        PluginError,
        check_shapes,
        check_types,
        kernel_from_text,
        numbers_of,
        operators_in,
    )
    from .plugin_launch import PreparedLaunch, load_kernel
else:  # beside TensorRT, in a folder of its own
    from plugin_kernels import (  # type: ignore[import-not-found, no-redef]
        DTYPES,
        NAMESPACE,
        PluginError,
        check_shapes,
        check_types,
        kernel_from_text,
        numbers_of,
        operators_in,
    )
    from plugin_launch import PreparedLaunch, load_kernel  # type: ignore[import-not-found, no-redef]

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .plugin_kernels import Kernel, Size
    from .plugin_launch import LoadedKernel

__all__ = ["Plugins", "plugins_of", "register_for_engine"]

_VERSION = "1"


class Plugins:
    """The plugins of ours that a module of TensorRT knows; they stay registered until the process ends."""

    def __init__(self, trt: Any) -> None:
        self._trt = trt
        self._creators: dict[str, Any] = {}
        self._plugin = type("_TensorRtPlugin", (_Plugin, *_plugin_bases(trt)), {})
        self._creator = type("_TensorRtCreator", (_Creator, trt.IPluginCreatorV3One), {})
        self.problems: list[str] = []

    def register(self, operator: str, kernels: Sequence[Kernel] = ()) -> None:
        """Make an operator known, with the kernels that a graph's nodes get; an engine's plugins bring their own.

        Raises:
            PluginError: TensorRT refuses.
        """
        if operator in self._creators:
            self._creators[operator].kernels = tuple(kernels)
            return
        creator = self._creator(self._trt, operator, tuple(kernels), self._make)
        if not self._trt.get_plugin_registry().register_creator(creator, NAMESPACE):
            raise PluginError(f"plugin: TensorRT doesn't register {operator}; is another plugin of that name loaded?")
        self._creators[operator] = creator

    def problem(self) -> str | None:
        """Return the first sentence that a plugin couldn't say since the last call of this, or None."""
        said, self.problems[:] = list(self.problems), []
        return said[0] if said else None

    def _make(self, kernels: Sequence[Kernel]) -> Any:
        return self._plugin(self._trt, kernels, self.problems)


_PLUGINS: dict[str, Plugins] = {}  # TensorRT's registry is the process's, so this is too


def plugins_of(trt: Any) -> Plugins:
    """Return the plugins of a module, ``tensorrt`` or ``tensorrt_rtx``."""
    if trt.__name__ not in _PLUGINS:
        _PLUGINS[trt.__name__] = Plugins(trt)
    return _PLUGINS[trt.__name__]


def register_for_engine(trt: Any, engine: bytes) -> Plugins | None:
    """Register what an engine's bytes name; None where that is nothing, or where TensorRT has no such plugins.

    Raises:
        PluginError: TensorRT refuses.
    """
    operators = operators_in(engine)
    if not operators or not hasattr(trt, "IPluginCreatorV3One"):
        return None
    plugins = plugins_of(trt)
    plugins.problem()
    for operator in operators:
        plugins.register(operator)
    return plugins


def _plugin_bases(trt: Any) -> tuple[type, ...]:
    return (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)


def _kept(method: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the sentence of a refusal, which gets lost on its way through TensorRT."""

    @functools.wraps(method)
    def called(self: Any, *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except PluginError as err:
            self.problems.append(str(err))
            raise

    return called


class _Creator:
    """Makes the plugins of one operator: of a node with the kernels given, of an engine with those that it holds."""

    def __init__(self, trt: Any, operator: str, kernels: tuple[Kernel, ...], make: Callable[..., Any]) -> None:
        trt.IPluginCreatorV3One.__init__(self)
        self._trt, self.kernels, self._make = trt, kernels, make
        self.problems = make.__self__.problems  # type: ignore[attr-defined]
        self.name, self.plugin_version, self.plugin_namespace = operator, _VERSION, NAMESPACE
        self.field_names = trt.PluginFieldCollection([trt.PluginField("variant", b"", trt.PluginFieldType.CHAR)])

    @_kept
    def create_plugin(self, _name: str, fields: Any, phase: Any) -> Any:
        given = {field.name: memoryview(field.data).tobytes().rstrip(b"\0").decode() for field in fields}
        if phase == self._trt.TensorRTPhase.RUNTIME:
            return self._make(_kernels_from_fields(given, self.name))
        if not self.kernels:
            raise PluginError(f"plugin: no kernel was given for the node's operator {self.name}; build the engine again")
        variant = given.get("variant", "")
        if variant != self.kernels[0].variant:
            raise PluginError(
                f"plugin: a node {self.name} says that it computes {variant or 'nothing'}, and its kernel was compiled for "
                f"{self.kernels[0].variant}; export again"
            )
        return self._make(self.kernels)


def _kernels_from_fields(given: Mapping[str, str], operator: str) -> tuple[Kernel, ...]:
    count = sum(name.startswith("launch_") for name in given)
    if not count:
        raise PluginError(f"plugin: the engine holds no launch for {operator}; build it again")
    where = f"the engine's {operator}"
    return tuple(kernel_from_text(given[f"launch_{index}"], given.get(f"ptx_{index}", ""), where) for index in range(count))


class _Plugin:
    """One attention of an engine."""

    def __init__(self, trt: Any, kernels: Sequence[Kernel], problems: list[str]) -> None:
        for base in _plugin_bases(trt):
            base.__init__(self)  # type: ignore[misc]  # each of TensorRT's wants to be called
        self._trt, self._kernels, self.problems = trt, tuple(kernels), problems
        self._first = first = self._kernels[0]  # they differ in their code alone
        self.plugin_name, self.plugin_version, self.plugin_namespace = first.operator, _VERSION, NAMESPACE
        self.num_outputs = len(first.outputs)
        self._loaded: LoadedKernel | None = None
        self._prepared: tuple[tuple[tuple[int, ...], ...], PreparedLaunch] | None = None
        self._fields: list[tuple[str, bytes]] = []

    def get_capability_interface(self, _kind: Any) -> Any:
        return self

    def clone(self) -> Any:
        return type(self)(self._trt, self._kernels, self.problems)

    def destroy(self) -> None:
        if self._loaded is not None:
            self._loaded.release()
        self._loaded = self._prepared = None

    # while an engine is built

    @_kept
    def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
        check_types(self._first, [str(one).rpartition(".")[2] for one in input_types])
        return [self._type(spec.dtype) for spec in self._first.outputs]

    def _type(self, dtype: str) -> Any:
        return getattr(self._trt.DataType, DTYPES[dtype])

    @_kept
    def get_output_shapes(self, inputs: Sequence[Any], _shape_inputs: Any, builder: Any) -> list[Any]:
        known = [[_constant(one[axis]) for axis in range(len(one))] for one in inputs]
        check_shapes(self._first, known)
        shapes = []
        for sizes in self._first.output_shapes:
            dims = self._trt.DimsExprs(len(sizes))
            for axis, size in enumerate(sizes):
                dims[axis] = self._expression(size, inputs, builder)
            shapes.append(dims)
        return shapes

    def _expression(self, size: Size, inputs: Sequence[Any], builder: Any) -> Any:
        operation = self._trt.DimensionOperation
        return size.express(
            lambda tensor, axis: inputs[tensor][axis],
            builder.constant,
            lambda one, other: builder.operation(operation.PROD, one, other),
            lambda dividend, divisor: builder.operation(operation.CEIL_DIV, dividend, divisor),
        )

    def supports_format_combination(self, position: int, tensors: Sequence[Any], inputs: int) -> bool:
        specs = self._first.inputs if position < inputs else self._first.outputs
        spec = specs[position if position < inputs else position - inputs]
        desc = tensors[position].desc
        return bool(desc.format == self._trt.TensorFormat.LINEAR and desc.type == self._type(spec.dtype))

    @_kept
    def configure_plugin(self, inputs: Sequence[Any], _outputs: Any) -> None:
        for shapes in ([tuple(one.min) for one in inputs], [tuple(one.max) for one in inputs]):
            check_shapes(self._first, shapes)
            numbers_of(self._first, shapes)

    def get_fields_to_serialize(self) -> Any:
        self._fields = []  # kept: TensorRT reads names and contents after this returns
        for index, kernel in enumerate(self._kernels):
            self._fields += [(f"launch_{index}", kernel.launch.encode()), (f"ptx_{index}", kernel.ptx.encode())]
        kind = self._trt.PluginFieldType.CHAR
        fields = [self._trt.PluginField(name, content, kind) for name, content in self._fields]
        return self._trt.PluginFieldCollection(fields)

    # while it runs

    @_kept
    def attach_to_context(self, _resources: Any) -> Any:
        attached = self.clone()
        attached._loaded = load_kernel(self._kernels)
        return attached

    def set_tactic(self, _tactic: int) -> None:
        return None

    @_kept
    def on_shape_change(self, inputs: Sequence[Any], _outputs: Any) -> None:
        if self._loaded is not None:
            self._prepare(tuple(tuple(one.dims) for one in inputs))

    def _prepare(self, shapes: tuple[tuple[int, ...], ...]) -> PreparedLaunch:
        if self._loaded is None:
            self._loaded = load_kernel(self._kernels)
        check_shapes(self._first, shapes)
        prepared = PreparedLaunch(self._loaded, shapes)
        self._prepared = (shapes, prepared)
        return prepared

    @_kept
    def enqueue(
        self,
        input_desc: Sequence[Any],
        _output_desc: Any,
        inputs: Sequence[int],
        outputs: Sequence[int],
        _workspace: int,
        stream: int,
    ) -> None:
        shapes = tuple(tuple(one.dims) for one in input_desc)
        prepared = self._prepared[1] if self._prepared and self._prepared[0] == shapes else self._prepare(shapes)
        prepared.launch(inputs, outputs, stream)


def _constant(expression: Any) -> int | None:
    """What an expression is where it is known, else None."""
    return int(expression.get_constant_value()) if expression.is_constant() else None
