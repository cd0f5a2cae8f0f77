import time
from functools import partial

from shallowvit_bench.timing import TimingLimits, own_overhead_ms, repeat_in_windows, time_rounds, warm_up


class Recorder:
    """A bound batch that notes its turns; what is tested is the order of runs, not a model."""

    device_ms = None

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def __call__(self):
        self.calls.append(self.name)


def test_time_rounds_alternates_a_b_b_a_with_an_untimed_run_each():
    calls = []
    jobs = [Recorder("a", calls), Recorder("b", calls)]
    results = time_rounds(jobs, TimingLimits(max_runs=4, round_runs=2))
    assert "".join(calls) == "ab" + "aaa" + "bbb" + "bbb" + "aaa"  # first one each, to size the rounds
    assert [(len(timed.samples_ms), len(timed.rounds_ms)) for timed in results] == [(4, 2), (4, 2)]


def test_time_rounds_gives_a_slow_model_rounds_of_one_run():
    limits = TimingLimits(max_runs=4, round_runs=8, round_seconds=1e-12)
    (timed,) = time_rounds([Recorder("a", [])], limits)
    assert (len(timed.samples_ms), len(timed.rounds_ms)) == (4, 4)


def test_time_rounds_stops_exactly_at_max_runs():
    (timed,) = time_rounds([Recorder("a", [])], TimingLimits(max_runs=13, round_runs=8))
    assert (len(timed.samples_ms), len(timed.rounds_ms)) == (13, 2)


def test_time_rounds_stops_when_a_sides_seconds_are_used():
    (timed,) = time_rounds([Recorder("a", [])], TimingLimits(max_runs=1000, max_seconds=1e-9, round_runs=8))
    assert len(timed.samples_ms) == 8


def test_warm_up_is_bounded_when_it_never_gets_steady():
    limits = TimingLimits(warm_up_tolerance=-1.0, max_warm_up_runs=30)
    result = warm_up(Recorder("a", []), limits)
    assert (result.runs, result.steady) == (30, False)


def test_warm_up_stops_once_steady():
    result = warm_up(Recorder("a", []), TimingLimits(warm_up_tolerance=1e9))
    assert (result.runs, result.steady) == (14, True)


def test_repeat_in_windows_alternates_windows_and_counts_runs():
    calls = []
    jobs = [Recorder("a", calls), Recorder("b", calls)]
    first, second = repeat_in_windows(jobs, 1e-9, 0, fewest=2)
    assert "".join(calls) == "aa" + "bb" + "bb" + "aa"  # the first of each window isn't counted
    assert (first.runs, second.runs) == (2, 2)
    assert first.windows[0][1] <= second.windows[0][0] <= second.windows[1][0] <= first.windows[1][0]


def test_repeat_in_windows_of_a_slow_side_ends_with_its_seconds():
    slow, fast = repeat_in_windows([partial(time.sleep, 0.1), partial(time.sleep, 0.001)], 0.02, 0.2, fewest=2)
    assert (len(slow.windows), slow.runs) == (2, 2)
    assert len(fast.windows) > 2
    assert fast.seconds >= 0.2


def test_time_rounds_keeps_the_devices_own_clock():
    class OnDevice(Recorder):
        device_ms = 0.25

    (timed,) = time_rounds([OnDevice("a", [])], TimingLimits(max_runs=3, round_runs=2))
    assert timed.device_ms == [0.25] * 3
    assert timed.round_runs == [2, 1]
    assert len(timed.windows) == 2


def test_own_overhead_ms_is_measured():
    assert own_overhead_ms(50) > 0
