import json
import re

import pytest

from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.errors import BenchError


def change_manifest(bundle, **changes):
    file = bundle / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_read_bundle_returns_the_manifests_facts(bundle):
    info = read_bundle(bundle)
    assert (info.name, info.precision, info.flops_before, info.flops_after) == ("tiny", "fp32", 400, 200)
    assert info.input.shape == (8, 3, 16, 16)
    assert info.preprocessing.std == (0.2, 0.3, 0.4)


def test_read_bundle_rejects_a_missing_folder(tmp_path):
    with pytest.raises(BenchError, match=r"no bundle folder at .*gone"):
        read_bundle(tmp_path / "gone")


def test_read_bundle_rejects_a_folder_without_manifest(tmp_path):
    with pytest.raises(BenchError, match=r"is no bundle, it has no manifest\.json"):
        read_bundle(tmp_path)


def test_read_bundle_rejects_a_manifest_that_is_not_json(bundle):
    (bundle / "manifest.json").write_text("{")
    with pytest.raises(BenchError, match=r"is not JSON"):
        read_bundle(bundle)


def test_read_bundle_rejects_a_newer_schema(bundle):
    change_manifest(bundle, schema_version=4)
    with pytest.raises(BenchError, match=r"schema_version 4, this harness reads 3; update shallowvit here"):
        read_bundle(bundle)


def test_read_bundle_rejects_an_unknown_schema(bundle):
    change_manifest(bundle, schema_version=None)
    with pytest.raises(BenchError, match=r"schema_version None.*export the bundle again"):
        read_bundle(bundle)


def test_read_bundle_names_a_missing_field(bundle):
    change_manifest(bundle, plan={})
    with pytest.raises(BenchError, match=r"lacks or misuses the field 'flops_before'"):
        read_bundle(bundle)


def test_read_bundle_rejects_a_missing_graph(bundle):
    (bundle / "model.onnx").unlink()
    with pytest.raises(BenchError, match=re.escape("has no model.onnx")):
        read_bundle(bundle)


def test_read_bundle_rejects_a_flipped_byte(bundle):
    graph = bytearray((bundle / "model.onnx").read_bytes())
    graph[100] ^= 1
    (bundle / "model.onnx").write_bytes(graph)
    with pytest.raises(BenchError, match=r"has sha256 .* the manifest says"):
        read_bundle(bundle)
