import json
import re
import shutil
import subprocess
import sys

import pytest

import shallowvit
from shallowvit import ExportConfig, ShallowvitError, verify
from shallowvit.exporting import Precision
from shallowvit.files import hash_file

NAMES = ["README.md", "manifest.json", "model.onnx"]


@pytest.fixture
def copied(bundle, tmp_path):
    """A copy of the shared bundle, to be damaged."""
    shutil.copytree(bundle.path, tmp_path / "small")
    return tmp_path / "small"


def _edit(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_export_writes_graph_manifest_and_readme(bundle):
    assert sorted(path.name for path in bundle.path.iterdir()) == NAMES


def test_verify_whole_bundle_gives_its_manifest(bundle):
    assert verify(bundle.path) == bundle
    assert json.loads((bundle.path / "manifest.json").read_text())["schema_version"] == 3


def test_export_manifest_holds_the_lineage(bundle, pruned_video, video_folder):
    manifest, chosen = bundle.manifest, pruned_video.plan
    assert manifest.name == "small"
    assert (manifest.source.spec, manifest.source.family) == (f"hf:{video_folder}", "transformers")
    assert manifest.source.weights_sha256 == chosen.weights_sha256
    assert (manifest.plan.removed, manifest.plan.kept) == (chosen.removed, chosen.kept)
    assert [row.score for row in manifest.scores.blocks] == [row.score for row in chosen.scores.blocks]
    assert manifest.labels == ("up", "down", "left", "right", "still")
    assert manifest.preprocessing.mean == (0.4, 0.5, 0.6)
    assert manifest.files["model.onnx"].sha256 == hash_file(bundle.path / "model.onnx")
    assert {"shallowvit", "python", "torch", "onnx", "onnxruntime", "transformers"} <= set(manifest.tools)


def test_export_pruned_folder_names_its_parent(pruned_video, tmp_path):
    shallowvit.save_pruned(pruned_video, tmp_path / "pruned")
    written = shallowvit.export(shallowvit.load(tmp_path / "pruned"), tmp_path / "bundle")
    parent = written.manifest.source.parent
    assert parent["source"]["architecture"] == "VideoMAEForVideoClassification"
    assert parent["plan"]["removed"] == list(pruned_video.plan.removed)
    assert written.manifest.plan.removed == ()
    assert written.manifest.scores is None
    assert verify(written.path) == written


@pytest.mark.parametrize("name", ["model.onnx", "README.md"])
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_verify_flipped_byte_raises_and_names_the_file(copied, name, place):
    content = bytearray((copied / name).read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(ShallowvitError, match=rf"{re.escape(name)} has sha256 .* the manifest says .* copy the bundle again"):
        verify(copied)


@pytest.mark.parametrize("name", ["model.onnx", "README.md"])
def test_verify_truncated_file_raises_and_names_it(copied, name):
    (copied / name).write_bytes((copied / name).read_bytes()[:-1])
    with pytest.raises(ShallowvitError, match=rf"{re.escape(name)} has \d+ bytes, the manifest says \d+"):
        verify(copied)


@pytest.mark.parametrize("name", ["model.onnx", "README.md"])
def test_verify_missing_file_raises_and_names_it(copied, name):
    (copied / name).unlink()
    with pytest.raises(ShallowvitError, match=rf"{re.escape(name)} is missing"):
        verify(copied)


@pytest.mark.parametrize("name", ["extra.bin", "sub/extra.bin", ".hidden"])
def test_verify_extra_file_raises_and_names_it(copied, name):
    (copied / name).parent.mkdir(exist_ok=True)
    (copied / name).touch()
    with pytest.raises(ShallowvitError, match=rf"{re.escape(name)} is not in the manifest \(1 extra\)"):
        verify(copied)


def test_export_manifest_says_why_each_block_went(bundle, pruned_video):
    assert bundle.manifest.plan.why == pruned_video.plan.why
    assert [text.partition(" ")[0] for text in bundle.manifest.plan.why] == ["entropy"] * len(bundle.manifest.plan.removed)


def test_verify_manifest_from_before_the_whys_passes(copied):
    _edit(copied, lambda manifest: manifest["plan"].pop("why"))
    assert verify(copied).manifest.plan.why == ()


def _drop_graph(manifest):
    del manifest["files"]["model.onnx"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=4), "has schema 4, this version reads 3; update shallowvit"),
        (lambda m: m.update(schema_version=0), "is damaged at schema_version"),
        (lambda m: m.pop("schema_version"), "is damaged at schema_version"),
        (lambda m: m.update(comment="hello"), "is damaged at comment: Extra inputs"),
        (lambda m: m["graph"].update(flavour=1), r"is damaged at graph\.flavour"),
        (lambda m: m.pop("plan"), "is damaged at plan: Field required"),
        (lambda m: m["graph"].update(opset="new"), r"is damaged at graph\.opset"),
        (lambda m: m["graph"]["inputs"][0].update(name="other"), r"model\.onnx takes pixel_values, the manifest says other"),
        (_drop_graph, r"names no model\.onnx"),
        (lambda m: m["files"]["model.onnx"].update(sha256="0" * 64), r"model\.onnx has sha256 .* says 0000"),
    ],
)
def test_verify_changed_manifest_raises_and_says_where(copied, change, message):
    _edit(copied, change)
    with pytest.raises(ShallowvitError, match=message):
        verify(copied)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"7"])
def test_verify_damaged_manifest_raises(copied, content):
    (copied / "manifest.json").write_bytes(content)
    with pytest.raises(ShallowvitError, match=r"manifest\.json is (not JSON|damaged at its top level)"):
        verify(copied)


def test_verify_no_manifest_raises(copied):
    (copied / "manifest.json").unlink()
    with pytest.raises(ShallowvitError, match=r"no manifest\.json in .*is this a bundle"):
        verify(copied)


def test_verify_no_folder_raises(tmp_path):
    with pytest.raises(ShallowvitError, match=r"verify: no folder .*missing"):
        verify(tmp_path / "missing")


@pytest.mark.parametrize("content", [b"not a graph", b"", None])
def test_verify_graph_that_is_none_raises_though_its_hash_fits(copied, content):
    graph = copied / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:2000] if content is None else content)

    def fits(manifest):
        manifest["files"]["model.onnx"] = {"sha256": hash_file(graph), "bytes": graph.stat().st_size}

    _edit(copied, fits)
    with pytest.raises(ShallowvitError, match=r"the onnx checker refuses .*model\.onnx"):
        verify(copied)


def test_export_same_name_elsewhere_is_byte_identical(bundle, pruned_video, tmp_path):
    again = shallowvit.export(pruned_video, tmp_path / "small")
    for name in NAMES:
        assert (again.path / name).read_bytes() == (bundle.path / name).read_bytes(), name


def test_export_existing_bundle_needs_force(bundle, pruned_video, copied):
    with pytest.raises(ShallowvitError, match="small exists; choose another --out"):
        shallowvit.export(pruned_video, copied)
    (copied / "extra").touch()
    shallowvit.export(pruned_video, copied, force=True)
    assert verify(copied).manifest == bundle.manifest


def test_export_interrupted_under_force_leaves_the_old_bundle(bundle, pruned_video, copied, monkeypatch):
    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["shallowvit.bundle.write"], "readme_text", interrupted)  # the graph is written by then
    with pytest.raises(KeyboardInterrupt):
        shallowvit.export(pruned_video, copied, force=True)
    assert [path.name for path in copied.parent.iterdir()] == ["small"]
    assert verify(copied).manifest == bundle.manifest


RUN_SNIPPET = """
import re, sys
for name in ("shallowvit", "shallowvit_bench", "shallowvit_kernels", "torch", "onnx", "transformers", "timm"):
    sys.modules[name] = None
exec(re.search("```python\\n(.*?)```", open("README.md").read(), re.S)[1])
"""


@pytest.mark.parametrize(("which", "printed"), [("bundle", r"up|down|left|right|still"), ("image_bundle", r"[0-4]")])
def test_export_readme_snippet_runs_as_it_stands(request, which, printed):
    folder = request.getfixturevalue(which).path
    done = subprocess.run([sys.executable, "-c", RUN_SNIPPET], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(printed, done.stdout.strip())


def test_export_readme_says_what_it_is(bundle):
    text = (bundle.path / "README.md").read_text()
    removed = ", ".join(map(str, bundle.manifest.plan.removed))
    assert f"blocks {removed} of 4 removed" in text
    assert "top-1 agreement 100.0%" in text
    assert "pixel_values" in text


def test_export_demo_accuracy_stands_in_the_manifest(demo_source, tmp_path):
    model = shallowvit.load(demo_source)
    manifest = shallowvit.export(model, tmp_path / "demo", data="demo").manifest
    assert manifest.metrics["demo"].top1 > 0.85


def test_export_bf16_with_data_is_refused_before_the_work(demo_source, tmp_path):
    with pytest.raises(ShallowvitError, match="can't be measured on a bf16 graph"):
        shallowvit.export(shallowvit.load(demo_source), tmp_path / "b", ExportConfig(Precision.BF16), data="demo")
    assert not list(tmp_path.iterdir())
