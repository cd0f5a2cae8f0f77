"""Engines and recipes in bundles, from Python and from the command line."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import shallowvit
from shallowvit import BuildConfig, ExportConfig, ShallowvitError, verify
from shallowvit.bundle.manifest import SCHEMA_VERSION
from shallowvit.cli.main import main
from shallowvit.engines import BatchRange, Flavour
from shallowvit.engines.recipe import config_from_recipe
from shallowvit.exporting import Precision

pytest.importorskip("tensorrt_rtx", reason="builds engines; pip install 'shallowvit[tensorrt]'")
ENGINE = ["engines/rtx/build.log.gz", "engines/rtx/fusion.json", "engines/rtx/model.engine"]


@pytest.fixture(scope="module")
def fp16_bundle(pruned_video, tmp_path_factory):
    """A bundle whose attention can be fused. Copy it before changing anything in it."""
    return shallowvit.export(pruned_video, tmp_path_factory.mktemp("bundles") / "half", ExportConfig(Precision.FP16)).path


@pytest.fixture
def half(fp16_bundle, tmp_path):
    shutil.copytree(fp16_bundle, tmp_path / "half")
    return tmp_path / "half"


@pytest.fixture
def run(monkeypatch, capsys):
    def run_main(*words):
        monkeypatch.setattr(sys, "argv", ["shallowvit", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        written = capsys.readouterr()
        return stopped.value.code or 0, written.out, written.err

    return run_main


def _content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_build_adds_an_engine_to_a_bundle_that_stays_whole(half, pruned_video):
    before = _content(half)
    built = shallowvit.build(half).manifest
    assert verify(half).manifest == built
    after = _content(half)
    assert sorted(set(after) - set(before)) == ENGINE
    assert all(after[name] == before[name] for name in before if name != "manifest.json")
    (engine,) = built.engines
    assert (engine.path, engine.attention_fused, engine.attention_expected) == (ENGINE[2], 2, 2)
    assert [row.block for row in engine.attentions] == list(pruned_video.plan.kept)
    assert built.tools["rtx"] == engine.version
    assert [path.name for path in half.parent.iterdir()] == ["half"]


def test_build_again_replaces_the_engine_and_keeps_others(half):
    shallowvit.build(half, BuildConfig(target="rtx-4090"))
    shallowvit.build(half)
    manifest = shallowvit.build(half, BuildConfig(batches=(BatchRange(1, 2, 4),))).manifest
    assert [engine.path for engine in manifest.engines] == ["engines/rtx-rtx-4090/model.engine", "engines/rtx/model.engine"]
    assert manifest.engines[1].profiles[0]["pixel_values"][2][0] == 4
    assert verify(half).manifest == manifest


@pytest.mark.parametrize("earlier", [False, True])
def test_build_that_fails_leaves_the_bundle_as_it_was(half, earlier):
    if earlier:
        shallowvit.build(half)
    before = _content(half)
    with pytest.raises(ShallowvitError, match="workspace is too small"):
        shallowvit.build(half, BuildConfig(workspace_mib=1))
    assert _content(half) == before
    assert [path.name for path in half.parent.iterdir()] == ["half"]


@pytest.mark.parametrize("earlier", [False, True])
def test_build_interrupted_before_the_manifest_leaves_the_bundle_as_it_was(half, monkeypatch, earlier):
    from pathlib import Path

    if earlier:
        shallowvit.build(half)
    before = _content(half)

    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)  # the engine is in its place by then, the manifest isn't
    with pytest.raises(KeyboardInterrupt):
        shallowvit.build(half, BuildConfig(batches=(BatchRange(1, 2, 4),)))
    assert _content(half) == before
    assert [path.name for path in half.parent.iterdir()] == ["half"]


def test_build_full_disk_leaves_the_bundle_as_it_was(half, tmp_path):
    before = _content(half)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nulimit -f 256; exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with pytest.raises(ShallowvitError, match=r"build: no space left for .*half .*nothing was changed"):
        shallowvit.build(half, BuildConfig(Flavour.RTX, python=str(python)))
    assert _content(half) == before


def test_build_of_a_damaged_bundle_is_refused(half):
    (half / "model.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(ShallowvitError, match=r"verify: .*model\.onnx has 2 bytes"):
        shallowvit.build(half)


def test_verify_engine_of_another_graph_is_named(half):
    shallowvit.build(half)
    path = half / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["engines"][0]["kernels"] = ["_gemm_mha_v2_0x" + "0" * 32]
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        ShallowvitError, match=r"holds the attention kernels _gemm_mha\S+, the manifest says _gemm_mha_v2_0x0000"
    ):
        verify(half)


def test_verify_reads_a_bundle_of_schema_1(half):
    path = half / "manifest.json"
    manifest = json.loads(path.read_text()) | {"schema_version": 1}
    for new in ("target", "recipe", "engines", "quantization", "precision_search"):
        del manifest[new]
    for new in ("attention_precision", "attention_rewritten", "attention_left", "kept_precise"):
        del manifest["graph"][new]
    (manifest["graph"]["input"],) = manifest["graph"].pop("inputs")
    path.write_text(json.dumps(manifest))
    assert verify(half).manifest.engines == ()
    assert shallowvit.build(half).manifest.schema_version == SCHEMA_VERSION
    assert "input" not in json.loads(path.read_text())["graph"]


def test_export_with_a_target_carries_its_recipe(pruned_video, tmp_path):
    config = BuildConfig(target="jetson-orin-nx-16gb", jetpack="6.2", batches=(BatchRange(1, 2, 4),), workspace_mib=64)
    export = ExportConfig(Precision.FP16, opset=18)
    manifest = shallowvit.export(pruned_video, tmp_path / "out", export, recipe=config).manifest
    assert (manifest.target, manifest.recipe) == ("jetson-orin-nx-16gb", "recipe/recipe.json")
    assert sorted(name for name in manifest.files if name.startswith("recipe/")) == [
        "recipe/build_engine.py",
        "recipe/flavour_tensorrt.py",
        "recipe/layers.py",
        "recipe/recipe.json",
    ]
    recipe = json.loads((tmp_path / "out/recipe/recipe.json").read_text())
    assert (recipe["flavour"], recipe["tensorrt"], recipe["jetpack"]) == ("tensorrt", "10.3.0.30", "6.2")
    assert [site["block"] for site in recipe["attentions"]] == list(pruned_video.plan.kept)
    assert config_from_recipe(tmp_path / "out/recipe/recipe.json") == config
    with pytest.raises(ShallowvitError, match=r"an engine for jetson-orin-nx-16gb is built on the board itself"):
        shallowvit.build(tmp_path / "out")  # takes the recipe's target


def test_export_recipe_of_a_graph_that_cant_fuse_is_refused(pruned_video, tmp_path):
    config = BuildConfig(target="jetson-orin-nx-16gb", jetpack="6.2")
    with pytest.raises(ShallowvitError, match=r"attention can't be fused on jetson-orin-nx-16gb: .*computes in fp32"):
        shallowvit.export(pruned_video, tmp_path / "out", ExportConfig(opset=18), recipe=config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("jetpack", "message"), [("6.2", r"TensorRT reads from 10\.14 on, and .* has 10\.3"), ("7.2", None)])
def test_export_recipe_opset_must_suit_the_jetpack(pruned_video, tmp_path, jetpack, message):
    config = BuildConfig(target="jetson-agx-orin-64gb", jetpack=jetpack)
    if message is None:
        assert shallowvit.export(pruned_video, tmp_path / "out", ExportConfig(Precision.FP16), recipe=config).manifest.recipe
        return
    with pytest.raises(ShallowvitError, match=message):
        shallowvit.export(pruned_video, tmp_path / "out", ExportConfig(Precision.FP16), recipe=config)


def test_recipe_builds_without_this_project(pruned_video, tmp_path):
    export = ExportConfig(Precision.FP16)
    shallowvit.export(pruned_video, tmp_path / "out", export, recipe=BuildConfig(target="rtx-4090"))
    folder = tmp_path / "out/recipe"
    without = "import sys\nfor name in ('shallowvit', 'torch', 'onnx', 'numpy'): sys.modules[name] = None\n"
    run = "import build_engine\nsys.exit(build_engine.main())"
    script = f"{without}sys.argv = ['build_engine.py', 'recipe.json']\nsys.path.insert(0, '')\n{run}"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"model\.engine: attention fused 2 of 2", done.stdout)
    assert (folder / "model.engine").stat().st_size > 10_000


def test_recipe_whose_attention_isnt_fused_leaves_no_engine(pruned_video, tmp_path):
    config = BuildConfig(target="rtx-4090", allow_unfused=True)
    shallowvit.export(pruned_video, tmp_path / "out", ExportConfig(opset=18), recipe=config)
    recipe = tmp_path / "out/recipe/recipe.json"
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"allow_unfused": False}))
    done = subprocess.run(
        [sys.executable, "build_engine.py", "recipe.json"], cwd=recipe.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "attention fused 0 of 2" in done.stdout
    assert "not fused: videomae.encoder.layer.0, videomae.encoder.layer.1; the engine was removed" in done.stderr
    assert not (recipe.parent / "model.engine").exists()


def test_build_command_prints_what_is_fused(run, half):
    code, out, _ = run("build", half, "--batch", "1:2:4")
    assert code == 0
    assert "attention fused: 2 of 2, by the builder log" in out
    assert "at batch 4" in out
    code, out, _ = run(
        "build", half, "--engine", "rtx", "--compute-capability", "8.6", "--compute-capability", "12.0", "--json"
    )
    record = json.loads(out)["engine"]
    assert (code, record["sm"], record["flavour"]) == (0, [86, 120], "rtx")


def test_export_command_builds_an_engine_in_one_go(run, video_folder, tmp_path):
    words = ("--remove", "1", "--precision", "fp16", "--engine", "rtx", "--target", "rtx-5090", "-o", tmp_path / "out")
    code, out, err = run("export", video_folder, *words)
    assert (code, err) == (0, "")
    assert "attention fused: 3 of 3" in out
    assert verify(tmp_path / "out").manifest.engines[0].target == "rtx-5090"


def test_export_command_fp32_engine_isnt_fused_and_nothing_is_written(run, video_folder, tmp_path):
    code, _, err = run("export", video_folder, "--engine", "rtx", "-o", tmp_path / "out", "-q")
    assert code == 1
    assert "attention is fused in 0 of 4" in err
    assert not (tmp_path / "out").exists()
    code, out, _ = run(
        "export", video_folder, "--engine", "rtx", "-o", tmp_path / "out", "-q", "--attention-precision", "fp16", "--json"
    )
    record = json.loads(out)["manifest"]
    assert (code, record["graph"]["precision"], record["graph"]["attention_precision"]) == (0, "fp32", "fp16")
    assert record["engines"][0]["attention_fused"] == 4


def test_export_command_target_chooses_the_opset(run, video_folder, tmp_path):
    words = ("--precision", "fp16", "--target", "jetson-orin-nx-16gb", "--jetpack", "6.2", "-o", tmp_path / "out")
    code, out, _ = run("export", video_folder, *words)
    assert code == 0
    assert "recipe for jetson-orin-nx-16gb" in out
    assert verify(tmp_path / "out").manifest.graph.opset == 18


@pytest.fixture
def clips(tmp_path):
    """Labelled clips to calibrate and to check on, none in both."""
    paths = []
    for seed, name in enumerate(("calibration", "check")):
        frames = np.random.default_rng(seed).integers(0, 256, (24, 4, 16, 16, 3), np.uint8)
        np.savez(tmp_path / f"{name}.npz", frames=frames, labels=np.arange(24) % 5)
        paths.append(tmp_path / f"{name}.npz")
    return paths


def test_export_command_quantises_and_keeps_attention_fused(run, video_folder, clips, tmp_path):
    words = (
        "--precision",
        "int8",
        "--calibration",
        clips[0],
        "--data",
        clips[1],
        "--max-accuracy-drop",
        "1",
        "--engine",
        "rtx",
    )
    code, out, _ = run("export", video_folder, *words, "--keep-precise", "3", "-o", tmp_path / "out")
    assert code == 0
    assert "attention fused: 4 of 4" in out
    manifest = verify(tmp_path / "out").manifest
    quantized = manifest.quantization
    assert (manifest.graph.precision, quantized.base, quantized.check.items, quantized.samples) == ("int8", "fp16", 24, 24)
    assert {node.module.rpartition("layer.")[2][0] for node in quantized.kept if "layer." in node.module} == {"3"}
    assert manifest.metrics[str(clips[1])].items == 24
    table = json.loads((tmp_path / "out/calibration.json").read_text())
    assert len(table["ranges"]) > 8
    assert "calibration.json" in manifest.files


def test_export_command_auto_exports_what_was_chosen(run, video_folder, clips, tmp_path, monkeypatch):
    from shallowvit.exporting import precision_search
    from shallowvit_bench.timing import TimingLimits

    made = precision_search.SearchConfig

    def small(data, quantize, max_drop):
        candidates = tuple(one for one in precision_search.CANDIDATES if one.name in ("fp32", "int4-on-fp32", "bf16"))
        return made(data, quantize, max_drop, limits=TimingLimits(max_runs=6, max_seconds=1.0), candidates=candidates)

    monkeypatch.setattr(precision_search, "SearchConfig", small)  # all of them take a minute
    words = ("--precision", "auto", "--data", clips[1], "--max-accuracy-drop", "0.9")
    code, out, _ = run("export", video_folder, *words, "-o", tmp_path / "out")
    assert code == 0
    manifest = verify(tmp_path / "out").manifest
    found = manifest.precision_search
    assert [trial.name for trial in found.trials] == ["fp32", "bf16", "int4-on-fp32"]
    assert found.trials[1].status == "unsupported"
    assert manifest.graph.precision == found.chosen.partition("-")[0]
    assert f"{found.chosen} was measured to be the fastest" in out


AUTO = ("--precision", "auto", "--data", "demo")
WORDS = {"OUT": "out", "BUNDLE": "half"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "BUNDLE", "--engine", "trt"], "build: unknown engine 'trt'; choose from rtx, tensorrt, auto"),
        (["build", "BUNDLE", "--batch", "1:4"], "build: --batch '1:4' isn't min:opt:max; write --batch 1:4:8"),
        (["build", "BUNDLE", "--batch", "4:2:8"], "build: batches 4:2:8 aren't min <= opt <= max"),
        (["build", "BUNDLE", "--shape", "x=1:2"], "build: --shape 'x=1:2' isn't name=min:opt:max"),
        (["build", "BUNDLE", "--shape", "y=1x1:2x1:3x1"], "build: the graph has no input 'y'; its inputs: pixel_values"),
        (["build", "BUNDLE", "--compute-capability", "86"], "build: --compute-capability '86' isn't like 8.6"),
        (["build", "BUNDLE", "--compute-capability", "9.0"], "can't be told to build for compute capability 9.0"),
        (
            ["build", "BUNDLE", "--hardware-compatibility", "all"],
            "unknown hardware compatibility 'all'; choose from ampere-plus",
        ),
        (["build", "BUNDLE", "--level", "9"], "build: builder level 9 is not in 0 to 5"),
        (["build", "BUNDLE", "--target", "h100"], "targets: no target 'h100'"),
        (["build", "nowhere"], "verify: no folder"),
        (["verify", "BUNDLE", "--here"], "has no engine to load here; build one with: shallowvit build"),
        (["export", "demo", "-o", "OUT", "--precision", "int8"], "name some with --calibration"),
        (["export", "demo", "-o", "OUT", "--precision", "fp7"], "unknown precision 'fp7'; choose from fp32, fp16, bf16, int8"),
        (["export", "demo", "-o", "OUT", "--precision", "fp16", "--attention-precision", "bf16"], "computes in fp16 already"),
        (
            ["export", "demo", "-o", "OUT", "--float-precision", "fp16"],
            "--float-precision fp16 is of what int8, fp8 and int4 leave",
        ),
        (["export", "demo", "-o", "OUT", "--target", "t4", "--precision", "bf16"], "--target t4: .*bf16 needs 8.0 or later"),
        (
            ["export", "demo", "-o", "OUT", "--target", "jetson-nano-4gb"],
            "TensorRT 8.* and graphs that decide their precision need 10.0",
        ),
        (["export", "demo", "-o", "OUT", "--engine", "tensorrt"], "tensorrt is not installed here"),
        (
            ["export", "demo", "-o", "OUT", "--batch", "4"],
            "batches given, but no engine is asked for; add --engine or --target",
        ),
        (["export", "demo", "-o", "OUT", "--jetpack", "6.2"], "--jetpack 6.2 is of a Jetson; name which with --target"),
        (["export", "demo", "-o", "OUT", "--calibration", "nowhere"], "no data at nowhere"),
        (["export", "demo", "-o", "OUT", "--precision", "auto"], "--precision auto measures accuracy; name inputs"),
        (["export", "demo", "-o", "OUT", *AUTO, "--keep-precise", "3"], "auto chooses for the whole graph"),
        (["export", "demo", "-o", "OUT", *AUTO, "--engine", "rtx"], "says nothing about --engine rtx; name a --precision"),
    ],
)
def test_commands_refuse_a_wrong_wish_in_one_sentence(run, half, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    before = _content(half)
    code, _, err = run(*(WORDS.get(word, word) for word in words), "--quiet")
    assert (code, len(err.splitlines())) == (1, 1)
    assert re.search(message, err), err
    assert _content(half) == before
    assert not (tmp_path / "out").exists()


def test_verify_here_without_a_gpu_says_so(run, half):
    from shallowvit.engines.worker.build_engine import gpu

    if gpu() is not None:
        pytest.skip("this machine has a GPU")
    shallowvit.build(half)
    code, _, err = run("verify", half, "--here")
    assert code == 1
    assert re.search(r"built by TensorRT-RTX 1\.\S+ and needs an NVIDIA GPU, and there is none here", err)
    code, _, err = run("verify", half, "--here", "--python", "/no/such/python")
    assert re.search(r"built by TensorRT-RTX 1\.\S+, which isn't installed here", err)


def test_verify_here_engine_of_another_version_names_both(run, half):
    shallowvit.build(half)
    path = half / "manifest.json"
    manifest = json.loads(path.read_text())
    built = manifest["engines"][0]["version"]
    manifest["engines"][0]["version"] = "1.2.0.54"
    path.write_text(json.dumps(manifest))
    code, _, err = run("verify", half, "--here")
    assert code == 1
    assert (
        f"built by TensorRT-RTX 1.2.0.54, and here is {built}; build it again with: shallowvit build {half} --engine rtx" in err
    )
