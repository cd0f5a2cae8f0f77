import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shallowvit_kernels import gpu_check
from shallowvit_kernels.ahead import compile_variant
from shallowvit_kernels.attention import attention_reference
from shallowvit_kernels.cuda_launcher import LaunchablePtx, gpu_capability, load_kernel, read_kernel
from shallowvit_kernels.errors import KernelError
from shallowvit_kernels.gpu_check import GpuCheck, Sizes, check_on_gpu, laid_out, random_tensors
from shallowvit_kernels.launching import launch_of
from shallowvit_kernels.records import Dtype, Kernel, Layout, Modifier, Operand, Tile, Variant

_SPEC = importlib.util.spec_from_file_location("cuda_driver_stand_in", Path(__file__).with_name("cuda_driver_stand_in.py"))
stand_in = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(stand_in)

BIASED = Variant(Kernel.ATTENTION, Dtype.FP32, 8, scale=0.5, operands=(Operand(Modifier.BIAS, "bn"),), log_sum_exp=True)
PACKED = Variant(Kernel.ATTENTION, Dtype.BF16, 16, layout=Layout.PACKED, output_layout=Layout.TOKENS_FIRST)
TILE = Tile(32, 32, 4, 1)
# Of a kernel as a compiler names its parameters; the launch is worked out from these.
NAMES = ["q_ptr", "k_ptr", "v_ptr", "bias_ptr", "heads", "queries", "keys", "part", "q_b", "q_n", "v_h", "bias_h", "out_b"]
NAMES += ["out_ptr", "lse_ptr"]


def kernel_of(variant, sm=80, suffix=""):
    """A kernel as files hold it, of a PTX that only the stand-in takes."""
    ptx = f".version 8.0\n.target sm_{sm}{suffix}\n.visible .entry {variant.name}(\n)\n.reqntid 128\n"
    return LaunchablePtx(launch_of(variant, NAMES, TILE, ptx, 4096), ptx)


@pytest.fixture
def driver(monkeypatch):
    found = stand_in.Driver()
    stand_in.install(monkeypatch, found)
    return found


def arrays(batch=2, heads=3, queries=50, keys=33):
    shapes = [(batch, heads, queries, 8), (batch, heads, keys, 8), (batch, heads, keys, 8), (1, heads, 1, keys)]
    return [np.random.rand(*shape).astype(np.float32) for shape in shapes]


def test_run_launches_with_the_grid_and_numbers_of_the_launch(driver):
    kernel = load_kernel([kernel_of(BIASED)])
    kernel.run(*arrays())
    ((name, arguments, block, grid, shared, stream),) = driver.launched
    assert (name, block, grid, shared, stream) == (BIASED.name, (128, 1, 1), (2 * 3 * 2, 1), 4096, None)
    numbers = {one.name: value for one, value in zip(kernel.launch.arguments, arguments, strict=True) if one.kind == "size"}
    expected = {"heads": 3, "queries": 50, "keys": 33, "q_b": 3 * 50 * 8, "v_h": 33 * 8, "bias_h": 33, "out_b": 3 * 50 * 8}
    assert numbers == expected  # q_n is 8 for all sizes: settled when it was compiled
    assert {type(one) for one in numbers.values()} == {np.int32}
    assert [type(arguments[place]) for place in (0, 1, 2, 3, -2, -1)] == [np.uintp] * 6


def test_run_passes_the_inputs_and_returns_what_the_kernel_wrote(driver):
    given = arrays()

    def kernel(arguments):
        for address, array in zip(arguments[:4], given, strict=True):
            np.testing.assert_array_equal(stand_in.at(address, array.shape, np.float32), array)
        stand_in.at(arguments[-2], (2, 3, 50, 8), np.float32)[:] = 7
        stand_in.at(arguments[-1], (2, 3, 50), np.float32)[:] = 8

    driver.kernel = kernel
    out, lse = load_kernel([kernel_of(BIASED)]).run(*given)
    np.testing.assert_array_equal(out, np.full((2, 3, 50, 8), 7, np.float32))
    np.testing.assert_array_equal(lse, np.full((2, 3, 50), 8, np.float32))


def test_run_of_packed_bf16_takes_and_returns_its_bits(driver):
    (out,) = load_kernel([kernel_of(PACKED)]).run(np.zeros((2, 5, 3, 4, 16), np.uint16))
    assert (out.shape, out.dtype) == ((2, 5, 4, 16), np.uint16)


def test_load_kernel_passes_the_ptx_with_its_end(driver):
    kernel = kernel_of(BIASED)
    load_kernel([kernel])
    assert driver.loaded == [kernel.ptx.encode() + b"\0"]
    assert driver.attributes == {}


def test_load_kernel_asks_for_more_shared_memory_than_a_launch_gets(driver):
    kernel = kernel_of(BIASED)
    load_kernel([replace(kernel, launch=replace(kernel.launch, shared_bytes=49153))])
    assert driver.attributes == {"dynamic shared bytes": 49153}


@pytest.mark.parametrize(
    ("capability", "chosen"), [((8, 0), 80), ((8, 6), 86), ((8, 9), 86), ((9, 0), 90), ((10, 0), 86), ((12, 1), 86)]
)
def test_load_kernel_takes_what_suits_the_gpu_best(driver, capability, chosen):
    driver.capability = capability
    kernels = [kernel_of(BIASED, 86), kernel_of(BIASED, 90, "a"), kernel_of(BIASED, 80)]
    assert load_kernel(kernels).launch.sm == chosen
    assert gpu_capability() == 10 * capability[0] + capability[1]


def test_load_kernel_refuses_a_gpu_that_none_is_for(driver):
    driver.capability = (7, 5)
    with pytest.raises(KernelError, match=r"compute capability 7.5, and the kernel was compiled for 8.0 and later, 9.0 alone;"):
        load_kernel([kernel_of(BIASED), kernel_of(BIASED, 90, "a")])


def test_load_kernel_says_what_an_old_driver_does_not_know(driver):
    driver.refuses = "cuModuleLoadDataEx failed: the provided PTX was compiled with an unsupported toolchain"
    complaint = r"driver doesn't load shallowvit_.*, PTX ISA 8.0 for compute capability 8.0: .*toolchain; update the driver"
    with pytest.raises(KernelError, match=complaint):
        load_kernel([kernel_of(BIASED)])


def test_load_kernel_refuses_a_launch_of_another_ptx(driver):
    kernel = kernel_of(BIASED)
    with pytest.raises(KernelError, match="named symbol not found"):
        load_kernel([replace(kernel, ptx=kernel_of(PACKED).ptx)])


def changed(place, array):
    given = arrays()
    given[place] = array
    return given


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (arrays()[:3], r"takes 4 inputs \(q, k, v, bias\), found 3"),
        (changed(0, np.zeros((6, 50, 8), np.float32)), r"q \[b, h, n, d\] has 4 axes, found the shape \[6, 50, 8\]"),
        (changed(0, np.zeros((2, 3, 50, 9), np.float32)), r"axis d of q \[b, h, n, d\] is 9, and 8 is expected"),
        (changed(1, np.zeros((1, 3, 33, 8), np.float32)), r"axis b of k \[b, h, m, d\] is 1, and 2 as in q is expected"),
        (changed(2, np.zeros((2, 3, 34, 8), np.float32)), r"axis m of v \[b, h, m, e\] is 34, and 33 as in k is expected"),
        (changed(3, np.zeros((1, 3, 50, 33), np.float32)), r"axis n of bias .*b, n being 1 is 50, and 1 is expected"),
        (arrays(queries=0), r"q has 0 queries; there must be 1 or more"),
        (arrays(batch=0), r"q has 0 batch; there must be 1 or more"),
        (changed(0, np.zeros((2, 3, 50, 8), np.float16)), "q is of float16, and float32 is expected"),
        (changed(0, np.zeros((2, 50, 3, 8), np.float32).transpose(0, 2, 1, 3)), r"q of the shape .* contiguous numbers"),
    ],
)
def test_run_refuses_what_the_launch_is_not_for(driver, given, complaint):
    with pytest.raises(KernelError, match=complaint):
        load_kernel([kernel_of(BIASED)]).run(*given)
    assert driver.launched == []


def test_run_refuses_bf16_as_another_type(driver):
    with pytest.raises(KernelError, match=r"q is of float32, and uint16 \(the bits of bf16\) is expected"):
        load_kernel([kernel_of(PACKED)]).run(np.zeros((2, 5, 3, 4, 16), np.float32))


def test_enqueue_refuses_numbers_beyond_32_bits(driver):
    shapes = [(2, 3, 2**29, 8), (2, 3, 33, 8), (2, 3, 33, 8), (1, 3, 1, 33)]
    with pytest.raises(KernelError, match=r"q_b of .* is 12884901888, and 2147483647 is the largest that is passed"):
        load_kernel([kernel_of(BIASED)]).enqueue([1, 2, 3, 4], shapes, [5, 6])
    assert driver.launched == []


def test_enqueue_refuses_another_number_of_addresses(driver):
    shapes = [one.shape for one in arrays()]
    with pytest.raises(KernelError, match="takes 4 inputs and 2 outputs, found addresses of 4 and 1"):
        load_kernel([kernel_of(BIASED)]).enqueue([1, 2, 3, 4], shapes, [5])


def test_enqueue_passes_addresses_and_the_stream(driver):
    load_kernel([kernel_of(BIASED)]).enqueue([1, 2, 3, 4], [one.shape for one in arrays()], [5, 6], stream="a stream")
    ((_, arguments, *_, stream),) = driver.launched
    assert ([int(arguments[place]) for place in (0, 1, 2, 3, -2, -1)], stream) == ([1, 2, 3, 4, 5, 6], "a stream")


def test_load_kernel_without_pycuda_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycuda", None)
    with pytest.raises(KernelError, match=r"PyCUDA can't be imported .* pip install pycuda, which needs nvcc on PATH"):
        load_kernel([kernel_of(BIASED)])


def test_load_kernel_without_a_gpu_says_so(driver, monkeypatch):
    def none_there(name):
        if name == "pycuda.driver":
            return __import__("sys").modules[name]
        raise stand_in.Error("cuInit failed: no CUDA-capable device is detected")

    monkeypatch.setattr("shallowvit_kernels.cuda_launcher.importlib.import_module", none_there)
    with pytest.raises(KernelError, match=r"no GPU answers \(cuInit failed: no CUDA-capable device is detected\)"):
        load_kernel([kernel_of(BIASED)])


def test_read_kernel_returns_what_was_written_and_says_what_is_missing(tmp_path):
    kernel = kernel_of(BIASED)
    launch, ptx = tmp_path / "kernel.json", tmp_path / "kernel.ptx"
    launch.write_text(kernel.launch.to_json())
    with pytest.raises(KernelError, match=r"kernel.ptx can't be read \(No such file or directory\); compile the kernel again"):
        read_kernel(launch, ptx)
    ptx.write_text(kernel.ptx)
    assert read_kernel(launch, ptx) == kernel
    launch.write_text(kernel.launch.to_json()[:-20])
    with pytest.raises(KernelError, match=r"launch: damaged \(.*\); compile the kernel again"):
        read_kernel(launch, ptx)


@pytest.mark.parametrize("variant", [BIASED, PACKED, replace(PACKED, layout=Layout.TOKENS_FIRST)])
def test_laid_out_gives_what_the_launch_takes(driver, variant):
    tensors = random_tensors(variant, Sizes(batch=2, heads=3, queries=5, keys=7))
    inputs = laid_out(variant, tensors)
    load_kernel([kernel_of(variant)]).run(*inputs)
    if variant.layout is Layout.PACKED:
        bits = tensors["k"].view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(inputs[0][:, :, 1].transpose(0, 2, 1, 3), bits)


@pytest.mark.parametrize(("wrong_by", "passed"), [(0.0, True), (0.1, False), (float("nan"), False)])
def test_check_on_gpu_compares_with_the_reference(driver, monkeypatch, wrong_by, passed):
    """The stand-in computes with torch what the kernel should; what is checked is the comparison and its layouts."""
    variant, sizes = replace(PACKED, layout=Layout.TOKENS_FIRST), Sizes(2, 3, 5, 7)
    shapes = [(2, 5, 3, 16), (2, 7, 3, 16), (2, 7, 3, 16)]

    def kernel(arguments):
        bits = [stand_in.at(one, shape, np.int16) for one, shape in zip(arguments, shapes, strict=False)]
        q, k, v = (torch.from_numpy(one.copy()).view(torch.bfloat16).transpose(1, 2) for one in bits)
        out = attention_reference(variant, q, k, v)[0] + wrong_by
        written = out.transpose(1, 2).to(torch.bfloat16).contiguous().view(torch.int16).numpy()
        stand_in.at(arguments[-1], written.shape, np.int16)[:] = written

    driver.kernel = kernel
    monkeypatch.setattr(gpu_check, "compile_variant", lambda variant, sm: kernel_of(variant, sm))
    found = check_on_gpu(variant, sizes)
    assert (found.sm, found.gpu_sm, found.passed) == (86, 86, passed)


def test_check_on_gpu_compiles_for_the_nearest_earlier_target_and_refuses_an_older_gpu(driver, monkeypatch):
    driver.capability = (8, 8)
    asked = []
    monkeypatch.setattr(gpu_check, "compile_variant", lambda variant, sm: asked.append(sm) or kernel_of(variant, sm))
    assert not check_on_gpu(PACKED).passed  # nothing was written
    assert asked == [87]
    driver.capability = (7, 0)
    with pytest.raises(KernelError, match=r"compute capability 7.0, and 7.5 is the least"):
        check_on_gpu(PACKED)


def _needs_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none")
    pytest.importorskip("pycuda", reason="needs PyCUDA, and it isn't installed")


MODIFIERS = [(), (Modifier.BIAS,), (Modifier.SCORE_MASK, Modifier.PROBABILITY_MASK), (Modifier.POSITIONS,)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", Dtype)
@pytest.mark.parametrize("modifiers", MODIFIERS)
@pytest.mark.parametrize("layout", Layout)
def test_ptx_on_a_gpu_computes_what_the_reference_computes(dtype, modifiers, layout):
    _needs_gpu()
    operands = tuple(Operand(one, "b") for one in modifiers)
    for size in (24, 64, 128):
        found = check_on_gpu(Variant(Kernel.ATTENTION, dtype, size, scale=size**-0.5, layout=layout, operands=operands))
        assert found.passed, found


@pytest.mark.gpu
def test_ptx_for_an_earlier_gpu_runs_on_a_later_one():
    _needs_gpu()
    if gpu_capability() == 80:
        pytest.skip("needs a GPU later than compute capability 8.0")
    variant = Variant(Kernel.ATTENTION, Dtype.FP16, 64, scale=0.125)
    compiled = compile_variant(variant, 80)
    tensors = random_tensors(variant, Sizes())
    out = load_kernel([LaunchablePtx(compiled.launch, compiled.ptx)]).run(*laid_out(variant, tensors))[0]
    error = np.abs(out.astype(np.float32) - attention_reference(variant, **tensors)[0].numpy()).max()
    assert error < 2e-3


def test_gpu_check_of_a_nan_is_not_passed():
    assert not GpuCheck("kernel", 80, 80, float("nan"), 1e-5).passed
