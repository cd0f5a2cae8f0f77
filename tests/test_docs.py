import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", _tables().PAGES)
def test_tables_of_the_docs_are_those_of_the_result_rows(page):
    assert (ROOT / "docs" / page).read_text() == _tables().rewritten(page), "run: python benchmarks/tables.py"


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        assert target.startswith("http") or ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_readme_names_every_command():
    from shallowvit.cli.main import COMMANDS

    text = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if f"shallowvit {name} " not in text] == []
