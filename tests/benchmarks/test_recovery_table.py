"""The table of recoveries says what its rows say, and an arm is measured once."""

import json

import pytest

from recovery import ARMS, Task
from recovery_table import recovery_table

CONDITIONS = {"device": "a CPU", "packages": {"torch": "2.14.1"}}


def _row(arm="both", removed=(3, 4), seed=0, recovered=0.8, time="2026-01-01", **changes):
    task = Task(len(removed), arm, seed, changes.get("items", 8000), 2)
    trains = arm != "closed form"
    row = {"key": list(task.key), "removed": list(removed), "arm": arm, "seed": seed, "items": 8000 if trains else None}
    row |= {"epochs": 2 if trains else None, "training": {"learning_rate": 1e-3}, "inputs_seen": 14336, "seconds": 90.0}
    row |= {"test_items": 2000, "top1_whole": 0.9, "top1_pruned": 0.7, "top1_recovered": recovered}
    return row | {"conditions": CONDITIONS | {"time_utc": time}} | changes


def _table(tmp_path, *rows):
    path = tmp_path / "recovery.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return recovery_table(path)


def _cells(text, start):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(start)]


def test_recovery_table_gives_the_median_and_range_of_the_share_regained(tmp_path):
    rows = [_row(seed=seed, recovered=recovered) for seed, recovered in enumerate((0.8, 0.9, 0.85))]
    accuracy, cost = _cells(_table(tmp_path, *rows), "| 2 of 12")
    assert accuracy == ["2 of 12", "90.0%", "70.0%", "85.0% (75%; 50% to 100%)"]
    assert cost == ["2 of 12", "1.5 min; 14,336"]


def test_recovery_table_takes_the_newest_row_of_an_arm_and_the_newest_settings(tmp_path):
    few = _row(seed=1, recovered=0.71, items=100)
    text = _table(tmp_path, few, _row(recovered=0.75), _row(recovered=0.8, time="2026-01-02"))
    assert _cells(text, "| 2 of 12")[0][-1].startswith("80.0%")
    assert "8,000 clips" in text


def test_recovery_table_keeps_closed_forms_beside_any_training(tmp_path):
    text = _table(tmp_path, _row("closed form", recovered=0.75), _row(recovered=0.8))
    assert _cells(text, "| 2 of 12")[0][3].startswith("75.0%")


def test_recovery_table_without_rows_says_so(tmp_path):
    assert recovery_table(tmp_path / "none.jsonl") == "Not measured yet.\n"


@pytest.mark.parametrize("arm", ARMS)
def test_task_each_arm_is_a_recovery_and_its_row_is_known_again(arm):
    task = Task(3, arm, 1, 8000, 2)
    assert (task.config.seed, task.config.items, task.config.training.epochs) == (1, 8000, 2)
    assert tuple(json.loads(json.dumps(task.key))) == task.key
    assert len({Task(3, arm, seed, 8000, 2).key for seed in range(3)}) == 3
