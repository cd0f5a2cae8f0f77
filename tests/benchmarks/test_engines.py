import re

import pytest

from shallowvit_bench.engines import engine_refusal

ENGINE = {"path": "engines/rtx/model.engine", "flavour": "rtx", "version": "1.7.1.116", "sm": [], "options": {}}


def _engine(**changes):
    return ENGINE | changes


@pytest.mark.parametrize(
    ("engine", "version", "sm"),
    [
        (_engine(), "1.7.1.116", 89),
        (_engine(), "1.7.1.200", 80),
        (_engine(sm=[86, 120]), "1.7.1.116", 120),
        (_engine(options={"version_compatible": True}), "1.9.0.1", 86),
        (_engine(flavour="tensorrt", version="10.3.0.30", sm=[87]), "10.3.0.30", 87),
        (
            _engine(flavour="tensorrt", version="10.3.0", sm=[80], options={"hardware_compatibility": "ampere-plus"}),
            "10.3.0",
            90,
        ),
    ],
)
def test_engine_refusal_of_one_that_fits_is_none(engine, version, sm):
    assert engine_refusal(engine, "half", version, sm) is None


@pytest.mark.parametrize(
    ("engine", "version", "sm", "reason"),
    [
        (_engine(), None, 89, r"built by TensorRT-RTX 1\.7\.1\.116, which isn't installed here"),
        (_engine(), "1.8.0.3", 89, r"built by TensorRT-RTX 1\.7\.1\.116, and here is 1\.8\.0\.3; build it again with"),
        (_engine(), "1.7.1.116", None, "needs an NVIDIA GPU, and there is none here"),
        (_engine(), "1.7.1.116", 75, r"compute capability 8\.0 and later, and this GPU has 7\.5"),
        (_engine(sm=[86]), "1.7.1.116", 89, r"compute capability 8\.6, and this GPU has 8\.9"),
        (_engine(options={"version_compatible": True}), "2.0.0.1", 86, r"and here is 2\.0\.0\.1"),
        (_engine(options={"version_compatible": True}), "1.6.9", 86, r"and here is 1\.6\.9"),
        (_engine(flavour="tensorrt", version="10.3.0", sm=[87]), "10.16.2", 87, r"TensorRT 10\.3\.0, and here is 10\.16\.2"),
        (_engine(flavour="tensorrt", version="10.3.0", sm=[87]), "10.3.0", 110, r"capability 8\.7, and this GPU has 11\.0"),
    ],
)
def test_engine_refusal_names_both_sides_and_the_command(engine, version, sm, reason):
    found = engine_refusal(engine, "half", version, sm)
    assert re.search(reason, found)
    assert sm is None or f"shallowvit build half --engine {engine['flavour']}" in found
