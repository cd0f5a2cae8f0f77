"""The parts of tune that need no model: budgets, config, lines of costs, the order of survivors, the verdict."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from shallowvit import TrainConfig
from shallowvit.errors import ShallowvitError
from shallowvit.tuning import Budgets, TuneConfig, budgets_from_text
from shallowvit.tuning.candidates import Candidate, Space, read_space
from shallowvit.tuning.costs import CostLine, anchors, fit_line
from shallowvit.tuning.finals import Finals, missed_by_all
from shallowvit.tuning.measuring import Costs, Measured, Meter, read_costs, unsure
from shallowvit.tuning.place import open_place
from shallowvit.tuning.records import MEASURED, MODELLED, TunePoint
from shallowvit.tuning.searching import Ask, Climbed, Tried, climb, order, search, spread, stand_in
from shallowvit.tuning.verdict import front_of, recommend

# budgets


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_latency": "10ms"}, Budgets(max_latency_ms=10.0)),
        ({"max_latency": "0.01s"}, Budgets(max_latency_ms=10.0)),
        ({"max_latency": "500 us"}, Budgets(max_latency_ms=0.5)),
        ({"min_accuracy": "85%"}, Budgets(min_accuracy=0.85)),
        ({"min_accuracy": "0.85"}, Budgets(min_accuracy=0.85)),
        ({"max_drop": "1%"}, Budgets(max_drop=0.01)),
        ({"max_energy": "5mJ"}, Budgets(max_energy_mj=5.0)),
        ({"max_energy": "1e-2J"}, Budgets(max_energy_mj=10.0)),
        ({"max_size": "20MB"}, Budgets(max_size_bytes=20e6)),
        ({"max_size": "2MiB"}, Budgets(max_size_bytes=2 * 1024.0**2)),
    ],
)
def test_budgets_from_text_reads_units(given, expected):
    found = budgets_from_text(**given)
    assert vars(found) == pytest.approx(vars(expected))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_latency": "10"}, r"--max-latency '10' has no unit; write it like 10ms"),
        ({"max_latency": "10 min"}, r"--max-latency '10 min' isn't a number with one of ms, us, s; write it like 10ms"),
        ({"max_energy": "5W"}, r"--max-energy '5W' isn't a number with one of mJ, uJ, J"),
        ({"max_size": "5 mb"}, r"--max-size '5 mb' isn't a number with one of MB, kB"),
        ({"min_accuracy": "85"}, r"--min-accuracy '85' is no share; write it as 85% or 0.85"),
        ({"max_drop": "1"}, r"--max-drop '1' is no share; write it as 1% or 0.01"),
        ({"min_accuracy": "120%"}, r"--min-accuracy 1.2 can't be met by anything; give a share from 0 up to less than 1"),
        ({"max_latency": "0ms"}, r"--max-latency 0 can't be met by anything; give more than 0"),
        (
            {"min_accuracy": "0.8", "max_drop": "1%"},
            r"--min-accuracy and --max-drop both say what accuracy is enough; give one",
        ),
        ({}, r"no budget; give --max-latency"),
    ],
)
def test_budgets_from_text_refuses(given, message):
    with pytest.raises(ShallowvitError, match=message):
        budgets_from_text(**given)


def test_budgets_missed_says_by_how_much():
    budgets = Budgets(max_latency_ms=10.0, max_drop=0.01, max_size_bytes=1e6)
    missed = budgets.missed(0.9, latency_ms=12.0, size_bytes=1e6, top1=0.8)
    assert [(one.budget, one.limit, one.found) for one in missed] == [
        ("--max-latency", "10 ms", "12 ms"),
        ("--max-drop", "89.0%", "80.0%"),
    ]
    assert [one.share for one in missed] == pytest.approx([0.2, 0.09 / 0.89])


def test_budgets_missed_by_nothing_but_rounding_is_met():
    budgets = Budgets(max_drop=0.05)
    assert 0.547 - 0.05 > 0.497  # in floating point
    assert budgets.missed(0.547, top1=0.497) == ()
    assert len(budgets.missed(0.547, top1=0.4965)) == 1


def test_budgets_missed_takes_what_is_not_measured_as_missed():
    (missed,) = Budgets(max_energy_mj=5.0).missed(None, latency_ms=1.0)
    assert (missed.found, missed.share) == ("not measured", 1.0)


# config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": "demo"}, "--data and --train are both demo; what accuracy is reported on must not be trained on"),
        ({"criteria": ("oracle",)}, "--criteria oracle isn't a ranking to try; choose from entropy"),
        ({"criteria": ("entropie",)}, "unknown criterion 'entropie'"),
        ({"selects": ("iterative",)}, "unknown --select 'iterative'; choose from prefix, interval, gaps"),
        ({"precisions": ("fp64",)}, "unknown --precision 'fp64'; choose from fp32"),
        ({"batches": (1, 1)}, "--batch 1,1: give each once, and at least one"),
        ({"batches": (0,)}, "--batch 0: give numbers from 1 up"),
        ({"depths": (0, 3)}, "--depths 0,3: give numbers from 1 up"),
        ({"keep_tokens": (1.0, 0.0)}, "--keep-tokens 1,0: give shares above 0, 1 for all"),
        ({"seed": -1}, "--seed -1; give 0 or more"),
        ({"trials": 0}, "--trials 0 is too few; give at least 1"),
        ({"jobs": 0}, "--jobs 0 is too few"),
        ({"method": "finetune"}, "--method finetune has no closed form, .* write projection,finetune"),
        ({"method": "projecting"}, "unknown method 'projecting'"),
        ({"device": "me@there", "latencies": Path("rows.jsonl")}, "--device measures, --latencies were measured before"),
        ({"target": "orin-nx", "provider": "cpu"}, "--provider is of what is measured, and a target alone is modelled"),
        ({"measure_seconds": 0.0}, "--measure-seconds 0 times nothing"),
        (
            {"validation": "demo"},
            "--validation and --data are both demo; what judges candidates must be neither reported",
        ),
        ({"validation": "demo:train"}, "--validation and --train are both demo:train"),
    ],
)
def test_tune_config_refuses(settings, message):
    defaults = {"data": "demo", "train": "demo:train", "budgets": Budgets(max_latency_ms=1.0), "out": Path("out")}
    with pytest.raises(ShallowvitError, match=message):
        TuneConfig(**(defaults | settings))


@pytest.mark.parametrize(("epochs", "rungs"), [(1, (1,)), (3, (1, 3)), (10, (1, 3, 10)), (30, (3, 10, 30))])
def test_tune_config_rungs_grow_by_eta(epochs, rungs):
    config = TuneConfig("demo", "demo:train", Budgets(max_latency_ms=1.0), Path("out"))
    assert replace(config, training=replace(config.training, epochs=epochs)).rungs == rungs
    assert replace(config, method="projection").rungs == ()


# lines of costs


def test_fit_line_finds_the_line_and_its_error_on_what_was_left_out():
    line = fit_line([(1e9, 3.0), (5e9, 7.0), (9e9, 11.0)], [(7e9, 10.0)])
    assert line.at(3e9) == pytest.approx(5.0)
    assert (line.fitted, line.checked) == (3, 1)
    assert line.error == pytest.approx(0.1)


def test_fit_line_never_falls():
    line = fit_line([(1.0, 3.0), (2.0, 2.0)])
    assert line == CostLine(2.5, 0.0, 2, 0, None)


def test_fit_line_of_one_depth_is_constant():
    assert fit_line([(4.0, 3.0)]).at(100.0) == 3.0


@pytest.mark.parametrize("count", range(1, 30))
def test_anchors_are_ends_and_middle_and_check_another(count):
    depths = list(range(1, count + 1))
    fitted, checked = anchors(depths[::-1])
    assert fitted[0] == 1 and fitted[-1] == count
    assert not set(fitted) & set(checked)
    assert len(checked) == (count > 3) and len(fitted) == min(3, count)


# who is trained


def _candidate(depth, criterion="entropy", keep=1.0):
    removed = tuple(range(depth, 12)) if criterion == "entropy" else tuple(range(12 - depth))
    return Candidate(criterion, "prefix", depth, keep, removed, depth * 1000, depth * 10, None)


def _tried(*pairs):
    return [Tried(_candidate(depth), top1, float(depth)) for depth, top1 in pairs]


def _depths(tried):
    return [one.candidate.depth for one in tried]


def test_order_without_a_floor_has_the_most_accurate_first():
    assert _depths(order(_tried((3, 0.5), (9, 0.8), (6, 0.7)), None)) == [9, 6, 3]


def test_order_with_a_floor_has_the_cheapest_that_reaches_it_then_the_nearly_as_good_that_are_cheaper():
    tried = _tried((9, 0.9), (8, 0.86), (7, 0.85), (6, 0.84), (3, 0.5))
    assert _depths(order(tried, 0.85)) == [7, 6, 3, 8, 9]


def test_spread_takes_the_front_from_end_to_end():
    tried = _tried((1, 0.1), (2, 0.3), (3, 0.2), (4, 0.4), (5, 0.5), (6, 0.6))
    assert _depths(spread(tried, 3)) == [1, 4, 6]
    assert _depths(spread(tried, 1)) == [6]
    assert _depths(spread(tried, 9)) == [1, 2, 4, 5, 6, 3]


# what measures, and what a line can't tell


def _measured(ms, **settings):
    return Measured(
        **({"batch": 1, "status": "ok", "reason": None, "latency_ms": ms, "energy_mj": None, "size_bytes": 5} | settings)
    )


@pytest.fixture
def meter(tmp_path, monkeypatch):
    """A meter whose machine gives these latencies in turn; asks notes with which data."""
    found = tmp_path / "bundle"
    found.mkdir()

    def make(latencies, **settings):
        config = TuneConfig("demo", "demo:train", **({"budgets": Budgets(max_latency_ms=1.0), "out": tmp_path} | settings))
        one = Meter(config, open_place(tmp_path / "out"), lambda _: None)
        one.asks, given = [], iter(latencies)

        def measured(_bundle, _size, data):
            one.asks.append(data)
            return [_measured(next(given), top1=0.5 if data else None)]

        monkeypatch.setattr(one, "_measured", measured)
        return one

    return make


def test_meter_measures_what_comes_out_near_a_budget_three_times_and_takes_the_median(meter, tmp_path):
    one = meter([1.08, 0.97, 0.99])
    assert one.measured(tmp_path / "bundle", "demo") == [_measured(0.99, top1=0.5)]
    assert one.asks == ["demo", None, None]


@pytest.mark.parametrize("latency", [0.85, 1.2])
def test_meter_measures_what_is_far_from_a_budget_once(meter, tmp_path, latency):
    one = meter([latency])
    assert one.measured(tmp_path / "bundle", "demo") == [_measured(latency, top1=0.5)]


def _costs(*depths, error=None):
    """A line through (depth, depth ms), with these depths measured at twice that."""
    line = {("fp32", 1): CostLine(0.0, 1e-3, 3, 1, error)}
    known = {(depth * 1000, depth * 10, "fp32", 1): _measured(2.0 * depth, size_bytes=7) for depth in depths}
    return Costs(line, {}, {"fp32": CostLine(0.0, 1.0, 3, 0, None)}, "", (), known)


def test_costs_of_what_was_measured_are_not_the_lines():
    costs = _costs(3, error=0.1)
    assert (costs.of(_candidate(3), "fp32", 1).latency_ms, costs.of(_candidate(3), "fp32", 1).error) == (6.0, None)
    assert (costs.of(_candidate(4), "fp32", 1).latency_ms, costs.of(_candidate(4), "fp32", 1).error) == (4.0, 0.1)
    assert costs.of(_candidate(4), "fp16", 1) is None


@pytest.mark.parametrize(
    ("error", "depths"),
    [(None, [7, 8]), (0.25, [7, 8, 6, 9])],  # of 7.4 ms: nearer than 15 %, or than the line's own error
)
def test_unsure_are_costs_near_the_budget_each_once_and_none_that_is_known(error, depths):
    config = TuneConfig("demo", "demo:train", Budgets(max_latency_ms=7.4), Path("out"))
    candidates = [_candidate(depth, criterion) for depth in range(1, 13) for criterion in ("entropy", "depth")]
    found = unsure(candidates, _costs(5, error=error), config)
    assert [(precision, one.depth) for precision, one in found] == [("fp32", depth) for depth in depths]


def test_unsure_are_few_where_every_candidate_costs_something_else():
    config = TuneConfig("demo", "demo:train", Budgets(max_latency_ms=50.0), Path("out"))
    assert len(unsure([_candidate(depth) for depth in range(45, 56)], _costs(), config)) == 4


class _Machine:
    """A meter of a machine on which everything takes nearly the budget; notes what it measured."""

    measures = True

    def __init__(self, config):
        self.config, self.measured_names = config, []

    def refusal(self, _precision):
        return None

    def exported(self, _pruned, _precision, _out):
        pass

    def measured(self, out):
        self.measured_names.append(out.name)
        return [_measured(1.0 + len(self.measured_names) / 1000)]


@pytest.mark.parametrize(("budget", "more"), [(1.0, 2), (9.0, 0)])
def test_read_costs_measures_what_its_line_leaves_unsure(budget, more, video_model, tmp_path):
    config = TuneConfig(
        "demo", "demo:train", Budgets(max_latency_ms=budget), tmp_path / "out", criteria=("entropy",), precisions=("fp32",),
        keep_tokens=(1.0, 0.5),
    )  # fmt: skip
    candidates = read_space(video_model, config, tmp_path, None).distinct
    machine = _Machine(config)
    subject = SimpleNamespace(model=video_model, identity="m")
    costs = read_costs(subject, candidates, machine, open_place(tmp_path / "out"))
    assert len(machine.measured_names) == 5 + more  # of 7: four depths and the most of those with fewer tokens
    found = {name: number for number, name in enumerate(machine.measured_names, 1)}
    for one in candidates:
        cost = costs.of(one, "fp32", 1)
        if f"{one.name}-fp32" in found:
            assert (cost.latency_ms, cost.error) == (1.0 + found[f"{one.name}-fp32"] / 1000, None)
        else:
            assert cost.error is not None


# Optuna


class _Bench:
    """Answers as workers would, from the candidate alone; ends by Ctrl-C before the given round."""

    def __init__(self, stop=None):
        self.rounds, self._stop = [], stop

    def results(self, tasks, _doing):
        if len(self.rounds) == self._stop:
            raise KeyboardInterrupt
        self.rounds.append([task.name for task in tasks])
        return [{"top1": 1 - len(task.key["removed"]) / 12 - 0.01 * (0 in task.key["removed"])} for task in tasks]


@pytest.fixture
def ask(tmp_path):
    pytest.importorskip("optuna", reason="optuna is not installed")
    subject = SimpleNamespace(
        identity="m", model=SimpleNamespace(flops=12000), materials=SimpleNamespace(train=_Items(), heldout=_Items())
    )
    config = TuneConfig(
        "demo", "demo:train", Budgets(max_latency_ms=9.5), tmp_path, trials=20, generation=4, seed=1, method="projection"
    )

    def make(bench, name):
        def fits(candidate):
            return float(candidate.depth) if candidate.depth < 9.5 else None

        (tmp_path / name).mkdir(exist_ok=True)
        return Ask(subject, config, fits, bench, open_place(tmp_path / name))

    return make


class _Items:
    sha256 = "0" * 64

    def __len__(self):
        return 10


@pytest.fixture
def space():
    choices = {}
    for criterion in ("entropy", "depth"):
        for depth in range(1, 12):
            for keep in (1.0, 0.5):
                choices[criterion, "prefix", depth, keep] = _candidate(depth, criterion, keep)
    return Space(choices, ())


def test_search_of_a_large_space_tries_each_candidate_once_and_none_that_does_not_fit(ask, space):
    bench = _Bench()
    tried = search(ask(bench, "one"), space)
    assert len(bench.rounds) == 5
    assert all(one.candidate.depth <= 9 for one in tried)
    assert len({one.candidate for one in tried}) == len(tried)
    assert max(one.candidate.depth for one in tried) >= 8  # what is asked for follows what was told


def test_search_that_was_interrupted_asks_for_the_same(ask, space):
    whole = search(ask(_Bench(), "one"), space)
    with pytest.raises(KeyboardInterrupt):
        search(ask(_Bench(stop=2), "two"), space)
    assert search(ask(_Bench(), "two"), space) == whole


# trainings


@pytest.fixture
def trained(ask, tmp_path):
    """What a search with trainings was asked, its bench, and candidates as they were repaired."""

    def make(**settings):
        bench = _Bench()
        one = ask(bench, "trained")
        config = replace(one.config, method="projection,finetune", **settings)
        return replace(one, config=config), bench, _tried(*((depth, depth / 12) for depth in range(12, 0, -1)))

    return make


def test_climb_trains_fewer_for_longer_and_counts_what_it_trained(trained):
    one, bench, tried = trained(trained=6, finalists=2, training=TrainConfig(epochs=9))
    climbed = climb(one, tried, None)
    assert [len(names) for names in bench.rounds] == [6, 2, 2]
    assert (climbed.trainings, climbed.epochs) == (10, 6 * 1 + 2 * 3 + 2 * 9)
    assert _depths(climbed.finalists) == [11, 10]  # the unpruned model is none to train


def test_climb_without_trainings_leaves_weights_of_the_finalists(ask):
    bench = _Bench()
    climbed = climb(ask(bench, "repaired"), _tried((9, 0.9), (8, 0.8), (7, 0.7)), None)
    assert (_depths(climbed.finalists), climbed.trainings, len(bench.rounds)) == ([9, 8], 0, 1)


def test_climb_keeps_what_its_training_made_worse_as_it_was_repaired(trained):
    one, bench, tried = trained(trained=3, finalists=2, training=TrainConfig(epochs=1))
    better = [replace(found, top1=0.99) if found.candidate.depth == 10 else found for found in tried]
    climbed = climb(one, better, None)
    assert [(found.candidate.depth, found.epochs) for found in climbed.finalists] == [(10, 0), (11, 1)]
    assert [len(names) for names in bench.rounds] == [3, 1]  # and it is repaired again, for its weights


def test_stand_in_is_the_best_that_is_cheaper(trained):
    one, bench, tried = trained(training=TrainConfig(epochs=3))
    before = Climbed(tuple(_tried((8, 0.9), (7, 0.8))), 5, 9)
    found = stand_in(one, tried, before, None, cheaper=True)
    assert (_depths(found.finalists), found.finalists[2].epochs) == ([8, 7, 6], 3)
    assert (found.trainings, found.epochs, len(bench.rounds)) == (6, 12, 1)


def test_stand_in_that_is_trained_already_is_not_trained_again(trained):
    one, bench, tried = trained(training=TrainConfig(epochs=3))
    last = (replace(_tried((4, 0.95))[0], epochs=3), replace(_tried((8, 0.9))[0], epochs=3))
    found = stand_in(one, tried, Climbed(last[1:], 5, 9, last), None, cheaper=True)
    assert [(other.candidate.depth, other.epochs) for other in found.finalists] == [(8, 3), (4, 3)]
    assert (found.trainings, found.epochs, bench.rounds) == (5, 9, [])


def test_stand_in_for_accuracy_is_the_cheapest_of_the_dearer_that_may_have_it(trained):
    one, _, tried = trained(training=TrainConfig(epochs=3))
    found = stand_in(one, tried, Climbed(tuple(_tried((6, 0.5)))), 0.7, cheaper=False)
    assert _depths(found.finalists) == [6, 9]


def test_stand_in_is_none_where_none_is_cheaper(trained):
    one, bench, tried = trained()
    assert stand_in(one, tried, Climbed(tuple(_tried((1, 0.5)))), None, cheaper=True) is None
    assert bench.rounds == []


# the verdict


def _point(name, ms, top1, **settings):
    defaults = {
        "name": name, "bundle": name, "criterion": "entropy", "select": "prefix", "depth": 6, "removed": (), "keep_tokens": 1.0,
        "precision": "fp32", "batch": 1, "latency_ms": ms, "latency_source": MEASURED, "latency_error": None,
        "size_bytes": 1e6, "energy_mj": None, "searched_top1": top1, "epochs": 0, "top1": top1, "items": 100,
    }  # fmt: skip
    return TunePoint(**(defaults | settings))


def _judged(points, budgets):
    return [replace(one, missed=budgets.missed(0.9, latency_ms=one.latency_ms, top1=one.top1)) for one in points]


def test_front_of_leaves_out_what_another_beats():
    points = [_point("a", 1.0, 0.5), _point("b", 2.0, 0.8), _point("c", 2.5, 0.7), _point("d", 0.5, 0.9, failure="lost")]
    assert front_of(points, Budgets(min_accuracy=0.1)) == ("a", "b")


@pytest.mark.parametrize(
    ("budgets", "points", "expected"),
    [
        (Budgets(max_latency_ms=2.0), [(1.0, 0.5), (3.0, 0.9)], None),
        (Budgets(max_latency_ms=2.0), [(2.1, 0.5), (3.0, 0.9)], True),
        (Budgets(max_latency_ms=2.0, min_accuracy=0.8), [(2.1, 0.9), (3.0, 0.9)], True),
        (Budgets(max_latency_ms=2.0, min_accuracy=0.8), [(1.9, 0.7), (3.0, 0.9)], False),
        (Budgets(max_drop=0.1), [(1.9, 0.7), (3.0, 0.75)], False),
    ],
)
def test_missed_by_all_says_on_which_side(budgets, points, expected):
    judged = _judged([_point(f"p{ms}", ms, top1, removed=(1,)) for ms, top1 in points], budgets)
    whole = _point("whole", 1.0, 0.9)  # meets all, and isn't what was looked for
    assert missed_by_all(Finals((whole, *judged), 0.9, ()), budgets) is expected
    assert missed_by_all(Finals((whole, *judged), 0.9, ("lost device",)), budgets) is None


def test_recommend_with_an_accuracy_takes_the_cheapest_that_has_it():
    budgets = Budgets(max_latency_ms=5.0, max_drop=0.05)
    verdict = recommend(_judged([_point("a", 1.0, 0.5), _point("b", 2.0, 0.86), _point("c", 3.0, 0.9)], budgets), budgets, "")
    assert (verdict.recommended, verdict.nearest) == ("b", None)
    assert verdict.reason.startswith(
        "b is the cheapest an item of 2 points that meet --max-latency 5 ms, --max-drop 5 points: 2 ms"
    )


def test_recommend_without_an_accuracy_takes_the_most_accurate_that_fits():
    budgets = Budgets(max_latency_ms=2.5)
    verdict = recommend(_judged([_point("a", 1.0, 0.5), _point("b", 2.0, 0.86), _point("c", 3.0, 0.9)], budgets), budgets, "")
    assert verdict.recommended == "b"


def test_recommend_of_a_modelled_latency_says_so():
    point = _point("a", 1.0, 0.5, latency_source=MODELLED, latency_error=0.12)
    verdict = recommend([point], Budgets(max_latency_ms=2.5), "modelled: the roofline of x")
    assert verdict.reason.endswith(
        "latency is modelled: the roofline of x, off by up to 12% where it was checked: measure it on the device before "
        "relying on it"
    )


def test_recommend_where_nothing_meets_the_budgets_names_the_nearest():
    budgets = Budgets(max_latency_ms=1.0, min_accuracy=0.8)
    verdict = recommend(_judged([_point("a", 0.9, 0.4), _point("b", 1.1, 0.8)], budgets), budgets, "")
    assert (verdict.recommended, verdict.nearest) == (None, "b")
    assert verdict.reason == (
        "no point meets --max-latency 1 ms, --min-accuracy 0.8; nearest: b with 1.1 ms against --max-latency 1 ms"
    )


def test_recommend_without_a_measured_point_says_why():
    verdict = recommend([_point("a", None, None, failure="no kernel")], Budgets(max_latency_ms=1.0), "")
    assert (verdict.nearest, verdict.reason) == (None, "no point could be measured: no kernel")


# the folder


def test_open_place_refuses_what_is_no_search(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ShallowvitError, match="other exists and holds no search; choose another --out"):
        open_place(tmp_path / "other")
    with pytest.raises(ShallowvitError, match=r"no folder .*none to write out into; create it first"):
        open_place(tmp_path / "none" / "out")


def test_place_settle_refuses_another_search_and_names_the_first_difference(tmp_path):
    open_place(tmp_path / "out").settle({"seed": 0, "train": "a", "trials": 3})
    open_place(tmp_path / "out").settle({"seed": 0, "train": "a", "trials": 3})
    with pytest.raises(ShallowvitError, match=r"out holds a search with train a, this one has b; give the same settings"):
        open_place(tmp_path / "out").settle({"seed": 0, "train": "b", "trials": 4})
