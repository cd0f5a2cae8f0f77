import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_bundles import write_bundle

from shallowvit_bench.config import BenchConfig
from shallowvit_bench.errors import BenchError
from shallowvit_bench.job import Job, job_from_json, json_from_job, run_job
from shallowvit_bench.measurement import read_rows
from shallowvit_bench.predictions import read_predictions
from shallowvit_bench.runners import RunnerOptions
from shallowvit_bench.runners.choosing import ProviderChoice

QUICK = BenchConfig(batches=(1, 2), max_runs=12, threads=1, provider="cpu")


@pytest.fixture
def job(bundle, tmp_path):
    other = write_bundle(tmp_path / "other", seed=1)
    return Job("abc", (str(bundle), str(other)), str(tmp_path / "rows.jsonl"), config=QUICK)


def test_job_from_json_gives_back_the_job(job):
    assert job_from_json(json_from_job(job)) == job


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, r"schema 9, this harness reads 1; send the harness again"),
        ({"later": 1}, r"unknown fields later; send the harness again"),
        ({"config": 3}, r"damaged"),
    ],
)
def test_job_from_json_refuses_what_it_does_not_read(job, change, message):
    with pytest.raises(BenchError, match=message):
        job_from_json(json.dumps(json.loads(json_from_job(job)) | change))


def test_run_job_writes_each_row_before_the_next_is_measured(job):
    seen = []

    def emit(event):
        if event["event"] == "row":
            seen.append([row["id"] for row in read_rows(Path(job.rows))])

    assert run_job(job, emit) == 0
    assert [len(ids) for ids in seen] == [1, 2, 3, 4]


def test_run_job_takes_up_what_its_rows_lack(job, tmp_path):
    run_job(replace(job, config=replace(QUICK, batches=(1,))), lambda event: None)
    before = {row["id"]: row["samples_ms"] for row in read_rows(tmp_path / "rows.jsonl")}
    events = []
    run_job(job, events.append)
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["batch"] for row in rows] == [1, 1, 2, 2]
    assert {row["id"]: row["samples_ms"] for row in rows[:2]} == before
    assert sum(event["event"] == "row" for event in events) == 2


def test_run_job_adds_accuracy_to_rows_that_were_timed(job, tmp_path):
    np.savez(tmp_path / "clips.npz", frames=np.zeros((4, 8, 16, 16, 3), np.uint8), labels=np.arange(4))
    run_job(job, lambda event: None)
    asked = replace(job, data=str(tmp_path / "clips.npz"), predictions=str(tmp_path / "outputs"))
    events = []
    run_job(asked, events.append)
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["items"] for row in rows] == [4] * 4
    assert all("top1" in row["metrics"] for row in rows)
    assert not any("loading in a fresh process" in event.get("text", "") for event in events)
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"tiny-cpu.jsonl", "other-cpu.jsonl"}


def test_run_job_goes_on_with_the_providers_it_began_with(job, tmp_path, monkeypatch):
    sides = "shallowvit_bench.sides.choose_provider"
    monkeypatch.setattr(sides, lambda *_, **__: ProviderChoice("cpu", RunnerOptions(threads=1), ({"provider": "cpu"},)))
    auto = replace(job, config=replace(QUICK, batches=(1,), provider="auto"))
    run_job(auto, lambda event: None)
    monkeypatch.setattr(sides, lambda *_, **__: ProviderChoice("openvino", RunnerOptions(threads=1), ()))
    run_job(replace(auto, config=replace(auto.config, batches=(1, 2))), lambda event: None)
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [(row["batch"], row["provider"]) for row in rows] == [(1, "cpu"), (1, "cpu"), (2, "cpu"), (2, "cpu")]
    assert rows[3]["provider_trials"] == [{"provider": "cpu"}]


def test_run_job_begins_anew_when_it_was_cut_off_within_the_first_row(job, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"side": "ti')
    assert run_job(replace(job, config=replace(QUICK, batches=(1,))), lambda event: None) == 0
    assert len(read_rows(tmp_path / "rows.jsonl")) == 2


def test_run_job_counts_what_failed(job, tmp_path):
    broken = replace(job, config=replace(QUICK, provider="cuda"))
    assert run_job(broken, lambda event: None) == 4
    assert {row["status"] for row in read_rows(tmp_path / "rows.jsonl")} == {"failed"}


def test_run_job_keeps_the_outputs_of_bundles_of_the_same_name_apart(bundle, job, tmp_path):
    np.savez(tmp_path / "clips.npz", frames=np.zeros((4, 8, 16, 16, 3), np.uint8), labels=np.arange(4))
    alike = [write_bundle(tmp_path / f"again{seed}", seed=seed, name=bundle.name) for seed in (1, 2)]
    asked = replace(job, bundles=(str(bundle), *map(str, alike)), config=replace(QUICK, batches=(1,)))
    run_job(replace(asked, data=str(tmp_path / "clips.npz"), predictions=str(tmp_path / "outputs")), lambda event: None)
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["side"] for row in rows] == ["tiny", "tiny (cpu)", "tiny (cpu) 2"]
    saved = [read_predictions(Path(row["predictions"])) for row in rows]
    assert [one.about["model_sha256"] for one in saved] == [row["model_sha256"] for row in rows]
