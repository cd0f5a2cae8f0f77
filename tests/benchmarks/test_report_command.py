import json

import pytest
import typer
from made_up_rows import made_up_row
from typer.testing import CliRunner

from shallowvit.cli.report import report
from shallowvit_bench.errors import BenchError
from shallowvit_bench.measurement import append_rows


def run(*arguments):
    app = typer.Typer()
    app.command()(report)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    append_rows(tmp_path / "rows.jsonl", [made_up_row("half")])
    return tmp_path / "rows.jsonl"


@pytest.mark.parametrize(
    ("options", "name", "start"),
    [
        ([], "report.html", "<!doctype html>"),
        (["--format", "markdown"], "report.md", "# Benchmark"),
        (["-o", "page.md"], "page.md", "# Benchmark"),
        (["-o", "page.txt", "--format", "markdown"], "page.txt", "# Benchmark"),
    ],
)
def test_report_writes_the_format_that_was_asked_for(rows, options, name, start):
    assert run(rows, *options).stdout == f"wrote {name}\n"
    assert (rows.parent / name).read_text().startswith(start)


def test_report_json_names_the_page_and_its_format(rows):
    answer = json.loads(run(rows, "-o", "page.md", "--json").stdout)
    assert answer == {"out": "page.md", "format": "markdown", "sources": [str(rows)]}


def test_report_rejects_an_unknown_format_before_it_writes(rows):
    with pytest.raises(BenchError, match="no format 'pdf'; choose from html, markdown"):
        run(rows, "--format", "pdf")
    assert not (rows.parent / "report.html").exists()
