"""Who computes attention: in exports, builds, recipes and from the command line, down to real engines."""

import json
import shutil
import sys

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import nn

import shallowvit
from shallowvit import BuildConfig, ExportConfig, PrunedModel, ShallowvitError, verify
from shallowvit.cli.main import main
from shallowvit.engines.build import build_engine
from shallowvit.engines.records import AttentionChoice, PluginTiming
from shallowvit.exporting import Precision, export_onnx
from shallowvit.exporting.quantize_records import QuantizeConfig
from shallowvit.plugins.choosing import time_plugins

from .pattern_graphs import pattern
from .small_models import loaded

pytest.importorskip("tensorrt_rtx", reason="builds engines; pip install 'shallowvit[tensorrt]'")


@pytest.fixture(scope="module")
def fp32_plugin_bundle(pruned_video, tmp_path_factory):
    """fp32 attention, which TensorRT doesn't fuse, as nodes of our own. Copy it before changing anything in it."""
    config = ExportConfig(Precision.FP32, attention=AttentionChoice.AUTO)
    return shallowvit.export(pruned_video, tmp_path_factory.mktemp("bundles") / "ours", config).path


@pytest.fixture
def ours(fp32_plugin_bundle, tmp_path):
    shutil.copytree(fp32_plugin_bundle, tmp_path / "ours")
    return tmp_path / "ours"


@pytest.fixture
def run(monkeypatch, capsys):
    def run_main(*words):
        monkeypatch.setattr(sys, "argv", ["shallowvit", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        written = capsys.readouterr()
        return stopped.value.code or 0, written.out, written.err

    return run_main


def _operators(graph):
    return [node.op_type for node in onnx_ir.load(graph).graph if node.domain == "shallowvit"]


def test_export_auto_makes_what_tensorrt_leaves_nodes_of_our_own(ours, pruned_video):
    manifest = verify(ours).manifest
    operators = _operators(ours / "model.onnx")
    assert len(operators) == len(pruned_video.plan.kept) == manifest.graph.attention_nodes
    assert [operator for _node, operator in manifest.graph.attention_plugins] == operators
    assert manifest.parity.relative_error < 1e-4


def test_export_auto_leaves_what_tensorrt_fuses(pruned_video, tmp_path):
    config = ExportConfig(Precision.FP16, attention=AttentionChoice.AUTO)
    manifest = shallowvit.export(pruned_video, tmp_path / "half", config).manifest
    assert _operators(tmp_path / "half/model.onnx") == []
    assert manifest.graph.attention_plugins == ()
    assert manifest.graph.attention_nodes == len(pruned_video.plan.kept)


def test_graph_with_our_nodes_runs_in_onnxruntime_as_it_stands(ours, bundle):
    batch = np.random.default_rng(0).standard_normal((3, 4, 3, 16, 16)).astype(np.float32)
    outputs = []
    for folder in (ours, bundle.path):
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {session.get_inputs()[0].name: batch})[0])
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


def test_build_of_a_graph_with_our_nodes_counts_them_as_fused(ours):
    manifest = shallowvit.build(ours).manifest
    (engine,) = manifest.engines
    operators = sorted(set(_operators(ours / "model.onnx")))
    assert (engine.attention_fused, engine.attention_expected) == (2, 2)
    assert sorted(one.operator for one in engine.plugins) == operators
    assert sorted({row.kernel for row in engine.attentions}) == operators
    assert sorted(node for one in engine.plugins for node in one.nodes) == sorted(row.node for row in engine.attentions)
    assert all(one.registers > 0 and one.spilled_bytes == 0 for one in engine.plugins)
    content = (ours / engine.path).read_bytes()
    assert all(operator.encode() in content for operator in operators)
    assert verify(ours).manifest == manifest


def test_build_native_puts_tensorrt_in_the_place_of_our_nodes(ours):
    with pytest.raises(ShallowvitError, match=r"fused in 0 of 2: .*computes in fp32.*--attention auto"):
        shallowvit.build(ours, BuildConfig(attention=AttentionChoice.NATIVE))
    engine = shallowvit.build(ours, BuildConfig(attention=AttentionChoice.NATIVE, allow_unfused=True)).manifest.engines[0]
    assert (engine.attention_fused, engine.plugins) == (0, ())


def test_build_auto_of_a_native_graph_takes_our_kernel_where_tensorrt_has_none(bundle, tmp_path):
    shutil.copytree(bundle.path, tmp_path / "full")
    before = (tmp_path / "full/model.onnx").read_bytes()
    engine = shallowvit.build(tmp_path / "full", BuildConfig(attention=AttentionChoice.AUTO)).manifest.engines[0]
    assert (engine.attention_fused, engine.attention_expected) == (2, 2)
    assert engine.plugins
    assert (tmp_path / "full/model.onnx").read_bytes() == before


def test_build_plugin_of_a_graph_that_tensorrt_fuses_takes_our_kernels(pruned_video, tmp_path):
    shallowvit.export(pruned_video, tmp_path / "half", ExportConfig(Precision.FP16))
    engine = shallowvit.build(tmp_path / "half", BuildConfig(attention=AttentionChoice.PLUGIN)).manifest.engines[0]
    assert (engine.attention_fused, engine.attention_expected) == (2, 2)
    assert all(row.kernel.startswith("shallowvit_attention_") for row in engine.attentions)


def test_build_auto_gives_what_the_builder_left_unfused_a_second_try(pruned_video, tmp_path, monkeypatch):
    from shallowvit.engines import build as module

    shallowvit.export(pruned_video, tmp_path / "half", ExportConfig(Precision.FP16, opset=18))
    asked = []
    real = module.prepare_graph

    def seen(*arguments, **options):
        asked.append(sorted(options["unfused"]))
        return real(*arguments, **options)

    def forgetful(sites, layers, *rest, **options):  # as a TensorRT before 10.14, whose matcher misses patterns
        return real_report(sites, [one for one in layers if "_mha_" not in one["tactic"]], b"", *rest[1:], **options)

    real_report = module.fusion_report
    monkeypatch.setattr(module, "prepare_graph", seen)
    first = {"left": True}

    def report(*arguments, **options):
        forget = first.pop("left", False)
        return (forgetful if forget else real_report)(*arguments, **options)

    monkeypatch.setattr(module, "fusion_report", report)
    (tmp_path / "out").mkdir()
    built = build_engine(tmp_path / "half/model.onnx", tmp_path / "out", BuildConfig(attention=AttentionChoice.AUTO))
    assert asked[0] == []
    assert len(asked[1]) == 2
    assert (built.fusion.fused, len(built.plugins[0].nodes)) == (2, 2)


def test_time_plugins_compares_each_operator_alone_with_none(tmp_path):
    built = []

    def engine_with(some):
        built.append(some)
        return tmp_path / "+".join(sorted(some))

    took = {"": 3.0, "a": 2.0, "b": 4.0}
    timings = time_plugins(
        ["a", "b"], engine_with, lambda one, other: (took[one.name or ""] if one != tmp_path else 3.0, took[other.name])
    )
    assert timings == (PluginTiming("a", 3.0, 2.0), PluginTiming("b", 3.0, 4.0))
    assert [one.plugin_is_faster for one in timings] == [True, False]
    assert built == [frozenset(), frozenset({"a"}), frozenset({"b"})]


def test_build_auto_on_a_gpu_keeps_a_plugin_only_where_it_is_faster(bundle, tmp_path, monkeypatch):
    """All of it but the clock and the GPU: the builder says it has inspected the engine, and times are made up."""
    from shallowvit.engines import build as module

    real = module.run_job

    def with_gpu(job, folder, **options):
        result = real(job, folder, **options)
        return result | {"inspected": result["layers"], "gpu": None, "not_inspected": None}

    monkeypatch.setattr(module, "run_job", with_gpu)
    kept = {}
    for name, plugin_ms in (("faster", 1.0), ("slower", 3.0)):
        monkeypatch.setattr(module, "compare_engines", lambda *_, ms=plugin_ms: (2.0, ms))
        (tmp_path / name).mkdir()
        config = BuildConfig(attention=AttentionChoice.AUTO, allow_unfused=True)
        kept[name] = build_engine(bundle.path / "model.onnx", tmp_path / name, config)
    assert len(kept["faster"].plugins) == 1
    assert kept["faster"].fusion.fused == 2
    assert kept["slower"].plugins == ()
    assert kept["slower"].fusion.fused == 0
    assert [one.plugin_timings[0].plugin_ms for one in kept.values()] == [1.0, 3.0]


def test_recipe_of_a_graph_with_our_nodes_carries_their_kernels(pruned_video, tmp_path):
    config = ExportConfig(Precision.FP32, opset=18, attention=AttentionChoice.AUTO)
    target = BuildConfig(target="jetson-orin-nx-16gb")
    manifest = shallowvit.export(pruned_video, tmp_path / "board", config, recipe=target).manifest
    recipe = json.loads((tmp_path / "board/recipe/recipe.json").read_text())
    (plugin,) = recipe["plugins"]
    assert plugin["operator"] in {operator for _node, operator in manifest.graph.attention_plugins}
    for launch in plugin["launches"]:
        assert (tmp_path / "board/recipe" / launch["ptx"]).read_text().count(f".entry {plugin['operator']}") == 1
        assert json.loads((tmp_path / "board/recipe" / launch["launch"]).read_text())["sm"] == 87
        assert f"recipe/{launch['ptx']}" in manifest.files
    assert verify(tmp_path / "board").manifest == manifest


def test_quantised_export_refuses_our_nodes_and_names_the_way():
    model = shallowvit.load("demo")
    config = ExportConfig(Precision.INT4, quantize=QuantizeConfig(Precision.INT4), attention=AttentionChoice.AUTO)
    with pytest.raises(ShallowvitError, match=r"of float graphs, and this one is quantised to int4; .* shallowvit build"):
        shallowvit.export(model, "never-written", config)


@pytest.mark.parametrize("command", ["export", "build"])
def test_command_with_an_unknown_attention_lists_the_choices(run, tmp_path, command):
    words = ("demo", "-o", tmp_path / "x") if command == "export" else (tmp_path,)
    code, _out, err = run(command, *words, "--attention", "fused")
    assert (code, err) == (1, f"shallowvit: {command}: unknown --attention 'fused'; choose from native, plugin, auto\n")


def test_kernels_without_a_bundle_lists_them(run):
    code, out, _err = run("kernels")
    assert code == 0
    assert "probability_mask" in out
    assert "2103.10697" in out


def test_kernels_of_a_bundle_says_who_can_compute_each_attention(run, bundle, tmp_path):
    folder = tmp_path / "compiled"
    code, out, _err = run("kernels", bundle.path, "--target", "jetson-orin-nx-16gb", "--out", folder, "--json")
    record = json.loads(out)
    assert code == 0
    assert [one["block"] for one in record["attentions"]] == [row for row in verify(bundle.path).manifest.plan.kept]
    assert all("fp32" in one["obstacle"] for one in record["attentions"])
    (kernel,) = record["kernels"]
    assert (kernel["sm"], kernel["spilled_bytes"]) == (87, 0)
    assert {one["operator"] for one in record["attentions"]} == {kernel["operator"]}
    assert sorted(path.suffix for path in folder.iterdir()) == [".cubin", ".json", ".ptx"]


@pytest.fixture
def given_away(tmp_path):
    """A graph whose probabilities are an output too, which neither TensorRT's kernels nor ours do."""
    onnx_ir.save(pattern({}, outputs=("y", "p")), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_build_auto_of_what_our_kernels_refuse_says_why_and_does_not_send_to_auto(given_away, tmp_path):
    wanted = r"Our kernels don't take it either: the probabilities .*\. Accept it with --allow-unfused$"
    (tmp_path / "out").mkdir()
    with pytest.raises(ShallowvitError, match=wanted):
        build_engine(given_away, tmp_path / "out", BuildConfig(attention=AttentionChoice.AUTO))
    with pytest.raises(ShallowvitError, match="Give it a kernel of ours with --attention auto"):
        build_engine(given_away, tmp_path / "out", BuildConfig())


def test_kernels_of_a_graph_that_ours_refuse_says_why_in_a_sentence(run, given_away):
    code, out, _err = run("kernels", given_away)
    assert code == 0
    assert "none: the probabilities are" in " ".join(out.replace("│", " ").split())


class OddAttention(nn.Module):
    """With something done to its probabilities: a gate, which our kernel takes, or a sine, which nobody does."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.qkv, self.gate = kind, nn.Linear(32, 96), nn.Parameter(torch.rand(2, 1, 1))

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(len(x), -1, 3, 2, 16).permute(2, 0, 3, 1, 4)
        p = (q @ k.transpose(-1, -2) / 4).softmax(-1)
        p = {"gated": p * self.gate, "sine": torch.sin(p)}[self.kind]
        return x + (p @ v).transpose(1, 2).reshape(x.shape)


class OddModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(OddAttention(kind) for kind in ("gated", "sine"))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x.mean(1)


def test_export_names_each_attention_that_stayed_once_and_none_that_became_ours(tmp_path):
    model = loaded(OddModel().eval(), torch.randn(1, 6, 32))
    config = ExportConfig(Precision.FP32, attention=AttentionChoice.PLUGIN)
    exported = export_onnx(PrunedModel(model, shallowvit.plan(model)), tmp_path / "model.onnx", config)
    assert [reason.split()[0] for _node, reason in exported.attention_left] == ["Sin"]
    assert len(exported.attention_plugins) == 1


def test_kernels_refuses_what_it_cannot_do(run, tmp_path, bundle):
    for words, said in (
        (("--target", "rtx-4090"), "kernels: --target and --out are about a bundle's kernels"),
        ((tmp_path / "none.onnx",), "kernels: no bundle and no ONNX file"),
        ((bundle.path / "manifest.json",), "manifest.json is not an ONNX file"),
        ((bundle.path, "--out", tmp_path / "x"), "kernels: --out needs the device to compile for"),
        ((bundle.path, "--out", tmp_path, "--target", "rtx-4090"), f"kernels: {tmp_path} exists"),
    ):
        code, _out, err = run("kernels", *words)
        assert code == 1
        assert said in err
