"""The compiled half of ``tensorrt`` 11, as far as its ``tensorrt.plugin`` calls it, and what a builder does with a plugin.

Run as a script in a process of its own: SOURCES (the folder that holds ``plugin``) and a job of ``register_ahead`` as JSON.
Expressions stay as they are put together, and are worked out for shapes at the end.
"""

import enum
import json
import math
import sys
import types


class DimensionOperation(enum.Enum):
    SUM, PROD, MAX, MIN, SUB, EQUAL, LESS, FLOOR_DIV, CEIL_DIV = range(9)


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64, INT4 = range(10)

    def __str__(self):
        return f"DataType.{self.name}"


class Expression:
    """A number, or a tuple: ("dim", tensor, axis) or (operation, one, other)."""

    def __init__(self, tree):
        self.tree = tree

    def is_constant(self):
        return isinstance(self.tree, int)

    def get_constant_value(self):
        return self.tree

    def of(self, shapes):
        if isinstance(self.tree, int):
            return self.tree
        kind, one, other = self.tree
        if kind == "dim":
            return shapes[one][other]
        left, right = one.of(shapes), other.of(shapes)
        return {DimensionOperation.PROD: left * right, DimensionOperation.CEIL_DIV: math.ceil(left / right)}[kind]


class Builder:
    def constant(self, value):
        return Expression(value)

    def operation(self, kind, one, other):
        assert isinstance(one, Expression) and isinstance(other, Expression)
        return Expression((kind, one, other))


class Field:
    def __init__(self, name="", data=b"", type=None):
        self.name, self.data, self.type = name, memoryview(data), type


class Dims(tuple):
    MAX_DIMS = 8


class Described:
    """A ``DynamicPluginTensorDesc``, which has its ``desc`` in it."""

    def __init__(self, dims, dtype, low, high):
        self.desc = types.SimpleNamespace(dims=dims, type=dtype, format="LINEAR", scale=1.0)
        self.min, self.max, self.opt = low, high, low


class Registry:
    def __init__(self):
        self.creators = {}

    def register_creator(self, creator, namespace):
        self.creators[creator.name, creator.plugin_version, namespace] = creator
        return True

    def get_creator(self, *key):
        return self.creators[key]


def install(sources):
    trt = types.ModuleType("tensorrt")
    trt.__path__ = [sources]
    registry = Registry()
    for name in ("IPluginV3", "IPluginV3QuickCore", "IPluginV3QuickBuild", "IPluginV3QuickRuntime", "IPluginV3QuickAOTBuild"):
        setattr(trt, name, type(name, (), {}))
    for name in ("IPluginCreatorV3Quick", "ITensor", "ISymExpr", "PluginTensorDesc"):
        setattr(trt, name, type(name, (), {}))
    for name, members in {
        "PluginFieldType": "FLOAT16 FLOAT32 FLOAT64 INT8 INT16 INT32 CHAR DIMS UNKNOWN BF16 INT64 FP8",
        "QuickPluginCreationRequest": "UNKNOWN PREFER_JIT PREFER_AOT STRICT_JIT STRICT_AOT",
        "TensorRTPhase": "BUILD RUNTIME",
        "TensorFormat": "LINEAR",
        "PluginArgType": "INT",
        "PluginArgDataType": "INT8 INT16 INT32",
    }.items():
        setattr(trt, name, enum.Enum(name, members))
    trt.DataType, trt.DimensionOperation, trt.Dims = DataType, DimensionOperation, Dims
    trt.float32, trt.float16, trt.int32 = DataType.FLOAT, DataType.HALF, DataType.INT32
    trt.IDimensionExpr, trt.IExprBuilder = Expression, Builder
    trt.DynamicPluginTensorDesc, trt.PluginField, trt.PluginFieldCollection = Described, Field, list
    trt.DimsExprs = lambda length: [None] * length
    trt.get_plugin_registry = lambda: registry
    trt.Logger = type("Logger", (), {"WARNING": 1, "log": lambda *_: None})
    sys.modules["tensorrt"] = trt
    return trt, registry


def built(trt, registry, job):
    """What a builder asks of a node's plugin, in its order, and what of it goes into the engine."""
    name = job["operator"]
    creator = registry.get_creator(name, "1", "shallowvit")
    wanted = [field.name for field in creator.field_names]
    fields = [trt.PluginField("variant", job["variant"].encode() + b"\0", trt.PluginFieldType.CHAR)]
    plugin = creator.create_plugin(
        name, "shallowvit", fields, trt.TensorRTPhase.BUILD, trt.QuickPluginCreationRequest.PREFER_AOT
    )
    inputs = [DataType[one] for one in job["types"]]
    given = [
        [size if size >= 0 else ("dim", at, axis) for axis, size in enumerate(dims)] for at, dims in enumerate(job["dims"])
    ]
    expressions = [[Expression(size) for size in dims] for dims in given]
    outputs = plugin.get_output_data_types(inputs, [len(dims) for dims in given])
    shapes = plugin.get_output_shapes(expressions, [], Builder())
    known = [Described(*one) for one in zip(job["dims"], inputs, job["low"], job["high"], strict=True)]
    out_dims = [[size.tree if size.is_constant() else -1 for size in shape] for shape in shapes]
    known += [Described(dims, dtype, [1] * len(dims), [1] * len(dims)) for dims, dtype in zip(out_dims, outputs, strict=True)]
    plugin.configure_plugin(known[: len(inputs)], known[len(inputs) :])
    plugin.get_supported_format_combinations(known, len(inputs))
    plugin.set_tactic(0)
    launch, extra = types.SimpleNamespace(), {}

    class Setter:
        def __setitem__(self, index, value):
            extra[index] = value

    setter = Setter()
    plugin.get_launch_params(expressions, known, len(inputs), launch, setter, Builder())
    entry, code = plugin.get_kernel([one.desc for one in known[: len(inputs)]], [one.desc for one in known[len(inputs) :]])
    runs = job["high"]
    return {
        "fields": wanted,
        "outputs": [str(one) for one in outputs],
        "shapes": [[size.of(runs) for size in shape] for shape in shapes],
        "entry": entry,
        "code": code.decode(),
        "grid": [launch.grid_x.expr.of(runs), launch.grid_y.expr.of(runs), launch.grid_z.expr.of(runs)],
        "block": [launch.block_x.expr.of(runs), launch.block_y.expr.of(runs), launch.block_z.expr.of(runs)],
        "shared": launch.shared_mem.expr.of(runs),
        "extra": [[extra[index].dtype.name, extra[index].expr.of(runs)] for index in range(setter.nbSymExprs)],
    }


def main(sources, code, worker, job):
    sys.path[:0] = [code, worker]
    trt, registry = install(sources)
    import plugin_ahead
    import plugin_kernels

    kernels = [plugin_kernels.kernel_from_text(*one, "the test's") for one in job["kernels"]]
    problems = []
    try:
        problems = plugin_ahead.register_ahead(trt, {job["operator"]: kernels}, job["sm"])
        return built(trt, registry, job)
    except plugin_kernels.PluginError as err:
        return {"refused": str(err), "kept": problems}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:4], json.loads(sys.argv[4]))))
