import numpy as np
import pytest
from onnx import TensorProto
from tiny_bundles import make_manifest, write_bundle

from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.errors import BenchError
from shallowvit_bench.preprocessing import crop_corner, input_from_frames, random_input, resized_shape


def test_input_from_frames_rescales_and_normalises(bundle):
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 16, 16, 3), np.uint8)
    made = input_from_frames(frames, read_bundle(bundle))
    expected = (frames / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    assert (made.dtype, made.shape) == (np.float32, (2, 8, 3, 16, 16))
    np.testing.assert_allclose(made, expected.transpose(0, 1, 4, 2, 3), atol=1e-5)


def test_input_from_frames_leaves_frames_when_the_graph_prepares_them(tmp_path):
    graph = make_manifest("x")["graph"] | {"input": {"name": "x", "dtype": "uint8", "layout": "NTHWC", "shape": [8, 16, 16, 3]}}
    settings = make_manifest("x")["preprocessing"] | {"in_graph": True}
    info = read_bundle(write_bundle(tmp_path / "whole", dtype=TensorProto.UINT8, graph=graph, preprocessing=settings))
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(input_from_frames(frames, info), frames)


@pytest.mark.parametrize(("shape", "dtype"), [((1, 8, 16, 16, 1), "uint8"), ((1, 8, 16, 16, 3), "float32")])
def test_input_from_frames_rejects_other_frames(bundle, shape, dtype):
    with pytest.raises(BenchError, match=rf"items are {dtype} .* takes uint8 \[8, 16, 16, 3\]"):
        input_from_frames(np.zeros(shape, dtype), read_bundle(bundle))


def test_input_from_frames_rejects_a_bundle_without_settings(tmp_path):
    info = read_bundle(write_bundle(tmp_path / "raw", preprocessing=None))
    with pytest.raises(BenchError, match=r"raw has no preprocessing settings"):
        input_from_frames(np.zeros((1, 8, 16, 16, 3), np.uint8), info)


def test_random_input_is_the_same_each_time(bundle):
    info = read_bundle(bundle)
    np.testing.assert_array_equal(random_input(info, 3), random_input(info, 3))


def test_random_input_needs_no_preprocessing(tmp_path):
    info = read_bundle(write_bundle(tmp_path / "raw", preprocessing=None))
    made = random_input(info, 2)
    assert (made.dtype, made.shape) == (np.float32, (2, 8, 3, 16, 16))


def test_random_input_rejects_a_type_numpy_lacks(tmp_path):
    graph = make_manifest("x")["graph"] | {
        "input": {"name": "x", "dtype": "bfloat16", "layout": "NTCHW", "shape": [8, 3, 16, 16]}
    }
    info = read_bundle(write_bundle(tmp_path / "bf16", graph=graph))
    with pytest.raises(BenchError, match=r"bf16 takes bfloat16; the harness feeds float32, float16, uint8"):
        random_input(info, 1)


@pytest.mark.parametrize(
    ("shape", "resize", "expected"),
    [
        ((49, 98), {"shortest_edge": 49}, (49, 98)),  # 49 * (1 / 49) is below 1: floats would give 48
        ((240, 320), {"shortest_edge": 224}, (224, 298)),
        ((240, 320), {"longest_edge": 224}, (168, 224)),
        ((240, 320), {"height": 10, "width": 20}, (10, 20)),
    ],
)
def test_resized_shape_follows_the_settings(shape, resize, expected):
    assert resized_shape(shape, resize) == expected


def test_resized_shape_refuses_settings_it_does_not_know():
    with pytest.raises(BenchError, match="resize by max_pixels, expected height and width"):
        resized_shape((8, 8), {"max_pixels": 64})


@pytest.mark.parametrize(("rounding", "corner"), [("down", (1, 3)), ("even", (2, 4))])
def test_crop_corner_rounds_half_a_pixel_as_the_library_does(rounding, corner):
    assert crop_corner((7, 11), {"height": 4, "width": 4}, rounding) == corner
