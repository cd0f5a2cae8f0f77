import ctypes
import shutil
import subprocess
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from shallowvit_bench.config import BenchConfig
from shallowvit_bench.power import energy_of, open_power, throttling
from shallowvit_bench.power.nvml import NvmlGpu, open_nvml, throttle_sentences
from shallowvit_bench.power.sampling import PowerSource
from shallowvit_bench.power_watch import PowerWatch
from shallowvit_bench.runners.cuda_driver import Gpu
from shallowvit_bench.timing import Repeated

pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py isn't installed")

ENERGY, INSTANT, USAGE, CLOCKS, TEMPERATURE, REASONS, OLD_REASONS, MEMORY = (1 << bit for bit in range(8))
EVERYTHING = 255


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """NVIDIA's library as a stand-in written in C, so that nvidia-ml-py is the real one."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler for the stand-in of NVIDIA's library")
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml_stand_in.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True, capture_output=True)
    return ctypes.CDLL(str(library))


@pytest.fixture
def driver(compiled, monkeypatch):
    """Set what the stand-in gives: ``driver(gives=ENERGY | CLOCKS)``."""
    monkeypatch.setattr(pynvml, "nvmlLib", compiled)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})

    def set_values(**values):
        for name, value in values.items():
            compiled.stand_in_set(name.encode(), ctypes.c_uint64(value))

    set_values(gives=EVERYTHING, milliwatts=100_000, reasons=0, lost=0, update_ms=20, shut=0, gpus=1)
    return set_values


def _sampled(seconds=0.4, **options):
    with open_power(gpu=True, root=Path("/nowhere"), **options) as meter, meter.sampling() as recording:
        time.sleep(seconds)
    return meter, recording.trace()


def test_open_power_of_a_gpu_prefers_its_energy_counter(driver):
    with open_power(gpu=True, root=Path("/nowhere")) as meter:
        assert meter.source == "NVML energy counter of Stand-in GPU: the card, without the rest of the machine"
        assert meter.reason is None


@pytest.mark.parametrize(
    ("gives", "figure", "averaging_s"),
    [
        (EVERYTHING & ~ENERGY, "NVML power now", 0),
        (EVERYTHING & ~ENERGY & ~INSTANT, "NVML power averaged over a second", 1),
    ],
)
def test_open_power_of_a_gpu_without_a_counter_takes_the_next_best_figure(driver, gives, figure, averaging_s):
    driver(gives=gives, milliwatts=70_500)
    meter, trace = _sampled(0.05)
    assert meter.source.startswith(f"{figure} of Stand-in GPU")
    assert (trace.averaging_s, set(trace.power()[1])) == (averaging_s, {70.5})


def test_nvml_counter_gives_the_energy_of_a_window(driver):
    driver(milliwatts=250_000)
    with open_power(gpu=True, root=Path("/nowhere")) as meter, meter.sampling() as recording:
        start = time.perf_counter()
        time.sleep(1.2)
        window = (start, time.perf_counter())
    found = energy_of(recording.trace(), [window], idle_w=50.0, runs=10, batch=2)
    assert found.reason is None
    assert found.mean_w == pytest.approx(250, rel=0.2)  # read where another process may come between the time and the figure
    assert found.energy_mj == pytest.approx((found.mean_w - 50) * (window[1] - window[0]) / 10 * 1e3)


def test_nvml_readings_hold_clocks_temperature_and_memory(driver):
    _, trace = _sampled(0.05)
    reading = trace.readings[-1]
    assert reading.clocks_mhz == {"sm": 1980.0, "memory": 2619.0}
    assert (reading.temperatures_c, reading.ram_mib) == ({"gpu": 41.0}, 1024.0)


def test_nvml_of_an_orin_gives_a_name_and_no_power_and_the_sentence_says_so(driver):
    driver(gives=0)
    meter, trace = _sampled(0.01)
    assert (meter.source, trace.source) == (None, None)
    assert meter.reason.startswith("energy not measured: NVML: Stand-in GPU gives neither energy nor power")
    assert trace.readings == ()


def test_nvml_without_power_still_watches_clocks_and_throttling(driver):
    driver(gives=CLOCKS | REASONS, reasons=0x20)
    meter, trace = _sampled(0.3)
    assert meter.source is None
    assert trace.readings[-1].clocks_mhz["sm"] == 1980.0
    assert throttling(trace, [(0, time.perf_counter())])[0].startswith("the GPU's clocks were held down for its temperature")


def test_nvml_beside_another_source_gives_no_power_of_its_own(driver):
    with ExitStack() as stack:
        sampler = open_nvml(stack).sampler()
        sampler.start()
        trace = sampler.stop()
    assert {(reading.watts, reading.joules) for reading in trace.readings} == {(None, None)}
    assert trace.readings[0].clocks_mhz["sm"] == 1980.0


def test_power_watch_charges_no_side_with_the_power_of_what_it_does_not_run_on(driver):
    driver(milliwatts=300_000)
    with PowerWatch(BenchConfig(idle_seconds=0.01, energy_seconds=0.01), lambda _: None) as watch:
        with watch.sampling(gpu=True):
            driver(milliwatts=400_000)
            (repeated,) = watch.repeat([partial(time.sleep, 0.01)], lambda _: None)
        found = {on_gpu: watch.figures((), repeated, 1, on_gpu=on_gpu) for on_gpu in (True, False)}
    assert found[True]["energy_mj"] > 0
    assert "energy_mj" not in found[False]
    assert "NVML energy counter of Stand-in GPU" in found[False]["power_reason"]
    assert "isn't what this side runs on (CPU)" in found[False]["power_reason"]


def test_nvml_of_an_old_driver_asks_for_throttle_reasons_by_their_old_name(driver):
    driver(gives=EVERYTHING & ~REASONS, reasons=0x4)
    _, trace = _sampled(0.01)
    assert "SwPowerCap" in trace.readings[-1].throttled[0]


def test_nvml_gpu_lost_while_sampling_ends_the_trace_with_the_reason(driver):
    with open_power(gpu=True, root=Path("/nowhere")) as meter, meter.sampling() as recording:
        time.sleep(0.2)
        driver(lost=1)
        time.sleep(0.2)
    problems = recording.trace().problems
    assert len(problems) == 1
    assert problems[0].startswith("NVML could no longer be read after ")
    assert problems[0].endswith("NVML said GPU is lost")


def test_nvml_is_shut_down_with_the_meter(driver, compiled):
    meter = open_power(gpu=True, root=Path("/nowhere"))
    assert compiled.stand_in_shut() == 0
    meter.close()
    assert compiled.stand_in_shut() == 1


def test_open_nvml_by_bus_id_opens_that_gpu(driver):
    with ExitStack() as stack:
        found = open_nvml(stack, "0000:41:00.0")
        assert isinstance(found, NvmlGpu)
        assert found.name == "Second GPU"
        assert isinstance(found.power_source(), PowerSource)


@pytest.mark.parametrize(("gpus", "opened"), [(1, True), (2, False)])
def test_open_nvml_by_a_bus_id_it_does_not_know_takes_no_other_gpu_for_it(driver, gpus, opened):
    driver(gpus=gpus)
    with ExitStack() as stack:
        assert isinstance(open_nvml(stack, "elsewhere"), NvmlGpu) is opened


def test_power_watch_samples_the_gpu_that_cuda_runs_on(driver, monkeypatch):
    monkeypatch.setattr("shallowvit_bench.power_watch.first_gpu", lambda: Gpu("Second GPU", 86, "0000:41:00.0"))
    with PowerWatch(BenchConfig(idle_seconds=0.01), lambda _: None) as watch:
        with watch.sampling(gpu=True):
            pass
        found = watch.figures((), Repeated(), 1, on_gpu=True)
    assert found["power_source"].startswith("NVML energy counter of Second GPU")


def test_open_power_for_a_cpu_does_not_ask_the_gpu(driver, compiled):
    with open_power(gpu=False, root=Path("/nowhere")) as meter:
        assert meter.source is None
    assert compiled.stand_in_shut() == 0


@pytest.mark.parametrize("bits", [0, 0x1, 0x2, 0x10, 0x100, 0x113])
def test_throttle_sentences_of_idle_set_clocks_and_display_are_none(bits):
    assert throttle_sentences(bits) == ()


@pytest.mark.parametrize(
    ("bit", "name"),
    [
        (0x4, "SwPowerCap"),
        (0x8, "HwSlowdown"),
        (0x20, "SwThermalSlowdown"),
        (0x40, "HwThermalSlowdown"),
        (0x80, "HwPowerBrakeSlowdown"),
    ],
)
def test_throttle_sentences_name_each_bit(bit, name):
    (sentence,) = throttle_sentences(bit | 0x1)
    assert sentence.endswith(f"({name})")
