import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shallowvit_bench.power import (
    PowerMeter,
    energy_of,
    idle_power,
    max_temperature_c,
    mean_clocks_mhz,
    min_window_s,
    throttling,
)
from shallowvit_bench.power.sampling import PollingSampler, PowerSource
from shallowvit_bench.power.trace import Reading, Trace, merge_traces

SOURCE = "a sensor of the test"


def _watts(level, *, until=20.0, period_s=0.1, averaging_s=0.0):
    """A meter of power that reads ``level(t)``."""
    times = np.arange(0, until + period_s / 2, period_s)
    readings = tuple(Reading(float(t), float(t) - period_s, watts=float(level(t))) for t in times)
    return Trace(readings, SOURCE, period_s, averaging_s)


def _joules(count, *, until=20.0, period_s=0.1):
    """A counter of energy that reads ``count(t)``."""
    times = np.arange(0, until + period_s / 2, period_s)
    return Trace(tuple(Reading(float(t), float(t), joules=float(count(t))) for t in times), SOURCE, period_s)


def test_energy_of_constant_power_is_what_lies_above_idle():
    found = energy_of(_watts(lambda t: 15.0), [(1.0, 3.0), (5.0, 7.0)], idle_w=5.0, runs=100, batch=4)
    assert (found.mean_w, found.peak_w, found.seconds) == pytest.approx((15, 15, 4))
    assert found.energy_mj == pytest.approx(10 * 4 / 100 * 1e3)
    assert found.energy_item_mj == pytest.approx(found.energy_mj / 4)
    assert (found.source, found.reason, found.windows, found.windows_used) == (SOURCE, None, 2, 2)


def test_energy_of_a_ramp_is_its_integral_with_ends_between_samples():
    found = energy_of(_watts(lambda t: 3 * t), [(1.03, 2.58)], idle_w=1.0, runs=1, batch=1)
    assert found.energy_mj == pytest.approx((1.5 * (2.58**2 - 1.03**2) - 1.55) * 1e3)
    assert found.peak_w == pytest.approx(3 * 2.5)


def test_energy_of_a_window_takes_nothing_from_outside_of_it():
    def level(t):
        return 20.0 if 4.95 < t < 7.05 else 500.0

    assert energy_of(_watts(level), [(5.0, 7.0)], idle_w=10.0, runs=1, batch=1).energy_mj == pytest.approx(20e3)


def test_energy_of_a_counter_is_its_difference():
    found = energy_of(_joules(lambda t: 100 + 12 * t), [(1.04, 3.01)], idle_w=2.0, runs=10, batch=1)
    assert found.energy_mj == pytest.approx(10 * 1.97 / 10 * 1e3)
    assert (found.mean_w, found.peak_w) == pytest.approx((12, 12))


def test_energy_of_a_counter_that_moves_rarely_goes_by_its_changes():
    """Read every 10 ms and moved every 100 ms: what is read between two changes says nothing of that time."""
    trace = _joules(lambda t: 10 * np.floor(t * 10 + 1e-6) / 10, period_s=0.01)
    assert energy_of(trace, [(1.01, 3.09)], idle_w=0.0, runs=1, batch=1).energy_mj == pytest.approx(20.8e3, rel=1e-6)


def test_energy_of_an_averaging_sensor_uses_what_lies_behind_its_averaging():
    def level(t):  # a second behind: the first second of the window still shows the 100 W before it
        return 100.0 if t < 6 else 30.0

    found = energy_of(_watts(level, averaging_s=1.1), [(5.0, 8.0)], idle_w=10.0, runs=1, batch=1)
    assert found.mean_w == pytest.approx(30)
    assert found.energy_mj == pytest.approx(20 * 3 * 1e3)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    watts=st.floats(1, 500),
    idle=st.floats(0, 0.9),
    starts=st.lists(st.integers(0, 8), min_size=1, max_size=5, unique=True),
    length=st.floats(1.0, 1.9),
    counter=st.booleans(),
)
def test_energy_of_constant_power_is_exact_wherever_the_windows_are(watts, idle, starts, length, counter):
    windows = [(2 * start + 0.013, 2 * start + 0.013 + length) for start in starts]
    trace = _joules(lambda t: watts * t) if counter else _watts(lambda t: watts)
    found = energy_of(trace, windows, idle_w=idle * watts, runs=7, batch=3)
    assert found.energy_mj == pytest.approx(watts * (1 - idle) * length * len(windows) / 7 * 1e3, rel=1e-9)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), middle=st.floats(4.2, 7.8), counter=st.booleans())
def test_energy_of_two_windows_that_meet_is_that_of_both_together(seed, middle, counter):
    levels = np.random.default_rng(seed).uniform(5, 50, 300)

    def level(t):
        return np.interp(t * 10, np.arange(300), levels)

    def count(t):
        return np.interp(t * 10, np.arange(300), np.cumsum(levels))

    trace = _joules(count) if counter else _watts(level)
    together = energy_of(trace, [(3.0, 9.0)], idle_w=1.0, runs=1, batch=1).energy_mj
    apart = energy_of(trace, [(3.0, middle), (middle, 9.0)], idle_w=1.0, runs=1, batch=1).energy_mj
    assert apart == pytest.approx(together, rel=1e-9)


# --- refusals ---------------------------------------------------------------------------------------------------------------


def test_energy_of_short_rounds_says_how_long_they_must_be():
    windows = [(t, t + 0.2) for t in np.arange(1, 10, 0.4)]
    found = energy_of(_watts(lambda t: 15.0), windows, idle_w=5.0, runs=100, batch=1)
    assert (found.energy_mj, found.mean_w, found.windows_used) == (None, None, 0)
    assert "0 of 23 rounds, the shortest of 0.20 s, hold enough samples of a sensor of the test" in found.reason
    assert found.reason.endswith("rounds of 1 s would")


def test_energy_of_too_few_samples_is_refused():
    trace = _watts(lambda t: 15.0, period_s=1.0)
    assert energy_of(trace, [(2.0, 8.5)], idle_w=5.0, runs=1, batch=1).energy_mj is None
    assert energy_of(trace, [(2.0, 9.5)], idle_w=5.0, runs=1, batch=1).energy_mj == pytest.approx(75e3)


def test_energy_of_windows_that_the_trace_does_not_cover_is_refused():
    trace = _watts(lambda t: 15.0, until=4.0)
    assert energy_of(trace, [(3.0, 4.5)], idle_w=5.0, runs=1, batch=1).energy_mj is None
    assert energy_of(trace, [(-0.5, 1.0)], idle_w=5.0, runs=1, batch=1).energy_mj is None


def test_energy_of_a_trace_with_a_gap_leaves_out_the_window_it_falls_in():
    trace = _watts(lambda t: 400.0 if 5 <= t < 7 else 15.0)
    holed = Trace(tuple(r for r in trace.readings if not 5.2 < r.time_s < 6.8), SOURCE, 0.1)
    found = energy_of(holed, [(1.0, 3.0), (5.0, 7.0), (9.0, 11.0)], idle_w=5.0, runs=1, batch=1)
    assert (found.windows, found.windows_used) == (3, 2)
    assert found.energy_mj == pytest.approx(10 * 6 * 1e3)  # the left out round drew what the others did


def test_energy_of_a_counter_with_a_gap_inside_keeps_the_window_for_the_counter_went_on():
    trace = _joules(lambda t: 15 * t)
    holed = Trace(tuple(r for r in trace.readings if not 5.8 < r.time_s < 6.4), SOURCE, 0.1)
    assert energy_of(holed, [(5.0, 7.0)], idle_w=5.0, runs=1, batch=1).energy_mj == pytest.approx(20e3)


def test_energy_of_mostly_uncovered_windows_is_refused():
    trace = _watts(lambda t: 15.0, until=4.0)
    found = energy_of(trace, [(1.0, 3.0), (5.0, 7.0), (8.0, 10.0)], idle_w=5.0, runs=1, batch=1)
    assert (found.energy_mj, found.windows_used) == (None, 1)


def test_energy_of_a_sensor_that_ended_says_so():
    trace = Trace(_watts(lambda t: 15.0, until=2.0).readings, SOURCE, 0.1, problems=("tegrastats ended by itself",))
    assert energy_of(trace, [(3.0, 5.0)], 5.0, 1, 1).reason == "energy not measured: tegrastats ended by itself"


def test_energy_of_power_below_idle_is_no_energy():
    found = energy_of(_watts(lambda t: 4.9), [(1.0, 3.0)], idle_w=5.0, runs=1, batch=1)
    assert (found.energy_mj, found.energy_item_mj) == (None, None)
    assert found.mean_w == pytest.approx(4.9)
    assert found.reason == "energy not measured: 4.90 W with the model running is not above idle, 5.00 W"


def test_energy_of_without_idle_power_gives_power_and_no_energy():
    found = energy_of(_watts(lambda t: 4.9), [(1.0, 3.0)], idle_w=None, runs=1, batch=1)
    assert (found.mean_w, found.energy_mj) == (pytest.approx(4.9), None)
    assert "idle power" in found.reason


def test_energy_of_without_a_source_says_so():
    trace = Trace((Reading(1.0, 0.9, temperatures_c={"cpu": 50}),))
    assert energy_of(trace, [(0.0, 2.0)], 5.0, 1, 1).reason == "energy not measured: the trace has no source of power"


# --- idle, and how long a round must be -------------------------------------------------------------------------------------


def _meter(look, period_s=0.01, averaging_s=0.0):
    def make(source):
        return PollingSampler("test", look, period_s / 2, source)

    return PowerMeter(PowerSource(SOURCE, make, period_s, averaging_s, settle_s=0.02))


def test_idle_power_samples_for_the_time_and_gives_the_mean():
    def look():
        now = time.perf_counter()
        return Reading(now, now, watts=7.5)

    assert idle_power(_meter(look), seconds=0.3) == pytest.approx(7.5)


def test_idle_power_without_a_source_is_none_at_once():
    assert idle_power(PowerMeter(None, reason="energy not measured: none"), seconds=60) is None


@pytest.mark.parametrize(("period_s", "averaging_s", "expected"), [(0.1, 0.0, 1.0), (0.1, 1.0, 2.0), (0.05, 0.0, 0.5)])
def test_min_window_s_grows_with_the_sensors_period_and_averaging(period_s, averaging_s, expected):
    assert min_window_s(_meter(lambda: None, period_s, averaging_s)) == pytest.approx(expected)


def test_min_window_s_is_long_enough_for_energy_of():
    trace = _watts(lambda t: 30.0, averaging_s=1.0)
    length = min_window_s(_meter(lambda: None, trace.period_s, trace.averaging_s))
    assert energy_of(trace, [(2.03, 2.03 + length)], 10.0, 1, 1).energy_mj == pytest.approx(20e3 * length)


def test_min_window_s_without_a_source_is_0():
    assert min_window_s(PowerMeter(None)) == 0


# --- heat in the windows ----------------------------------------------------------------------------------------------------

HOT = "the GPU's clocks were held down for its temperature (SwThermalSlowdown)"


def _reading(since_s, time_s, **fields):
    return Reading(time_s, since_s, **fields)


def test_throttling_names_each_cause_with_its_rounds():
    trace = Trace((_reading(0.9, 1.0, throttled=(HOT, "b")), _reading(1.9, 2.0, throttled=(HOT,)), _reading(2.9, 3.0)))
    assert throttling(trace, [(0.95, 1.5), (1.6, 2.5), (2.6, 3.5)]) == (f"{HOT}, in 2 of 3 rounds", "b, in 1 of 3 rounds")


def test_throttling_outside_of_the_windows_does_not_count():
    trace = Trace((_reading(0.0, 1.0, throttled=("warm-up",)), _reading(5.0, 6.0, throttled=("accuracy",))))
    assert throttling(trace, [(1.1, 4.9)]) == ()


def test_throttling_counted_after_a_short_window_belongs_to_it():
    trace = Trace((_reading(0.75, 1.0, throttled=("the CPU was slowed down",)),))
    assert throttling(trace, [(0.8, 0.9)]) == ("the CPU was slowed down, in 1 of 1 rounds",)


def test_max_temperature_and_mean_clocks_are_those_of_the_windows():
    trace = Trace(
        (
            _reading(0.0, 1.0, temperatures_c={"cpu": 90.0}, clocks_mhz={"cpu": 1000.0}),
            _reading(2.0, 2.5, temperatures_c={"cpu": 50.0, "gpu": 61.5}, clocks_mhz={"cpu": 2000.0}),
            _reading(2.5, 3.0, temperatures_c={"cpu": 55.0}, clocks_mhz={"cpu": 3000.0, "gpu": 900.0}),
        )
    )
    assert max_temperature_c(trace, [(2.1, 2.9)]) == 61.5
    assert mean_clocks_mhz(trace, [(2.1, 2.9)]) == {"cpu": 2500.0, "gpu": 900.0}
    assert (max_temperature_c(Trace(()), [(0, 1)]), mean_clocks_mhz(Trace(()), [(0, 1)])) == (None, {})


def test_merge_traces_keeps_the_order_of_time_the_source_and_the_problems():
    power = Trace((_reading(0, 1.0, watts=5.0), _reading(1, 3.0, watts=6.0)), SOURCE, 0.5, 1.0)
    heat = Trace((_reading(0, 2.0, temperatures_c={"cpu": 40.0}),), problems=("it ended",))
    merged = merge_traces([heat, power])
    assert [reading.time_s for reading in merged.readings] == [1.0, 2.0, 3.0]
    assert (merged.source, merged.period_s, merged.averaging_s, merged.problems) == (SOURCE, 0.5, 1.0, ("it ended",))
    assert merged.power()[1].tolist() == [5.0, 6.0]
