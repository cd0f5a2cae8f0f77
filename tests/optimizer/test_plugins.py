"""Nodes of our own in real engines of TensorRT-RTX, without a GPU: their code in the bytes, their count, what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir
import pytest

from shallowvit.engines import build_engine
from shallowvit.engines.build import job_from_config
from shallowvit.engines.flavours import Choice
from shallowvit.engines.fusion import fusion_report
from shallowvit.engines.process import WORKER, copy_plugin_code, run_job
from shallowvit.engines.records import BuildConfig, Flavour
from shallowvit.engines.sites import find_attentions
from shallowvit.engines.worker.layers import fused_nodes, kernels_in_bytes, kernels_of_nodes
from shallowvit.errors import ShallowvitError
from shallowvit.plugins.rewriting import rewrite_attention
from shallowvit.selfcheck.kernels import CHECKED_VARIANTS
from shallowvit_bench.runners.plugin_kernels import operators_in
from shallowvit_kernels.records import Dtype, FeatureMap, Kernel, Variant

from .attention_graphs import Attention
from .plugin_graphs import FULL, HALF, MASKED, made_up_ptx, profile_of, save_graph, write_made_up

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX builds these engines: pip install 'shallowvit[tensorrt]'")


def job_of(graph, *profiles):
    choice = Choice(Flavour.RTX, None, ())
    return job_from_config(BuildConfig(timing_cache=False), choice, profiles) | {"onnx": str(graph)}


def built(folder, graph, profiles, **plugins):
    """What the worker says of an engine, its report and its bytes."""
    result = run_job(job_of(graph, *profiles) | plugins, folder, python=None, time_limit_s=120)
    engine = (folder / "model.engine").read_bytes()
    report = fusion_report(find_attentions(graph), result["layers"], engine, "builder log", named=True, profiles=len(profiles))
    return result, report, engine


def test_build_engine_of_our_nodes_counts_them_fused_and_carries_their_code(tmp_path):
    graph = save_graph(tmp_path / "model.onnx", HALF, FULL)
    onnx.checker.check_model(str(graph))
    shapes = tuple((name, *map(tuple, shape)) for name, shape in profile_of(HALF, FULL).items())
    config = BuildConfig(flavour=Flavour.RTX, shapes=shapes, compute_capabilities=(86,))
    outs = [tmp_path / name for name in ("first", "second")]
    for out in outs:
        out.mkdir()
    engines = [build_engine(graph, out, config) for out in outs]
    report = engines[0].fusion
    assert [(one.node, one.kernel, one.dtype, one.heads, one.head_size) for one in report.attentions] == [
        ("attention0", HALF.name, "fp16", 2, 16),
        ("attention1", FULL.name, "fp32", 2, 16),
    ]
    assert report.whole and sorted(report.kernels) == sorted([HALF.name, FULL.name])
    for engine in engines:  # not byte for byte alike: on a busy machine the builder chose otherwise once
        content = engine.path.read_bytes()
        for variant in (HALF, FULL):
            assert f".visible .entry {variant.name}(".encode() in content and b".target sm_86" in content
        assert b"launch_0" in content and b"ptx_0" in content


def test_build_of_our_node_takes_a_fifth_of_the_memory_of_its_function(tmp_path):
    graph = save_graph(tmp_path / "model.onnx", FULL)
    profile = profile_of(FULL, high=(8, 1568))
    plugin, report, _ = built(tmp_path, graph, [profile], **write_made_up(tmp_path, FULL))
    function, unfused, engine = built(tmp_path, graph, [profile])
    assert (report.fused, unfused.fused, unfused.expected) == (1, 0, 1)
    assert unfused.attentions[0].reason.startswith("is a node of ours, and the engine has no plugin for it")
    assert kernels_in_bytes(engine) == [] and unfused.kernels == ()
    assert function["activation_bytes"] > 5 * plugin["activation_bytes"]


ELU = Variant(Kernel.LINEAR, Dtype.BF16, 24, feature_map=FeatureMap.ELU_PLUS_ONE)


@pytest.mark.parametrize("variant", [*CHECKED_VARIANTS, ELU], ids=lambda variant: variant.name)
def test_every_kernels_name_is_found_in_an_engine_by_the_builder_and_by_the_harness(variant):
    engine = b"\0..\0" + made_up_ptx(variant).encode() + f"\0{variant.name}_of_a_node\0".encode()
    assert kernels_in_bytes(engine) == operators_in(engine) == [variant.name]


def test_build_of_our_nodes_in_two_profiles_counts_each_once(tmp_path):
    graph = save_graph(tmp_path / "model.onnx", HALF, MASKED)
    profiles = [profile_of(HALF, MASKED), profile_of(HALF, MASKED, low=(1, 64), high=(8, 128))]
    result, report, engine = built(tmp_path, graph, profiles, **write_made_up(tmp_path, HALF, MASKED))
    assert (report.fused, report.expected) == (2, 2)
    assert len([layer for layer in result["layers"] if layer["type"] == "custom_layer"]) == 4
    assert kernels_in_bytes(engine) == sorted([HALF.name, MASKED.name])


def test_build_with_one_of_two_kernels_leaves_the_other_unfused(tmp_path):
    graph = save_graph(tmp_path / "model.onnx", HALF, FULL)
    _, report, engine = built(tmp_path, graph, [profile_of(HALF, FULL)], **write_made_up(tmp_path, FULL))
    assert [one.fused for one in report.attentions] == [False, True]
    assert kernels_in_bytes(engine) == [FULL.name]


def test_build_with_plugins_touches_neither_the_wheel_nor_the_folder_of_the_job(tmp_path):
    graph = save_graph(tmp_path / "model.onnx", HALF)
    wheel = Path(sys.modules["tensorrt_rtx"].__file__).parents[1] / "tensorrt_rtx_libs"
    before = sorted(os.listdir(wheel))
    built(tmp_path, graph, [profile_of(HALF)], **write_made_up(tmp_path, HALF))
    assert sorted(os.listdir(wheel)) == before
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"dtype": FULL.dtype}, r"plugin: q of shallowvit_attention_fp16_d16_\w+ is fp32, and fp16 is expected; export again"),
        ({"axes": "hnd"}, r"plugin: q \[b, h, n, d\] of \w+ has 4 axes, found the shape \[2, \?, 16\]"),
        ({"sizes": {"d": 24}}, r"plugin: axis d of q \[b, h, n, d\] of \w+ is 24, and 16 is expected; found \[\?, 2, \?, 24\]"),
        (
            {"attribute": FULL.to_json()},
            r"plugin: a node \w+ says that it computes .*fp32.*, and its kernel was compiled for .*",
        ),
    ],
)
def test_build_refuses_a_node_that_its_kernel_does_not_fit(tmp_path, wrong, sentence):
    graph = save_graph(tmp_path / "model.onnx", HALF, functions=False, **wrong)
    with pytest.raises(ShallowvitError, match=f"^build: {sentence}"):
        built(tmp_path, graph, [profile_of(HALF)], **write_made_up(tmp_path, HALF))


def test_build_refuses_a_node_of_too_few_inputs(tmp_path):
    graph = save_graph(tmp_path / "model.onnx", MASKED, functions=False)
    model = onnx.load(graph)
    node = next(node for node in model.graph.node if node.domain == "shallowvit")
    del node.input[3:]
    onnx.save(model, graph)
    with pytest.raises(ShallowvitError, match=r"takes 4 inputs \(q, k, v, probability_mask\), found 3; export again"):
        built(tmp_path, graph, [profile_of(MASKED)], **write_made_up(tmp_path, MASKED))


def test_build_refuses_a_profile_whose_numbers_are_beyond_32_bits(tmp_path):
    graph = save_graph(tmp_path / "model.onnx", HALF)
    profile = profile_of(HALF, high=(8, 80_000_000))
    with pytest.raises(ShallowvitError, match=r"is 2560000000, and 2147483647 is the largest that is passed"):
        built(tmp_path, graph, [profile], **write_made_up(tmp_path, HALF))


def test_build_refuses_a_profile_in_which_sizes_contradict_each_other(tmp_path):
    graph = save_graph(tmp_path / "model.onnx", MASKED, sizes={"m": None})  # of sizes with one name it takes the least
    profile = profile_of(MASKED) | {"probability_mask0": [[1, 1, 16, 16], [1, 1, 16, 16], [1, 1, 64, 63]]}
    with pytest.raises(ShallowvitError, match=r"axis m of probability_mask .* is 63, and 64 is expected"):
        built(tmp_path, graph, [profile], **write_made_up(tmp_path, MASKED))


def _without(path):
    path.unlink()


@pytest.mark.parametrize(
    ("suffix", "damage", "sentence"),
    [
        ("ptx", _without, r"plugin: .*\.ptx can't be read \(No such file or directory\); compile the kernel again"),
        ("json", _without, r"plugin: .*\.json can't be read"),
        ("ptx", lambda path: path.write_bytes(b"\xff\xfe"), r"plugin: .*\.ptx can't be read \('utf-8' codec"),
        ("ptx", lambda path: path.write_text(made_up_ptx(FULL)), r"plugin: the PTX of .*\.json has no entry \w+; build again"),
        ("json", lambda path: path.write_text("{}"), r"plugin: .*\.json is damaged \(KeyError\('schema'\)\); build again"),
        ("json", lambda path: path.write_text('{"schema": 9}'), r"plugin: .*\.json has schema 9, and this version reads 1"),
    ],
)
def test_build_refuses_kernels_that_are_missing_or_damaged(tmp_path, suffix, damage, sentence):
    graph = save_graph(tmp_path / "model.onnx", HALF)
    plugins = write_made_up(tmp_path, HALF)
    damage(tmp_path / f"{HALF.name}.{suffix}")
    with pytest.raises(ShallowvitError, match=f"^build: {sentence}"):
        built(tmp_path, graph, [profile_of(HALF)], **plugins)


@pytest.mark.parametrize(("operators", "found"), [((HALF, FULL), "that of shallowvit_attention_fp32"), ((HALF, None), "none")])
def test_build_refuses_a_job_that_mixes_up_its_kernels(tmp_path, operators, found):
    graph = save_graph(tmp_path / "model.onnx", HALF)
    plugins = write_made_up(tmp_path, HALF, FULL)["plugins"]
    plugins[0]["launches"] = plugins[1]["launches"] if operators[1] else []
    with pytest.raises(ShallowvitError, match=rf"plugin: the job lists {found}\w* as the kernel of {HALF.name}; build again"):
        built(tmp_path, graph, [profile_of(HALF)], plugins=plugins)


def test_build_engine_script_of_a_folder_counts_our_nodes(tmp_path):
    """As on a board: nothing of this project but the files of a recipe."""
    graph = save_graph(tmp_path / "model.onnx", HALF, FULL)
    folder = tmp_path / "recipe"
    folder.mkdir()
    copy_plugin_code(folder)
    for name in ("build_engine.py", "layers.py", "flavour_rtx.py", "plugin_nodes.py", "plugin_ahead.py"):
        shutil.copyfile(WORKER.parent / name, folder / name)
    attentions = [{"path": one.path, "anchor": one.anchor, "operator": one.operator} for one in find_attentions(graph)]
    job = job_of("../model.onnx", profile_of(HALF, FULL)) | {"attentions": attentions, "plugin_code": "."}
    said = []
    for variants in ((HALF, FULL), (HALF,)):
        (folder / "recipe.json").write_text(json.dumps(job | write_made_up(folder, *variants)))
        command = [sys.executable, "-E", "-s", str(folder / "build_engine.py"), str(folder / "recipe.json")]
        said.append(subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path))
    assert (said[0].returncode, said[1].returncode) == (0, 1), said[0].stderr
    assert said[0].stdout.endswith("model.engine: attention fused 2 of 2\n")
    assert said[1].stdout.endswith("attention fused 1 of 2\n")
    assert "not fused: attention1; the engine was removed" in said[1].stderr


def test_build_of_a_graph_without_names_finds_its_attention_in_the_engine(tmp_path):
    proto = onnx.load(Attention().pattern().save(tmp_path / "model.onnx"))
    for node in proto.graph.node:
        node.name = ""
    onnx.save(proto, tmp_path / "model.onnx")
    profile = {name: [[1, 2, 24, 16], [1, 2, 24, 16], [4, 2, 24, 16]] for name in "qkv"}
    _, report, _ = built(tmp_path, tmp_path / "model.onnx", [profile])
    assert [(one.node, one.fused) for one in report.attentions] == [("node_of_probabilities", True)]
    model = onnx_ir.load(tmp_path / "model.onnx")
    assert [name for name, _ in rewrite_attention(model, "auto", unfused={"node_of_probabilities"}).replaced] == [
        "node_of_probabilities"
    ]


def test_find_attentions_of_our_nodes_reads_sizes_off_their_inputs(tmp_path):
    graph = save_graph(tmp_path / "model.onnx", MASKED, sizes={"n": 5, "m": 7})
    (site,) = find_attentions(graph)
    assert (site.anchor, site.kind, site.operator, site.obstacle) == ("attention0", "plugin", MASKED.name, None)
    assert (site.dtype, site.heads, site.head_size, site.queries, site.keys) == ("fp16", 2, 16, 5, 7)


def test_find_attentions_refuses_a_node_that_does_not_say_what_it_computes(tmp_path):
    graph = save_graph(tmp_path / "model.onnx", HALF, attribute="{}")
    with pytest.raises(ShallowvitError, match=r"^build: the node attention0 \(shallowvit_\w+\) doesn't say what it computes"):
        find_attentions(graph)


@pytest.mark.parametrize("kind", ["custom_layer", "PluginV3", "PluginV2DynamicExt"])
def test_kernels_of_nodes_takes_a_plugin_s_layer_by_any_flavour_s_name(kind):
    layers = [{"name": "a_myl0_4", "type": kind, "tactic": "", "nodes": ["a"]}]
    sites = [{"anchor": "a", "operator": HALF.name}, {"anchor": "b"}, {"anchor": "a2", "operator": HALF.name}]
    assert kernels_of_nodes(layers, sites) == {"a": [HALF.name], "b": [], "a2": []}
    assert fused_nodes(layers) == {}


def test_kernels_of_nodes_leaves_a_plugin_of_others_aside():
    layers = [{"name": "a", "type": "custom_layer", "tactic": "", "nodes": ["a"]}]
    assert kernels_of_nodes(layers, [{"anchor": "a"}]) == {"a": []}


def test_fusion_report_refuses_layers_whose_plugin_is_not_in_the_engine(tmp_path):
    sites = find_attentions(save_graph(tmp_path / "model.onnx", HALF))
    layers = [{"name": "a", "type": "custom_layer", "tactic": "", "nodes": ["attention0"]}]
    with pytest.raises(ShallowvitError, match=rf"names the attention kernels {HALF.name}, but the engine holds none"):
        fusion_report(sites, layers, b"", "builder log", named=True)
    assert fusion_report(sites, layers, b"", "engine inspector", named=False).whole
    with pytest.raises(ShallowvitError, match=rf"names the attention kernels none, but the engine holds {HALF.name}"):
        fusion_report(sites, [], made_up_ptx(HALF).encode(), "engine inspector", named=False)


@pytest.fixture
def worker(monkeypatch):
    """The worker's module in this process, whose imports are forgotten afterwards."""
    from shallowvit.engines.worker import plugin_nodes

    monkeypatch.setattr(sys, "path", list(sys.path))
    yield plugin_nodes
    for name in ("plugin_kernels", "plugin_launch", "attention_plugin"):
        sys.modules.pop(name, None)


def test_register_plugins_with_a_tensorrt_that_has_none_says_from_when(worker, tmp_path):
    job = {"folder": str(tmp_path), "plugin_code": copy_plugin_code(tmp_path / "code")} | write_made_up(tmp_path, HALF)
    flavour = SimpleNamespace(TITLE="TensorRT", takes_plugins_ahead=lambda _trt: False)
    with pytest.raises(
        worker.PluginRefused, match=r"^plugin: TensorRT 9\.3 takes none written in Python; they came with 10\.0"
    ):
        worker.register_plugins(SimpleNamespace(__version__="9.3"), flavour, job, 86)


def test_give_library_its_name_leaves_other_flavours_and_full_installations_alone(worker, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started again"))
    worker.give_library_its_name({"flavour": "tensorrt", "folder": str(tmp_path)})
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "libtensorrt_rtx.so").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "installed"))
    worker.give_library_its_name({"flavour": "rtx", "folder": str(tmp_path)})
    assert [path.name for path in tmp_path.iterdir()] == ["installed"]


@pytest.mark.gpu
def test_engine_of_our_nodes_answers_as_their_functions(tmp_path):
    from shallowvit_bench.runners import RunnerOptions
    from shallowvit_bench.runners.cuda_driver import first_gpu
    from shallowvit_bench.runners.tensorrt_engine import open_rtx

    if first_gpu() is None:
        pytest.skip("needs an NVIDIA GPU")
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = save_graph(tmp_path / "model.onnx", HALF, FULL)
    profile = profile_of(HALF, FULL, high=(3, 50))
    shapes = tuple((name, *map(tuple, shape)) for name, shape in profile.items())
    (tmp_path / "engine").mkdir()
    engine = build_engine(graph, tmp_path / "engine", BuildConfig(flavour=Flavour.RTX, shapes=shapes)).path
    random = np.random.default_rng()
    batch = {
        name: random.standard_normal(high).astype(np.float16 if name.endswith("0") else np.float32)
        for name, (_, _, high) in profile.items()
    }
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    wanted = dict(zip([one.name for one in session.get_outputs()], session.run(None, batch), strict=True))
    for options in (RunnerOptions(), RunnerOptions(cuda_graph=False)):
        with open_rtx(engine, options) as runner:
            bound = runner.bind(batch)
            bound()
            for name, found in bound.outputs().items():
                np.testing.assert_allclose(found, wanted[name], rtol=1e-2, atol=1e-2)
