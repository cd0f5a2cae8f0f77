import importlib.util
import json

import pytest
from tiny_bundles import write_bundle

from shallowvit.engines.recipe import write_recipe
from shallowvit.engines.records import BuildConfig, Flavour
from shallowvit_bench.config import BenchConfig
from shallowvit_bench.device_engines import built_engines
from shallowvit_bench.errors import BenchError
from shallowvit_bench.job import Job

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx isn't installed")


@pytest.fixture
def job(tmp_path):
    """A job on a bundle that carries a recipe, as it lies on a device."""
    bundle = write_bundle(tmp_path / "tiny")
    write_recipe(bundle, BuildConfig(target="rtx-4090", flavour=Flavour.RTX), {})
    manifest = json.loads((bundle / "manifest.json").read_text()) | {
        "schema_version": 2,
        "recipe": "recipe/recipe.json",
        "engines": [],
    }
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return Job("id", (str(bundle),), str(tmp_path / "rows.jsonl"), config=BenchConfig())


@needs_rtx
def test_built_engines_builds_by_the_recipe_and_leaves_the_bundle_alone(job, tmp_path):
    before = {file: file.read_bytes() for file in (tmp_path / "tiny").rglob("*") if file.is_file()}
    told = []
    (engine,) = built_engines(job, tmp_path / "cache", told.append).engines
    assert engine.startswith(str(tmp_path / "cache" / "engines"))
    with open(engine, "rb") as file:
        assert len(file.read()) > 1000
    assert {file: file.read_bytes() for file in (tmp_path / "tiny").rglob("*") if file.is_file()} == before
    assert [event["event"] for event in told] == ["stage"]


@needs_rtx
def test_built_engines_builds_once(job, tmp_path):
    told = []
    first = built_engines(job, tmp_path / "cache", told.append)
    again = built_engines(job, tmp_path / "cache", told.append)
    assert (again.engines, len(told)) == (first.engines, 1)


@needs_rtx
def test_built_engines_tells_why_a_build_failed(job, tmp_path):
    recipe = tmp_path / "tiny" / "recipe" / "recipe.json"
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"profiles": [{"nothing": [[1], [1], [1]]}]}))
    with pytest.raises(BenchError, match=r"tiny could not be built with rtx .* on the device: build_engine: "):
        built_engines(job, tmp_path / "cache", lambda _: None)


def test_built_engines_says_that_a_flavour_is_not_there(job, tmp_path):
    recipe = tmp_path / "tiny" / "recipe" / "recipe.json"
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"flavour": "tensorrt"}))
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("tensorrt is installed")
    told = []
    assert built_engines(job, tmp_path / "cache", told.append).engines == (None,)
    assert told == [{"event": "remark", "text": "tiny: no engine is built, module tensorrt isn't installed here"}]


def test_built_engines_builds_none_for_another_provider(job, tmp_path):
    from dataclasses import replace

    other = replace(job, config=BenchConfig(provider="cpu"))
    assert built_engines(other, tmp_path / "cache", lambda _: None).engines == (None,)


def test_built_engines_leaves_a_bundle_without_a_recipe(bundle, tmp_path):
    job = Job("id", (str(bundle),), str(tmp_path / "rows.jsonl"))
    assert built_engines(job, tmp_path / "cache", lambda _: None).engines == (None,)
