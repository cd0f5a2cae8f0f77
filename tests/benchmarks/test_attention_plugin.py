"""Plugins of ours in an engine: which kernel runs, with which numbers, on which addresses; what is refused."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from shallowvit_bench.errors import BenchError
from shallowvit_bench.runners import attention_plugin, plugin_kernels, tensorrt_engine
from shallowvit_bench.runners.attention_plugin import Plugins, plugins_of, register_for_engine
from shallowvit_bench.runners.plugin_kernels import PluginError, check_shapes, check_types, choose_kernel, kernel_from_text
from shallowvit_bench.runners.plugin_launch import load_kernel
from shallowvit_bench.runners.protocol import RunnerFacts, RunnerOptions
from shallowvit_kernels.catalogue import definition_of
from shallowvit_kernels.checking import check_shapes as kernels_check_shapes
from shallowvit_kernels.errors import KernelError
from shallowvit_kernels.launching import launch_of
from shallowvit_kernels.records import Dtype, Kernel, Layout, Modifier, Operand, Variant
from shallowvit_kernels.targets import choose_launch
from shallowvit_kernels.tiles import tile_for

HERE = Path(__file__).parent
PLAIN = Variant(Kernel.ATTENTION, Dtype.FP16, 16, scale=0.25)
PACKED = Variant(
    Kernel.ATTENTION,
    Dtype.BF16,
    40,
    value_size=40,
    layout=Layout.PACKED,
    output_layout=Layout.TOKENS_FIRST,
    operands=(Operand(Modifier.BIAS, "b"), Operand(Modifier.POSITIONS, "bn", Dtype.FP16)),
    log_sum_exp=True,
)
CROSS = Variant(Kernel.ATTENTION, Dtype.FP32, 8, value_size=24, layout=Layout.TOKENS_FIRST)
KEPT = f".entry {PLAIN.name}("


def ptx_of(variant, sm=80, suffix="", version="8.0"):
    return f".version {version}\n.target sm_{sm}{suffix}\n.visible .entry {variant.name}(\n)\n.reqntid 128\n{{ }}\n"


def launch_for(variant, sm=80, suffix="", shared_bytes=4096):
    names = definition_of(variant.kernel).kernel.arg_names
    return launch_of(variant, names, tile_for(variant, sm), ptx_of(variant, sm, suffix), shared_bytes)


def kernel_of(variant, sm=80, suffix=""):
    return kernel_from_text(launch_for(variant, sm, suffix).to_json(), ptx_of(variant, sm, suffix), "the test's")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a plugin did over a stand-in of the driver, in a process of its own."""
    pytest.importorskip("tensorrt_rtx", reason="the plugin is of TensorRT-RTX's classes: pip install tensorrt-rtx-cu13")
    if shutil.which("gcc") is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and gcc to compile the stand-in of the CUDA driver")
    folder = tmp_path_factory.mktemp("plugins")
    command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1", HERE / "kernel_stand_in.c"]
    subprocess.run(command, check=True)
    for name, sm, suffix, shared, version in (
        ("80", 80, "", 4096, "8.0"),
        ("86", 86, "", 4096, "8.0"),
        ("90a", 90, "a", 4096, "8.0"),
        ("large", 80, "", 60_000, "8.0"),
        ("huge", 80, "", 300_000, "8.0"),
        ("newer", 80, "", 4096, "9.9 // newer"),
    ):
        launch = launch_for(PLAIN, sm, suffix, shared)
        (folder / f"{name}.json").write_text(launch.to_json())
        (folder / f"{name}.ptx").write_text(ptx_of(PLAIN, sm, suffix, version))
    kinds = "".join("i" if one.kind == "size" else "p" for one in launch_for(PLAIN).arguments)
    (folder / "kinds.json").write_text(json.dumps(kinds))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, str(HERE / "plugin_stand_in.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def expected(*shapes):
    launch = launch_for(PLAIN, 86)
    addresses = {"input": ["@7f0000000010", "@7f0000000020", "@7f0000000030"], "output": ["@7f0000000040"]}
    given = [str(one.size.of(shapes)) if one.kind == "size" else addresses[one.kind][one.index] for one in launch.arguments]
    return f"launch {launch.grid.of(shapes)},1,1 128,1,1 4096 stream abc: {' '.join(given)}\n"


SHAPES = (3, 2, 33, 16), (3, 2, 50, 16), (3, 2, 50, 16)


def test_enqueue_launches_with_the_numbers_and_addresses_of_the_call(told):
    assert told["launch"] == told["again"] == expected(*SHAPES)


def test_enqueue_of_new_shapes_works_its_numbers_out_anew(told):
    assert told["unprepared"] == expected((1, 2, 5, 16), (1, 2, 7, 16), (1, 2, 7, 16))


def test_attach_to_context_loads_once_a_cuda_context_and_the_last_one_unloads(told):
    assert told["loaded"][:5] == [1, 2, 2, 1, 0]


def test_attach_to_context_takes_the_gpu_s_own_code_else_the_nearest_earlier(told):
    assert (told["on 90"], told["on 100"]) == (90, 86)


def test_attach_to_context_without_a_cuda_context_takes_the_gpu_s_primary_one(told):
    assert told["context of its own"] == expected(*SHAPES)


def test_attach_to_context_asks_for_more_shared_memory_than_a_launch_has(told):
    assert told["shared"] == [True, "attribute 8 = 60000\n"]


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (
            "too much shared",
            "plugin: cuFuncSetAttribute of the CUDA driver gives error 1 (invalid argument); look at what nvidia-smi says",
        ),
        (
            "newer",
            f"plugin: the driver doesn't take the PTX (ISA 8.0, compute capability 8.0) of {PLAIN.name}: "
            "ptxas fatal: Unsupported .version 9.9; current version is '8.5'; update the driver",
        ),
        ("no tokens", f"plugin: axis n of q [b, h, n, d] of {PLAIN.name} is 0, and 1 is expected; found [3, 2, 0, 16]"),
        ("keys", f"plugin: axis m of v [b, h, m, e] of {PLAIN.name} is 51, and 50 is expected; found [3, 2, 51, 16]"),
        (
            "launch",
            f"plugin: {PLAIN.name} can't be launched with 6 blocks of 128 threads: error 1 (invalid argument); run with a "
            "smaller batch",
        ),
        (
            "unknown",
            f"plugin: {PLAIN.name} can't be launched with 6 blocks of 128 threads: error 700; run with a smaller batch",
        ),
        (
            "older",
            f"plugin: the GPU has compute capability 7.5, and {PLAIN.name} was compiled for 8.0 and later, 9.0 alone, 8.6 and "
            "later; build for it",
        ),
        ("no launch", f"plugin: the engine holds no launch for {PLAIN.name}; build it again"),
        ("no kernel", f"plugin: no kernel was given for the node's operator {PLAIN.name}; build the engine again"),
    ],
)
def test_a_plugin_refuses_in_a_sentence_that_is_kept(told, case, sentence):
    assert told["refused"][case] == [sentence, sentence]


def test_load_kernel_that_fails_half_way_leaves_nothing_loaded(told):
    assert told["loaded"][-1] == told["loaded"][4] + 4  # the four contexts that were left attached


def test_register_for_engine_makes_what_the_bytes_name_known(told):
    assert told["registered"] == [PLAIN.name, f"{PLAIN.name[:-8]}01234567"]


def test_register_for_engine_of_an_engine_without_plugins_changes_nothing():
    named = b"attention0_" + PLAIN.name.encode()  # a node that TensorRT has written out
    assert register_for_engine(SimpleNamespace(), b"\0engine" + named) is None
    assert register_for_engine(SimpleNamespace(), KEPT.encode()) is None  # TensorRT before 10.0


def test_register_refuses_when_tensorrt_does():
    registry = SimpleNamespace(register_creator=lambda *_: False)
    bases = {name: type(name, (), {}) for name in ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime")}
    trt = SimpleNamespace(
        **bases,
        IPluginCreatorV3One=type("IPluginCreatorV3One", (), {"__init__": lambda self: None}),
        PluginFieldCollection=list,
        PluginField=lambda *_: None,
        PluginFieldType=SimpleNamespace(CHAR=None),
        get_plugin_registry=lambda: registry,
    )
    with pytest.raises(PluginError, match=rf"^plugin: TensorRT doesn't register {PLAIN.name}; is another plugin of that name"):
        Plugins(trt).register(PLAIN.name)


def test_open_engine_registers_its_plugins_before_it_is_loaded(tmp_path):
    trt = pytest.importorskip("tensorrt_rtx", reason="registers with TensorRT-RTX: pip install tensorrt-rtx-cu13")
    name = f"{PLAIN.name[:-8]}89abcdef"
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"no engine, but .entry " + name.encode() + b"(")
    facts, cuda = RunnerFacts("rtx", "rtx", "as the graph", version="1"), SimpleNamespace(Error=OSError)
    with pytest.raises(BenchError, match=r"^open_engine: TensorRT-RTX 1 can't load"):
        tensorrt_engine._EngineRunner(trt, cuda, engine, RunnerOptions(), facts)
    assert trt.get_plugin_registry().get_creator(name, "1", "shallowvit") is not None


def test_open_engine_says_what_a_plugin_said_rather_than_tensorrt(tmp_path, monkeypatch):
    trt = pytest.importorskip("tensorrt_rtx", reason="registers with TensorRT-RTX: pip install tensorrt-rtx-cu13")
    engine = tmp_path / "model.engine"
    engine.write_bytes(KEPT.encode())

    class Refusing:
        def deserialize_cuda_engine(self, _content):
            plugins_of(trt).problems.append("plugin: the engine holds no launch")

    monkeypatch.setattr(trt, "Runtime", lambda _log: Refusing())
    facts, cuda = RunnerFacts("rtx", "rtx", "as the graph", version="1"), SimpleNamespace(Error=OSError)
    with pytest.raises(BenchError, match=r"can't load .*model.engine: plugin: the engine holds no launch; build it again here"):
        tensorrt_engine._EngineRunner(trt, cuda, engine, RunnerOptions(), facts)


def test_open_engine_whose_plugins_are_refused_says_so(tmp_path, monkeypatch):
    engine = tmp_path / "model.engine"
    engine.write_bytes(KEPT.encode())

    def refuse(*_):
        raise PluginError("plugin: TensorRT doesn't register it")

    monkeypatch.setattr(tensorrt_engine, "register_for_engine", refuse)
    trt = SimpleNamespace(ILogger=type("ILogger", (), {"__init__": lambda self: None}))
    facts, cuda = RunnerFacts("rtx", "rtx", "as the graph", version="1"), SimpleNamespace(Error=OSError)
    with pytest.raises(
        BenchError, match=r"^open_engine: .*model.engine has kernels of ours: plugin: TensorRT doesn't register it"
    ):
        tensorrt_engine._EngineRunner(trt, cuda, engine, RunnerOptions(), facts)


def test_load_kernel_without_a_driver_says_so():
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a driver")
    with pytest.raises(PluginError, match=r"^plugin: there is no CUDA driver here .*; run on a machine with an NVIDIA GPU"):
        load_kernel([kernel_of(PLAIN)])


@pytest.mark.parametrize(
    ("variant", "shapes"),
    [
        (PLAIN, SHAPES),
        (CROSS, ((2, 9, 3, 8), (2, 21, 3, 8), (2, 21, 3, 24))),
        (PACKED, ((5, 33, 3, 2, 40), (1, 2, 33, 33), (1, 2, 1, 33), (2,))),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
def test_numbers_of_are_those_of_the_launch(variant, shapes):
    launch, kernel = launch_for(variant), kernel_of(variant)
    numbers, blocks = plugin_kernels.numbers_of(kernel, shapes)
    check_shapes(kernel, shapes)
    kernels_check_shapes(launch, shapes)
    assert blocks == launch.grid.of(shapes)
    assert numbers == {one.name: one.size.of(shapes) for one in launch.arguments if one.kind == "size"}
    assert [[size.of(shapes) for size in sizes] for sizes in kernel.output_shapes] == [
        [size.of(shapes) for size in sizes] for sizes in launch.output_shapes
    ]


@pytest.mark.parametrize(
    "shapes",
    [
        ((5, 33, 3, 2, 41), (1, 2, 33, 33), (1, 2, 1, 33), (2,)),
        ((5, 33, 4, 2, 40), (1, 2, 33, 33), (1, 2, 1, 33), (2,)),
        ((5, 33, 3, 2, 40), (5, 2, 33, 33), (1, 2, 1, 33), (2,)),
        ((5, 33, 3, 2, 40), (1, 2, 33, 34), (1, 2, 1, 33), (2,)),
        ((5, 33, 3, 2, 40), (1, 2, 33, 33), (1, 2, 1, 33), (3,)),
        ((5, 33, 3, 2, 40), (1, 2, 33, 33), (1, 2, 1, 33)),
        ((5, 33, 240), (1, 2, 33, 33), (1, 2, 1, 33), (2,)),
        ((0, 33, 3, 2, 40), (1, 2, 33, 33), (1, 2, 1, 33), (2,)),
    ],
)
def test_check_shapes_refuses_what_the_kernels_themselves_refuse(shapes):
    with pytest.raises(KernelError):
        kernels_check_shapes(launch_for(PACKED), shapes)
    with pytest.raises(PluginError, match=r"^plugin: "):
        check_shapes(kernel_of(PACKED), shapes)


def test_check_shapes_leaves_sizes_alone_that_are_not_known_yet():
    check_shapes(kernel_of(PLAIN), [(None, 2, None, 16), (None, 2, None, 16), (None, None, None, 16)])


def test_check_types_names_a_type_that_no_kernel_has():
    with pytest.raises(PluginError, match=r"^plugin: k of \w+ is INT8, and fp16 is expected; export again"):
        check_types(kernel_of(PLAIN), ["HALF", "INT8", "HALF"])
    with pytest.raises(PluginError, match=r"^plugin: \w+ takes 3 inputs \(q, k, v\), found 2; export again"):
        check_types(kernel_of(PLAIN), ["HALF", "HALF"])


@pytest.mark.parametrize("sm", [80, 86, 87, 90, 100, 120])
def test_choose_kernel_chooses_as_the_launcher_does(sm):
    made = [(80, ""), (90, "a"), (86, ""), (100, "")]
    chosen = choose_kernel([kernel_of(PLAIN, *one) for one in made], sm)
    assert chosen.sm == made[choose_launch([launch_for(PLAIN, *one) for one in made], sm)][0]


def test_choose_kernel_without_any_says_none():
    with pytest.raises(PluginError, match=r"has compute capability 8.6, and the kernel was compiled for none; build for it"):
        choose_kernel([], 86)


def test_numbers_of_beyond_32_bits_are_refused():
    with pytest.raises(PluginError, match=r"^plugin: q_b of \w+ is 4294967296, and 2147483647 is the largest that is passed"):
        plugin_kernels.numbers_of(kernel_of(PLAIN), [(1, 2, 2**27, 16)] * 3)


def test_kernel_from_text_of_another_operator_s_code_is_refused():
    launch = launch_for(replace(PLAIN, scale=1.0)).to_json()
    with pytest.raises(PluginError, match=r"^plugin: the PTX of the test's has no entry"):
        kernel_from_text(launch, ptx_of(PLAIN), "the test's")


def test_the_plugin_s_files_need_nothing_of_this_project(tmp_path):
    """They are copied beside TensorRT, also on a board."""
    for module in (attention_plugin, plugin_kernels):
        shutil.copy(module.__file__, tmp_path)
    shutil.copy(Path(plugin_kernels.__file__).with_name("plugin_launch.py"), tmp_path)
    code = "import attention_plugin, sys; print(sorted(name for name in sys.modules if 'shallowvit' in name))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
