import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import shallowvit
from shallowvit import ExportConfig, PlanConfig, PrunedModel, ShallowvitError, plan, prune, verify
from shallowvit.cli.main import main
from shallowvit.engines import BuildConfig, build_engine
from shallowvit.errors import ParityError
from shallowvit.exporting import Precision, deployable, export_onnx
from shallowvit.exporting.graph import trace
from shallowvit.exporting.inputs import graph_inputs_of, sample_inputs, tensors_of_example
from shallowvit.exporting.onnx_export import inputs_of_graph
from shallowvit.exporting.outputs import wanted_outputs
from shallowvit.exporting.parity import check_parity
from shallowvit.exporting.records import GraphInput

from .several_inputs import tiny_clip, two_streams, with_camera
from .small_models import Block, loaded


@pytest.fixture(scope="module")
def camera():
    return with_camera()


@pytest.fixture(scope="module")
def pruned_camera(camera):
    """Block 1 of 4 is gone."""
    return _pruned(camera, "1")


def _pruned(model, removed):
    return prune(model, plan(model, config=PlanConfig(remove=removed)))


@pytest.fixture(scope="module")
def camera_bundle(pruned_camera, tmp_path_factory):
    outputs = ("0", "1", "encoder.blocks.1", "encoder.blocks.3.qkv:keys")
    return shallowvit.export(pruned_camera, tmp_path_factory.mktemp("bundles") / "camera", ExportConfig(outputs=outputs))


@pytest.fixture(scope="module")
def streams_bundle(tmp_path_factory):
    config = ExportConfig(outputs=("disparity", "score"))
    return shallowvit.export(_pruned(two_streams(), "0"), tmp_path_factory.mktemp("bundles") / "streams", config)


def _run(path, feeds):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, feeds), strict=True))


def test_graph_inputs_of_example_keeps_types_and_tells_what_has_a_batch(camera):
    x, number, gain = graph_inputs_of(camera)
    assert (x.name, x.dtype, x.layout, x.shape, x.batch) == ("x", "float32", "NCHW", (3, 16, 16), True)
    assert (number.name, number.dtype, number.layout, number.shape, number.batch) == ("camera", "int64", "N", (), True)
    assert (gain.name, gain.dtype, gain.layout, gain.shape, gain.batch) == ("gain", "float32", "D", (32,), False)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32])
def test_graph_inputs_of_other_types_are_kept(camera, dtype):
    model = replace(camera, example=camera.example | {"camera": torch.tensor([1], dtype=dtype)})
    assert graph_inputs_of(model)[1].dtype == str(dtype).removeprefix("torch.")


def test_graph_inputs_of_complex_input_raises(camera):
    model = replace(camera, example=camera.example | {"gain": torch.zeros(32, dtype=torch.complex64)})
    with pytest.raises(ShallowvitError, match=r"input gain of WithCamera is complex64; graphs here take float32, int64"):
        graph_inputs_of(model)


def test_tensors_of_example_main_is_first_and_nested_ones_are_named_by_their_place(camera):
    example = {"views": [torch.zeros(1, 2), torch.zeros(1, 3)], **camera.example}
    assert list(tensors_of_example(replace(camera, example=example))) == ["x", "views_0", "views_1", "camera", "gain"]


def test_tensors_of_example_too_many_raise(camera):
    example = camera.example | {f"more{n}": torch.zeros(1) for n in range(6)}
    with pytest.raises(ShallowvitError, match=r"WithCamera takes 9 tensors .* a graph here has 7 inputs at most"):
        tensors_of_example(replace(camera, example=example))


def test_tensors_of_example_without_the_main_one_raises(camera):
    with pytest.raises(ShallowvitError, match="has no tensor x, which is the model's main input; it has camera"):
        tensors_of_example(replace(camera, example={"camera": torch.tensor([1])}))


def test_sample_inputs_draws_numbers_keeps_masks_and_what_has_no_batch(camera):
    mask = torch.tensor([[1, 1, 0]])
    model = replace(
        camera, example=camera.example | {"mask": mask, "side": torch.zeros(1, 3, 8, 8), "noise": torch.zeros(1, 4)}
    )
    items, inputs_from = sample_inputs(graph_inputs_of(model), model, 40)
    assert inputs_from == "clips of handwritten digits"
    assert items["x"].shape == (40, 3, 16, 16)
    assert set(items["camera"].tolist()) == {0, 1, 2, 3, 4, 5}  # the example's is 5
    assert np.array_equal(items["mask"], np.repeat(mask.numpy(), 40, axis=0))
    assert np.array_equal(items["gain"], camera.example["gain"].numpy())
    assert items["side"].shape == (40, 3, 8, 8)
    assert items["side"].std() > 0.1  # digits
    assert abs(items["noise"].std() - 1) < 0.2  # zeros are a place-holder, no mask


def test_deployable_takes_its_inputs_by_position_and_keeps_constants(camera):
    x, number, gain = (torch.rand(3, 3, 16, 16), torch.tensor([0, 1, 2]), torch.rand(32))
    with torch.no_grad():
        expected = camera.module(x, number, gain, scale=0.5)[0]
        assert torch.equal(deployable(camera)(x, number, gain), expected)


def test_deployable_fp16_casts_inside_and_keeps_whole_numbers(camera):
    module = deployable(camera, Precision.FP16, outputs=wanted_outputs(PrunedModel(camera, plan(camera)), ("0", "1")))
    with torch.no_grad():
        scores, numbers = module(torch.rand(2, 3, 16, 16), torch.tensor([0, 1]), torch.rand(32))
    assert (scores.dtype, numbers.dtype, numbers.tolist()) == (torch.float32, torch.int64, [1, 2])
    assert next(module.model.parameters()).dtype == torch.float16


@pytest.mark.parametrize("batch", [1, 4])
def test_export_several_inputs_and_outputs_answer_as_torch(camera_bundle, camera, pruned_camera, batch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, 3, 16, 16), dtype=np.float32)
    number, gain = rng.integers(0, 6, batch), rng.random(32, dtype=np.float32)
    found = _run(camera_bundle.path / "model.onnx", {"x": x, "camera": number, "gain": gain})
    module, states = pruned_camera.model.module, {}
    blocks = module.encoder.blocks
    hooks = [
        blocks[0].register_forward_hook(lambda _m, _a, out: states.update(block=out)),
        blocks[2].qkv.register_forward_hook(lambda _m, _a, out: states.update(qkv=out)),
    ]
    with torch.no_grad():
        scores, numbers = module(torch.from_numpy(x), torch.from_numpy(number), torch.from_numpy(gain), scale=0.5)
    for hook in hooks:
        hook.remove()
    assert list(found) == ["output_0", "output_1", "encoder_blocks_1", "encoder_blocks_3_qkv_keys"]
    assert np.allclose(found["output_0"], scores.numpy(), atol=1e-4)
    assert np.array_equal(found["output_1"], numbers.numpy())
    assert np.allclose(found["encoder_blocks_1"], states["block"].numpy(), atol=1e-3)  # block 1 is gone: what block 0 hands on
    assert np.allclose(found["encoder_blocks_3_qkv_keys"], states["qkv"][..., 32:64].numpy(), atol=1e-3)


def test_export_manifest_describes_inputs_and_outputs(camera_bundle):
    graph = verify(camera_bundle.path).manifest.graph
    assert [(one.name, one.dtype, one.shape, one.batch) for one in graph.inputs] == [
        ("x", "float32", (3, 16, 16), True),
        ("camera", "int64", (), True),
        ("gain", "float32", (32,), False),
    ]
    assert [(one.name, one.dtype, one.source) for one in graph.outputs] == [
        ("output_0", "float32", "0"),
        ("output_1", "int64", "1"),
        ("encoder_blocks_1", "float32", "encoder.blocks.1"),
        ("encoder_blocks_3_qkv_keys", "float32", "encoder.blocks.3.qkv:keys"),
    ]
    assert graph.batch == "dynamic"
    assert any(step.outcome == "used" for step in graph.steps)
    parity = camera_bundle.manifest.parity
    assert [one.name for one in parity.outputs] == [one.name for one in graph.outputs]
    assert parity.relative_error == max(one.relative_error for one in parity.outputs) > 0


def test_export_manifest_tells_where_blocks_stand_and_how_others_went(camera_bundle):
    chosen = camera_bundle.manifest.plan
    assert chosen.places == ("encoder.blocks.0", "encoder.blocks.1", "encoder.blocks.2")
    assert chosen.places_of_blocks == {"encoder.blocks.0": 0, "encoder.blocks.1": 2, "encoder.blocks.2": 3}
    assert (chosen.removals[0].list, chosen.removals[0].gone, chosen.removals[0].way) == ("encoder.blocks", (1,), "deleted")
    assert chosen.granularity == "block"


def test_export_samples_hold_four_items_of_every_input(camera_bundle):
    assert "inputs.npz" in camera_bundle.manifest.files
    with np.load(camera_bundle.path / "inputs.npz") as samples:
        assert {name: samples[name].shape for name in samples.files} == {"x": (4, 3, 16, 16), "camera": (4,), "gain": (32,)}


def test_export_clip_takes_pictures_ids_and_mask(tmp_path):
    config = ExportConfig(outputs=("image_embeds", "text_model_output.last_hidden_state", "features_of_none"))
    with pytest.raises(ShallowvitError, match=r"features_of_none: CLIPModel has no such output or module.*image_embeds"):
        export_onnx(_pruned(tiny_clip(), "1"), tmp_path / "m.onnx", config)
    exported = export_onnx(_pruned(tiny_clip(), "1"), tmp_path / "m.onnx", replace(config, outputs=config.outputs[:2]))
    assert [one.name for one in exported.inputs] == ["pixel_values", "input_ids", "attention_mask"]
    assert [one.shape for one in exported.outputs] == [("batch", 24), ("batch", 8, 32)]
    feeds = sample_inputs(exported.inputs, tiny_clip(), 5)[0]
    assert [array.shape for array in _run(exported.path, feeds).values()] == [(5, 24), (5, 8, 32)]


def test_wanted_outputs_of_a_removed_block_is_the_last_kept_before_it(camera):
    pruned = _pruned(camera, "1,2")
    names = ("encoder.blocks.1", "encoder.blocks.2", "encoder.blocks.3", "norm")
    assert [one.module for one in wanted_outputs(pruned, names)] == [
        "encoder.blocks.0",
        "encoder.blocks.0",
        "encoder.blocks.1",
        "norm",
    ]


@pytest.mark.parametrize(
    ("removed", "name", "message"),
    [
        ("0,1", "encoder.blocks.1", "block 1 was removed, and so was every block of its list before it; name one that stays"),
        ("1", "encoder.blocks.1.qkv", r"block 1 \(encoder.blocks.1\) was removed, and nothing inside it is left"),
        ("1", "encoder.blocks.1.qkv:keys", "nothing inside it is left; encoder.blocks.0, encoder.blocks.2"),
        ("1", "encoder.blocks.7", "has no such output or module; its own outputs: 0, 1; modules by path, as encoder.blocks"),
        ("1", "nothing:keys", "has no such output or module"),
        ("1", "norm:middle", "no part 'middle' of a projection; choose queries, keys, values"),
        ("1", "norm:keys", "the output is 32 wide, which three parts don't share evenly"),
        ("1", "logits", "has no such output or module"),
        ("1", "features", "has no such output or module"),
    ],
)
def test_wanted_outputs_that_is_not_there_raises(camera, removed, name, message):
    with pytest.raises(ShallowvitError, match=message):
        wanted_outputs(_pruned(camera, removed), (name,))


def test_wanted_outputs_module_that_does_not_run_raises(camera):
    model = replace(camera, module=type(camera.module)(4))
    model.module.idle = torch.nn.Linear(2, 2)
    with pytest.raises(ShallowvitError, match="--output idle: one forward of WithCamera gives no tensor there"):
        wanted_outputs(PrunedModel(model, plan(camera)), ("idle",))


def test_wanted_outputs_given_twice_raises(pruned_camera):
    with pytest.raises(ShallowvitError, match="--output 0 is given twice"):
        wanted_outputs(pruned_camera, ("0", "0"))


def test_wanted_outputs_leave_the_model_without_hooks(camera, pruned_camera):
    wanted_outputs(pruned_camera, ("encoder.blocks.2",))
    deployable(pruned_camera.model, outputs=wanted_outputs(pruned_camera, ("encoder.blocks.2",)))
    assert not any(module._forward_hooks for module in pruned_camera.model.module.modules())


class NamedAlike(torch.nn.Module):
    """Its head is called what its input is called."""

    def __init__(self):
        super().__init__()
        self.blocks, self.x = torch.nn.ModuleList(Block() for _ in range(2)), torch.nn.Linear(8, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.x(x)


def test_export_output_called_as_the_input_gets_another_name(tmp_path):
    model = loaded(NamedAlike())
    exported = export_onnx(PrunedModel(model, plan(model)), tmp_path / "m.onnx", ExportConfig(outputs=("x",)))
    assert (exported.input.name, exported.output.name, exported.output.source) == ("x", "x_out", "x")


def test_export_timm_features_and_logits_compute_the_trunk_once(tmp_path):
    model = shallowvit.load("timm:vit_tiny_patch16_224?img_size=32&depth=3&embed_dim=48&num_heads=3&num_classes=5")
    pruned = _pruned(model, "1")
    config = ExportConfig(outputs=("logits", "features", "blocks.2.attn.qkv:keys"))
    exported = export_onnx(pruned, tmp_path / "m.onnx", config)
    kinds = [node.op_type for node in onnx.load(exported.path).graph.node]
    assert kinds.count("Attention") == 2
    assert [(one.name, one.shape) for one in exported.outputs] == [
        ("logits", ("batch", 5)),
        ("features", ("batch", 5, 48)),
        ("blocks_2_attn_qkv_keys", ("batch", 5, 48)),
    ]


def test_export_features_of_a_classifier_are_the_inner_models_states(pruned_video, tmp_path):
    exported = export_onnx(pruned_video, tmp_path / "m.onnx", ExportConfig(outputs=("features",)))
    assert exported.outputs[0].shape == ("batch", 32, 32)
    clips = np.random.default_rng(0).standard_normal((2, 4, 3, 16, 16), dtype=np.float32)
    with torch.no_grad():
        expected = pruned_video.model.module.videomae(torch.from_numpy(clips)).last_hidden_state.numpy()
    assert np.allclose(_run(exported.path, {"pixel_values": clips})["features"], expected, atol=1e-3)
    assert not any(name.startswith("classifier") for name in [w.name for w in onnx.load(exported.path).graph.initializer])


def test_export_embedded_preprocessing_goes_with_other_inputs(camera):
    from shallowvit.models import Preprocessing

    spec = replace(camera.input_spec, preprocessing=Preprocessing((16, 16, 3)))
    inputs = inputs_of_graph(replace(camera, input_spec=spec), ExportConfig(embed_preprocessing=True))
    assert [(one.name, one.dtype) for one in inputs] == [("frames", "uint8"), ("camera", "int64"), ("gain", "float32")]


def test_trace_named_sizes_are_dynamic_between_their_ends(tmp_path):
    class Pooled(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    one = GraphInput("x", "float32", "NCHW", (3, "height", "width"), {"height": (8, 32, 4), "width": (8, 32, 1)})
    graph, _steps = trace(Pooled().eval(), (one,), ("y",), ExportConfig())
    assert [dim if isinstance(dim, int) else None for dim in graph.graph.inputs[0].shape] == [None, 3, None, None]


def test_check_parity_of_unequal_whole_numbers_raises(camera_bundle, camera, pruned_camera):
    inputs = graph_inputs_of(pruned_camera.model)
    items, inputs_from = sample_inputs(inputs, pruned_camera.model, 4)
    wanted = wanted_outputs(pruned_camera, ("0", "1", "encoder.blocks.1", "encoder.blocks.3.qkv:keys"))

    class Off(torch.nn.Module):
        def forward(self, *tensors):
            first, second, *rest = deployable(pruned_camera.model, outputs=wanted)(*tensors)
            return (first, second + 1, *rest)

    with pytest.raises(ParityError, match=r"the graph's output output_1, of int64, isn't equal to torch's"):
        check_parity(camera_bundle.path / "model.onnx", Off(), inputs, items, inputs_from, Precision.FP32)


def test_check_parity_names_the_output_that_differs(camera_bundle, pruned_camera):
    inputs = graph_inputs_of(pruned_camera.model)
    items, inputs_from = sample_inputs(inputs, pruned_camera.model, 4)
    wanted = wanted_outputs(pruned_camera, ("0", "1", "encoder.blocks.1", "encoder.blocks.3.qkv:keys"))

    class Off(torch.nn.Module):
        def forward(self, *tensors):
            first, second, third, fourth = deployable(pruned_camera.model, outputs=wanted)(*tensors)
            return first, second, third, fourth * 2

    with pytest.raises(ParityError, match=r"the graph's output encoder_blocks_3_qkv_keys differs from torch by 0\.5"):
        check_parity(camera_bundle.path / "model.onnx", Off(), inputs, items, inputs_from, Precision.FP32)


def test_check_parity_another_shape_raises(streams_bundle):
    model = _pruned(two_streams(), "0").model
    inputs = graph_inputs_of(model)
    items, inputs_from = sample_inputs(inputs, model, 4)

    class Off(torch.nn.Module):
        def forward(self, left, right):
            return left[:, 0], left.mean((1, 2, 3))

    with pytest.raises(ParityError, match=r"output disparity has the shape \[3, 16, 5\], torch's \[3, 16, 16\]"):
        check_parity(streams_bundle.path / "model.onnx", Off(), inputs, items, inputs_from, Precision.FP32)


SNIPPET = """
import re, sys
for name in ("shallowvit", "shallowvit_bench", "torch", "onnx"):
    sys.modules[name] = None
exec(re.search("```python\\n(.*?)```", open("README.md").read(), re.S)[1])
"""


@pytest.mark.parametrize(("which", "printed"), [("camera_bundle", "(1, 7)"), ("streams_bundle", "(1, 16, 5)")])
def test_readme_of_several_inputs_shows_them_and_its_snippet_runs(request, which, printed):
    folder = request.getfixturevalue(which).path
    text = (folder / "README.md").read_text()
    assert text.count("| input |") == len(verify(folder).manifest.graph.inputs)
    done = subprocess.run([sys.executable, "-c", SNIPPET], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == printed


def test_readme_names_the_module_that_an_output_is_of(camera_bundle):
    text = (camera_bundle.path / "README.md").read_text()
    assert "| output | `encoder_blocks_1`, float32 [batch, 16, 32], of `encoder.blocks.1` |" in text


@pytest.fixture
def copied(camera_bundle, tmp_path):
    shutil.copytree(camera_bundle.path, tmp_path / "camera")
    return tmp_path / "camera"


def _edit(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["graph"]["inputs"].pop(), "takes x, camera, gain, the manifest says x, camera; export"),
        (lambda m: m["graph"]["outputs"].reverse(), "gives output_0, .* the manifest says encoder_blocks_3_qkv_keys, "),
        (lambda m: m["graph"].update(batch="any"), r"is damaged at graph\.batch"),
    ],
)
def test_verify_other_inputs_or_outputs_raise(copied, change, message):
    _edit(copied, change)
    with pytest.raises(ShallowvitError, match=message):
        verify(copied)


def test_verify_several_inputs_without_samples_raises(copied):
    (copied / "inputs.npz").unlink()
    _edit(copied, lambda manifest: manifest["files"].pop("inputs.npz"))
    with pytest.raises(ShallowvitError, match=r"has several inputs and no inputs\.npz; export the model again"):
        verify(copied)


@pytest.mark.parametrize("version", [1, 2])
def test_verify_older_manifest_is_upgraded_on_reading(bundle, tmp_path, version):
    folder = tmp_path / "old"
    shutil.copytree(bundle.path, folder)

    def age(manifest):
        graph = manifest["graph"]
        manifest["schema_version"] = version
        (first,) = graph.pop("inputs")
        graph["input"] = {key: first[key] for key in ("name", "dtype", "layout", "shape")}
        graph["outputs"] = [{key: one[key] for key in ("name", "dtype", "shape")} for one in graph["outputs"]]
        for gone in ("steps", "batch"):
            del graph[gone]
        for gone in ("places", "granularity", "removals"):
            del manifest["plan"][gone]
        del manifest["parity"]["outputs"]

    _edit(folder, age)
    manifest = verify(folder).manifest
    assert manifest.schema_version == version
    assert manifest.graph.inputs == bundle.manifest.graph.inputs
    assert manifest.plan.places_of_blocks == bundle.manifest.plan.places_of_blocks


def test_build_engine_of_several_inputs_fuses_and_has_a_profile_for_each(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX isn't installed here")
    pruned = _pruned(two_streams(3), "1")
    exported = export_onnx(pruned, tmp_path / "m.onnx", ExportConfig(Precision.FP16, outputs=("disparity", "score")))
    (tmp_path / "engine").mkdir()
    built = build_engine(exported.path, tmp_path / "engine", BuildConfig(), pruned.places)
    assert (built.fusion.fused, built.fusion.expected) == (4, 4)  # two blocks, each run on both streams
    assert all(set(profile) == {"left", "right"} for profile in built.profiles)
    assert {shapes[0][0] for shapes in built.profiles[0].values()} == {1}


def test_cli_export_output_is_repeatable_and_unknown_ones_fail(video_folder, tmp_path, monkeypatch, capsys):
    def run(*more):
        arguments = ["export", f"hf:{video_folder}", "-o", str(tmp_path / "b"), "-q", "--remove", "1", *more]
        monkeypatch.setattr(sys, "argv", ["shallowvit", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    assert run("--output", "logits", "--output", "nothing") == 1
    assert "--output nothing: VideoMAEForVideoClassification has no such output or module" in capsys.readouterr().err
    assert not run("--output", "logits", "--output", "features")
    assert [one.name for one in verify(tmp_path / "b").manifest.graph.outputs] == ["logits", "features"]


def test_quantize_several_inputs_calibrates_on_each_by_name(tmp_path):
    from shallowvit.exporting.quantization import quantize_graph
    from shallowvit.exporting.quantize_records import QuantizeConfig

    pruned = _pruned(two_streams(3), "1")
    exported = export_onnx(pruned, tmp_path / "m.onnx")
    batch = sample_inputs(exported.inputs, pruned.model, 8)[0]
    done = quantize_graph(exported.path, tmp_path / "q.onnx", QuantizeConfig(Precision.INT8), [batch])
    assert (done.samples, {"left", "right"} <= {row.tensor for row in done.ranges}) == (8, True)
    expected, found = (_run(path, batch)["features"] for path in (exported.path, done.path))
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)
