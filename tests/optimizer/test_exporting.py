import copy
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import shallowvit
from shallowvit import ExportConfig, PlanConfig, ShallowvitError, load, plan, prune, verify
from shallowvit.errors import ParityError
from shallowvit.exporting import Precision, deployable, export_onnx
from shallowvit.exporting.bf16 import emulated_bf16
from shallowvit.exporting.parity import TOLERANCES, check_parity, real_inputs
from shallowvit.exporting.records import FLOATS

from .small_models import Block, Stacked, loaded
from .test_surgery import TIMM_VIT

FLOAT_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@pytest.fixture(scope="module")
def graph_of(pruned_video, bundle, tmp_path_factory):
    """Export the pruned video model once per setting; the default is the shared bundle's."""
    made = {("fp32", 23): bundle.path / "model.onnx"}

    def path(precision="fp32", opset=23):
        if (precision, opset) not in made:
            out = tmp_path_factory.mktemp("graphs") / "model.onnx"
            made[precision, opset] = export_onnx(pruned_video, out, ExportConfig(Precision(precision), opset)).path
        return made[precision, opset]

    return path


def _count(path, kind):
    return sum(node.op_type == kind for node in onnx.load(path).graph.node)


def _run(path, inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


def _clips(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 4, 3, 16, 16), dtype=np.float32)


def test_export_opset_23_has_one_attention_a_block(graph_of, bundle):
    path = graph_of(opset=23)
    assert onnx.load(path).opset_import[0].version == 23
    assert (_count(path, "Attention"), _count(path, "Softmax")) == (2, 0)
    assert bundle.manifest.graph.attention_nodes == 2


def test_export_opset_18_has_the_pattern(graph_of):
    path = graph_of(opset=18)
    assert onnx.load(path).opset_import[0].version == 18
    assert (_count(path, "Attention"), _count(path, "Softmax")) == (0, 2)


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_export_any_batch_answers_as_torch(graph_of, pruned_video, opset, batch):
    inputs = _clips(batch)
    with torch.no_grad():
        expected = pruned_video.model.module(torch.from_numpy(inputs)).logits.numpy()
    assert np.abs(_run(graph_of(opset=opset), inputs) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("precision", "kind"),
    [("fp32", onnx.TensorProto.FLOAT), ("fp16", onnx.TensorProto.FLOAT16), ("bf16", onnx.TensorProto.BFLOAT16)],
)
def test_export_precision_is_that_of_the_weights_and_io_is_fp32(graph_of, precision, kind):
    graph = onnx.load(graph_of(precision)).graph
    matrices = [tensor for tensor in graph.initializer if tensor.data_type in FLOAT_TYPES and len(tensor.dims) >= 2]
    assert len(matrices) >= 2 * 4
    assert {tensor.data_type for tensor in matrices} == {kind}
    ends = [*graph.input, *graph.output]
    assert {value.type.tensor_type.elem_type for value in ends} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_export_layer_norms_are_whole_and_computed_in_fp32(graph_of, precision):
    norms = [node for node in onnx.load(graph_of(precision)).graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == 2 * 2 + 1  # two a block, one before the head
    stashes = [{a.name: a.i for a in node.attribute}.get("stash_type", 1) for node in norms]
    assert stashes == [onnx.TensorProto.FLOAT] * 5


def test_export_names_are_stable(graph_of):
    graph = onnx.load(graph_of()).graph
    assert ([value.name for value in graph.input], [value.name for value in graph.output]) == (["pixel_values"], ["logits"])
    batches = [value.type.tensor_type.shape.dim[0].dim_param for value in (*graph.input, *graph.output)]
    assert batches == ["batch", "batch"]


def test_export_metadata_tells_the_lineage(graph_of, pruned_video):
    found = {entry.key: entry.value for entry in onnx.load(graph_of()).metadata_props}
    chosen = pruned_video.plan
    assert json.loads(found["shallowvit.blocks_kept"]) == list(chosen.kept)
    assert json.loads(found["shallowvit.blocks_removed"]) == list(chosen.removed)
    assert found["shallowvit.source_weights_sha256"] == chosen.weights_sha256
    assert json.loads(found["shallowvit.scores"]) == {str(row.block): row.score for row in chosen.scores.blocks}
    assert found["shallowvit.criterion"] == "entropy"


def test_export_file_holds_no_path_of_this_machine(graph_of, video_folder):
    content = graph_of().read_bytes()
    home = Path(shallowvit.__file__).parents[1]
    for trace in (str(home), "site-packages", ".py", str(video_folder), sys.prefix, "/tmp/"):
        assert trace.encode() not in content


def test_export_nodes_say_which_block_they_are_of(graph_of):
    content = graph_of().read_bytes()
    assert b"encoder.layer.1" in content


@pytest.mark.parametrize(("precision", "opset"), [("fp32", 23), ("bf16", 23)])
def test_export_second_run_is_byte_identical(graph_of, pruned_video, tmp_path, precision, opset):
    again = export_onnx(pruned_video, tmp_path / "model.onnx", ExportConfig(Precision(precision), opset))
    assert again.path.read_bytes() == graph_of(precision, opset).read_bytes()


def test_export_parity_record_holds_the_numbers(bundle):
    parity = bundle.manifest.parity
    assert 0 < parity.relative_error <= parity.tolerance == TOLERANCES[Precision.FP32]
    assert (parity.inputs, parity.inputs_from, parity.top1_agreement) == (32, "clips of handwritten digits", 1.0)


def test_export_above_the_limit_weights_stand_beside_the_graph(pruned_video, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["shallowvit.exporting.graph"], "EXTERNAL_DATA_ABOVE_BYTES", 1000)
    written = [shallowvit.export(pruned_video, tmp_path / name / "small").path for name in _folders(tmp_path)]
    names = sorted(path.name for path in written[0].iterdir())
    assert names == ["README.md", "manifest.json", "model.onnx", "model.onnx.data"]
    assert "model.onnx.data" in verify(written[0]).manifest.files
    assert (written[0] / "model.onnx").stat().st_size < (bundle.path / "model.onnx").stat().st_size / 2
    assert np.array_equal(_run(written[0] / "model.onnx", _clips(2)), _run(bundle.path / "model.onnx", _clips(2)))
    assert [(written[0] / name).read_bytes() for name in names] == [(written[1] / name).read_bytes() for name in names]
    data = written[0] / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ShallowvitError, match=r"model\.onnx\.data has \d+ bytes"):
        verify(written[0])


def _folders(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        yield name


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (49, 33), (12, 20), (35, 17), (240, 320)])
def test_preprocessing_equals_the_models_own_processor(video_model, video_folder, size):
    from transformers import VideoMAEImageProcessor

    frames = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (4, *size, 3), dtype=np.uint8))
    expected = VideoMAEImageProcessor.from_pretrained(video_folder)(list(frames.numpy()), return_tensors="pt")["pixel_values"]
    prepare = deployable(video_model, preprocess=True, frame_size=size).prepare
    difference = (prepare(frames[None]) - expected).abs().max().item()
    # without a resize it is arithmetic; with one, a value may be rounded to the other of two whole numbers
    grey_level = 1 / 255 / 0.2
    assert difference < (1e-5 if size == (16, 16) else 1.01 * grey_level)


@pytest.mark.parametrize("size", [(32, 32), (48, 41), (41, 48), (50, 67), (20, 24)])
def test_preprocessing_equals_timms_transform(size):
    import timm

    model = load(TIMM_VIT)
    settings = timm.data.resolve_model_data_config(model.module, {"input_size": (3, 32, 32)})
    transform = timm.data.create_transform(**settings, is_training=False)
    _assert_like_pillow(model, transform, size, grey_level=1 / 255 / 0.5)


@pytest.mark.parametrize("size", [(240, 321), (300, 235)])
def test_preprocessing_equals_torchvisions_transform(torchvision_model, size):
    import torchvision

    transform = torchvision.models.ConvNeXt_Tiny_Weights.DEFAULT.transforms()
    _assert_like_pillow(torchvision_model, transform, size, grey_level=1 / 255 / 0.224)


def _assert_like_pillow(model, transform, size, grey_level):
    # smooth, as pictures are: Pillow rounds between its two passes, which on noise alone adds up
    rows, columns = np.mgrid[: size[0], : size[1]]
    frame = np.stack([127 + 120 * np.sin(rows / 5 + k) * np.cos(columns / 7) for k in range(3)], axis=-1).astype(np.uint8)
    expected = transform(Image.fromarray(frame))
    if size == model.input_spec.shape[-2:]:  # such frames are taken as prepared
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in _mean_std(model))
        expected = (torch.from_numpy(frame).movedim(-1, 0) / 255 - mean) / std
    found = deployable(model, preprocess=True, frame_size=size).prepare(torch.from_numpy(frame)[None])[0]
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() < 2.01 * grey_level
    assert (found - expected).abs().mean().item() < 0.3 * grey_level


def _mean_std(model):
    return model.input_spec.preprocessing.mean, model.input_spec.preprocessing.std


def test_export_embedded_preprocessing_is_in_the_graph(image_bundle):
    graph = onnx.load(image_bundle.path / "model.onnx").graph
    (frames,) = graph.input
    assert frames.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [dim.dim_value for dim in frames.type.tensor_type.shape.dim][1:] == [48, 41, 3]
    manifest = image_bundle.manifest
    assert (manifest.preprocessing.in_graph, manifest.preprocessing.frame_shape) == (True, (48, 41, 3))
    assert (manifest.graph.inputs[0].name, manifest.graph.inputs[0].layout) == ("frames", "NHWC")
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 41, 3), dtype=np.uint8)
    found = _run(image_bundle.path / "model.onnx", frames)
    model = load(image_bundle.manifest.source.spec)
    module = deployable(prune(model, plan(model, config=PlanConfig(remove="1"))).model, preprocess=True, frame_size=(48, 41))
    with torch.no_grad():
        expected = module(torch.from_numpy(frames)).numpy()
    assert np.abs(found - expected).max() < TOLERANCES[Precision.FP16] * np.abs(expected).max()


def test_export_frames_that_do_not_fill_the_model_raise(video_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(video_folder, folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"do_center_crop": False}))
    module = deployable(load(folder), preprocess=True, frame_size=(24, 40))
    with pytest.raises(ShallowvitError, match=r"turn --frame-size into \(16, 26\), but the model takes \(16, 16\)"):
        module(torch.zeros(1, 4, 24, 40, 3, dtype=torch.uint8))


def test_export_model_without_settings_can_not_embed_them():
    model = loaded(Stacked(torch.nn.ModuleList(Block() for _ in range(2))))
    with pytest.raises(ShallowvitError, match="comes without preprocessing settings"):
        deployable(model, preprocess=True)


def test_export_input_that_is_no_picture_is_exported_too(tmp_path):
    model = loaded(Stacked(torch.nn.ModuleList(Block() for _ in range(3))), seed=0)
    pruned = prune(model, plan(model, config=PlanConfig(remove="0")))
    exported = export_onnx(pruned, tmp_path / "model.onnx")
    assert (exported.parity.inputs_from, exported.output.name) == ("normal distribution", "features")
    inputs = np.random.default_rng(0).standard_normal((4, 5, 8), dtype=np.float32)
    with torch.no_grad():
        expected = pruned.model.module(torch.from_numpy(inputs)).numpy()
    assert np.allclose(_run(exported.path, inputs), expected, atol=1e-5)


@pytest.mark.parametrize("precision", FLOATS)
def test_check_parity_altered_weight_raises(graph_of, pruned_video, bundle, precision):
    model = pruned_video.model
    altered = copy.deepcopy(model.module)
    with torch.no_grad():
        altered.classifier.bias[2] += 0.5 * 8  # far above each tolerance
    module = deployable(loaded_like(model, altered))
    inputs, inputs_from = real_inputs(bundle.manifest.graph.inputs[0], model.input_spec, 4)
    with pytest.raises(ParityError, match=rf"in {precision} the graph's outputs differ from torch by .* above the tolerance"):
        check_parity(graph_of(str(precision)), module, bundle.manifest.graph.inputs[0], inputs, inputs_from, precision)


def loaded_like(model, module):
    from dataclasses import replace

    return replace(model, module=module)


def test_export_that_fails_parity_leaves_nothing(pruned_video, tmp_path, monkeypatch):
    monkeypatch.setitem(TOLERANCES, Precision.FP32, 0.0)
    with pytest.raises(ParityError, match="above the tolerance of 0"):
        shallowvit.export(pruned_video, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_export_all_zero_outputs_raise(pruned_video, bundle):
    model = pruned_video.model
    silent = copy.deepcopy(model.module)
    with torch.no_grad():
        silent.classifier.weight.zero_()
        silent.classifier.bias.zero_()
    inputs, inputs_from = real_inputs(bundle.manifest.graph.inputs[0], model.input_spec, 4)
    with pytest.raises(ParityError, match="the model's outputs are all zero on 4 inputs"):
        check_parity(
            bundle.path / "model.onnx",
            deployable(loaded_like(model, silent)),
            bundle.manifest.graph.inputs[0],
            inputs,
            inputs_from,
            Precision.FP32,
        )


def test_export_weight_beyond_fp16_raises_and_names_it():
    model = loaded(Stacked(torch.nn.ModuleList(Block() for _ in range(2))))
    with torch.no_grad():
        model.module.blocks[1].fc1.weight[0, 0] = 1e6
    with pytest.raises(ShallowvitError, match=r"blocks\.1\.fc1\.weight overflows in fp16; use --precision bf16 or fp32"):
        deployable(model, Precision.FP16)
    assert torch.isfinite(deployable(model, Precision.BF16)(model.example["x"])).all()


class Data(torch.nn.Module):
    """Branches on a value, which can't be traced."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x if x.sum().item() > 0 else -x


def test_export_model_that_can_not_be_traced_raises(tmp_path):
    with pytest.raises(ShallowvitError, match="export: torch can't export x -> features: "):
        export_onnx(_whole(loaded(Data())), tmp_path / "model.onnx")


def _whole(model):
    return prune(model, plan(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp7"}, "unknown precision 'fp7'; choose from fp32, fp16, bf16, int8"),
        ({"opset": 17}, "opset 17 is not offered; choose from 23, 18"),
        ({"frame_size": (24, 24)}, "--frame-size needs --embed-preprocessing"),
    ],
)
def test_export_config_unknown_choice_raises(settings, message):
    with pytest.raises(ShallowvitError, match=message):
        ExportConfig(**settings)


def test_emulated_bf16_refuses_a_graph_whose_fp32_copy_passes_the_message_limit(tmp_path, monkeypatch):
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.BFLOAT16, [4], [1.0, 2.0, 3.0, 4.0])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BFLOAT16, [4]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Mul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)]), tmp_path / "m.onnx")
    monkeypatch.setattr("shallowvit.exporting.bf16.EXTERNAL_DATA_ABOVE_BYTES", 8)
    with pytest.raises(ShallowvitError, match="above protobuf's 2 GB; use --precision fp16 or fp32"):
        emulated_bf16(tmp_path / "m.onnx")


def test_export_config_takes_a_precision_as_text():
    assert ExportConfig(precision="bf16").precision is Precision.BF16
