"""Engines are built for real, by TensorRT-RTX, which needs no GPU for that."""

import ast
import gzip
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from shallowvit import ExportConfig, ShallowvitError
from shallowvit.engines import BatchRange, BuildConfig, Flavour, build_engine, find_attentions
from shallowvit.engines.fusion import check_fused, fusion_report
from shallowvit.engines.graph_check import check_graph
from shallowvit.engines.profiles import profiles_for
from shallowvit.engines.sites import AttentionSite, block_paths
from shallowvit.engines.worker.layers import fused_nodes, kernels_in_bytes, layers_from_inspector, layers_from_log
from shallowvit.exporting import Precision, export_onnx

from .attention_graphs import FP32, Attention, gate, given_away, quantised_queries, soft_cap

pytest.importorskip("tensorrt_rtx", reason="builds engines; pip install 'shallowvit[tensorrt]'")


@pytest.fixture(scope="module")
def graph_of(pruned_video, tmp_path_factory):
    """The pruned video model as a graph, once a setting."""
    made = {}

    def path(precision="fp16", opset=23):
        if (precision, opset) not in made:
            out = tmp_path_factory.mktemp("graphs") / "model.onnx"
            made[precision, opset] = export_onnx(pruned_video, out, ExportConfig(Precision(precision), opset)).path
        return made[precision, opset]

    return path


@pytest.fixture
def blocks(pruned_video):
    return block_paths(pruned_video.plan.paths, pruned_video.plan.kept)


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "engine"
    folder.mkdir()
    return folder


def _interpreter(path, body):
    """A stand-in for an interpreter that dies in a way of its own; it says that it has every module."""
    path.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 0\n{body}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(("precision", "opset"), [("fp16", 23), ("fp16", 18), ("bf16", 23)])
def test_build_engine_low_precision_fuses_every_attention(graph_of, blocks, pruned_video, out, precision, opset):
    built = build_engine(graph_of(precision, opset), out, BuildConfig(Flavour.RTX), blocks)
    assert (built.fusion.fused, built.fusion.expected) == (2, 2)
    assert [row.block for row in built.fusion.attentions] == list(pruned_video.plan.kept)
    kernels = {row.kernel for row in built.fusion.attentions}
    assert sorted(kernels) == list(built.fusion.kernels) == kernels_in_bytes(built.path.read_bytes())
    assert {(row.heads, row.head_size, row.dtype) for row in built.fusion.attentions} == {(2, 16, precision)}


def test_build_engine_writes_report_and_log_beside_the_engine(graph_of, out):
    built = build_engine(graph_of(), out)
    assert sorted(path.name for path in out.iterdir()) == ["build.log.gz", "fusion.json", "model.engine"]
    report = json.loads((out / "fusion.json").read_text())
    assert (report["fused"], report["expected"], report["source"]) == (2, 2, "builder log")
    assert len(report["layers"]) == len(built.layers) > 10
    assert "Layers:" in gzip.decompress((out / "build.log.gz").read_bytes()).decode()
    assert built.bytes == (out / "model.engine").stat().st_size
    assert 0 < built.weights_bytes < built.bytes
    assert built.activation_bytes > 0
    assert built.not_inspected is not None or built.built_on != "no GPU"


def test_build_engine_twice_is_byte_identical(graph_of, tmp_path):
    engines = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        engines.append(build_engine(graph_of(), tmp_path / name).path.read_bytes())
    assert engines[0] == engines[1]


def test_worker_fixes_its_addresses_and_keeps_its_arguments(tmp_path):
    from shallowvit.engines import worker

    folder = str(Path(worker.__file__).parent)
    flag = "bool(ctypes.CDLL(None).personality(0xFFFFFFFF) & 0x0040000)"
    code = f"import ctypes, sys\nsys.path.insert(0, {folder!r})\nimport build_engine\nbuild_engine.fix_addresses()\n"
    (tmp_path / "script.py").write_text(f"{code}print(sys.argv[1:], {flag})\n")
    done = subprocess.run([sys.executable, tmp_path / "script.py", "job"], capture_output=True, text=True, check=False)
    allowed = subprocess.run(["setarch", "-R", "true"], capture_output=True, check=False).returncode == 0
    assert done.stdout.splitlines() == [f"['job'] {allowed}"], done.stderr


def test_build_engine_largest_batch_decides_the_activation_memory(graph_of, tmp_path):
    memory = []
    for high in (8, 32):
        (tmp_path / str(high)).mkdir()
        config = BuildConfig(batches=(BatchRange(1, 1, high),))
        memory.append(build_engine(graph_of(), tmp_path / str(high), config).activation_bytes)
    assert memory[1] > memory[0]


def test_build_engine_several_profiles_fuse_in_each(graph_of, out):
    config = BuildConfig(batches=(BatchRange(1, 1, 1), BatchRange(2, 4, 8)))
    built = build_engine(graph_of(), out, config)
    assert len(built.profiles) == 2
    assert (built.fusion.fused, built.fusion.expected) == (2, 2)


def test_fusion_report_an_attention_fused_in_one_profile_of_three_is_not(graph_of):
    sites = [_site("node_scaled_dot_product_attention")]
    report = fusion_report(sites, layers_from_log(LOG), KERNEL.encode(), "builder log", named=True, profiles=3)
    assert (report.fused, report.expected) == (0, 1)
    assert "some optimisation profiles only" in report.attentions[0].reason


def test_build_engine_compute_capabilities_of_a_target(graph_of, out):
    built = build_engine(graph_of(), out, BuildConfig(target="rtx-4090"))
    assert (built.target, built.sm, built.flavour) == ("rtx-4090", (89,), Flavour.RTX)


def test_build_engine_version_compatible(graph_of, out):
    built = build_engine(graph_of(), out, BuildConfig(Flavour.RTX, version_compatible=True))
    assert built.fusion.whole
    assert built.options["version_compatible"] is True


@pytest.mark.parametrize("opset", [18, 23])
def test_build_engine_fp32_is_refused_with_block_and_reason(graph_of, blocks, pruned_video, out, opset):
    first = pruned_video.plan.kept[0]
    message = rf"fused in 0 of 2: that of block {first} \(videomae\.encoder\.layer\.0\) computes in fp32.*--allow-unfused"
    with pytest.raises(ShallowvitError, match=message):
        build_engine(graph_of("fp32", opset), out, BuildConfig(), blocks)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("opset", [18, 23])
def test_build_engine_fp32_allowed_says_why_for_each(graph_of, out, opset):
    built = build_engine(graph_of("fp32", opset), out, BuildConfig(allow_unfused=True))
    assert (built.fusion.fused, built.fusion.expected, built.fusion.kernels) == (0, 2, ())
    assert all("computes in fp32" in row.reason for row in built.fusion.attentions)


def _gated():
    graph = Attention()
    return graph.pattern(between=gate(graph))


def _capped():
    graph = Attention()
    return graph.pattern(before=soft_cap(graph))


def _changed(kind, place):
    graph = Attention()
    return graph.pattern(**{place: lambda value: graph.node(kind, [value], kind.lower())})


def _biased(**sizes):
    graph = Attention(**sizes)
    bias = np.zeros((graph.tokens, graph.tokens))
    return graph.pattern(before=lambda value: graph.node("Add", [value, graph.constant("bias", bias)], "biased"))


def _masked_head():
    graph = Attention(heads=1).operator()
    graph.nodes[0].input.append(graph.constant("mask", np.zeros((graph.tokens, graph.tokens))))
    return graph


def _without_heads():
    graph = Attention()
    graph.shape = ["batch", 24, 16]
    graph.inputs = [helper.make_tensor_value_info(name, graph.dtype, graph.shape) for name in ("q", "k", "v")]
    graph.node("Transpose", ["k"], "kt", perm=[0, 2, 1])
    graph.node("Softmax", [graph.node("MatMul", ["q", "kt"], "scores")], "probabilities", name="softmax", axis=-1)
    graph.node("MatMul", ["probabilities", "v"], "out")
    return graph


FORMS = {
    "pattern": (lambda: Attention().pattern(), None),
    "operator": (lambda: Attention().operator(), None),
    "additive bias": (_biased, None),
    "smallest head": (lambda: Attention(size=9).pattern(), None),
    "largest head": (lambda: Attention(size=256).pattern(), None),
    "one head": (lambda: Attention(heads=1).pattern(), None),
    "one head and a bias": (lambda: _biased(heads=1), "has one head and a mask or bias"),
    "one head and a mask": (_masked_head, "has one head and a mask or bias"),
    "fp32": (lambda: Attention(dtype=FP32).pattern(), "computes in fp32"),
    "fp32 operator": (lambda: Attention(dtype=FP32).operator(), "computes in fp32"),
    "small head": (lambda: Attention(size=8).pattern(), "head size of 8, and fused kernels take 9 to 256"),
    "large head operator": (lambda: Attention(size=257).operator(), "head size of 257"),
    "gate": (_gated, "probabilities changed by gated"),
    "probabilities out": (lambda: given_away(Attention().pattern()), "probabilities used elsewhere, as an output of the graph"),
    "tanh": (_capped, "tanh on its scores"),
    "sine": (lambda: _changed("Sin", "between"), "probabilities changed by sin before the values"),
    "rectified": (lambda: _changed("Relu", "between"), "probabilities changed by relu before the values"),
    "rectified scores": (lambda: _changed("Relu", "before"), "has Relu on its scores"),
    "absolute scores": (lambda: _changed("Abs", "before"), None),
    "sigmoid of scores": (lambda: _changed("Sigmoid", "before"), "has Sigmoid on its scores"),
    "quantised": (lambda: quantised_queries(Attention()), "quantised q, k or v"),
    "no axis of heads": (_without_heads, "without an axis for batch or heads"),
}


@pytest.mark.parametrize("form", FORMS)
def test_fusion_is_as_foreseen_from_the_graph(form, tmp_path, out):
    make, reason = FORMS[form]
    path = make().save(tmp_path / "graph.onnx")
    (site,) = find_attentions(path)
    built = build_engine(path, out, BuildConfig(allow_unfused=True))
    (row,) = built.fusion.attentions
    assert row.fused == (reason is None) == (site.obstacle is None)
    assert (row.reason is None) if reason is None else (reason in row.reason)


def test_find_attentions_leaves_other_softmaxes_alone(tmp_path):
    graph = Attention().pattern()
    graph.node("Softmax", ["out"], "classes", axis=-1)
    graph.outputs.append(helper.make_tensor_value_info("classes", graph.dtype, graph.shape))
    assert [site.anchor for site in find_attentions(graph.save(tmp_path / "graph.onnx"))] == ["softmax"]


def test_find_attentions_reads_sizes_of_cross_attention(tmp_path):
    graph = Attention(heads=3, size=32, tokens=10).operator()
    graph.inputs[1:] = [helper.make_tensor_value_info(name, graph.dtype, ["batch", 3, 77, 32]) for name in ("k", "v")]
    (site,) = find_attentions(graph.save(tmp_path / "graph.onnx"))
    assert (site.heads, site.head_size, site.queries, site.keys) == (3, 32, 10, 77)


def test_block_paths_count_each_stack_anew():
    paths = ("a.0", "a.1", "a.2", "b.c.0", "b.c.1")
    assert block_paths(paths, (0, 2, 4)) == {"a.0": 0, "a.1": 2, "b.c.0": 4}


# As TensorRT-RTX 1.7.1 printed it for the demo model, without inputs and outputs; between nodes as full TensorRT has it.
LOG = (
    "Layers:\n"
    "Name: __mye27727_0_myl0_0, LayerType: shape_call, Inputs: [], Outputs: [], TacticName: , StreamId: 0, Metadata: \n"
    "Name: node_MatMul_22+node_linear_myl0_4, LayerType: gemm, Inputs: [], Outputs: [], TacticName: __myelin_CASK_STUB, "
    "StreamId: 0, Metadata: [ONNX Layer: node_MatMul_22]\x1e[ONNX Layer: node_linear]\n"
    + "".join(
        f"Name: _gemm_mha_v2_myl{profile}_8, LayerType: kgen, Inputs: [ {{ Name: x, Dimensions: [-1,64,16] }}], Outputs: [], "
        "TacticName: _gemm_mha_v2_0x10496137c1b32b372097ac5bdc31e314, StreamId: 0, Metadata: "
        "[ONNX Layer: node_scaled_dot_product_attention]\n"
        for profile in (0, 1)
    )
)
KERNEL = "_gemm_mha_v2_0x10496137c1b32b372097ac5bdc31e314"


def test_layers_from_log_reads_nodes_and_a_kernel_a_profile():
    layers = layers_from_log(LOG)
    assert [layer["type"] for layer in layers] == ["shape_call", "gemm", "kgen", "kgen"]
    assert layers[1]["nodes"] == ["node_MatMul_22", "node_linear"]
    assert fused_nodes(layers) == {"node_scaled_dot_product_attention": [KERNEL, KERNEL]}


def test_layers_from_inspector_reads_the_same():
    layers = [
        {
            "Name": "_gemm_mha_v2_myl0_8",
            "LayerType": "kgen",
            "TacticName": KERNEL,
            "Metadata": "[ONNX Layer: a]\x1e[ONNX Layer: b]",
        },
        "a name alone",
    ]
    assert fused_nodes(layers_from_inspector(json.dumps({"Layers": layers}))) == {"a": [KERNEL], "b": [KERNEL]}


@pytest.mark.parametrize(
    ("tactic", "fused"),
    [
        ("_gemv_mha_v1_0x10496137c1b32b372097ac5bdc31e314", True),
        ("fused_mha_v2_fp16_64_sm87", True),
        ("sm86_xmma_fmha_v2_flash_attention_fp16", True),
        ("kgen_mha_0x12", True),
        ("__myelin_CASK_STUB", False),
        ("my_gemm_mha_layer", False),
        ("sm80_xmma_gemm_f16f16", False),
    ],
)
def test_fused_attention_is_told_by_its_tactic(tactic, fused):
    layer = {"name": "_gemm_mha_v2_looks_like_it", "type": "kgen", "tactic": tactic, "nodes": ["node"]}
    assert ("node" in fused_nodes([layer])) == fused


def _site(anchor):
    return AttentionSite(anchor, "Attention", "blocks.0", 0, "fp16", 2, 16, 24, 24, None)


def test_fusion_report_refuses_layers_that_the_bytes_contradict():
    layers = layers_from_log(LOG)
    sites = [_site("node_scaled_dot_product_attention")]
    assert fusion_report(sites, layers, KERNEL.encode(), "builder log", named=True).whole
    with pytest.raises(ShallowvitError, match=r"names the attention kernels _gemm_mha_v2_0x1049\w+, but the engine holds none"):
        fusion_report(sites, layers, b"weights", "builder log", named=True)
    other = KERNEL.replace("1049", "2049").encode()
    with pytest.raises(ShallowvitError, match="but the engine holds _gemm_mha_v2_0x2049"):
        fusion_report(sites, layers, other, "builder log", named=True)
    assert fusion_report(sites, layers, b"weights", "engine inspector", named=False).kernels is None


def test_check_fused_without_a_known_reason_points_at_the_log():
    report = fusion_report([_site("other")], layers_from_log(LOG), KERNEL.encode(), "builder log", named=True)
    with pytest.raises(ShallowvitError, match=r"0 of 1: that of block 0 \(blocks\.0\) isn't fused, and nothing in the graph"):
        check_fused(report)


@pytest.mark.parametrize("content", [b"", b"not a graph at all", bytes(range(256)) * 8, b"\x08\x0a"])
def test_build_engine_garbage_is_no_graph(content, tmp_path, out):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ShallowvitError, match=r"model\.onnx (is not an ONNX file|has (no nodes|opset 0))"):
        build_engine(path, out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: setattr(model.opset_import[0], "version", 99), r"has opset 99, onnx .* here knows 1 to \d+"),
        (lambda model: setattr(model, "ir_version", 99), r"has IR version 99, onnx .* knows up to \d+; update onnx"),
        (lambda model: model.graph.ClearField("output"), "has no outputs, so there is nothing to build"),
        (lambda model: model.graph.ClearField("node"), "has no nodes"),
        (lambda model: setattr(model.graph.node[0], "op_type", "Nonsense"), "the onnx checker refuses"),
    ],
)
def test_build_engine_spoilt_graph_is_refused(graph_of, tmp_path, out, spoil, message):
    model = onnx.load(graph_of())
    spoil(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ShallowvitError, match=message):
        build_engine(path, out)


@pytest.mark.parametrize(("left", "message"), [(None, "isn't there"), (10, "has 10 bytes")])
def test_build_engine_missing_weights_are_named(graph_of, tmp_path, out, left, message):
    onnx.save(onnx.load(graph_of()), tmp_path / "model.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    data = tmp_path / "w.data"
    if left is None:
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[:left])
    with pytest.raises(ShallowvitError, match=rf"keeps \S+ in w\.data, which {message}.*copy it too"):
        build_engine(tmp_path / "model.onnx", out)


def test_build_engine_external_weights(graph_of, tmp_path, out):
    onnx.save(onnx.load(graph_of()), tmp_path / "model.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    assert build_engine(tmp_path / "model.onnx", out).fusion.whole


def test_batch_range_out_of_order_is_refused():
    with pytest.raises(ShallowvitError, match="batches 4:2:8 aren't min <= opt <= max"):
        BatchRange(4, 2, 8)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (("y", (1, 3, 8), (2, 3, 8), (4, 3, 8)), "no input 'y'; its inputs: x"),
        (("x", (1, 3), (2, 3), (4, 3)), r"shape 1x3 has 2 sizes, but input 'x' has 3 \(\?x3x\?\)"),
        (("x", (1, 4, 8), (2, 4, 8), (4, 4, 8)), r"shape 1x4x8 doesn't fit input 'x', which is \?x3x\?"),
        (("x", (4, 3, 8), (2, 3, 8), (4, 3, 8)), "aren't min <= opt <= max in every size"),
        (("x", (0, 3, 8), (2, 3, 8), (4, 3, 8)), "shape 0x3x8 doesn't fit"),
    ],
)
def test_profiles_for_wrong_shapes_are_refused(shapes, message):
    with pytest.raises(ShallowvitError, match=message):
        profiles_for({"x": (-1, 3, -1)}, BuildConfig(shapes=(shapes,)))


def test_profiles_for_a_second_dynamic_size_asks_for_shapes():
    with pytest.raises(ShallowvitError, match=r"input 'x' has more dynamic sizes than its batch \(\?x3x\?\).*--shape x="):
        profiles_for({"x": (-1, 3, -1)}, BuildConfig())
    shape = ("x", (1, 3, 8), (2, 3, 8), (4, 3, 16))
    assert profiles_for({"x": (-1, 3, -1)}, BuildConfig(shapes=(shape,))) == ({"x": shape[1:]},)


def test_profiles_for_a_static_graph_has_none():
    assert profiles_for({"x": (1, 3, 8)}, BuildConfig()) == ()


def test_build_engine_dynamic_tokens(tmp_path, out):
    graph = Attention()
    graph.shape = ["batch", 2, "tokens", 16]
    graph.inputs = [helper.make_tensor_value_info(name, graph.dtype, graph.shape) for name in ("q", "k", "v")]
    shapes = tuple((name, (1, 2, 8, 16), (1, 2, 24, 16), (4, 2, 48, 16)) for name in ("q", "k", "v"))
    built = build_engine(graph.pattern().save(tmp_path / "graph.onnx"), out, BuildConfig(shapes=shapes))
    assert built.fusion.whole
    assert built.fusion.attentions[0].queries is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"compute_capabilities": (87,)}, r"can't be told to build for compute capability 8\.7; it takes 7\.5, 8\.0"),
        ({"compute_capabilities": (75, 86)}, r"compute capability 7\.5 can't run the graph's bf16, which needs 8\.0"),
        ({"target": "t4"}, r"the graph holds bf16, but .* has compute capability 7\.5; bf16 needs 8\.0"),
        ({"target": "jetson-agx-orin-64gb"}, "is built on the board itself, and this is none"),
        ({"target": "rtx-4091"}, r"no target 'rtx-4091'.*Near ones: rtx-4090"),
        (
            {"flavour": Flavour.RTX, "target": "jetson-agx-orin-64gb"},
            r"no rtx engine runs on jetson-agx-orin-64gb.*--engine tensorrt",
        ),
        ({"flavour": Flavour.TENSORRT, "python": sys.executable}, "tensorrt is not installed for"),
        ({"python": "/no/such/python"}, "--python /no/such/python: no such interpreter"),
        ({"flavour": Flavour.RTX, "dla_core": 0}, "TensorRT-RTX has no DLA; leave the option out"),
        ({"flavour": Flavour.RTX, "workspace_mib": 1}, r"workspace is too small: .*Raise --workspace"),
        ({"flavour": Flavour.RTX, "time_limit_s": 0.05}, r"stopped after the time limit of 0\.05 s; raise --time-limit"),
    ],
)
def test_build_engine_impossible_wish_is_one_sentence(graph_of, out, config, message):
    with pytest.raises(ShallowvitError, match=message) as raised:
        build_engine(graph_of("bf16"), out, BuildConfig(**config))
    assert "\n" not in str(raised.value)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "echo 'Internal error: bad alloc' >&2; kill -SEGV $$",
            r"was ended by SIGSEGV; its first words: Internal error: bad alloc",
        ),
        ("kill -ABRT $$", "was ended by SIGABRT without a word"),
        ("kill -KILL $$", r"was killed \(signal 9\), most likely for want of memory"),
        ("exit 3", "ended with 3 without a word"),
    ],
)
def test_build_engine_process_that_dies_is_one_sentence(graph_of, tmp_path, out, body, message):
    python = _interpreter(tmp_path / "python", body)
    with pytest.raises(ShallowvitError, match=message):
        build_engine(graph_of(), out, BuildConfig(Flavour.RTX, python=python))
    assert list(out.iterdir()) == []


def test_build_engine_crash_shows_the_first_real_error_of_the_log(graph_of, tmp_path, out):
    words = "[ERROR] cudaError 35: no driver\\n[ERROR] the weights are broken\\n[ERROR] a consequence\\n"
    body = f'printf "{words}" > "$(dirname "$2")/build.log"; kill -SEGV $$'
    with pytest.raises(ShallowvitError, match="SIGSEGV; its first words: the weights are broken"):
        build_engine(graph_of(), out, BuildConfig(Flavour.RTX, python=_interpreter(tmp_path / "python", body)))


def test_build_engine_full_disk_is_an_os_error_of_the_write(graph_of, tmp_path, out):
    # 256 blocks of 512 bytes: the engine doesn't fit into a file of this process
    python = _interpreter(tmp_path / "python", f'ulimit -f 256; exec {sys.executable} "$@"')
    with pytest.raises(OSError, match="File too large"):
        build_engine(graph_of(), out, BuildConfig(Flavour.RTX, python=python))
    assert list(out.iterdir()) == []


def test_build_engine_refusal_comes_with_what_the_graph_shows(tmp_path, out):
    graph = Attention().operator()
    mask = np.zeros((graph.tokens, graph.tokens))
    graph.nodes[0].input.append(graph.constant("mask", mask, TensorProto.FLOAT))
    with pytest.raises(ShallowvitError, match=r"TensorRT refuses at build: .*attention has a fp32 mask on fp16 attention"):
        build_engine(graph.save(tmp_path / "graph.onnx"), out)


def test_build_engine_unknown_operator_is_named_with_its_node(tmp_path, out):
    graph = Attention(tokens=16, size=16).pattern()
    graph.node("Det", ["out"], "determinant")
    graph.outputs.append(helper.make_tensor_value_info("determinant", graph.dtype, ["batch", 2]))
    with pytest.raises(ShallowvitError, match=r"TensorRT refuses at parse: determinant \(Det\): unsupported node$"):
        build_engine(graph.save(tmp_path / "graph.onnx"), out)


def test_build_engine_fp32_products_on_turing_are_refused_before_the_build(graph_of, out):
    assert not check_graph(graph_of()).fp32_products
    config = BuildConfig(Flavour.RTX, compute_capabilities=(75,), allow_unfused=True)
    with pytest.raises(ShallowvitError, match=r"no fp32 matrix products for compute capability 7\.5; export with"):
        build_engine(graph_of("fp32"), out, config)
    assert build_engine(graph_of(), out, BuildConfig(Flavour.RTX, target="t4")).fusion.whole


def test_check_graph_finds_the_formats(graph_of):
    facts = check_graph(graph_of("bf16"))
    assert "BFLOAT16" in facts.formats
    assert (facts.minimum_sm, facts.opset, facts.needs_attention_operator) == (80, 23, True)
    assert facts.inputs == {"pixel_values": (-1, 4, 3, 16, 16)}


@pytest.mark.parametrize("name", ["build_engine", "layers", "flavour_rtx", "flavour_tensorrt"])
def test_worker_is_python_of_a_jetson(name):
    from shallowvit.engines import worker

    source = Path(worker.__file__).with_name(f"{name}.py").read_text()
    assert ast.parse(source, feature_version=(3, 10)).body  # JetPack 6


def test_worker_runs_with_the_standard_library_and_tensorrt_alone():
    from shallowvit.engines import worker

    script = (
        "import sys, runpy\nfor n in ('numpy', 'onnx', 'torch', 'shallowvit'): sys.modules[n] = None\nsys.argv = ['x', '{}']\n"
    )
    folder = os.path.dirname(worker.__file__)
    script = (
        script.format("/no/job.json") + f"sys.path.insert(0, {folder!r})\nrunpy.run_path({folder!r} + '/build_engine.py')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def full_tensorrt(tmp_path):
    """An interpreter whose module ``tensorrt`` is TensorRT-RTX under full TensorRT's name and version: the same API underneath,
    so that this flavour's own calls run as far as they can without its library.
    """
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "tensorrt.py").write_text("from tensorrt_rtx import *\n__version__ = '10.14.1.48'\n")
    return _interpreter(tmp_path / "python", f'PYTHONPATH={folder} exec {sys.executable} "$@"')


def test_build_engine_full_tensorrt_goes_its_own_way(graph_of, out, full_tensorrt, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = BuildConfig(Flavour.TENSORRT, target="a100-80gb", python=full_tensorrt, workspace_mib=512, level=3)
    built = build_engine(graph_of(), out, config)
    assert (built.flavour, built.version, built.target) == (Flavour.TENSORRT, "10.14.1.48", "a100-80gb")
    assert (built.fusion.fused, built.fusion.expected) == (2, 2)


class _Config:
    """Keeps what is set: TensorRT-RTX's own object takes full TensorRT's options without an error and drops them."""

    def __init__(self):
        self.flags = []
        self.set_flag = self.flags.append


@pytest.mark.parametrize("level", ["ampere-plus", "same-compute-capability"])
def test_configure_of_full_tensorrt_sets_its_options(monkeypatch, level):
    import tensorrt_rtx as trt  # has the same names

    from shallowvit.engines.worker import flavour_tensorrt

    monkeypatch.setattr(trt, "__version__", "10.14.1.48")
    config = _Config()
    flavour_tensorrt.configure(trt, config, {"dla_core": 1, "version_compatible": True, "hardware_compatibility": level})
    assert (config.default_device_type, config.DLA_core) == (trt.DeviceType.DLA, 1)
    assert config.flags == [trt.BuilderFlag.VERSION_COMPATIBLE, trt.BuilderFlag.GPU_FALLBACK]
    assert config.hardware_compatibility_level == getattr(trt.HardwareCompatibilityLevel, level.upper().replace("-", "_"))
    with pytest.raises(ValueError, match="takes no compute capabilities"):
        flavour_tensorrt.configure(trt, config, {"compute_capabilities": [86]})


def test_build_engine_full_tensorrt_before_10_is_refused(graph_of, out, full_tensorrt, tmp_path):
    (tmp_path / "site/tensorrt.py").write_text("from tensorrt_rtx import *\n__version__ = '8.6.2.3'\n")
    with pytest.raises(ShallowvitError, match=r"TensorRT 8\.6\.2\.3 has no strongly typed networks; they came with 10\.0"):
        build_engine(graph_of(), out, BuildConfig(Flavour.TENSORRT, python=full_tensorrt, timing_cache=False))
