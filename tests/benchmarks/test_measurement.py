import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from shallowvit_bench.conditions import read_conditions
from shallowvit_bench.errors import BenchError
from shallowvit_bench.measurement import (
    Measurement,
    Metric,
    append_rows,
    measurement_from_row,
    read_rows,
    row_from_measurement,
)


@pytest.fixture
def measured():
    return Measurement(
        side="ours",
        status="ok",
        reason=None,
        backend="onnxruntime",
        bundle="ours",
        model_sha256="ab",
        precision="fp32",
        flops=9,
        batch=2,
        input_shape=(3, 8, 8),
        input_dtype="float32",
        conditions=read_conditions(1),
        id="one",
        metrics={"top1": Metric(0.5, 0.4, 0.6)},
        intervals_ms={"p50_ms": (1.0, 2.0)},
        samples_ms=(1.0, 2.0),
    )


def test_measurement_from_row_gives_back_what_was_written(measured, tmp_path):
    append_rows(tmp_path / "rows.jsonl", [measured])
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert measurement_from_row(row | {"of a later version": 1}) == measured


def test_read_rows_lets_the_last_of_an_id_stand(measured, tmp_path):
    with_accuracy = replace(measured, items=7)
    append_rows(tmp_path / "rows.jsonl", [measured, replace(measured, id="two"), with_accuracy])
    assert [(row["id"], row["items"]) for row in read_rows(tmp_path / "rows.jsonl")] == [("one", 7), ("two", None)]


@pytest.mark.parametrize("cut", [1, 100, 70_000])
def test_read_rows_leaves_out_no_more_than_what_a_crash_cut_off(measured, tmp_path, cut):
    path = tmp_path / "rows.jsonl"
    long = replace(measured, id="cut", samples_ms=tuple(range(20_000)))
    append_rows(path, [measured, long])
    path.write_bytes(path.read_bytes()[:-cut])
    kept = ["one", "cut"] if cut == 1 else ["one"]
    assert [row["id"] for row in read_rows(path)] == kept
    append_rows(path, [replace(measured, id="next")])
    assert [row["id"] for row in read_rows(path)] == [*kept, "next"]
    assert path.read_bytes().endswith(b"\n")


def test_read_rows_refuses_a_broken_line_in_the_middle(measured, tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [measured, measured])
    path.write_text(path.read_text()[3:])
    with pytest.raises(BenchError, match=r"line 1 of .* is not JSON"):
        read_rows(path)


def test_read_rows_brings_rows_of_the_first_schema_up(measured, tmp_path):
    old = row_from_measurement(measured)
    for name in ("schema", "id", "provider", "metrics", "intervals_ms"):
        del old[name]
    old |= {"top1": 0.5, "top1_low": 0.4, "top1_high": 0.6}
    (tmp_path / "rows.jsonl").write_text(json.dumps(old) + "\n" + json.dumps(old | {"top1": None}) + "\n")
    first, second = read_rows(tmp_path / "rows.jsonl")
    assert (first["provider"], first["metrics"]["top1"]["low"], second["metrics"]) == ("cpu", 0.4, {})
    assert measurement_from_row(first).metrics == {"top1": Metric(0.5, 0.4, 0.6)}


def test_append_rows_of_several_at_once_loses_none(measured, tmp_path):
    path, names = tmp_path / "rows.jsonl", [f"{number}" for number in range(60)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: append_rows(path, [replace(measured, id=name, samples_ms=(1.0,) * 5000)]), names))
    assert sorted(row["id"] for row in read_rows(path)) == sorted(names)
