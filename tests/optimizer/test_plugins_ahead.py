"""Kernels of ours as ahead-of-time plugins, on the real sources of ``tensorrt.plugin`` over a stand-in of its compiled half."""

import json
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from shallowvit.engines.process import WORKER, copy_plugin_code
from shallowvit.engines.worker import build_engine
from shallowvit_kernels.records import Dtype, Kernel, Layout, Modifier, Operand, Variant
from shallowvit_kernels.tensors import inputs_of

from .plugin_graphs import FULL, HALF, HEADS, MASKED, made_up_launch, made_up_ptx

WHEEL = "tensorrt_cu13_bindings==11.4.0.106"  # a megabyte, and of its compiled half nothing runs without TensorRT's libraries
PACKED = Variant(
    Kernel.ATTENTION,
    Dtype.BF16,
    40,
    scale=0.25,
    layout=Layout.PACKED,
    output_layout=Layout.TOKENS_FIRST,
    operands=(Operand(Modifier.BIAS, "b"), Operand(Modifier.POSITIONS, "b", Dtype.FP16)),
    log_sum_exp=True,
)
TYPES = {Dtype.FP32: "FLOAT", Dtype.FP16: "HALF", Dtype.BF16: "BF16"}


@pytest.fixture(scope="module")
def sources():
    """``tensorrt.plugin``'s Python files, from the package index; kept in the temporary folder."""
    folder = Path(tempfile.gettempdir()) / "shallowvit-tensorrt-plugin-11.4"
    if not (folder / "plugin" / "__init__.py").is_file():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--timeout", "5", "-d", str(folder), WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = next(folder.glob("*.whl"), None)
        if done.returncode or wheel is None:
            pytest.skip(f"{WHEEL} can't be fetched here, and its Python files aren't shipped with the tests")
        with zipfile.ZipFile(wheel) as content:
            for name in content.namelist():
                if name.startswith("tensorrt_bindings/plugin/") and name.endswith(".py"):
                    target = folder / name.removeprefix("tensorrt_bindings/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content.read(name))
    return folder


@pytest.fixture
def built(sources, tmp_path):
    def run(variant, /, sm=86, kernels=((80, ""),), texts=None, **changed):
        known = {"b": 3, "h": HEADS, "n": 33, "m": 50, "d": variant.head_size, "e": variant.value_size, "3": 3}
        specs = inputs_of(variant)
        high = [[1 if letter in spec.broadcast else known[letter] for letter in spec.axes] for spec in specs]
        if variant.layout is Layout.PACKED:
            high = [[33 if size == 50 else size for size in shape] for shape in high]
        dynamic = [
            [-1 if axis in "bnm" and axis not in spec.broadcast else size for axis, size in zip(spec.axes, shape, strict=True)]
            for spec, shape in zip(specs, high, strict=True)
        ]
        job = {
            "operator": variant.name,
            "variant": variant.to_json(),
            "kernels": texts or [[made_up_launch(variant, *one).to_json(), made_up_ptx(variant, *one)] for one in kernels],
            "sm": sm,
            "types": [TYPES[spec.dtype] for spec in specs],
            "dims": dynamic,
            "low": [[1 if size < 0 else size for size in dims] for dims in dynamic],
            "high": high,
        } | changed
        code = copy_plugin_code(tmp_path / "code")
        script = Path(__file__).with_name("ahead_stand_in.py")
        command = [sys.executable, str(script), str(sources), code, str(WORKER.parent), json.dumps(job)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), high

    return run


@pytest.mark.parametrize("variant", [HALF, FULL, MASKED, PACKED], ids=lambda one: one.name)
def test_register_ahead_gives_tensorrt_the_launch_and_the_code(built, variant):
    found, shapes = built(variant)
    launch = made_up_launch(variant)
    assert found["fields"] == ["variant"]
    assert found["outputs"] == [f"DataType.{TYPES[spec.dtype]}" for spec in launch.outputs]
    assert found["shapes"] == [[size.of(shapes) for size in sizes] for sizes in launch.output_shapes]
    assert (found["entry"], found["code"]) == (variant.name, made_up_ptx(variant))
    assert found["grid"] == [launch.grid.of(shapes), 1, 1]
    assert (found["block"], found["shared"]) == ([launch.threads, 1, 1], launch.shared_bytes)
    assert found["extra"] == [["INT32", one.size.of(shapes)] for one in launch.arguments if one.kind == "size"]


@pytest.mark.parametrize(("sm", "chosen"), [(90, (90, "a")), (86, (80, "")), (120, (80, ""))])
def test_register_ahead_takes_the_code_for_the_gpu_it_builds_on(built, sm, chosen):
    assert built(HALF, sm=sm, kernels=((80, ""), (90, "a")))[0]["code"] == made_up_ptx(HALF, *chosen)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"sm": None}, "plugin: there is no NVIDIA GPU here, and full TensorRT builds on the one it builds for"),
        (
            {"sm": 75},
            f"plugin: the GPU has compute capability 7.5, and {HALF.name} was compiled for 8.0 and later; build for it",
        ),
        ({"types": ["FLOAT", "HALF", "HALF"]}, f"plugin: q of {HALF.name} is fp32, and fp16 is expected; export again"),
        ({"variant": ""}, f"plugin: a node {HALF.name} says that it computes nothing, and its kernel was compiled for"),
        ({"dims": [[-1, 2, -1, 24]] * 3}, f"plugin: axis d of q [b, h, n, d] of {HALF.name} is 24, and 16 is expected"),
        ({"high": [[9, 2, 2**27, 16]] * 3}, f"plugin: q_b of {HALF.name} is 4294967296, and 2147483647 is the largest"),
    ],
)
def test_register_ahead_refuses_what_the_kernel_does_not_take(built, changed, sentence):
    found, _ = built(HALF, **changed)
    assert found["refused"].startswith(sentence)
    registered = "sm" not in changed
    assert found["kept"] == ([found["refused"]] if registered else [])


def test_register_ahead_refuses_more_shared_memory_than_a_launch_has(built):
    launch = made_up_launch(HALF, shared_bytes=50_000).to_json()
    found, _ = built(HALF, texts=[[launch, made_up_ptx(HALF)]])
    assert found["refused"].startswith(f"plugin: {HALF.name} needs 50000 bytes of shared memory a block, and 49152 is the most")


def test_register_ahead_refuses_arguments_in_another_order(built):
    launch = made_up_launch(HALF)
    turned = replace(launch, arguments=launch.arguments[::-1]).to_json()
    found, _ = built(HALF, texts=[[turned, made_up_ptx(HALF)]])
    assert found["refused"] == f"plugin: the arguments of {HALF.name} aren't in TensorRT's order; compile it again"


@pytest.mark.parametrize(("ahead", "flags"), [(True, 0b1010), (False, 0b10), (None, 0b10)])
def test_network_of_plugins_that_are_taken_ahead_prefers_them(ahead, flags):
    made = []
    network = SimpleNamespace(num_layers=1, num_outputs=1)
    trt = SimpleNamespace(
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1, PREFER_AOT_PYTHON_PLUGINS=3),
        OnnxParser=lambda *_: SimpleNamespace(parse_from_file=lambda _path: True),
    )
    builder = SimpleNamespace(create_network=lambda given: made.append(given) or network)
    registered = None if ahead is None else SimpleNamespace(ahead=ahead, problem=lambda: None)
    build_engine._network(trt, builder, None, {"onnx": "model.onnx", "name": "model"}, registered)
    assert made == [flags] and network.name == "model"
