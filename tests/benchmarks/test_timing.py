import numpy as np

from shallowvit_bench.timing import TimingLimits, time_rounds, warm_up

BATCH = np.zeros(1)


class Recorder:
    """A runner that notes its turns; what is tested is the order of runs, not a model."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def infer(self, batch):
        self.calls.append(self.name)
        return batch


def test_time_rounds_alternates_a_b_b_a_with_an_untimed_run_each():
    calls = []
    jobs = [(Recorder("a", calls), BATCH), (Recorder("b", calls), BATCH)]
    results = time_rounds(jobs, TimingLimits(max_runs=4, round_runs=2))
    assert "".join(calls) == "ab" + "aaa" + "bbb" + "bbb" + "aaa"  # first one each, to size the rounds
    assert [(len(samples), len(rounds)) for samples, rounds in results] == [(4, 2), (4, 2)]


def test_time_rounds_gives_a_slow_model_rounds_of_one_run():
    limits = TimingLimits(max_runs=4, round_runs=8, round_seconds=1e-12)
    ((samples, rounds),) = time_rounds([(Recorder("a", []), BATCH)], limits)
    assert (len(samples), len(rounds)) == (4, 4)


def test_time_rounds_stops_exactly_at_max_runs():
    ((samples, rounds),) = time_rounds([(Recorder("a", []), BATCH)], TimingLimits(max_runs=13, round_runs=8))
    assert (len(samples), len(rounds)) == (13, 2)


def test_time_rounds_stops_when_a_sides_seconds_are_used():
    ((samples, _),) = time_rounds([(Recorder("a", []), BATCH)], TimingLimits(max_runs=1000, max_seconds=1e-9, round_runs=8))
    assert len(samples) == 8


def test_warm_up_is_bounded_when_it_never_gets_steady():
    limits = TimingLimits(warm_up_tolerance=-1.0, max_warm_up_runs=30)
    result = warm_up(Recorder("a", []), BATCH, limits)
    assert (result.runs, result.steady) == (30, False)


def test_warm_up_stops_once_steady():
    result = warm_up(Recorder("a", []), BATCH, TimingLimits(warm_up_tolerance=1e9))
    assert (result.runs, result.steady) == (14, True)
