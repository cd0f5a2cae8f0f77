import json

import pytest

from shallowvit import ScoreConfig, ShallowvitError, score
from shallowvit.scoring.saved import check_save, read_scores, record_from_scores, write_scores

from .small_models import stacked


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "scores.json"
    write_scores(score(stacked(4), ScoreConfig("l1")), path)
    return path


def test_read_scores_gives_back_what_was_written(saved):
    assert read_scores(saved) == score(stacked(4), ScoreConfig("l1"))


def test_write_scores_leaves_nothing_beside(saved):
    assert [path.name for path in saved.parent.iterdir()] == ["scores.json"]


def test_record_from_scores_is_json_and_names_the_order():
    record = json.loads(json.dumps(record_from_scores(score(stacked(4), ScoreConfig("depth")))))
    assert record["removal_order"] == [3, 2, 1, 0]
    assert record["format"] == "shallowvit scores 1"


def test_read_scores_missing_file_raises(tmp_path):
    with pytest.raises(ShallowvitError, match=r"no file .*nothing.json; write one with: shallowvit score MODEL --save"):
        read_scores(tmp_path / "nothing.json")


def test_read_scores_not_json_raises(saved):
    saved.write_text("{")
    with pytest.raises(ShallowvitError, match="is not JSON"):
        read_scores(saved)


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "shallowvit scores 2"}'])
def test_read_scores_other_format_raises(saved, text):
    saved.write_text(text)
    with pytest.raises(ShallowvitError, match="expected 'shallowvit scores 1'"):
        read_scores(saved)


def _edited(path, edit):
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("field", ["blocks", "criterion", "blocks_sha256", "intervals", "settings"])
def test_read_scores_lacking_a_field_raises(saved, field):
    _edited(saved, lambda record: record.pop(field))
    with pytest.raises(ShallowvitError, match=f"lacks or misuses the field '{field}'"):
        read_scores(saved)


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record["blocks"][1].update(score=float("nan")),
        lambda record: record["blocks"].pop(1),
        lambda record: record.update(criterion="l3"),
    ],
)
def test_read_scores_bad_rows_raise(saved, edit):
    _edited(saved, edit)
    with pytest.raises(ShallowvitError, match="one finite score for each of the blocks"):
        read_scores(saved)


def test_check_save_existing_file_needs_force(saved):
    with pytest.raises(ShallowvitError, match="exists; choose another --save or replace it with --force"):
        check_save(saved, force=False)
    check_save(saved, force=True)


@pytest.mark.parametrize("place", ["", "missing/scores.json"])
def test_check_save_folder_or_missing_folder_raises(tmp_path, place):
    with pytest.raises(ShallowvitError, match="it is a folder or lies in none"):
        check_save(tmp_path / place, force=True)
