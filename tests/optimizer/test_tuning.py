"""tune as a whole, on a classifier of four tiny blocks."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import shallowvit
from shallowvit import Budgets, TrainConfig, TuneConfig, tune
from shallowvit.cli.main import main
from shallowvit.errors import ShallowvitError
from shallowvit.files import only_one
from shallowvit.tuning import finals
from shallowvit.tuning.candidates import read_space
from shallowvit.tuning.report import plot_front
from shallowvit.tuning.subject import read_subject
from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.errors import BenchError

FAR = Budgets(max_latency_ms=1000.0)


def save_items(path, count, seed, labels=True):
    """Clips of noise whose brightness is their label, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 5, count)
    frames = rng.integers(0, 60, (count, 4, 16, 16, 3)) + 40 * classes[:, None, None, None, None]
    np.savez(path, frames=frames.astype(np.uint8), **({"labels": classes} if labels else {}))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    save_items(folder / "train.npz", 60, seed=1)
    save_items(folder / "test.npz", 30, seed=2)
    return folder


@pytest.fixture(scope="module")
def make(place):
    def config(out, budgets=FAR, **settings):
        defaults = {
            "precisions": ("fp32",), "depths": (1, 3), "criteria": ("entropy", "l1"), "samples": 8, "items": 36, "holdout": 24,
            "trained": 2, "finalists": 1, "measure_seconds": 0.05, "jobs": 1, "method": "projection",
            "training": TrainConfig(epochs=1, batch=8),
        }  # fmt: skip
        return TuneConfig(str(place / "test.npz"), str(place / "train.npz"), budgets, out, **(defaults | settings))

    return config


@pytest.fixture(scope="module")
def source(video_folder):
    return f"hf:{video_folder}"


@pytest.fixture(scope="module")
def finished(source, make, tmp_path_factory):
    """A finished search and its folder; copy it before changing anything in it."""
    out = tmp_path_factory.mktemp("finished") / "out"
    return tune(source, make(out)), out


@pytest.fixture
def again(finished, tmp_path):
    """A copy of the finished search's folder: what was measured needn't be measured again."""
    return shutil.copytree(finished[1], tmp_path / "out")


def _other_settings(folder):
    """Let another search take up what this one measured."""
    (folder / "state" / "settings.json").unlink()
    return folder


def _searched(result):
    return {(point.name, point.searched_top1, point.epochs) for point in result.points}


def _plain(result):
    return replace(result, seconds=0.0)


# what comes of it


def test_tune_recommends_a_measured_point_that_meets_the_budgets(finished):
    result, _ = finished
    point = result.point(result.recommended)
    assert point.missed == () and point.latency_source == "measured" and point.items == 30
    assert point.top1 == max(one.top1 for one in result.points if one.bundle)
    assert (result.candidates, result.trainings, result.failures) == (len({one.removed for one in result.points}) - 1, 0, ())


def test_tune_front_holds_bundles_of_the_recovered_models(finished, source):
    result, out = finished
    names = {path.name for path in (out / "front").iterdir()}
    assert names == {result.point(name).bundle for name in (*result.front, result.recommended)}
    for name in names:
        shallowvit.verify(out / "front" / name)
    point = next(one for one in result.points if one.bundle and one.removed)
    model = shallowvit.load(source)
    config = shallowvit.PlanConfig(remove=",".join(map(str, point.removed)))
    bare = shallowvit.prune(model, shallowvit.plan(model, None, config))
    manifest = read_bundle(out / "state" / "bundles" / point.bundle).manifest
    assert tuple(manifest["plan"]["removed"]) == point.removed
    assert manifest["source"]["weights_sha256"] == model.sha256 != bare.model.sha256


def test_tune_accuracy_is_that_of_the_bundle_on_the_named_data(finished, place, video_model):
    result, _ = finished
    with np.load(place / "test.npz") as arrays:
        frames, labels = torch.from_numpy(arrays["frames"]), torch.from_numpy(arrays["labels"])
    found = shallowvit.recovery.evaluate(shallowvit.exporting.deployable(video_model, preprocess=True), frames, labels)
    assert result.whole_top1 == pytest.approx(found.top1)


def test_tune_writes_a_table_a_plot_and_a_record(finished):
    result, out = finished
    assert json.loads((out / "tune.json").read_text()) == json.loads(json.dumps(result.record))
    table = (out / "table.md").read_text()
    assert f"| {result.recommended} (recommended) |" in table and result.reason in table
    assert (out / "front.svg").read_text().startswith("<?xml")
    assert sorted(path.name for path in out.iterdir()) == ["front", "front.svg", "state", "table.md", "tune.json"]


def test_tune_is_a_name_of_the_package():
    assert shallowvit.tune is shallowvit.tuning.tune


# going on


def test_tune_again_measures_and_trains_nothing(finished, again, source, make):
    seen = []
    assert _plain(tune(source, make(again), lambda progress: seen.append(progress.doing))) == _plain(finished[0])
    assert not [doing for doing in seen if doing.startswith("measuring d")]


def test_tune_with_two_workers_gives_the_same(finished, again, source, make):
    for name in ("cells", "weights", "bundles"):
        shutil.rmtree(again / "state" / name)
    finals = sorted((again / "state" / "finals").iterdir())
    result = tune(source, make(again, jobs=2))
    assert _searched(result) == _searched(finished[0])
    assert sorted((again / "state" / "finals").iterdir()) == finals  # the same graphs, so none was measured again


@pytest.mark.slow  # Ray's own start
def test_tune_on_ray_gives_the_same(finished, again, source, make):
    pytest.importorskip("ray", reason="ray is not installed")
    for name in ("cells", "weights", "bundles"):
        shutil.rmtree(again / "state" / name)
    finals = sorted((again / "state" / "finals").iterdir())
    assert _searched(tune(source, make(again, ray="auto"))) == _searched(finished[0])
    assert sorted((again / "state" / "finals").iterdir()) == finals


def test_tune_that_was_interrupted_goes_on(finished, again, source, make):
    for name in ("cells", "weights", "bundles"):
        shutil.rmtree(again / "state" / name)

    def stop(progress):
        if progress.doing.startswith("trying") and progress.done >= 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(source, make(again), stop)
    assert _searched(tune(source, make(again))) == _searched(finished[0])
    assert not list(again.rglob("*.partial"))


def test_tune_over_another_search_names_what_differs(again, source, make):
    with pytest.raises(ShallowvitError, match=r"holds a search with samples 8, this one has 9; give the same settings"):
        tune(source, make(again, samples=9))


# training


def test_tune_trains_the_best_and_measures_what_it_trained(finished, again, source, make):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    pytest.importorskip("timm", reason="timm is not installed")
    training = TrainConfig(epochs=4, batch=8, learning_rate=3e-3)
    result = tune(source, make(_other_settings(again), method="projection,finetune", eta=4, training=training))
    assert (result.trainings, result.epochs) == (3, 6)
    trained = [point for point in result.points if point.epochs]
    assert len(trained) == 1 and trained[0].bundle and trained[0].top1 is not None
    manifest = read_bundle(again / "state" / "bundles" / trained[0].bundle).manifest
    assert manifest["source"]["weights_sha256"] == finished[0].settings["model"] or manifest["plan"]["removed"]
    assert not list((again / "state" / "trainings").iterdir())


# budgets that can't be met


def test_tune_of_an_unreachable_latency_says_so_before_any_training(again, source, make):
    shutil.rmtree(again / "state" / "cells")
    with pytest.raises(ShallowvitError, match=r"no candidate can meet the budgets, and nothing was trained; nearest: d1-"):
        tune(source, make(_other_settings(again), Budgets(max_latency_ms=1e-6)))
    assert not list((again / "state" / "cells").iterdir())


def test_tune_whose_accuracy_nothing_reaches_names_the_nearest(again, source, make):
    result = tune(source, make(_other_settings(again), Budgets(min_accuracy=0.99)))
    assert result.recommended is None and result.point(result.nearest).missed
    assert result.reason.startswith("no point meets --min-accuracy 0.99; nearest: ")
    assert (again / "front" / result.point(result.nearest).bundle / "manifest.json").is_file()
    assert f"{result.nearest} (nearest)" in (again / "table.md").read_text()


# devices


def test_tune_for_a_target_models_latency_and_ships_its_recipe(source, make, tmp_path):
    result = tune(source, make(tmp_path / "out", target="t4", precisions=("fp16",), depths=(2,), criteria=("entropy",)))
    point = result.point(result.recommended)
    assert point.latency_source == "modelled" and "roofline of t4" in result.reason
    assert (tmp_path / "out" / "front" / point.bundle / "recipe" / "recipe.json").is_file()
    (axes,) = plot_front(result).axes
    assert "the bundles: top-1 measured, latency modelled" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_tune_for_a_target_without_known_rates_says_what_is_missing(source, make, tmp_path):
    config = make(tmp_path / "out", target="jetson-orin-nx-16gb", precisions=("fp16",), depths=(4,), criteria=("l1",))
    with pytest.raises(
        ShallowvitError, match=r"no precision can be measured: fp16 at batch 1: .*; measure on one with --device"
    ):
        tune(source, config)


def test_tune_with_rows_of_a_device_fits_them(again, source, make, tmp_path):
    rows = [json.loads(line) for line in (again / "state" / "bench.jsonl").read_text().splitlines()]
    given = [row | {"p50_ms": row["flops"] / 1e6, "id": str(number)} for number, row in enumerate(rows)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    result = tune(source, make(_other_settings(again), latencies=path))
    model = shallowvit.load(source)
    whole = next(point for point in result.points if not point.removed)
    assert whole.latency_ms == pytest.approx(model.flops / 1e6) and whole.latency_source == "modelled"
    assert "modelled from the rows of" in result.reason


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"machine": "other"}, r"rows.jsonl has rows of .* by .*, other by .*; give those of one"),
        ({"flops": 10**15}, r"rows.jsonl has a row of 1e\+15 FLOPs, hf:.* has .*; give rows of this model's depths"),
        ({"precision": []}, r"rows.jsonl has a row that isn't bench's \(.*\); give rows it wrote"),
    ],
)
def test_tune_with_rows_of_something_else_is_refused(second, message, again, source, make, tmp_path):
    row = json.loads((again / "state" / "bench.jsonl").read_text().splitlines()[0])
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps(row | second | {'id': 'second'})}\n")
    with pytest.raises(ShallowvitError, match=message):
        tune(source, make(_other_settings(again), latencies=path))


def test_tune_beside_another_over_the_same_folder_is_refused(again, source, make):
    with only_one(again / "state", "tune"), pytest.raises(ShallowvitError, match="another command works in"):
        tune(source, make(again))


def test_tune_whose_unpruned_model_was_not_measured_promises_no_drop(again, source, make, monkeypatch):
    real = finals._bundle

    def all_but_whole(subject, tried, *others):
        if not tried.candidate.removed:
            raise ShallowvitError("export: no")
        return real(subject, tried, *others)

    monkeypatch.setattr(finals, "_bundle", all_but_whole)
    result = tune(source, make(_other_settings(again), Budgets(max_drop=0.9)))
    assert result.recommended is None
    assert "an unpruned model that was not measured against --max-drop 90 points" in result.reason


def test_tune_judges_a_drop_by_the_most_exact_precision(again, source, make):
    result = tune(source, make(_other_settings(again), Budgets(max_drop=0.9), precisions=("fp16", "fp32")))
    assert result.points[0].name == "whole-fp32-b1"
    assert result.whole_top1 == result.points[0].top1


def test_tune_on_a_device_that_is_not_there_keeps_what_it_has(source, make, tmp_path):
    pytest.importorskip("asyncssh", reason="asyncssh is not installed")
    match = r"tune: .*; 0 of 3 depths in fp32 are measured and kept, and the same command goes on from there"
    with pytest.raises(ShallowvitError, match=match):
        tune(source, make(tmp_path / "out", device="nobody@127.0.0.1:1"))
    assert (tmp_path / "out" / "state" / "settings.json").is_file()


# what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": (5,)}, "--depths 5, but hf:.* has 4 blocks; give 1 to 4"),
        ({"holdout": 59}, "holds 60 items, and 59 of them judge candidates; give at least 61, lower --holdout, or give --"),
        ({"target": "orin"}, "no target 'orin' among the"),
        (
            {"method": "projection,finetune", "training": TrainConfig(batch=64)},
            r"tune: 32 items of .* are left to train on behind --holdout 24 .*, a step takes 64; give more items, lower",
        ),
    ],
)
def test_tune_refuses_what_does_not_fit(source, make, tmp_path, settings, message):
    with pytest.raises(ShallowvitError, match=message):
        tune(source, make(tmp_path / "out", **settings))


def test_tune_refuses_to_report_on_what_it_trains_on(source, make, place, tmp_path):
    shutil.copy(place / "train.npz", tmp_path / "same.npz")
    config = replace(make(tmp_path / "out"), data=str(tmp_path / "same.npz"))
    with pytest.raises(ShallowvitError, match=r"all 60 items of --data .*same.npz are among those of --train"):
        tune(source, config)


# what is tried


def test_read_space_has_fewer_tokens_where_a_block_is_left_to_see_them(video_model, make, tmp_path):
    space = read_space(video_model, make(tmp_path / "out", keep_tokens=(1.0, 0.5)), tmp_path, None)
    assert {(one.depth, one.keep_tokens) for one in space.distinct} == {(1, 1.0), (3, 1.0), (3, 0.5)}


# what judges candidates


def test_subject_with_validation_is_judged_by_it_and_trained_on_all_the_rest(source, make, place, tmp_path):
    validation = save_items(place / "validation.npz", 20, seed=3)
    subject = read_subject(source, make(tmp_path / "out", validation=str(validation), items=60))
    with np.load(validation) as arrays:
        np.testing.assert_array_equal(subject.materials.heldout.frames, arrays["frames"])
    assert len(subject.materials.train) == 60 and subject.warnings == ()
    few = read_subject(source, make(tmp_path / "out", validation=str(validation), holdout=7)).materials.heldout
    assert len(few) == 7


def test_subject_whose_validation_was_trained_on_warns_and_of_nothing_else_is_refused(source, make, place, tmp_path):
    with np.load(place / "train.npz") as train, np.load(place / "test.npz") as test:
        mixed = [np.concatenate([train[name][:5], test[name][:10]]) for name in ("frames", "labels")]
        np.savez(tmp_path / "mixed.npz", frames=mixed[0], labels=mixed[1])
        np.savez(tmp_path / "same.npz", frames=train["frames"], labels=train["labels"])
    subject = read_subject(source, make(tmp_path / "out", validation=str(tmp_path / "mixed.npz"), items=60))
    assert [warning.split(" are among")[0].split("/")[0] for warning in subject.warnings] == [
        "10 of 30 items of --data ",
        "5 of 15 items of --validation ",
    ]
    with pytest.raises(ShallowvitError, match=r"all 24 items of --validation .*same.npz are among those of --train .*"):
        read_subject(source, make(tmp_path / "out", validation=str(tmp_path / "same.npz"), items=60))


def test_tune_warns_where_the_model_knows_what_judges_candidates(finished, again, source, make):
    assert not any("may have been trained on" in warning for warning in finished[0].warnings)
    for path in (again / "state" / "cells").iterdir():
        cell = json.loads(path.read_text())
        cell["result"]["top1"] = 0.95
        path.write_text(json.dumps(cell))
    result = tune(source, make(again))
    assert result.warnings[-1].startswith(
        "the unpruned model has top-1 95.0% on the items that judge candidates (held out of --train)"
    )


def test_tune_refuses_data_without_labels(source, make, tmp_path):
    config = replace(make(tmp_path / "out"), train=str(save_items(tmp_path / "bare.npz", 60, 3, labels=False)))
    with pytest.raises(BenchError, match="labels"):
        tune(source, config)


# the command


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["shallowvit", "tune", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        written = capsys.readouterr()
        return stopped.value.code or 0, written.out, written.err

    return run


def _words(source, place, out, **options):
    options = {
        "data": place / "test.npz", "train": place / "train.npz", "out": out, "max-latency": "1s", "precision": "fp32",
        "depths": "1,3", "criteria": "entropy,l1", "samples": 8, "items": 36, "holdout": 24, "trained": 2, "finalists": 1,
        "measure-seconds": 0.05, "jobs": 1, "method": "projection", "epochs": 1,
    } | options  # fmt: skip
    return [source, *(word for name, value in options.items() for word in (f"--{name}", value))]


def test_tune_command_prints_the_recommendation(command, source, place, again):
    code, out, err = command(*_words(source, place, _other_settings(again)))
    assert (code, err) == (0, "")
    assert "(recommended)" in out and f"front.svg and tune.json into {again}" in out


def test_tune_command_exits_with_1_where_no_point_meets_the_budgets(command, source, place, again):
    code, out, err = command(*_words(source, place, _other_settings(again), **{"min-accuracy": "99%", "json": ""})[:-1])
    assert (code, err) == (1, "")
    assert json.loads(out)["reason"].startswith("no point meets --max-latency 1000 ms, --min-accuracy 0.99; nearest: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max-latency": "10"}, "tune: --max-latency '10' has no unit; write it like 10ms"),
        ({"batch": "1,x"}, "tune: --batch '1,x' isn't a list of numbers; write it like 1,8"),
        ({"keep-tokens": "1;2"}, "tune: --keep-tokens '1;2' isn't a list of shares; write it like 1,0.7,0.5"),
        ({"train": "nowhere.npz"}, "no data at nowhere.npz"),
        ({"validation": "nowhere-else.npz"}, "no data at nowhere-else.npz"),
        ({"train": "demo:train", "validation": "demo:train"}, "tune: --validation and --train are both demo:train"),
    ],
)
def test_tune_command_refuses(command, source, place, tmp_path, options, message):
    code, _, err = command(*_words(source, place, tmp_path / "out", **options))
    assert code == 1 and message in err
    assert not (tmp_path / "out").exists()
