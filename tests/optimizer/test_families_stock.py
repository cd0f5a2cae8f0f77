"""Small models of stock classes: found, scored, pruned against a bypass written by hand, some exported and compared."""

import copy
import json

import numpy as np
import onnx_ir
import pytest
import torch

import families_table
from families.cases import open_case, removed_of
from families.run import all_cases, measure
from families.stock import STOCK
from shallowvit import ExportConfig, PlanConfig, load, plan, prune, save_pruned, score
from shallowvit.engines import BuildConfig, Flavour, build_engine
from shallowvit.exporting.bf16 import emulated_bf16
from shallowvit.exporting.onnx_export import export_onnx
from shallowvit.models.outputs import tensors_in

CASES = {case.name: case for case in STOCK}
# one of each kind of code; all of them go through the whole line in benchmarks/families/run.py
QUICK = [
    "vit-timm",
    "vit-transformers",
    "vit-torchvision",
    "deit-transformers",
    "mae-pretraining",
    "dinov2-swiglu",
    "dinov3-transformers",
    "beit-shared-bias",
    "siglip2-vision",
    "eva02-timm",
    "parallel-things-timm",
    "rope-mixed-timm",
    "convit-timm",
    "xcit-timm",
    "cait-timm",
    "volo-timm",
    "vitdet",
    "swin-timm",
    "swin-transformers",
    "swin-torchvision",
    "hiera-timm",
    "pvt-transformers",
    "mvit-v2-timm",
    "convnext-torchvision",
    "convnext-v2-transformers",
    "poolformer-timm",
    "tnt-timm",
    "mixer-timm",
    "videomae",
    "vjepa2",
    "timesformer",
    "video-swin-torchvision",
    "ast",
    "clip",
    "flava",
    "dpt",
    "dpt-dinov2",
    "dinov2-backbone",
    "beit-segmentation",
    "eomt",
    "yolos",
]
EXPORTED = {
    "vit-torchvision": 3,
    "beit-shared-bias": 3,
    "dinov3-transformers": 3,
    "swin-torchvision": 4,
    "convnext-v2-transformers": 0,
    "clip": 6,
    "mae-pretraining": 6,
}  # attentions of the pruned graph


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Operations this small wait for threads longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Load each model once."""
    loaded = {}

    def get(name):
        if name not in loaded:
            loaded[name] = open_case(CASES[name], tmp_path_factory.mktemp("model") / "model")
        return loaded[name]

    return get


def pruned_of(case, model):
    removed = ",".join(map(str, removed_of(case, model)))
    return prune(model, plan(model, None, PlanConfig(remove=removed)))


def skipped(model, removed):
    """The model in which the removed blocks compute and are not heard."""
    module = copy.deepcopy(model.module)
    for number in removed:
        block = module.get_submodule(model.blocks[number].path)
        block.forward = unheard(block.forward)
    return module


def unheard(forward):
    def called(*args, **kwargs):
        given = [one.clone() for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)]  # some add in place
        answer = forward(*args, **kwargs)
        if isinstance(answer, torch.Tensor):
            return given[0]
        # a block of pixels and patches hands both on; what else stands behind a state is of the block
        both = [one.shape for one in answer if isinstance(one, torch.Tensor)] == [one.shape for one in given]
        return (*given, *answer[len(given) :]) if both else (given[0], *answer[1:])

    return called


def answers(module, example):
    generator = torch.Generator().manual_seed(5)
    floats = {key: value for key, value in example.items() if isinstance(value, torch.Tensor) and value.is_floating_point()}
    drawn = {key: torch.randn(value.shape, generator=generator) for key, value in floats.items()}
    torch.manual_seed(0)  # of masks that are drawn in forward
    with torch.no_grad():
        return tensors_in(module(**example | drawn))


def apart(ours, theirs):
    """The largest difference over the largest value, over all outputs of floats."""
    assert [one.shape for one in ours] == [one.shape for one in theirs]
    pairs = [(one, other) for one, other in zip(ours, theirs, strict=True) if one.is_floating_point()]
    return max(float((one - other).abs().max() / other.abs().max().clamp(min=1e-9)) for one, other in pairs)


def test_all_cases_have_names_of_their_own_and_are_enough():
    names = [case.name for case in all_cases()]
    assert len(set(names)) == len(names) >= 45
    assert set(QUICK) <= set(CASES)


@pytest.mark.parametrize("name", QUICK)
def test_load_and_score_of_a_stock_class_find_the_stack_and_tell_its_blocks_apart(name, models):
    model, expect = models(name), CASES[name].expect
    stack = model.blocks[0].stack
    assert (stack, sum(block.stack == stack for block in model.blocks)) == (expect.stack, expect.blocks)
    assert len({row.score for row in score(model).blocks}) == len(model.blocks)


@pytest.mark.parametrize("name", QUICK)
def test_prune_of_a_stock_class_gives_the_model_that_skips_the_blocks(name, models):
    model, case = models(name), CASES[name]
    pruned = pruned_of(case, model)
    ours = answers(pruned.model.module, model.example)
    assert apart(ours, answers(skipped(model, pruned.plan.removed), model.example)) < 1e-5
    assert apart(ours, answers(model.module, model.example)) > 1e-3  # the blocks did something
    assert {one.way for one in pruned.removals} == {case.expect.way}
    assert all((case.expect.reason or "") in one.reason for one in pruned.removals)


@pytest.mark.parametrize("name", ["deit-transformers", "xcit-timm", "swin-transformers", "dinov2-backbone", "videomae"])
def test_save_pruned_of_a_stock_class_loads_as_the_stock_class(name, models, tmp_path):
    model = models(name)
    pruned = pruned_of(CASES[name], model)
    save_pruned(pruned, tmp_path / "pruned")
    again = load(tmp_path / "pruned")
    assert type(again.module) is type(model.module)
    assert len(again.blocks) == len(model.blocks) - len(pruned.plan.removed)
    assert apart(answers(again.module, model.example), answers(pruned.model.module, model.example)) == 0


@pytest.mark.parametrize("name", EXPORTED)
def test_export_of_a_stock_class_without_a_block_answers_as_torch(name, models, tmp_path):
    model = models(name)
    exported = export_onnx(pruned_of(CASES[name], model), tmp_path / "m.onnx", ExportConfig())
    assert exported.parity.relative_error < 1e-4
    assert (exported.attention_nodes, exported.attention_left) == (EXPORTED[name], ())
    assert {one.name for one in exported.inputs} == set(model.example)


def test_open_case_of_a_head_over_a_backbone_takes_pictures_of_the_backbones_size(models):
    assert models("dpt-dinov2").input_spec.shape == (3, 32, 32)
    assert CASES["depth-anything"].settings["backbone_config"]["image_size"] == 32
    assert models("depth-anything").input_spec.shape == (3, 32, 32)


def test_measure_of_a_case_that_takes_too_long_is_a_row():
    row = measure("vit-timm", 0.2, engine=False)
    assert (row["status"], row["reason"]) == ("crash", "start was still running after 0.2 s")
    assert row["conditions"]["packages"]["timm"]


def test_emulated_bf16_takes_a_half_that_a_shape_makes(tmp_path):
    half = onnx_ir.DataType.FLOAT16
    x = onnx_ir.Value(name="x", type=onnx_ir.TensorType(half), shape=onnx_ir.Shape([2]))
    size = onnx_ir.Value(name="size", const_value=onnx_ir.Tensor(np.array([2], np.int64), name="size"))
    filled = onnx_ir.node("ConstantOfShape", [size], {"value": onnx_ir.Tensor(np.array([3], np.float16))})
    total = onnx_ir.node("Add", [x, filled.outputs[0]])
    for node in (filled, total):
        node.outputs[0].dtype, node.outputs[0].shape = half, onnx_ir.Shape([2])
    out = onnx_ir.node("Cast", [total.outputs[0]], {"to": int(onnx_ir.DataType.FLOAT)})
    start = onnx_ir.Value(name="input", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape([2]))
    narrow = onnx_ir.node("Cast", [start], {"to": int(half)}, outputs=[x])
    out.outputs[0].dtype, out.outputs[0].name = onnx_ir.DataType.FLOAT, "out"
    graph = onnx_ir.Graph(
        [start], [out.outputs[0]], nodes=[narrow, filled, total, out], initializers=[size], opset_imports={"": 23}
    )
    onnx_ir.save(onnx_ir.Model(graph, ir_version=10), tmp_path / "m.onnx")

    import onnxruntime

    session = onnxruntime.InferenceSession(emulated_bf16(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": np.array([0.5, 1], np.float32)})
    np.testing.assert_array_equal(found, [3.5, 4])


def row(name, **values):
    conditions = {"device": "a CPU", "cores": 2, "packages": {"torch": "2"}, "time_utc": "2026-01-01"}
    base = {"name": name, "family": "plain ViT", "model": "timm x", "note": "", "status": "passes", "conditions": conditions}
    return base | {"wall_s": 10.0, "peak_mib": 900, "stage": None} | values


def test_families_table_says_what_passes_and_why_not(tmp_path, monkeypatch):
    export = {"status": "passes", "steps": [{"name": "fixed batch", "outcome": "used"}], "attentions": 3, "batch": 1}
    whole = {"class": "timm X", "stack": "blocks", "blocks_of_stack": 4, "ways": {"deleted": 4}, "removed": [2]}
    whole |= {"way": "deleted", "scored_by": "entropy", "export": export | {"relative_error": 2e-7}}
    rows = [
        row("a", **whole, engine={"status": "unfused", "fused": 2, "attentions": 3, "reason": "1 of them: a mask"}),
        row("a", **whole, engine={"status": "passes", "fused": 3, "attentions": 3, "reason": ""}),
        row("b", status="refused", reason="load: no stack | here", stage="load"),
        row("c", status="crash", reason="KeyError: 1", stage="export", **{key: whole[key] for key in ("stack", "removed")})
        | {"blocks_of_stack": 4, "way": "placeholder"},
    ]
    path = tmp_path / "families.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    monkeypatch.setattr(families_table, "_RESULTS", path)
    text = families_table.families_table()
    assert "### Plain ViT" in text
    assert "| `a` | timm X | `blocks`: 4 | 4 deleted | 2: deleted | 3, 2e-07; fixed batch; batch 1 only | 3 of 3 |" in text
    assert "a mask" not in text  # of a row that a newer one replaces
    assert r"- `b`: refused, since load: no stack \| here" in text
    assert "- `c`: crash in export: KeyError: 1" in text
    assert "| removal: deleted | 1 of 3 |" in text
    assert "| engine, every attention fused | 1 of 1 |" in text


def test_build_engine_of_an_attention_of_one_query_is_fused(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="builds engines; pip install 'shallowvit[tensorrt]'")
    module = torch.nn.MultiheadAttention(32, 2, batch_first=True).half()

    class Pooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = module
            self.query = torch.nn.Parameter(torch.randn(1, 1, 32).half())

        def forward(self, x):
            return self.attention(self.query.expand(x.shape[0], -1, -1), x, x, need_weights=False)[0]

    path = tmp_path / "pooled.onnx"
    batch = {0: torch.export.Dim("batch")}
    program = torch.onnx.export(
        Pooled().eval(), (torch.zeros(2, 16, 32).half(),), dynamo=True, opset_version=23, dynamic_shapes=(batch,)
    )
    program.save(path)
    (tmp_path / "engine").mkdir()
    built = build_engine(path, tmp_path / "engine", BuildConfig(Flavour.RTX))
    assert (built.fusion.fused, built.fusion.expected) == (1, 1)
