import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import shallowvit
from shallowvit.cli.main import main
from shallowvit.errors import MissingDependencyError, ShallowvitError
from shallowvit.scoring import CRITERIA
from shallowvit.study import Column, StudyConfig, study
from shallowvit.study.config import columns_from_text, counts_of_ratios
from shallowvit.study.materials import Items, Materials, ModelSource, read_items
from shallowvit.study.worker import Workbench
from shallowvit.workers.cells import CellStore, Failure, Task, hash_of, write_whole
from shallowvit.workers.executors import ProcessExecutor, RayExecutor, Work
from shallowvit_bench.errors import BenchError

from ..conftest import save_video_model
from .small_models import stacked

NAMES = "entropy,l1,random"
SEEDS = 2


def save_items(path, count, seed, shape=(4, 16, 16, 3), classes=5):
    rng = np.random.default_rng(seed)
    np.savez(path, frames=rng.integers(0, 256, (count, *shape), dtype=np.uint8), labels=rng.integers(0, classes, count))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two tiny classifiers of four blocks, training and test items."""
    folder = tmp_path_factory.mktemp("study")
    for seed in range(2):
        save_video_model(folder / f"model-{seed}", seed=seed)
    save_items(folder / "train.npz", 96, seed=1)
    save_items(folder / "test.npz", 40, seed=2)
    return folder


@pytest.fixture
def small(place):
    """Settings of a study that takes seconds."""

    def make(out, **settings):
        defaults = {
            "sources": (f"hf:{place / 'model-0'}", f"hf:{place / 'model-1'}"),
            "data": str(place / "test.npz"),
            "train": str(place / "train.npz"),
            "seeds": SEEDS,
            "criteria": NAMES,
            "counts": (1, 2),
            "out": out,
            "jobs": 2,
            "finetune_items": 64,
            "learning_rate": 0.01,
            "samples": 8,
        }
        return StudyConfig(**(defaults | settings))

    return make


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """A finished study and its folder; copy it before changing anything in it."""
    out = tmp_path_factory.mktemp("finished") / "out"
    sources = tuple(f"hf:{place / f'model-{seed}'}" for seed in range(2))
    config = StudyConfig(
        sources,
        str(place / "test.npz"),
        str(place / "train.npz"),
        seeds=SEEDS,
        criteria=NAMES,
        counts=(1, 2),
        out=out,
        jobs=2,
        finetune_items=64,
        learning_rate=0.01,
        samples=8,
    )
    return study(config), out


def _measurements(result):
    """A result without the conditions it was taken under."""
    record = result.record
    del record["conditions"]
    return record


def _bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


# the whole study


def test_study_measures_every_choice_of_every_criterion(whole):
    result, _ = whole
    assert result.failures == ()
    assert result.criteria == ("depth", "entropy", "l1", "random", "oracle")
    keys = [(row.criterion, row.count, row.model, row.seed) for row in result.measured]
    assert sorted(keys) == sorted((c, n, m, s) for c in result.criteria for n in (1, 2) for m in range(2) for s in range(SEEDS))
    assert all(len(row.removed) == row.count and row.finetuned_top1 is not None for row in result.measured)


def test_study_removes_the_lowest_scores(whole, place):
    result, _ = whole
    for number in range(2):
        expected = shallowvit.score(shallowvit.load(f"hf:{place / f'model-{number}'}"))
        rows = [row for row in result.measured if (row.criterion, row.model) == ("entropy", number)]
        assert {(row.count, row.removed) for row in rows} == {(n, tuple(sorted(expected.ascending[:n]))) for n in (1, 2)}


def test_study_zero_shot_accuracy_is_that_of_the_pruned_model(whole, place):
    result, _ = whole
    model = shallowvit.load(f"hf:{place / 'model-0'}")
    with np.load(place / "test.npz") as arrays:
        frames, labels = arrays["frames"], arrays["labels"]
    scale = torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    pixels = (torch.from_numpy(frames).permute(0, 1, 4, 2, 3) / 255 - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / scale
    row = next(row for row in result.measured if (row.criterion, row.count, row.model) == ("depth", 1, 0))
    plan = shallowvit.plan(model, config=shallowvit.PlanConfig(remove=",".join(map(str, row.removed))))
    with torch.no_grad():
        logits = shallowvit.prune(model, plan).model.module(pixels).logits
    assert row.zero_shot_top1 == pytest.approx(float((logits.argmax(-1).numpy() == labels).mean()))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).item()
    assert row.zero_shot_loss == pytest.approx(loss, rel=1e-4)


def test_study_oracles_are_what_a_block_costs(whole):
    result, _ = whole
    cells = {(row.model, row.seed): row for row in result.whole}
    singles = {(row.model, row.seed, row.removed): row for row in result.measured if row.count == 1}
    checked = 0
    for row in result.oracles:
        for (model, seed, (block,)), single in singles.items():
            if model != row.model or row.seed not in (None, seed):
                continue
            full = cells[model, seed]
            lost = {
                "finetuned accuracy": 100 * (full.finetuned_top1 - single.finetuned_top1),
                "zero-shot accuracy": 100 * (full.zero_shot_top1 - single.zero_shot_top1),
                "zero-shot loss": single.zero_shot_loss - full.zero_shot_loss,
            }[row.name]
            assert row.values[block] == pytest.approx(lost, abs=1e-5)
            checked += 1
    assert checked > 12


def test_study_rows_say_all_of_a_measurement(whole):
    result, out = whole
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert len([row for row in rows if row["criterion"] not in ("none", "single block")]) == len(result.measured)
    singles = {(row["model"], row["seed"], row["removed"][0]) for row in rows if row["count"] == 1}
    assert singles == {(m, s, b) for m in range(2) for s in range(SEEDS) for b in range(4)}
    for row in rows:
        assert row["status"] == "done" and row["finetuned_top1"] is not None and row["zero_shot_loss"] is not None
        assert row["conditions"]["threads"] == 1 and row["finetune"]["learning_rate"] == 0.01
        assert row["weights_sha256"] == result.models[row["model"]].weights_sha256


def test_study_counts_shared_cells_once(whole):
    result, out = whole
    finetuned = {(row.model, row.seed, row.removed) for row in result.measured}
    finetuned |= {(m, s, (b,)) for m in range(2) for s in range(SEEDS) for b in range(4)}
    assert result.cells == len(finetuned) + 2 * SEEDS < result.cells_named
    kinds = [json.loads(path.read_text())["key"]["kind"] for path in (out / "cells").iterdir()]
    assert kinds.count("finetuned") == result.cells
    assert len(kinds) == result.computed


def test_study_run_again_computes_nothing_and_writes_the_same_bytes(whole, small, tmp_path):
    result, out = whole
    shutil.copytree(out, tmp_path / "out")
    again = study(small(tmp_path / "out"))
    assert again.computed == 0
    assert again == result
    assert _bytes(tmp_path / "out") == _bytes(out)


def test_study_with_lost_cells_computes_only_those_with_the_same_results(whole, small, tmp_path):
    result, out = whole
    shutil.copytree(out, tmp_path / "out")
    lost = sorted((tmp_path / "out" / "cells").iterdir())[::7]
    for number, path in enumerate(lost):
        path.unlink() if number % 2 else path.write_text(path.read_text()[:50])
    again = study(small(tmp_path / "out", jobs=1))
    assert again.computed == len(lost) > 5
    assert _measurements(again) == _measurements(result)


def test_study_of_a_model_that_moved_computes_nothing(whole, small, place, tmp_path):
    _, out = whole
    shutil.copytree(out, tmp_path / "out")
    sources = []
    for number in range(2):
        shutil.copytree(place / f"model-{number}", tmp_path / f"moved-{number}")
        sources.append(f"hf:{tmp_path / f'moved-{number}'}")
    assert study(small(tmp_path / "out", sources=tuple(sources))).computed == 0


def test_study_tells_how_far_it_is(whole, small, tmp_path):
    _, out = whole
    shutil.copytree(out, tmp_path / "out")
    for path in sorted((tmp_path / "out" / "cells").iterdir())[:3]:
        path.unlink()
    seen = []
    study(small(tmp_path / "out", jobs=1), seen.append)
    assert len(seen) == 3
    assert seen[-1].done == pytest.approx(seen[-1].total)
    assert all(step.done <= step.total for step in seen)
    assert [step.done for step in seen] == sorted(step.done for step in seen)


@pytest.mark.slow  # Ray's own start
def test_study_with_ray_gives_the_same_results(whole, small, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed")
    result, out = whole
    shutil.copytree(out, tmp_path / "out")
    lost = sorted((tmp_path / "out" / "cells").iterdir())[::5]
    for path in lost:
        path.unlink()
    again = study(small(tmp_path / "out", ray="auto", jobs=1))
    assert again.computed == len(lost)
    assert _measurements(again) == _measurements(result)


def test_study_interrupted_keeps_finished_cells(place, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from shallowvit.cli.main import main; main()", "study", f"hf:{place / 'model-0'}"]
    command += ["--data", place / "test.npz", "--train", place / "train.npz", "--finetune-epochs", 200, "--jobs", 1]
    command += ["--seeds", 1, "--criteria", "l1", "-o", out]
    # pytest may run with SIGINT ignored, which a child would inherit
    started = subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        while started.poll() is None and len(list(out.glob("cells/*.json"))) < 3:
            time.sleep(0.05)
        started.send_signal(signal.SIGINT)
        _, errors = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == 130, errors
    assert "interrupted" in errors and "Traceback" not in errors
    cells = list(out.glob("cells/*.json"))
    assert len(cells) >= 3 and all(json.loads(path.read_text())["key"]["protocol"] for path in cells)
    assert [path.name for path in out.rglob("*.partial")] == []


def test_study_that_was_killed_takes_its_workers_and_items_along(place, tmp_path):
    out, temporary = tmp_path / "out", tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-c", "from shallowvit.cli.main import main; main()", "study", f"hf:{place / 'model-0'}"]
    command += ["--data", place / "test.npz", "--train", place / "train.npz", "--finetune-epochs", 2000, "--jobs", 1]
    command += ["--seeds", 1, "--criteria", "l1", "-o", out]
    started = subprocess.Popen(list(map(str, command)), env={**os.environ, "TMPDIR": str(temporary)})
    try:
        while started.poll() is None and not list(out.glob("cells/*.pt")):
            time.sleep(0.05)
        workers = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if _parent(path) == started.pid]
        assert workers and list(temporary.iterdir())
    finally:
        started.kill()
        started.wait()
    until = time.monotonic() + 30
    while (left := [pid for pid in workers if Path(f"/proc/{pid}").exists()]) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []
    assert list(temporary.iterdir()) == []


def _parent(stat):
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return None


def test_study_with_pretraining_checkpoints_has_their_loss_as_an_oracle(place, tmp_path):
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    from ..conftest import VIDEO

    torch.manual_seed(3)
    VideoMAEForPreTraining(VideoMAEConfig(**VIDEO)).save_pretrained(tmp_path / "masked")
    config = StudyConfig(
        (f"hf:{place / 'model-0'}",),
        str(place / "test.npz"),
        str(place / "train.npz"),
        pretrained=(f"hf:{tmp_path / 'masked'}",),
        seeds=1,
        criteria="reconstruction,l1@pretrained",
        counts=(1,),
        out=tmp_path / "out",
        jobs=1,
        finetune_items=16,
        samples=16,
    )
    result = study(config)
    assert result.failures == ()
    assert result.criteria == ("depth", "reconstruction", "l1 (pretrained weights)", "oracle")
    masked = shallowvit.score(shallowvit.load(f"hf:{tmp_path / 'masked'}"), shallowvit.ScoreConfig("l1"))
    found = next(row for row in result.scores if row.name == "l1 (pretrained weights)")
    assert found.values == tuple(row.score for row in masked.blocks)
    oracle = next(row for row in result.oracles if row.name == "reconstruction loss")
    assert oracle.values == next(row.values for row in result.scores if row.name == "reconstruction")


def test_study_reports_a_failed_criterion_and_goes_on(whole, small, place, tmp_path):
    """``l1@pretrained`` of a checkpoint that changes while the study runs fails alone."""
    _, out = whole
    shutil.copytree(out, tmp_path / "out")
    source = save_video_model(tmp_path / "masked", seed=2)
    config = small(
        tmp_path / "out",
        sources=(f"hf:{place / 'model-0'}",),
        pretrained=(f"hf:{source}",),
        criteria="l1,l1@pretrained,entropy@pretrained",
    )

    def stale(name, sha256, *more):
        return ModelSource(name, "0" * 64 if "masked" in name else sha256, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shallowvit.study.subject.ModelSource", stale)
        result = study(config)
    assert len(result.failures) == 3  # reconstruction, an oracle, too
    assert all("give every worker the same files" in failure for failure in result.failures)
    assert all(row.finetuned_top1 is not None for row in result.measured if row.criterion == "l1")
    assert not any(row.criterion.endswith("(pretrained weights)") for row in result.measured)
    assert "**failed**" in (tmp_path / "out" / "tables.md").read_text()


# executors


class _Deadly:
    """Runs a line where it is unpickled: in the worker."""

    def __init__(self, line):
        self._line = line

    def __reduce__(self):
        return exec, (self._line,)


def _materials(models=()):
    items = Items("items", np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int64), "0" * 64)
    return Materials(tuple(models), items, replace(items, sha256="1" * 64), batch=1)


def _work(models=(), **changes):
    return Work("study", Workbench, replace(_materials(models), **changes))


def _tasks(*arguments):
    return [Task("zero-shot", 0, {"removed": [number]}, argument) for number, argument in enumerate(arguments)]


def _run(executor, tasks):
    try:
        return {task.key["removed"][0]: outcome for task, outcome in executor.run(tasks)}
    finally:
        executor.close()


def test_process_executor_reports_a_dead_worker_and_does_the_rest(tmp_path):
    executor = ProcessExecutor(_work([ModelSource(str(tmp_path / "none"), "")]), 1, lambda task: tmp_path / task.name)
    tasks = _tasks({}, {"bomb": _Deadly("import os; os._exit(3)")}, {"bomb": _Deadly("import os; os.kill(os.getpid(), 9)")}, {})
    found = _run(executor, tasks)
    assert found[1] == Failure("its worker ended with exit code 3")
    assert found[2] == Failure("its worker was killed by SIGKILL, often for want of memory")
    assert found[0] == found[3]
    assert found[0].reason.startswith(f"load: no file or folder {tmp_path / 'none'}")


def test_process_executor_whose_worker_cannot_start_says_so(tmp_path):
    work = Work("study", Workbench, replace(_materials(), models=_Deadly("import os; os._exit(7)")))
    executor = ProcessExecutor(work, 1, lambda task: tmp_path / task.name)
    with pytest.raises(ShallowvitError, match="a worker ended with exit code 7 before its first task; see its message"):
        _run(executor, _tasks({}))


@pytest.mark.slow  # Ray's own start
def test_ray_executor_reports_a_dead_worker_and_does_the_rest(tmp_path):
    pytest.importorskip("ray", reason="ray is not installed")
    executor = RayExecutor(_work([ModelSource(str(tmp_path / "none"), "")]), "auto", 1)
    found = _run(executor, _tasks({}, {"bomb": _Deadly("import os; os._exit(3)")}, {}))
    assert found[1].reason.startswith("its worker ended: ")
    assert found[0] == found[2]
    assert found[0].reason.startswith(f"load: no file or folder {tmp_path / 'none'}")


@pytest.mark.slow  # Ray's own start
def test_ray_executor_whose_worker_cannot_start_says_so():
    pytest.importorskip("ray", reason="ray is not installed")
    executor = RayExecutor(_work(test=None), "auto", 1)
    with pytest.raises(ShallowvitError, match=r"a Ray worker ended before its first task .*needs this version of shallowvit"):
        _run(executor, _tasks({}))


def test_ray_executor_without_ray_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'shallowvit\[distributed\]'"):
        RayExecutor(_work(), "auto", 1)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "head"])
def test_ray_executor_without_a_cluster_says_how_to_start_one(address):
    pytest.importorskip("ray", reason="ray is not installed")
    with pytest.raises(ShallowvitError, match=rf"no Ray cluster at {address} \(.*ray start --head"):
        RayExecutor(_work(), address, 1)


# cells


def test_cell_store_gives_back_what_was_written(tmp_path):
    task, store = Task("scores", 0, {"model": "m", "rate": 0.1}, {}), CellStore(tmp_path)
    assert store.read(task) is None
    written = store.write(task, {"top1": 1 / 3}, {"threads": 1})
    assert store.read(task) == written
    assert written["result"] == {"top1": 1 / 3}
    assert [path.name for path in tmp_path.iterdir()] == [f"{task.name}.json"]


def test_cell_store_drops_the_checkpoint_of_a_cell_that_is_written(tmp_path):
    task, store = Task("finetuned", 0, {"model": "m"}, {}), CellStore(tmp_path)
    store.checkpoint(task).write_bytes(b"half-way")
    store.write(task, {}, {})
    assert not store.checkpoint(task).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"key": {"kind": "other"}, "result": 1, "conditions": {}}'])
def test_cell_store_takes_a_file_that_is_no_such_cell_as_missing(tmp_path, text):
    task, store = Task("scores", 0, {"model": "m"}, {}), CellStore(tmp_path)
    (tmp_path / f"{task.name}.json").write_text(text)
    assert store.read(task) is None


def test_task_name_depends_on_the_key_and_not_on_its_order_or_the_arguments():
    task = Task("finetuned", 0, {"a": 1, "b": [2]}, {})
    assert task.name == Task("finetuned", 1, {"b": [2], "a": 1}, {"x": 1}, 9.0).name
    assert len({task.name, replace(task, kind="zero-shot").name, replace(task, key={"a": 1, "b": [3]}).name}) == 3


def test_hash_of_tells_values_apart():
    assert hash_of({"a": 1}) == hash_of({"a": 1}) != hash_of({"a": 1.5})


def test_write_whole_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# items


def test_read_items_draws_the_same_items_whatever_the_count(place, video_model):
    few, more = (read_items(str(place / "train.npz"), video_model, count) for count in (10, 50))
    assert np.array_equal(few.frames, more.frames[:10]) and np.array_equal(few.labels, more.labels[:10])
    assert few.sha256 != more.sha256 and len(few) == 10


def test_read_items_of_all_keeps_their_order(place, video_model):
    items = read_items(str(place / "train.npz"), video_model, 1000)
    with np.load(place / "train.npz") as arrays:
        assert np.array_equal(items.frames, arrays["frames"]) and np.array_equal(items.labels, arrays["labels"])
    assert items.frames.dtype == np.uint8


def test_items_stored_and_opened_are_the_same(tmp_path):
    items = _materials().test
    opened = items.stored(tmp_path).opened()
    assert np.array_equal(opened.frames, items.frames) and opened.sha256 == items.sha256


# what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": ()}, "no model; give at least one SOURCE"),
        ({"sources": ("demo", "demo")}, "demo is given twice; models are replicates"),
        ({"pretrained": ("demo", "demo")}, "2 --pretrained for 1 models; give one a model"),
        ({"seeds": 0}, "--seeds 0 is too few; give at least 1"),
        ({"finetune_items": 0}, "--finetune-items 0 is too few"),
        ({"jobs": 0}, "--jobs 0 is too few"),
        ({"learning_rate": 0.0}, "--learning-rate 0 moves nothing; give more than 0"),
        ({"counts": (0, 1)}, "--counts 0 removes nothing"),
        ({"criteria": "oracle"}, "--criteria oracle: the study measures the oracle itself"),
        ({"criteria": "entropy@best"}, "--criteria entropy@best: write entropy or entropy@pretrained"),
        ({"criteria": "reconstruction"}, "--criteria reconstruction looks at the masked-pretraining checkpoint; give it with"),
        ({"criteria": "l1@pretrained"}, "--criteria l1@pretrained looks at the masked-pretraining checkpoint"),
        ({"criteria": "bypass@pretrained", "pretrained": ("x",)}, "bypass@pretrained needs a classifier, .* write bypass"),
        ({"criteria": "entropy:bits=3"}, "--criteria entropy: no setting 'bits'; choose from mantissa_bits"),
        ({"criteria": "l1:bins=3"}, r"--criteria l1: no setting 'bins'; choose from \(it has none\)"),
        ({"criteria": "entropy:mantissa_bits=x"}, "entropy:mantissa_bits=x: 'x' is no whole number; write mantissa_bits=7"),
        ({"criteria": "entropy:mantissa_bits=99"}, "--mantissa-bits 99 is out of range"),
        ({"criteria": "entropie"}, "unknown criterion 'entropie'; choose from"),
    ],
)
def test_study_config_refuses(settings, message):
    with pytest.raises(ShallowvitError, match=message):
        StudyConfig(**({"sources": ("demo",), "data": "demo", "train": "demo:train"} | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"counts": (1, 4)}, "--counts 4 of 4 blocks; at least one block must stay"),
        ({"train": "test.npz"}, "--data and --train hold the same 40 items; measure on others"),
        ({"sources": ("hf:model-0", "hf:deeper")}, "have different blocks .4 and 5.; give models of one architecture"),
        ({"sources": ("hf:model-0", "hf:other")}, "have different labels .*; give models of one architecture"),
        ({"pretrained": ("hf:deeper",)}, "--pretrained hf:deeper has 5 blocks, hf:model-0 has 4; give the checkpoint"),
        ({"sources": ("timm:vit_tiny_patch16_224?depth=2&embed_dim=48&num_heads=3",)}, "the data set|doesn't fit|takes"),
        ({"out": "missing/out"}, "no folder missing to write out into; create it first"),
        ({"out": "model-0"}, "model-0 exists and holds no study; choose another --out"),
    ],
)
def test_study_refuses_what_does_not_fit(small, place, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(place)
    if not (place / "deeper").exists():
        save_video_model(place / "deeper", num_hidden_layers=5)
        names = {number: f"class {number}" for number in range(5)}
        save_video_model(place / "other", id2label=names, label2id={name: number for number, name in names.items()})
    settings = {"sources": ("hf:model-0",)} | settings
    settings = {name: Path(value) if name == "out" else value for name, value in settings.items()}
    with pytest.raises((ShallowvitError, BenchError), match=message):
        study(small(**({"out": tmp_path / "out"} | settings)))


def test_read_items_for_a_model_without_preprocessing_says_what_is_missing(place):
    with pytest.raises(ShallowvitError, match=r"test:module comes without preprocessing settings .*; add them"):
        read_items(str(place / "test.npz"), stacked())


def test_study_warns_of_test_items_that_are_trained_on(place, whole, small, tmp_path):
    _, out = whole
    with np.load(place / "train.npz") as train, np.load(place / "test.npz") as test:
        frames = np.concatenate([train["frames"], test["frames"][:3]])
        np.savez(tmp_path / "more.npz", frames=frames, labels=np.concatenate([train["labels"], test["labels"][:3]]))
    shutil.copytree(out, tmp_path / "out")
    config = small(tmp_path / "out", train=str(tmp_path / "more.npz"), finetune_items=1000, criteria="l1", counts=(1,))
    result = study(replace(config, sources=config.sources[:1], seeds=1))
    assert result.warnings == ("3 of 40 test items are among the training items, so accuracies are too good",)
    assert "**3 of 40 test items" in (tmp_path / "out" / "tables.md").read_text()


# what is asked


def test_columns_from_text_has_depth_first_and_each_once():
    assert columns_from_text("l1, entropy,l1,depth", pretrained=False) == (Column("depth"), Column("l1"), Column("entropy"))


def test_columns_from_text_reads_settings_and_weights():
    columns = columns_from_text("entropy:mantissa_bits=23@pretrained,interval-entropy:bins=64:bin_range=own", pretrained=True)
    assert columns[1] == Column("entropy", (("mantissa_bits", 23),), pretrained=True)
    names = [column.name for column in columns]
    assert names == ["depth", "entropy, mantissa bits 23 (pretrained weights)", "interval-entropy, bin range own, bins 64"]


@pytest.mark.parametrize("pretrained", [False, True])
def test_columns_of_all_leaves_out_what_can_not_be_had(pretrained):
    names = [column.criterion for column in columns_from_text("all", pretrained=pretrained)]
    assert set(CRITERIA) - set(names) == {"oracle", "auto"} | (set() if pretrained else {"reconstruction"})
    assert names.count("entropy") == 1 + pretrained


def test_counts_of_ratios_of_twelve_blocks_are_the_papers():
    assert counts_of_ratios(12) == (1, 3, 5, 7, 9, 11)


@given(st.integers(2, 200))
def test_counts_of_ratios_keep_a_block_and_remove_one(blocks):
    counts = counts_of_ratios(blocks)
    assert counts == tuple(sorted(set(counts)))
    assert 1 <= counts[0] <= counts[-1] < blocks


# the command


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["shallowvit", "study", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        written = capsys.readouterr()
        return stopped.value.code or 0, written.out, written.err

    return run


@pytest.fixture
def words(whole, place, tmp_path):
    """The command of the finished study, on a copy of it."""
    shutil.copytree(whole[1], tmp_path / "out")
    models = [f"hf:{place / f'model-{number}'}" for number in range(2)]
    options = {"data": place / "test.npz", "train": place / "train.npz", "seeds": SEEDS, "criteria": NAMES, "counts": "1,2"}
    options |= {"out": tmp_path / "out", "finetune-items": 64, "learning-rate": 0.01, "samples": 8, "jobs": 1}
    return [*models, *(word for name, value in options.items() for word in (f"--{name}", value))]


def test_study_command_prints_the_agreement_and_where_the_tables_are(command, words, tmp_path):
    code, out, err = command(*words)
    assert (code, err) == (0, "")
    assert "computed 0 cells" in out and f"four plots into {tmp_path / 'out'}" in out
    assert "finetuned accuracy: blocks differ by" in out


def test_study_command_json_is_the_record(command, words, whole):
    code, out, err = command(*words, "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["computed"] == 0
    assert record["measured"] == json.loads(json.dumps(whole[0].record))["measured"]


def test_study_command_refuses_counts_that_are_no_numbers(command, words):
    code, _, err = command(*words, "--counts", "1,half")
    assert (code, err) == (1, "shallowvit: study: --counts '1,half' isn't a list of numbers of blocks; write 1,3,5\n")


def test_study_command_finds_missing_data_first(command, words):
    code, _, err = command(*words, "--train", "nowhere.npz")
    assert code == 1 and "no data at nowhere.npz" in err
