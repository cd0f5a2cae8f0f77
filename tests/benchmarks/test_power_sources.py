import os
import sys
import tempfile
import threading
import time
import types
from contextlib import ExitStack
from pathlib import Path

import pytest
from tegrastats_lines import AGX_ORIN_35, ORIN_NANO_36, THOR_38

from shallowvit_bench.errors import BenchError
from shallowvit_bench.power import energy_of, open_power, throttling
from shallowvit_bench.power.heat import find_heat
from shallowvit_bench.power.ina import find_ina, ina_rails
from shallowvit_bench.power.rapl import find_rapl, rapl_look
from shallowvit_bench.power.sampling import PollingSampler, PowerMeter, PowerSource, Unavailable
from shallowvit_bench.power.tegra import TegrastatsSampler, find_jtop, find_tegrastats
from shallowvit_bench.power.trace import Reading
from shallowvit_bench.probes import read_text

ORIN_NANO = "jetson-orin-nano-8gb-super"
ORIN_NANO_FILES = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/meminfo": "MemTotal:       7802880 kB\n",
}


def _write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}")  # a sampler may be reading: a file of the kernel is never half there
        beside.write_text(str(text))
        beside.replace(path)
    return root


# --- tegrastats, as a process that prints captured lines --------------------------------------------------------------------

SCRIPT = """\
import sys, time
assert sys.argv[-2:] == ["--interval", "100"], sys.argv
print("Warning: not as root", flush=True)
for number in range({lines}):
    print({line!r}.replace("VDD_IN 7256mW", f"VDD_IN {{7000 + number}}mW"), flush=True)
    time.sleep(0.1)
{end}
"""


def _tegrastats(folder, line=ORIN_NANO_36, lines=600, end=""):
    script = folder / "tegrastats.py"
    script.write_text(SCRIPT.format(line=line, lines=lines, end=end))
    return (sys.executable, str(script))


def test_open_power_on_a_jetson_takes_tegrastats_and_names_its_rail(tmp_path):
    root = _write(tmp_path, ORIN_NANO_FILES)
    with open_power(gpu=True, root=root, tegrastats=_tegrastats(tmp_path)) as meter:
        assert meter.source == "tegrastats VDD_IN: the module's input, without the carrier board"
        with meter.sampling() as recording:
            start = time.perf_counter()
            time.sleep(1.05)
            window = (start, time.perf_counter())
    trace = recording.trace()
    assert energy_of(trace, [window], idle_w=6.0, runs=1, batch=1).mean_w == pytest.approx(7.005, abs=0.01)
    assert trace.readings[0].watts == 7.0
    assert (trace.readings[0].ram_mib, trace.readings[0].temperatures_c["gpu"]) == (2161, 56.562)
    assert trace.readings[0].clocks_mhz == {"cpu": 1728.0}
    assert trace.problems == ()


def test_tegrastats_readings_cover_the_end_of_what_was_measured(tmp_path):
    sampler = TegrastatsSampler(ORIN_NANO, _tegrastats(tmp_path))
    sampler.start()
    time.sleep(0.15)
    end = time.perf_counter()
    assert sampler.stop().readings[-1].time_s >= end


def test_tegrastats_that_ends_by_itself_is_told_with_its_exit_code(tmp_path):
    sampler = TegrastatsSampler(ORIN_NANO, _tegrastats(tmp_path, lines=2, end="sys.exit(7)"))
    sampler.start()
    time.sleep(0.4)
    (problem,) = sampler.stop().problems
    assert problem.startswith("tegrastats ended by itself after 0.1 s with exit code 7")


def test_find_tegrastats_leaves_no_process_behind(tmp_path):
    before = threading.active_count()
    command = _tegrastats(tmp_path)
    assert isinstance(find_tegrastats(ORIN_NANO, command), PowerSource)
    assert threading.active_count() == before
    running = [read_text(path) or "" for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not any(command[1] in words for words in running)


def test_find_tegrastats_without_the_program_says_so():
    found = find_tegrastats(ORIN_NANO, ("no-such-tegrastats",))
    assert found == Unavailable("tegrastats", "no-such-tegrastats can't be started (No such file or directory)")


def test_find_tegrastats_that_prints_an_error_shows_it(tmp_path):
    command = _tegrastats(tmp_path, lines=0, end="sys.exit('cannot open the sensors')")
    found = find_tegrastats(ORIN_NANO, command)
    assert "it said: cannot open the sensors" in found.reason


def test_find_tegrastats_of_a_board_whose_total_rail_is_missing_names_what_there_is(tmp_path):
    command = _tegrastats(tmp_path, line=THOR_38.replace("VIN 19780mW/19780mW", ""))
    found = find_tegrastats("jetson-thor-t5000", command)
    assert found.reason == "of power it prints VDD_GPU, VDD_CPU_SOC_MSS, VIN_SYS_5V0, which isn't the board's total"


def test_find_tegrastats_of_an_agx_orin_says_what_its_sum_leaves_out(tmp_path):
    found = find_tegrastats("jetson-agx-orin-64gb", _tegrastats(tmp_path, line=AGX_ORIN_35))
    assert found.name.startswith("tegrastats VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0: without the carrier board")


# --- the sensors under /sys -------------------------------------------------------------------------------------------------

HWMON = "sys/class/hwmon"
ORIN_SENSORS = {  # as an Orin Nano shows them
    f"{HWMON}/hwmon1/name": "ina3221\n",
    f"{HWMON}/hwmon1/in1_label": "VDD_IN\n",
    f"{HWMON}/hwmon1/in1_input": "4984\n",
    f"{HWMON}/hwmon1/curr1_input": "1856\n",
    f"{HWMON}/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    f"{HWMON}/hwmon1/in2_input": "4984\n",
    f"{HWMON}/hwmon1/curr2_input": "400\n",
    f"{HWMON}/hwmon1/in3_label": "NC\n",
    f"{HWMON}/hwmon1/in3_input": "0\n",
    f"{HWMON}/hwmon1/curr3_input": "0\n",
    f"{HWMON}/hwmon1/in4_input": "74\n",
    f"{HWMON}/hwmon1/curr4_input": "1600\n",
    f"{HWMON}/hwmon1/in7_label": "sum of shunt voltages\n",
    f"{HWMON}/hwmon1/in7_input": "9\n",
    f"{HWMON}/hwmon1/curr7_input": "9\n",
}


def test_ina_rails_of_an_orin_are_the_labelled_channels_in_watts(tmp_path):
    rails = ina_rails(_write(tmp_path, ORIN_SENSORS))
    assert {name: look() for name, look in rails.items()} == pytest.approx(
        {"VDD_IN": 4984 * 1856 / 1e6, "VDD_CPU_GPU_CV": 4984 * 400 / 1e6}
    )


def test_ina_rails_of_a_thor_hold_the_whole_board_of_the_other_chip(tmp_path):
    files = {
        f"{HWMON}/hwmon4/name": "ina238\n",
        f"{HWMON}/hwmon4/power1_input": "19780000\n",
        f"{HWMON}/hwmon4/in1_label": "VIN\n",
    }
    root = _write(tmp_path, files)
    assert find_ina(root, "jetson-thor-t5000").name == "INA sensors VIN: the whole board"
    assert ina_rails(root)["VIN"]() == pytest.approx(19.78)


def test_ina_rails_of_jetpack_4_are_industrial_io_in_milliwatts(tmp_path):
    device = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    files = {f"{device}/rail_name_0": "POM_5V_IN\n", f"{device}/in_power0_input": "2532\n"}
    assert ina_rails(_write(tmp_path, files))["POM_5V_IN"]() == pytest.approx(2.532)


def test_find_ina_without_the_total_names_what_is_there(tmp_path):
    found = find_ina(_write(tmp_path, ORIN_SENSORS), "jetson-agx-orin-64gb")
    assert found.reason == "only VDD_IN, VDD_CPU_GPU_CV are there, which don't make up the board's total"


def test_open_power_on_a_jetson_without_tegrastats_reads_the_sensors_itself(tmp_path):
    root = _write(tmp_path, ORIN_NANO_FILES | ORIN_SENSORS)
    with open_power(root=root, tegrastats=("no-such-tegrastats",)) as meter, meter.sampling() as recording:
        time.sleep(0.1)
    assert meter.source == "INA sensors VDD_IN: the module's input, without the carrier board"
    assert recording.trace().power()[1] == pytest.approx(4984 * 1856 / 1e6)


def test_open_power_on_a_jetson_with_nothing_names_every_source_it_tried(tmp_path):
    with open_power(root=_write(tmp_path, ORIN_NANO_FILES), tegrastats=("no-such-tegrastats",)) as meter:
        assert meter.source is None
    assert meter.reason == (
        "energy not measured: tegrastats: no-such-tegrastats can't be started (No such file or directory); "
        "INA sensors: /sys/class/hwmon has no INA3221 or INA238 with names of rails; "
        "jtop: the package jetson-stats is not installed"
    )


# --- jtop: the package needs its service on a board, so a stand-in with the functions that are used ------------------------


@pytest.fixture
def jtop_package(monkeypatch):
    class Service:
        ends = False

        def __init__(self, interval):
            rails = {"VDD_IN": {"power": 7256}, "VDD_SOC": {"power": 2511}}
            self.power = {"rail": rails, "tot": {"power": 1}}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def ok(self):
            time.sleep(0.01)
            return not self.ends

    package = types.ModuleType("jtop")
    package.jtop, package.JtopException = Service, type("JtopException", (Exception,), {})
    monkeypatch.setitem(sys.modules, "jtop", package)
    return package


def test_find_jtop_adds_up_the_rails_of_the_total(jtop_package):
    with ExitStack() as stack:
        source = find_jtop(ORIN_NANO, stack)
        meter = PowerMeter(source)
        with meter.sampling() as recording:
            pass
    assert source.name.startswith("jtop VDD_IN")
    assert set(recording.trace().power()[1]) == {7.256}


def test_find_jtop_does_not_take_its_own_total(jtop_package):
    with ExitStack() as stack:
        assert "VDD_IN, VDD_SOC, which don't make up" in find_jtop("jetson-thor-t5000", stack).reason


def test_find_jtop_without_its_service_says_so(jtop_package):
    def refuse(interval):
        raise jtop_package.JtopException("The jtop.service is not active")

    jtop_package.jtop = refuse
    with ExitStack() as stack:
        assert find_jtop(ORIN_NANO, stack).reason == "its service doesn't answer (The jtop.service is not active)"


# --- RAPL -------------------------------------------------------------------------------------------------------------------

POWERCAP = "sys/class/powercap"
RAPL = {
    f"{POWERCAP}/intel-rapl:0/name": "package-0\n",
    f"{POWERCAP}/intel-rapl:0/energy_uj": 900,
    f"{POWERCAP}/intel-rapl:0/max_energy_range_uj": 1000,
    f"{POWERCAP}/intel-rapl:0:0/name": "core\n",
    f"{POWERCAP}/intel-rapl:0:0/energy_uj": 5,
    f"{POWERCAP}/intel-rapl:0:1/name": "dram\n",
    f"{POWERCAP}/intel-rapl:0:1/energy_uj": 50,
    f"{POWERCAP}/intel-rapl:0:1/max_energy_range_uj": 1000,
    f"{POWERCAP}/intel-rapl:1/name": "psys\n",
    f"{POWERCAP}/intel-rapl:1/energy_uj": 7,
}


def test_find_rapl_takes_packages_and_memory_and_nothing_twice(tmp_path):
    assert find_rapl(_write(tmp_path, RAPL)).name == "RAPL package-0 + dram: the processor, without GPU and board"


def test_rapl_look_goes_on_counting_when_a_counter_starts_again(tmp_path):
    zone = _write(tmp_path, RAPL) / f"{POWERCAP}/intel-rapl:0"
    look = rapl_look([("package-0", zone)])
    counted = []
    for energy in (900, 990, 40, 40, 500, 20):
        (zone / "energy_uj").write_text(str(energy))
        counted.append(look().joules * 1e6)
    assert counted == pytest.approx([0, 90, 140, 140, 600, 1120])


def test_open_power_for_a_cpu_samples_rapl(tmp_path):
    root = _write(tmp_path, RAPL)
    with open_power(root=root) as meter, meter.sampling() as recording:
        _write(root, {f"{POWERCAP}/intel-rapl:0/energy_uj": 950, f"{POWERCAP}/intel-rapl:0:1/energy_uj": 60})
    assert recording.trace().readings[-1].joules == pytest.approx(60e-6)


def test_find_rapl_that_only_root_may_read_gives_the_command():
    with tempfile.TemporaryDirectory() as folder:  # that of pytest is root's own
        root = _write(Path(folder), RAPL)
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755)
        (root / f"{POWERCAP}/intel-rapl:0/energy_uj").chmod(0o400 if os.geteuid() == 0 else 0)
        found = _as_nobody(lambda: find_rapl(root))
    shown = "/sys/class/powercap/intel-rapl:0/energy_uj"
    assert found == Unavailable("RAPL", f"{shown} (package-0) is readable by root only (sudo chmod a+r {shown})")


def _as_nobody(call):
    """Call it without root's right to read everything."""
    if os.geteuid() != 0:
        return call()
    os.seteuid(65534)
    try:
        return call()
    finally:
        os.seteuid(0)


def test_open_power_with_nothing_at_all_is_one_sentence_that_names_each_source(tmp_path):
    with open_power(root=tmp_path) as meter:
        assert meter.reason == (
            "energy not measured: RAPL: /sys/class/powercap isn't there, as in most virtual machines; "
            "tegrastats, INA sensors and jtop: this is no Jetson"
        )
        with meter.sampling() as recording:
            pass
    assert recording.trace().readings == ()


# --- clocks, temperatures, throttling ---------------------------------------------------------------------------------------

THERMAL = "sys/class/thermal"
CPU = "sys/devices/system/cpu"


def test_find_heat_of_an_orin_reads_zones_and_clocks_and_leaves_out_what_measures_nothing(tmp_path):
    files = {
        f"{THERMAL}/thermal_zone0/type": "cpu-thermal\n",
        f"{THERMAL}/thermal_zone0/temp": "52968\n",
        f"{THERMAL}/thermal_zone1/type": "gpu-thermal\n",
        f"{THERMAL}/thermal_zone1/temp": "-256000\n",
        f"{THERMAL}/thermal_zone2/type": "PMIC-Die\n",
        f"{THERMAL}/thermal_zone2/temp": "100000\n",
        f"{THERMAL}/thermal_zone3/type": "cv0-thermal\n",  # without power it can't be read
        f"{CPU}/cpufreq/policy0/scaling_cur_freq": "1728000\n",
        f"{CPU}/cpufreq/policy4/scaling_cur_freq": "728000\n",
        "sys/class/devfreq/17000000.gpu/cur_freq": "1020000000\n",
        "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
    }
    reading = find_heat(_write(tmp_path, files))()
    assert reading.temperatures_c == {"cpu": 52.968}
    assert reading.clocks_mhz == pytest.approx({"cpu": 1228, "gpu": 1020})


def test_find_heat_of_a_server_reads_at_most_eight_clocks_spread_over_its_cores(tmp_path):
    files = {f"{CPU}/cpufreq/policy{n}/scaling_cur_freq": 1000 * (n + 1) for n in range(64)}
    assert find_heat(_write(tmp_path, files))().clocks_mhz == pytest.approx({"cpu": sum(range(1, 64, 8)) / 8})


def test_find_heat_tells_of_a_counter_that_rose_once(tmp_path):
    path = "cpu0/thermal_throttle/core_throttle_count"
    root = _write(tmp_path, {f"{CPU}/{path}": "41\n"})
    look = find_heat(root)
    assert look().throttled == ()
    _write(root, {f"{CPU}/{path}": "44\n"})
    assert look().throttled == ("the CPU was slowed down for its temperature (core_throttle_count)",)
    assert look().throttled == ()


def test_find_heat_tells_of_over_current_where_it_throttles(tmp_path):
    files = {f"{HWMON}/hwmon3/name": "soctherm_oc\n"}
    files |= {f"{HWMON}/hwmon3/oc{n}_event_cnt": "0\n" for n in (1, 2, 3)}
    files |= {f"{HWMON}/hwmon3/oc{n}_throt_en": f"{int(n != 2)}\n" for n in (1, 2, 3)}
    root = _write(tmp_path, files)
    look = find_heat(root)
    _write(root, {f"{HWMON}/hwmon3/oc{n}_event_cnt": "5\n" for n in (2, 3)})
    assert look().throttled == ("the board was slowed down: the current was too high for a moment (oc3_event_cnt)",)


def test_find_heat_tells_of_cooling_devices_that_lower_clocks_and_not_of_a_fan(tmp_path):
    devices = {
        "pwm-fan": 4,
        "hot-surface-alert": 1,
        "cpu-throttle-alert": 0,
        "gpu-throttle-alert": 1,
        "devfreq-17000000.gpu": 3,
    }
    files = {}
    for number, (name, state) in enumerate(devices.items()):
        files |= {f"{THERMAL}/cooling_device{number}/type": name, f"{THERMAL}/cooling_device{number}/cur_state": state}
    assert find_heat(_write(tmp_path, files))().throttled == (
        "clocks were lowered for the temperature (gpu-throttle-alert)",
        "clocks were lowered for the temperature (devfreq-17000000.gpu)",
    )


def test_find_heat_of_a_machine_that_shows_nothing_is_none(tmp_path):
    assert find_heat(tmp_path) is None


def test_open_power_without_a_source_still_watches_the_kernel(tmp_path):
    path = f"{CPU}/cpu{min(os.sched_getaffinity(0))}/thermal_throttle/core_throttle_count"
    root = _write(tmp_path, {path: "0\n"})
    with open_power(root=root) as meter, meter.sampling() as recording:
        start = time.perf_counter()
        _write(root, {path: "1\n"})
        end = time.perf_counter()
    assert throttling(recording.trace(), [(start, end)]) == (
        "the CPU was slowed down for its temperature (core_throttle_count), in 1 of 1 rounds",
    )


# --- the sampler itself -----------------------------------------------------------------------------------------------------


def _now(**fields):
    now = time.perf_counter()
    return Reading(now, now, **fields)


def test_polling_sampler_reads_before_and_after_what_runs_inside():
    with PowerMeter(None, (lambda: PollingSampler("test", _now, 60.0),)).sampling() as recording:
        inside = time.perf_counter()
    before, after = recording.trace().readings
    assert before.time_s < inside < after.time_s
    assert (before.since_s, after.since_s) == (before.time_s, before.time_s)


def test_polling_sampler_reads_no_more_often_than_it_was_told():
    sampler = PollingSampler("test", _now, 0.05)
    sampler.start()
    time.sleep(0.3)
    times = [reading.time_s for reading in sampler.stop().readings]
    assert len(times) <= (times[-1] - times[0]) / 0.05 + 2


def test_polling_sampler_leaves_out_moments_it_missed():
    def slow():
        time.sleep(0.05)
        return _now()

    sampler = PollingSampler("test", slow, 0.01)
    sampler.start()
    time.sleep(0.3)
    assert len(sampler.stop().readings) < 12


@pytest.mark.parametrize("error", [OSError("gone"), BenchError("the sensor is gone"), ValueError("no number")])
def test_polling_sampler_keeps_what_it_has_when_the_sensor_goes(error):
    looks = iter([_now(watts=1.0), _now(watts=2.0)])

    def look():
        try:
            return next(looks)
        except StopIteration:
            raise error from None

    sampler = PollingSampler("test", look, 0.01)
    sampler.start()
    time.sleep(0.1)
    trace = sampler.stop()
    assert [reading.watts for reading in trace.readings] == [1.0, 2.0]
    assert trace.problems[0].startswith("test could no longer be read after ")
    assert trace.problems[0].endswith(str(error))


def test_recording_that_fails_to_start_stops_what_had_started():
    before = threading.active_count()

    class Broken:
        def start(self):
            raise BenchError("no")

    meter = PowerMeter(None, (lambda: PollingSampler("test", _now, 0.01), Broken))
    with pytest.raises(BenchError, match="no"), meter.sampling():
        pass
    assert threading.active_count() == before
