import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.config import BenchConfig
from shallowvit_bench.errors import BenchError
from shallowvit_bench.preprocessing import random_input
from shallowvit_bench.runners import RunnerOptions, opening
from shallowvit_bench.runners.cuda_driver import Gpu
from shallowvit_bench.runners.opening import default_provider, engine_of, engines_here, flavour_of_recipe, opener_for
from shallowvit_bench.sides import side_from_bundle

OPTIONS = RunnerOptions(threads=1)
OLD = {"path": "engines/rtx-86/model.engine", "flavour": "rtx", "version": "1.6.0.1", "sm": [86], "options": {}}
NEW = OLD | {"path": "engines/rtx/model.engine", "version": "1.7.1.116", "sm": []}


@pytest.fixture
def info(bundle):
    return read_bundle(bundle)


def _with(info, *engines):
    return replace(info, manifest=info.manifest | {"engines": list(engines)})


@pytest.fixture
def gpu(monkeypatch):
    """A machine with TensorRT-RTX 1.7.1 and a GPU of 8.9."""
    monkeypatch.setattr(opening, "first_gpu", lambda: Gpu("some", 89))
    monkeypatch.setattr(opening, "installed_version", lambda flavour: "1.7.1.116" if flavour == "rtx" else None)


def test_opener_for_a_graph_survives_pickling(info):
    opener = pickle.loads(pickle.dumps(opener_for(info, "cpu", OPTIONS)))
    with opener() as runner:
        assert runner.infer(random_input(info, 2)).shape == (2, 40)


def test_opener_for_an_engine_checks_its_entry_before_tensorrt_does(info):
    opener = pickle.loads(pickle.dumps(opener_for(_with(info, OLD), "rtx", OPTIONS)))
    with pytest.raises(BenchError, match=r"open_engine: engines/rtx-86/model\.engine was built by TensorRT-RTX 1\.6\.0\.1"):
        opener()


def test_opener_for_an_engine_of_the_device_opens_that_file(info, tmp_path):
    with pytest.raises(BenchError, match=r"no file .*mine\.engine"):
        opener_for(info, "rtx", OPTIONS, engine=tmp_path / "mine.engine")()


def test_opener_for_a_flavour_without_an_engine_names_the_command(info):
    with pytest.raises(BenchError, match=r"has no engine for the provider rtx; .* shallowvit build .*tiny --engine rtx"):
        opener_for(info, "rtx", OPTIONS)


def test_opener_for_a_graph_rejects_an_engine(info):
    with pytest.raises(
        BenchError, match=r"cpu runs graphs, not the engine mine\.engine; run it with --provider rtx or tensorrt"
    ):
        opener_for(info, "cpu", OPTIONS, engine=Path("mine.engine"))


def test_opener_for_rejects_an_unknown_provider(info):
    with pytest.raises(BenchError, match=r"unknown provider 'gpu'; this harness has cpu, openvino, openvino-bf16, cuda"):
        opener_for(info, "gpu", OPTIONS)


def test_default_provider_without_a_gpu_is_cpu(info, monkeypatch):
    monkeypatch.setattr(opening, "first_gpu", lambda: None)
    assert default_provider(_with(info, NEW)) == "cpu"


def test_default_provider_is_that_of_an_engine_that_loads_here(info, gpu):
    assert default_provider(_with(info, OLD, NEW)) == "rtx"


def test_default_provider_of_a_foreign_engine_is_cpu(info, gpu):
    assert default_provider(_with(info, OLD)) == "cpu"


def test_engine_of_several_takes_the_one_that_loads_here(info, gpu):
    assert engine_of(_with(info, OLD, NEW), "rtx") == NEW


def test_engines_here_are_those_that_load(info, gpu):
    assert list(engines_here(_with(info, OLD, NEW), OPTIONS)) == ["rtx"]
    assert engines_here(_with(info, OLD), OPTIONS) == {}


def test_flavour_of_recipe_says_that_there_is_none(info):
    with pytest.raises(BenchError, match=r"recipe\.json can't be read .* export with --target again"):
        flavour_of_recipe(info)


@pytest.mark.parametrize(("asked", "taken"), [(None, "rtx"), ("cpu", "cpu"), ("rtx", "rtx")])
def test_side_from_bundle_takes_the_engine_of_the_device_where_no_provider_is_named(info, tmp_path, asked, taken):
    (info.path / "recipe").mkdir()
    (info.path / "recipe" / "recipe.json").write_text('{"flavour": "rtx"}')
    side = side_from_bundle(info, BenchConfig(provider=asked, threads=1), engine=tmp_path / "built.engine")
    assert side.provider == taken
    assert (tmp_path / "built.engine" in side.opener.args) == (taken == "rtx")
